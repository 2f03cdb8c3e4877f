"""Maps of a block for root finding: variances of its weights and biases, and maps of correlations."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxstab.theory import host
from jaxstab.theory.block_moments import before_scaling, head_at
from jaxstab.theory.blocks import Block
from jaxstab.theory.host import AnyArray
from jaxstab.theory.maps import Length, log_square, log_sum
from jaxstab.theory.moments import LogMoments


class Gains(NamedTuple):
    """Logarithms of variances.

    Attributes:
        embed: ln variance of the embedding's weights.
        weight: ln variance of the block's weights, with the 1/keep that `block_moments` leaves out.
        bias: ln variance that biases add to x; -inf with BatchNorm, whose x ignores biases.
        own_bias: ln variance of the biases.
    """

    embed: AnyArray
    weight: AnyArray
    bias: AnyArray
    own_bias: AnyArray


def gains_of(block: Block, sigma_w: AnyArray, sigma_b: AnyArray) -> Gains:
    """Compute the variances in a block's map of x.

    Args:
        block: the block.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.

    Returns:
        Logarithms of the variances.
    """
    embed = log_square(sigma_w) + block.law.log_variance
    # the moments of a block with a norm contain dropout's factor
    if block.law.norm is not None:
        kept = 0.0
    else:
        kept = host.namespace(block.law.keep).log(block.law.keep)
    bias = log_square(sigma_b)
    return Gains(embed, embed - kept, bias - np.inf if block.law.norm == "batch" else bias, bias)


class Pairing(NamedTuple):
    """Parameters of a block's correlation map 1 - c' = share gap(1 - c) + field.

    Attributes:
        log_z: ln of the length at which phi is evaluated.
        moments: moments of phi at that length.
        share: factor of the gap of `log_pair`.
        field: 1 - c' of equal inputs with different masks; None where the masks are shared.
    """

    log_z: AnyArray
    moments: LogMoments
    share: AnyArray
    field: AnyArray | None


def pairing(
    block: Block, log_q: AnyArray, moments: LogMoments, length: Length, gains: Gains
) -> Pairing:
    """Compute the correlation map of a block without BatchNorm, or of its branch next to a skip.

    Args:
        block: the block.
        log_q: ln q, finite.
        moments: `block_moments` at q.
        length: length map at q.
        gains: gains of the block.

    Returns:
        Parameters of the map.
    """
    xp = host.namespace(log_q, length.log_ratio)
    # share of q' due to the weights, not the biases
    signal = xp.exp(gains.weight + moments.log_growth - length.log_ratio)
    if block.law.norm is None:
        log_z = log_q
        known = moments
        share = length.pair_share
    else:
        log_z, known, log_unit = before_scaling(block, log_q)
        share = signal * xp.exp(-log_unit)
    # a keep rate that `parted` left out is the float 1.0
    if block.law.shared_masks or isinstance(block.law.keep, float):
        return Pairing(log_z, known, share, None)
    return Pairing(log_z, known, share * block.law.keep, signal * (1.0 - block.law.keep))


def batch_state(
    block: Block, log_v: AnyArray, moments: LogMoments, gains: Gains
) -> tuple[AnyArray, AnyArray]:
    """Compute length and 1 - c of a batch after a block with BatchNorm.

    Args:
        block: the block.
        log_v: ln v of the batch that enters the block.
        moments: `block_moments` at v.
        gains: gains of the block.

    Returns:
        ln q, and 1 - c within the batch.
    """
    log_q = log_sum(gains.weight + head_at(block, log_v).log_power, gains.own_bias)
    return log_q, jnp.exp(gains.weight + moments.log_length - log_q)


def branch_of(block: Block) -> AnyArray:
    """Compute ln s^2, s the factor of a residual branch.

    Args:
        block: block with a residual skip.

    Returns:
        ln s^2.
    """
    law = block.law
    if law.skip == "rezero":
        return log_square(abs(law.alpha))
    if law.skip == "scaled" and law.depth:
        return -float(np.log(law.depth))
    return 0.0
