"""Blocks for root finding: moments of the weights' input as functions of one length x.

x is q, the length of h. With BatchNorm x is v = q (1 - c), the variance within a batch, which alone
determines the head. The moments are those of phi, in NumPy for concrete numbers; with BatchNorm, or
with LayerNorm after phi, those of `heads.head`, in a compiled program.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation, Mixture
from jaxstab.theory import host
from jaxstab.theory.batches import Sphere, spheres
from jaxstab.theory.features import Features
from jaxstab.theory.heads import head
from jaxstab.theory.host import AnyArray
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import Length, log_square, log_sum
from jaxstab.theory.moments import LogMoments, inside, log_moments, variance
from jaxstab.theory.roots import LOG_LENGTHS
from jaxstab.theory.signals import Head, Signal, log

# longer lengths are outside the grid of BatchNorm's spheres
_LONGEST_BATCH = 700.0


class Block(NamedTuple):
    """A law with the features of its activation.

    Attributes:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        table: moments on spheres, for BatchNorm over a finite batch; else None.
    """

    law: Law
    phi: Activation
    about: Features
    table: Sphere | None


class Form(NamedTuple):
    """Static part of a law, and the names of the numbers that its fixed points depend on.

    Attributes:
        law: law with all numbers at their defaults.
        names: names of the numbers that count.
    """

    law: Law
    names: tuple[str, ...]


def parted(law: Law) -> tuple[Form, tuple[AnyArray, ...]]:
    """Split a law into its static form and the numbers that its fixed points depend on.

    Args:
        law: law of a block.

    Returns:
        The form, and the numbers in the order of the form's names.
    """
    names = []
    if host.is_traced(law.keep) or np.any(np.asarray(law.keep) != 1.0):
        names.append("keep")
    if law.norm is not None:
        names.append("epsilon")
    if law.skip == "rezero":
        names.append("alpha")
    return Form(law.form, tuple(names)), tuple(getattr(law, name) for name in names)


def block_of(form: Form, phi: Activation, about: Features, numbers: tuple[AnyArray, ...]) -> Block:
    """Build the block of a form, the inverse of `parted`.

    Args:
        form: form of the block's law.
        phi: activation of the block.
        about: features of the activation.
        numbers: values of the form's names.

    Returns:
        The block.
    """
    law = dataclasses.replace(form.law, **dict(zip(form.names, numbers, strict=True)))
    table = None
    if law.finite_batch:
        assert law.batch is not None
        table = spheres(phi, about, law.batch, jnp.dtype(jnp.float64))
    return Block(law, phi, about, table)


def is_at_once(law: Law) -> bool:
    """Check that a block's moments follow from those of phi, and so need no compiled program.

    Args:
        law: law of the block.

    Returns:
        True where NumPy computes the moments of concrete numbers.
    """
    return law.norm is None or law.norm == "rms" or (law.norm == "layer" and not law.norm_after)


def grid_of(block: Block) -> Float[np.ndarray, " n"]:
    """Choose the lengths between which roots are bracketed.

    Args:
        block: the block.

    Returns:
        ln x, ascending.
    """
    if block.law.norm == "batch":
        return LOG_LENGTHS[np.abs(LOG_LENGTHS) <= _LONGEST_BATCH]
    return LOG_LENGTHS


def on_grid(block: Block) -> LogMoments:
    """Compute the moments on the grid of lengths.

    Args:
        block: the block.

    Returns:
        Moments along the grid; NumPy arrays where possible.
    """
    grid = grid_of(block)
    if not is_at_once(block.law):
        return block_moments(block, jnp.asarray(grid))
    in_program = host.is_traced(block.phi) and block.about.table is None
    return block_moments(block, jnp.asarray(grid) if in_program else grid)


def block_moments(block: Block, log_x: Float[AnyArray, "*n"]) -> LogMoments:
    """Compute the moments of a, the weights' input.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        ln E a^2 and ln E (da/dh)^2 with their powers of x. Without a norm they are those of phi,
        without dropout's 1/keep.
    """
    if block.law.norm is None:
        return log_moments(block.phi, block.about, log_x)
    if is_at_once(block.law):
        return _normed_moments(block, log_x)
    if block.law.norm == "batch":
        one = functools.partial(_batch_moments, block)
    else:
        one = functools.partial(_normed_moments, block)
    if jnp.ndim(log_x) == 0:
        return one(log_x)
    return jax.vmap(one)(log_x)


def _normed_moments(block: Block, log_x: Float[AnyArray, "*n"]) -> LogMoments:
    """Compute the moments with LayerNorm or RMSNorm from those of phi, by the chain rule."""
    law = block.law
    log_epsilon = log(law.epsilon)
    if law.norm == "layer" and law.norm_after:
        known = _centred_moments(block, log_x)
    else:
        _, known, _ = _before_scaling(block, log_x)
    xp = host.namespace(log_x, log_epsilon, law.keep)
    # the norm divides by q, or after phi by V or phi's variance
    log_divisor = known.log_length if law.norm_after else log_x
    power = known.length_power if law.norm_after else 1.0
    log_norm = log_sum(log_divisor, log_epsilon)
    # d ln(normalised square) / d ln(square)
    kept = xp.exp(log_epsilon - log_norm)
    lost = log_norm + xp.log(law.keep)
    log_length = known.log_length - (lost if law.norm_after else xp.log(law.keep))
    log_growth = known.log_growth - lost
    log_slope = known.log_slope - lost
    length_power = known.length_power * kept
    slope_power = known.slope_power * (1.0 if law.norm_after else kept) - power * (1.0 - kept)
    zero = xp.zeros_like(log_length)
    return LogMoments(
        zero, zero, log_length, log_growth, log_growth, log_slope, length_power,
        known.power_size * kept, log_slope, slope_power,
    )  # fmt: skip


def head_at(block: Block, log_x: Float[AnyArray, ""]) -> Head:
    """Compute the head of a block for two uncorrelated inputs.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        Moments of the head.
    """
    one = jnp.ones_like(log_x)
    return head(block.law, block.phi, block.about, block.table, Signal(log_x, one, one))


def _centred_moments(block: Block, log_q: Float[AnyArray, ""]) -> LogMoments:
    """Compute the moments of phi minus its mean over units: variance in place of E phi^2."""

    def log_growth(log_q: AnyArray) -> tuple[AnyArray, LogMoments]:
        known = log_moments(block.phi, block.about, log_q)
        spread = log(variance(block.phi, block.about, log_q, block.about.nodes))
        # outside the range of quadrature the variance is taken to grow as E phi^2
        return spread + known.log_growth - known.near_growth, known

    growth, power, known = jax.jvp(log_growth, (log_q,), (jnp.ones_like(log_q),), has_aux=True)
    return known._replace(
        log_length=growth + log_q,
        log_growth=growth,
        length_power=power + 1.0,
        power_size=abs(power + 1.0),
    )


def _batch_moments(block: Block, log_v: Float[AnyArray, ""]) -> LogMoments:
    """Compute the moments of a BatchNorm head at the variance within the batch."""

    def logarithms(log_v: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        known = head_at(block, log_v)
        log_growth = known.log_unit + log(known.within)
        return log_growth + log_v, log_growth, known.log_slope

    values, powers = jax.jvp(logarithms, (log_v,), (jnp.ones_like(log_v),))
    log_length, log_growth, log_slope = values
    length_power, _, slope_power = powers
    zero = jnp.zeros_like(log_v)
    return LogMoments(
        zero, zero, log_length, log_growth, log_growth, log_slope, length_power, abs(length_power),
        log_slope, slope_power,
    )  # fmt: skip


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
        log_z, known, log_unit = _before_scaling(block, log_q)
        share = signal * xp.exp(-log_unit)
    # a keep rate that `parted` left out is the float 1.0
    if block.law.shared_masks or isinstance(block.law.keep, float):
        return Pairing(log_z, known, share, None)
    return Pairing(log_z, known, share * block.law.keep, signal * (1.0 - block.law.keep))


def _before_scaling(block: Block, log_q: AnyArray) -> tuple[AnyArray, LogMoments, AnyArray]:
    """Compute ln of phi's input length, phi's moments there, and ln of the gap's unit."""
    law = block.law
    phi = block.phi
    about = block.about
    if law.norm_after:
        log_z = log_q
    else:
        log_z = log_q - log_sum(log_q, log(law.epsilon))
    known = log_moments(phi, about, log_z)
    if law.norm == "layer" and law.norm_after:
        many = functools.partial(variance, phi, about, nodes=about.nodes)
        spread = many(log_z) if log_z.ndim == 0 else jax.vmap(many)(log_z)
        return log_z, known, log(spread)
    return log_z, known, known.near_growth


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


