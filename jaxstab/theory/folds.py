"""The fold over blocks that predicts: the state is that of two inputs, what is read off is every layer's record.

With A, D the moments of a block's head (`heads`), of weights of variance sigma_w^2 / fan_in:

    none       q' = sigma_w^2 A + sigma_b^2                 |dL/dh|^2 = sigma_w^2 D |dL/dh'|^2
    residual   q' = q + s^2 (sigma_w^2 A + sigma_b^2)       |dL/dh|^2 = (1 + s^2 sigma_w^2 D) |dL/dh'|^2
    dense      q_l = sigma_w^2 mean_{k<l} A_k + sigma_b^2   |dL/dh|^2 = (1 + sigma_w^2 D_l/l) (S_{l-1}/S_l) |dL/dh'|^2

with s = 1 for "sum" (Yang & Schoenholz 2017, arXiv:1712.08969), depth^-1/2 for "scaled", alpha for
"rezero", and S_l = sum_{k<=l} D_k for the state (h_0, .., h_l) of "dense" skips, whose gradient at
its end is as the readout's is. Where "peri" normalises the branch, sigma_w^2 and sigma_b^2 are those
divided by its length sigma_w^2 A + sigma_b^2 + epsilon.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.theory.batches import Sphere, spheres
from jaxstab.theory.features import Features
from jaxstab.theory.heads import head
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_square, log_sum
from jaxstab.theory.moments import inside
from jaxstab.theory.signals import Head, Signal, log
from jaxstab.theory.squashes import is_squashed

LOG_2 = math.log(2)


class Layers(NamedTuple):
    """What is read off at layers 0..L.

    Attributes:
        log_q: ln of the state's mean square, over all its layers' units where it holds several.
        own_log_q: ln q of the layer's own units.
        distance: 1 - c of the state.
        log_chi: ln of the factor of the squared gradient from a layer to the one below; last entry
            unused.
        log_entries: ln of the squared gradient of the layer's parameters over that of the state,
            per unit of width.
        log_few: the part of it that does not grow with the width.
        log_jacobian: ln |dh_l/dh_0|^2 per unit of the width.
    """

    log_q: Float[Array, " layer"]
    own_log_q: Float[Array, " layer"]
    distance: Float[Array, " layer"]
    log_chi: Float[Array, " layer"]
    log_entries: Float[Array, " layer"]
    log_few: Float[Array, " layer"]
    log_jacobian: Float[Array, " layer"]


class Gains(NamedTuple):
    """Logarithms of a block's variances.

    Attributes:
        weight: ln sigma_w^2 with the weights' own variance.
        bias: ln sigma_b^2.
        branch: ln s^2, of the branch beside a skip.
    """

    weight: Float[Array, ""]
    bias: Float[Array, ""]
    branch: Float[Array, ""]


def gains(law: Law, sigma_w: Array, sigma_b: Array, deepest: int) -> Gains:
    """The gains of a block.

    Args:
        law: of the block.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.
        deepest: number of blocks, where the law does not say it.

    Returns:
        Their logarithms.
    """
    log_weight = log_square(sigma_w) + law.log_variance
    branch = jnp.zeros_like(log_weight)
    if law.skip == "scaled":
        branch = branch - math.log(max(law.depth or deepest, 1))
    if law.skip == "rezero":
        branch = branch + log_square(jnp.abs(law.alpha))
    return Gains(log_weight, log_square(sigma_b), branch)


def normed(law: Law, gains: Gains, known: Head) -> Gains:
    """The gains of a block whose branch is normalised: both divided by its length.

    Args:
        law: of the block.
        gains: of W and b as they stand.
        known: the block's head.

    Returns:
        The gains of what joins the skip.
    """
    if not law.branch_norm:
        return gains
    length = log_sum(log_sum(gains.weight + known.log_power, gains.bias), log(law.epsilon))
    return gains._replace(weight=gains.weight - length, bias=gains.bias - length)


def carried(law: Law) -> float:
    """ln of the share of h that a skip hands on: 0 beside a residual branch, -inf without.

    Args:
        law: of the block.

    Returns:
        The logarithm.
    """
    if law.skip in ("sum", "scaled", "rezero"):
        return 0.0
    return -math.inf


class Stepped(NamedTuple):
    """One block's map.

    Attributes:
        signal: of the next layer.
        log_ratio: ln (q'/q).
        log_chi: ln of the squared gradient's factor.
        log_isotropic: the branch's share of the factor, where gradients of a batch's examples are
            independent.
    """

    signal: Signal
    log_ratio: Float[Array, ""]
    log_chi: Float[Array, ""]
    log_isotropic: Float[Array, ""]


def step(law: Law, gains: Gains, signal: Signal, known: Head) -> Stepped:
    """One block without a skip, or with a residual one.

    Args:
        law: of the block.
        gains: its gains.
        signal: that the block is given.
        known: its head at that signal.

    Returns:
        The next layer's signal, and the gradient's factor.
    """
    carry = carried(law)
    log_q = signal.log_q
    finite = jnp.where(jnp.isfinite(log_q), log_q, inside(log_q))
    branch = gains.branch + log_sum(gains.weight + known.log_gain, gains.bias - finite)
    added = gains.branch + log_sum(gains.weight + known.log_power, gains.bias)
    log_gap = gains.branch + gains.weight + known.log_unit
    log_chi = gains.branch + gains.weight + known.log_slope
    isotropic = gains.branch + gains.weight + known.log_isotropic
    if math.isinf(carry):
        ratio = branch
        log_next = added
    else:
        zero = jnp.zeros_like(branch)
        ratio = log_sum(zero, branch)
        log_next = log_sum(log_q, added)
        log_chi = log_sum(zero, log_chi)
    divisor = jnp.where(jnp.isfinite(ratio), ratio, 0.0)
    share = jnp.exp(log_gap - divisor)
    kept = jnp.exp(carry - divisor)
    passes = jnp.isfinite(log_gap)
    share = jnp.where(passes, share, 0.0)
    new = Signal(
        log_next,
        kept * signal.distance + share * known.gap,
        kept * signal.within + share * known.within,
    )
    return Stepped(new, ratio, log_chi, isotropic)


def _features_table(law: Law, phi: Activation, about: Features, dtype: jnp.dtype) -> Sphere | None:
    """Moments on spheres, where a law wants them."""
    if law.norm == "batch" and law.batch is not None:
        return spheres(phi, about, law.batch, dtype)
    return None


def first_signal(gains: Gains, log_input: Array, c0: Array) -> Signal:
    """The signal behind the embedding.

    Args:
        gains: of the embedding.
        log_input: ln of the input's mean square.
        c0: correlation of two inputs.

    Returns:
        The signal of layer 0.
    """
    log_q = log_sum(gains.weight + log_input, gains.bias)
    # two inputs without any signal stay as alike as they were
    weighted = jnp.where(
        log_q == -jnp.inf,
        1.0,
        jnp.exp(gains.weight + log_input - jnp.where(log_q == -jnp.inf, 0, log_q)),
    )
    distance = weighted * (1.0 - c0)
    return Signal(log_q, distance, distance)


def layers(
    law: Law, phi: Activation, about: Features, gains: Gains, first: Signal, depth: int
) -> Layers:
    """The fold over all blocks.

    Args:
        law: of each block.
        phi: its activation.
        about: the activation's features.
        gains: of each block.
        first: the signal of layer 0.
        depth: number of blocks L.

    Returns:
        What is read off at layers 0..L.
    """
    table = _features_table(law, phi, about, first.log_q.dtype)
    head_of = functools.partial(head, law, phi, about, table)
    fold = _dense if law.skip == "dense" else _sequential
    return fold(law, gains, head_of, first, depth)


def _has_parameters(law: Law) -> bool:
    """Whether the norm has a scale of its own."""
    return law.norm is not None or is_squashed(law.activation)


def _fed(
    law: Law, gains: Gains, signal: Signal, known: Head, shrunk: Array | None = None
) -> tuple[Array, Array]:
    """ln of a branch's squared gradient of parameters over that of the branch: per unit of width, and besides."""
    own = jnp.full_like(known.log_power, -jnp.inf)
    if _has_parameters(law):
        own = gains.weight + known.log_own
    if law.norm == "batch":
        # gradients add up to zero over a batch: only what differs between examples counts, and no
        # bias
        return signal.log_q + known.log_unit + log(known.within), own
    if shrunk is None or not law.branch_norm:
        return known.log_power, log_sum(own, jnp.zeros_like(own))
    # W and b lie behind the division by the branch's length, scale and bias of its norm before it
    return known.log_power + shrunk, log_sum(log_sum(own, shrunk), jnp.full_like(own, LOG_2))


def _sequential(
    law: Law, gains: Gains, head_of: functools.partial, first: Signal, depth: int
) -> Layers:
    log_none = jnp.full_like(first.log_q, -jnp.inf)

    def layer(
        carry: tuple[Signal, Array, Array], _: None
    ) -> tuple[tuple[Signal, Array, Array], Layers]:
        signal, climbed, isotropic = carry
        known = head_of(signal)
        own = normed(law, gains, known)
        stepped = step(law, own, signal, known)
        many, few = _fed(law, own, signal, known, shrunk=own.weight - gains.weight)
        few = own.branch + few
        if law.skip == "rezero":
            # the gradient of alpha is the branch's sum with that of the state
            seen = own.weight + (many if law.norm == "batch" else known.log_power)
            few = log_sum(few, seen if law.norm == "batch" else log_sum(seen, own.bias))
        if not math.isinf(carried(law)):
            kept = carried(law) + isotropic
        else:
            kept = log_none
        new = (
            stepped.signal,
            climbed + stepped.log_chi,
            log_sum(kept, climbed + stepped.log_isotropic),
        )
        read = Layers(
            signal.log_q,
            signal.log_q,
            signal.distance,
            stepped.log_chi,
            own.branch + many,
            few,
            isotropic,
        )
        return new, read

    zero = jnp.zeros_like(first.log_q)
    # the last layer's step is taken for its moments only
    _, read = jax.lax.scan(layer, (first, zero, zero), None, length=depth + 1)
    return read


class _Sums(NamedTuple):
    """Logarithms of sums over the layers that a dense state holds, and two that are no logarithms."""

    log_q: Array
    distance: Array
    log_power: Array
    gap: Array
    within: Array
    log_slope: Array
    few: Array
    log_fed: Array
    log_jacobian: Array


def _dense(law: Law, gains: Gains, head_of: functools.partial, first: Signal, depth: int) -> Layers:
    """Records of blocks whose state is all states before it, side by side."""
    none = jnp.full_like(first.log_q, -jnp.inf)
    zero = jnp.zeros_like(first.log_q)
    nothing = _Sums(none, zero, none, zero, zero, none, none, none, none)

    def layer(
        carry: tuple[Signal, _Sums, Array, Array], count: Array
    ) -> tuple[tuple, tuple[Layers, Array, Array]]:
        signal, sums, log_new, _ = carry
        known = head_of(signal)
        new = _with_layer(law, gains, sums, signal, known, log_new)
        log_count = jnp.log(count)
        mean = gains.weight + new.log_power - log_count
        log_next = log_sum(mean, gains.bias)
        share = _share(mean, log_next)
        following = Signal(log_next, share * new.gap, share * new.within)
        read = Layers(
            log_q=new.log_q - log_count,
            own_log_q=signal.log_q,
            distance=new.distance,
            log_chi=none,
            log_entries=new.log_fed,
            # the norm's own parameters see W of one source in `count`
            log_few=log_sum(new.few - log_count, none if law.norm == "batch" else zero),
            log_jacobian=log_new,
        )
        log_following = gains.weight + new.log_jacobian - log_count
        slopes = (known.log_slope, new.log_slope)
        return (following, new, log_following, new.log_slope), (read, *slopes)

    counts = jnp.arange(1, depth + 2).astype(first.log_q.dtype)
    _, (read, slopes, summed) = jax.lax.scan(layer, (first, nothing, zero, none), counts)
    return _with_gradients(read, gains.weight, slopes, summed)


def _with_layer(
    law: Law, gains: Gains, sums: _Sums, signal: Signal, known: Head, log_new: Array
) -> _Sums:
    """The sums with one layer more, whose Jacobian from the input has ln E s^2 = log_new."""
    many, _ = _fed(law, gains, signal, known)
    if _has_parameters(law):
        own = gains.weight + known.log_own
    else:
        own = jnp.full_like(signal.log_q, -jnp.inf)
    # the gap of a source, relative to the length of the sum so far
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
    )


def _with_gradients(read: Layers, log_weight: Array, slopes: Array, summed: Array) -> Layers:
    """The records with growth of gradients, from the slope of each layer and the sums over layers."""
    depth = len(slopes) - 1
    counts = jnp.arange(1, depth + 1).astype(slopes.dtype)
    # from state l to state l - 1: l = 1..L
    grown = jax.vmap(log_sum)(jnp.zeros(depth), log_weight + slopes[1:] - jnp.log(counts))
    log_chi = jnp.append(grown + summed[:-1] - summed[1:], -jnp.inf)
    # of a state's gradient, the share of its newest layer, which is what the branch's parameters
    # see
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
    """e^(part - whole), 0 where the whole is."""
    positive = jnp.isfinite(whole)
    return jnp.where(
        positive & jnp.isfinite(part), jnp.exp(part - jnp.where(positive, whole, 0.0)), 0.0
    )
