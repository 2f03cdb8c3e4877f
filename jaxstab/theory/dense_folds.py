"""Fold over blocks with dense skips, whose state concatenates all earlier states."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_sum
from jaxstab.theory.signals import Head, Signal
from jaxstab.theory.steps import Layers, Variances, has_parameters, parameter_ratios


class _Sums(NamedTuple):
    """Sums over the layers of a dense state, in logarithms but for distance, gap and within."""

    log_q: Array
    distance: Array
    log_power: Array
    gap: Array
    within: Array
    log_slope: Array
    few: Array
    log_fed: Array
    log_jacobian: Array
    log_end: Array


def dense(
    law: Law, variances: Variances, head_of: Callable[[Signal], Head], first: Signal, depth: int
) -> Layers:
    """Fold the signal over blocks with dense skips.

    Args:
        law: law of each block.
        variances: variances of each block.
        head_of: function of a signal that returns the head of a block.
        first: signal of layer 0.
        depth: number of blocks L.

    Returns:
        Records of layers 0..L.
    """
    none = jnp.full_like(first.log_q, -jnp.inf)
    zero = jnp.zeros_like(first.log_q)
    nothing = _Sums(none, zero, none, zero, zero, none, none, none, none, none)

    def layer(
        carry: tuple[Signal, _Sums, Array, Array, Array], count: Array
    ) -> tuple[tuple, tuple[Layers, Array, Array]]:
        signal, sums, log_new, log_last, _ = carry
        known = head_of(signal)
        new = _with_layer(law, variances, sums, signal, known, log_new)
        log_count = jnp.log(count)
        mean = variances.weight + new.log_power - log_count
        log_next = log_sum(mean, variances.bias)
        share = _share(mean, log_next)
        following = Signal(log_next, share * new.gap, share * new.within)
        read = Layers(
            log_q=new.log_q - log_count,
            own_log_q=signal.log_q,
            distance=new.distance,
            log_chi=none,
            log_entries=new.log_fed,
            # W divides by fan_in, which is `count` times the width
            log_few=log_sum(new.few - log_count, none if law.norm == "batch" else zero),
            log_jacobian=log_last,
        )
        log_weight = variances.weight - log_count
        log_following = log_weight + new.log_jacobian
        # at its end a Jacobian meets gradients of different examples that are independent
        log_end = log_weight + new.log_end
        slopes = (known.log_slope, new.log_slope)
        return (following, new, log_following, log_end, new.log_slope), (read, *slopes)

    counts = jnp.arange(1, depth + 2).astype(first.log_q.dtype)
    _, (read, slopes, summed) = jax.lax.scan(layer, (first, nothing, zero, zero, none), counts)
    return _with_gradients(read, variances.weight, slopes, summed)


def _with_layer(
    law: Law, variances: Variances, sums: _Sums, signal: Signal, known: Head, log_new: Array
) -> _Sums:
    """Add one layer to the sums; ln E s^2 of its Jacobian from h_0 is `log_new`."""
    many, _ = parameter_ratios(law, variances, signal, known)
    if has_parameters(law):
        own = variances.weight + known.log_own
    else:
        own = jnp.full_like(signal.log_q, -jnp.inf)
    # gaps are relative to the length of the sum so far
    log_power = log_sum(sums.log_power, known.log_power)
    log_q = log_sum(sums.log_q, signal.log_q)
    old_share = _share(sums.log_power, log_power)
    gap_share = _share(signal.log_q + known.log_unit, log_power)
    old_distance = _share(sums.log_q, log_q) * sums.distance
    return _Sums(
        log_q=log_q,
        distance=old_distance + _share(signal.log_q, log_q) * signal.distance,
        log_power=log_power,
        gap=old_share * sums.gap + gap_share * known.gap,
        within=old_share * sums.within + gap_share * known.within,
        log_slope=log_sum(sums.log_slope, known.log_slope),
        few=log_sum(sums.few, own),
        log_fed=log_sum(sums.log_fed, many),
        log_jacobian=log_sum(sums.log_jacobian, known.log_slope + log_new),
        log_end=log_sum(sums.log_end, known.log_isotropic + log_new),
    )


def _with_gradients(read: Layers, log_weight: Array, slopes: Array, summed: Array) -> Layers:
    """Add the factors of gradients to the records, from the slopes and their sums over layers."""
    depth = len(slopes) - 1
    counts = jnp.arange(1, depth + 1).astype(slopes.dtype)
    # from state l to state l - 1: l = 1..L
    grown = jax.vmap(log_sum)(jnp.zeros(depth), log_weight + slopes[1:] - jnp.log(counts))
    log_chi = jnp.append(grown + summed[:-1] - summed[1:], -jnp.inf)
    # share of the newest layer in a state's gradient, which reaches the branch's parameters
    newest = slopes - summed
    after = jnp.append(newest[1:], newest[-1:])
    jacobian = jax.lax.associative_scan(jax.vmap(log_sum), read.log_jacobian)
    return read._replace(
        log_chi=log_chi,
        log_entries=read.log_entries + after,
        log_few=read.log_few + after,
        log_jacobian=jacobian,
    )


def _share(part: Array, whole: Array) -> Array:
    """Compute e^(part - whole), 0 where `whole` is -inf."""
    positive = jnp.isfinite(whole)
    return jnp.where(
        positive & jnp.isfinite(part), jnp.exp(part - jnp.where(positive, whole, 0.0)), 0.0
    )
