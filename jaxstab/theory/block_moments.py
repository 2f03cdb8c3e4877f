"""Moments of a block's head as functions of the length x of `blocks`, with their powers of x.

The moments are those of phi, in NumPy for concrete numbers; with BatchNorm, or with LayerNorm after
phi, those of `heads.head`, in a compiled program.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxstab.theory import host
from jaxstab.theory.blocks import Block, grid_of, is_at_once
from jaxstab.theory.heads import head
from jaxstab.theory.host import AnyArray
from jaxstab.theory.maps import log_sum
from jaxstab.theory.moments import LogMoments, log_moments, variance
from jaxstab.theory.signals import Head, Signal, log


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
        _, known, _ = before_scaling(block, log_x)
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


def before_scaling(block: Block, log_q: AnyArray) -> tuple[AnyArray, LogMoments, AnyArray]:
    """Compute phi's moments at the length that it meets, for a block without BatchNorm.

    Args:
        block: the block.
        log_q: ln q.

    Returns:
        ln of phi's input length, phi's moments there, and ln of the gap's unit.
    """
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
