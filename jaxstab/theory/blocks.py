"""A block as root finding sees it: what its weights are given, as moments of one length x.

x is q, the length of h, or with BatchNorm v = q (1 - c), the variance within a batch, of which
alone the head of such a block is a function. The moments are those of phi, at once for concrete
numbers; with BatchNorm, or LayerNorm behind phi, they are those of `heads.head`, in a program.
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

# radii of BatchNorm's spheres are clipped beyond
_LONGEST_BATCH = 700.0


class Block(NamedTuple):
    """A law with what its activation is known to be.

    Attributes:
        law: of the block.
        phi: its activation.
        about: the activation's features.
        table: moments on spheres, where BatchNorm takes its statistics over a finite batch.
    """

    law: Law
    phi: Activation
    about: Features
    table: Sphere | None


class Form(NamedTuple):
    """What is static of a law, and the names of the numbers that count.

    Attributes:
        law: of the form, with the numbers that do not count at their defaults.
        names: of those that do.
    """

    law: Law
    names: tuple[str, ...]


def parted(law: Law) -> tuple[Form, tuple[AnyArray, ...]]:
    """Part a law into what is static and the numbers that its fixed points depend on.

    Args:
        law: the law.

    Returns:
        The form, and the numbers in the order of its names.
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
    """The block of a form.

    Args:
        form: of its law.
        phi: its activation.
        about: the activation's features.
        numbers: of the form's names.

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
    """Whether a block's moments are had from those of phi alone, in NumPy where its numbers are concrete.

    Args:
        law: of the block.

    Returns:
        Whether.
    """
    return law.norm is None or law.norm == "rms" or (law.norm == "layer" and not law.norm_after)


def grid_of(block: Block) -> Float[np.ndarray, " n"]:
    """The lengths on which roots are bracketed.

    Args:
        block: the block.

    Returns:
        ln x, ascending.
    """
    if block.law.norm == "batch":
        return LOG_LENGTHS[np.abs(LOG_LENGTHS) <= _LONGEST_BATCH]
    return LOG_LENGTHS


def on_grid(block: Block) -> LogMoments:
    """Moments on the grid of lengths.

    Args:
        block: the block.

    Returns:
        The moments, along the grid; numbers at once unless they depend on traced ones.
    """
    grid = grid_of(block)
    if not is_at_once(block.law):
        return block_moments(block, jnp.asarray(grid))
    in_program = host.is_traced(block.phi) and block.about.table is None
    return block_moments(block, jnp.asarray(grid) if in_program else grid)


def block_moments(block: Block, log_x: Float[AnyArray, "*n"]) -> LogMoments:
    """Moments of what a block's weights are given; without a norm those of phi, without dropout's 1/keep.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        The moments: ln E a^2 and ln E (da/dh)^2 with their powers of x.
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
    """Moments with LayerNorm or RMSNorm before or behind phi, from those of phi by the chain rule."""
    law = block.law
    log_epsilon = log(law.epsilon)
    if law.norm == "layer" and law.norm_after:
        known = _centred_moments(block, log_x)
    else:
        _, known, _ = _before_scaling(block, log_x)
    xp = host.namespace(log_x, log_epsilon, law.keep)
    # what is divided by: q, or with the norm behind phi V, or phi's variance
    log_divisor = known.log_length if law.norm_after else log_x
    power = known.length_power if law.norm_after else 1.0
    log_norm = log_sum(log_divisor, log_epsilon)
    # of the norm's argument in ln q, for one of that which is divided
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
    """The head of a block, of two inputs without correlation.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        Its moments.
    """
    one = jnp.ones_like(log_x)
    return head(block.law, block.phi, block.about, block.table, Signal(log_x, one, one))


def _centred_moments(block: Block, log_q: Float[AnyArray, ""]) -> LogMoments:
    """Moments of phi about its mean over the units: the variance in place of E phi^2."""

    def log_growth(log_q: AnyArray) -> tuple[AnyArray, LogMoments]:
        known = log_moments(block.phi, block.about, log_q)
        spread = log(variance(block.phi, block.about, log_q, block.about.nodes))
        # beyond the range of quadrature the variance grows as E phi^2
        return spread + known.log_growth - known.near_growth, known

    growth, power, known = jax.jvp(log_growth, (log_q,), (jnp.ones_like(log_q),), has_aux=True)
    return known._replace(
        log_length=growth + log_q,
        log_growth=growth,
        length_power=power + 1.0,
        power_size=abs(power + 1.0),
    )