def vanishes(block: Block) -> AnyArray:
    """Check that a block without biases maps length 0 to length 0.

    Args:
        block: the block.

    Returns:
        Boolean, traced where the block is.
    """
    law = block.law
    centred = law.norm == "batch" or (law.norm == "layer" and law.norm_after)
    still = True if centred else _zero_at_zero(block.phi)
    if law.norm is not None:
        return still & (law.epsilon > 0)
    return still


def _zero_at_zero(phi: Activation) -> AnyArray:
    """Check that phi(0) = 0."""
    if isinstance(phi, Mixture):
        return _zero_at_zero(phi.first) & _zero_at_zero(phi.second)
    if host.is_traced(phi):
        return phi(jnp.zeros(1))[0] == 0
    return host.value_and_slope(phi)(np.zeros(1))[0][0] == 0


def far(block: Block) -> float:
    """Choose the finite length that stands for q = inf of a residual block.

    Args:
        block: the block.

    Returns:
        ln x.
    """
    return float(grid_of(block)[-1])


def clipped(block: Block, log_x: AnyArray) -> AnyArray:
    """Replace lengths 0 and inf by finite ones.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        Finite ln x.
    """
    xp = host.namespace(log_x)
    if block.law.residual:
        return xp.where(xp.isfinite(log_x), log_x, xp.where(log_x > 0, far(block), inside(log_x)))
    return xp.where(xp.isfinite(log_x), log_x, inside(log_x))


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