def _batch_moments(block: Block, log_v: Float[AnyArray, ""]) -> LogMoments:
    """Moments of BatchNorm's head at a variance within the batch."""

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
        embed: of the embedding's weights.
        weight: of the block's, with what dropout adds where `block_moments` leaves it out.
        bias: of the biases in x: -inf with BatchNorm, whose x they do not change.
        own_bias: of the biases.
    """

    embed: AnyArray
    weight: AnyArray
    bias: AnyArray
    own_bias: AnyArray


def gains_of(block: Block, sigma_w: AnyArray, sigma_b: AnyArray) -> Gains:
    """The gains of a block's map of x.

    Args:
        block: the block.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.

    Returns:
        The gains.
    """
    embed = log_square(sigma_w) + block.law.log_variance
    # the head of a normed block has dropout's factor
    if block.law.norm is not None:
        kept = 0.0
    else:
        kept = host.namespace(block.law.keep).log(block.law.keep)
    bias = log_square(sigma_b)
    return Gains(embed, embed - kept, bias - np.inf if block.law.norm == "batch" else bias, bias)


class Pairing(NamedTuple):
    """What the correlation map of a block asks for: 1 - c' = share gap(1 - c) + field.

    Attributes:
        log_z: ln of the length at which phi is taken.
        moments: of phi there.
        share: factor of `log_pair`'s gap.
        field: 1 - c' of equal inputs, from masks of their own; None where the masks are the same.
    """

    log_z: AnyArray
    moments: LogMoments
    share: AnyArray
    field: AnyArray | None


def pairing(
    block: Block, log_q: AnyArray, moments: LogMoments, length: Length, gains: Gains
) -> Pairing:
    """The correlation map of a block without BatchNorm, or of its branch beside a skip.

    Args:
        block: the block.
        log_q: ln q, finite.
        moments: `block_moments` there.
        length: the map of the length there.
        gains: of the block.

    Returns:
        The map.
    """
    xp = host.namespace(log_q, length.log_ratio)
    # the share of q' that comes from the weights; a keep rate that is no argument is 1
    signal = xp.exp(gains.weight + moments.log_growth - length.log_ratio)
    if block.law.norm is None:
        log_z = log_q
        known = moments
        share = length.pair_share
    else:
        log_z, known, log_unit = _before_scaling(block, log_q)
        share = signal * xp.exp(-log_unit)
    if block.law.shared_masks or isinstance(block.law.keep, float):
        return Pairing(log_z, known, share, None)
    return Pairing(log_z, known, share * block.law.keep, signal * (1.0 - block.law.keep))


def _before_scaling(block: Block, log_q: AnyArray) -> tuple[AnyArray, LogMoments, AnyArray]:
    """The length at which a normed block takes phi, phi's moments there, and ln of the gap of unrelated inputs."""
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
    """Length and 1 - c of a batch behind a block with BatchNorm.

    Args:
        block: the block.
        log_v: ln v of the batch before it.
        moments: `block_moments` there.
        gains: of the block.

    Returns:
        ln q, and 1 - c within the batch.
    """
    log_q = log_sum(gains.weight + head_at(block, log_v).log_power, gains.own_bias)
    return log_q, jnp.exp(gains.weight + moments.log_length - log_q)


def vanishes(block: Block) -> AnyArray:
    """Whether a signal of length 0 stays one, without biases.

    Args:
        block: the block.

    Returns:
        Whether.
    """
    law = block.law
    centred = law.norm == "batch" or (law.norm == "layer" and law.norm_after)
    still = True if centred else _zero_at_zero(block.phi)
    if law.norm is not None:
        return still & (law.epsilon > 0)
    return still


def _zero_at_zero(phi: Activation) -> AnyArray:
    """Whether phi(0) = 0."""
    if isinstance(phi, Mixture):
        return _zero_at_zero(phi.first) & _zero_at_zero(phi.second)
    if host.is_traced(phi):
        return phi(jnp.zeros(1))[0] == 0
    return host.value_and_slope(phi)(np.zeros(1))[0][0] == 0


def far(block: Block) -> float:
    """ln of a length that stands for an infinite one beside a residual branch.

    Args:
        block: the block.

    Returns:
        ln x.
    """
    return float(grid_of(block)[-1])


def clipped(block: Block, log_x: AnyArray) -> AnyArray:
    """A finite length in place of 0 and inf.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        ln x.
    """
    xp = host.namespace(log_x)
    if block.law.residual:
        return xp.where(xp.isfinite(log_x), log_x, xp.where(log_x > 0, far(block), inside(log_x)))
    return xp.where(xp.isfinite(log_x), log_x, inside(log_x))


def branch_of(block: Block) -> AnyArray:
    """ln s^2, the square of a residual branch's factor.

    Args:
        block: the block, with a residual skip.

    Returns:
        The logarithm.
    """
    law = block.law
    if law.skip == "rezero":
        return log_square(abs(law.alpha))
    if law.skip == "scaled" and law.depth:
        return -float(np.log(law.depth))
    return 0.0
