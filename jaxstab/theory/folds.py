"""Fold over blocks behind `predict`, which carries the signal of two inputs and records each layer.

With A and D the moments of a block's head (`heads`), and weights of variance sigma_w^2 / fan_in:

    none       q' = sigma_w^2 A + sigma_b^2                 |dL/dh|^2 = sigma_w^2 D |dL/dh'|^2
    residual   q' = q + s^2 (sigma_w^2 A + sigma_b^2)       |dL/dh|^2 = (1 + s^2 sigma_w^2 D) |dL/dh'|^2
    dense      q_l = sigma_w^2 mean_{k<l} A_k + sigma_b^2   |dL/dh|^2 = (1 + sigma_w^2 D_l/l) (S_{l-1}/S_l) |dL/dh'|^2

Here s = 1 for "sum" (Yang & Schoenholz 2017, arXiv:1712.08969), depth^-1/2 for "scaled" and alpha
for "rezero". S_l = sum_{k<=l} D_k belongs to the state (h_0, .., h_l) of "dense" skips, whose
gradient at the last layer is that of a readout. Where "peri" normalises the branch, sigma_w^2 and
sigma_b^2 are divided by the branch's length sigma_w^2 A + sigma_b^2 + epsilon.
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
    """Records of layers 0..L.

    Attributes:
        log_q: ln of the state's mean square, over the units of all layers that the state holds.
        own_log_q: ln q of the layer's own units.
        distance: 1 - c of the state.
        log_chi: ln of the squared gradient's factor from the layer above to this one; last entry
            unused.
        log_entries: ln of the squared gradient of the parameters of the block above over that of
            its output, the part in proportion to width, per unit of width.
        log_few: ln of the part of that ratio that does not depend on width.
        log_jacobian: ln |dh_l/dh_0|^2 per unit of width.
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
        weight: ln of sigma_w^2 times the weights' variance at unit gain.
        bias: ln sigma_b^2.
        branch: ln s^2, s the factor of a residual branch.
    """

    weight: Float[Array, ""]
    bias: Float[Array, ""]
    branch: Float[Array, ""]


def gains(law: Law, sigma_w: Array, sigma_b: Array, deepest: int) -> Gains:
    """Compute the variances of a block.

    Args:
        law: law of the block.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.
        deepest: number of blocks, used where the law has no depth.

    Returns:
        Logarithms of the variances.
    """
    log_weight = log_square(sigma_w) + law.log_variance
    branch = jnp.zeros_like(log_weight)
    if law.skip == "scaled":
        branch = branch - math.log(max(law.depth or deepest, 1))
    if law.skip == "rezero":
        branch = branch + log_square(jnp.abs(law.alpha))
    return Gains(log_weight, log_square(sigma_b), branch)


def normed(law: Law, gains: Gains, known: Head) -> Gains:
    """Divide the variances by the branch's length, where the law normalises the branch.

    Args:
        law: law of the block.
        gains: variances of W and b.
        known: head of the block.

    Returns:
        Variances of the branch that is added to the skip.
    """
    if not law.branch_norm:
        return gains
    length = log_sum(log_sum(gains.weight + known.log_power, gains.bias), log(law.epsilon))
    return gains._replace(weight=gains.weight - length, bias=gains.bias - length)


def carried(law: Law) -> float:
    """Compute ln of the factor of h in the next state: 0 with a residual skip, -inf without.

    Args:
        law: law of the block.

    Returns:
        Logarithm of the factor.
    """
    if law.skip in ("sum", "scaled", "rezero"):
        return 0.0
    return -math.inf


class Stepped(NamedTuple):
    """Result of one block's map.

    Attributes:
        signal: signal of the next layer.
        log_ratio: ln (q'/q).
        log_chi: ln of the squared gradient's factor.
        log_isotropic: ln of the branch's part of the factor, where gradients of a batch's examples
            are independent.
    """

    signal: Signal
    log_ratio: Float[Array, ""]
    log_chi: Float[Array, ""]
    log_isotropic: Float[Array, ""]


def step(law: Law, gains: Gains, signal: Signal, known: Head) -> Stepped:
    """Map the signal through one block without a skip or with a residual skip.

    Args:
        law: law of the block.
        gains: variances of the block.
        signal: signal that enters the block.
        known: head of the block at that signal.

    Returns:
        Signal of the next layer, and factors of the gradient.
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
    """Tabulate moments on spheres, for BatchNorm over a finite batch; else None."""
    if law.finite_batch:
        assert law.batch is not None
        return spheres(phi, about, law.batch, dtype)
    return None


def first_signal(gains: Gains, log_input: Array, c0: Array) -> Signal:
    """Compute the signal after the embedding.

    Args:
        gains: variances of the embedding.
        log_input: ln of the input's mean square.
        c0: correlation of two inputs.

    Returns:
        Signal of layer 0.
    """
    log_q = log_sum(gains.weight + log_input, gains.bias)
    # at length 0 the correlation stays c0
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
    """Fold the signal over all blocks.

    Args:
        law: law of each block.
        phi: activation of each block.
        about: features of the activation.
        gains: variances of each block.
        first: signal of layer 0.
        depth: number of blocks L.

    Returns:
        Records of layers 0..L.
    """
    table = _features_table(law, phi, about, first.log_q.dtype)
    head_of = functools.partial(head, law, phi, about, table)
    fold = _dense if law.skip == "dense" else _sequential
    return fold(law, gains, head_of, first, depth)


def _has_parameters(law: Law) -> bool:
    """Check that the block has a norm with parameters."""
    return law.norm is not None or is_squashed(law.activation)


def _fed(
    law: Law, gains: Gains, signal: Signal, known: Head, shrunk: Array | None = None
) -> tuple[Array, Array]:
    """Compute ln of parameters' over output's squared gradient: the part per width, and the rest."""
    own = jnp.full_like(known.log_power, -jnp.inf)
    if _has_parameters(law):
        own = gains.weight + known.log_own
    if law.norm == "batch":
        # gradients sum to 0 over a batch: only differences of examples count, and biases get none
        return signal.log_q + known.log_unit + log(known.within), own
    if shrunk is None or not law.branch_norm:
        return known.log_power, log_sum(own, jnp.zeros_like(own))
    # W, b and the head's norm lie below the branch's norm, whose scale and bias add 2
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
            # the gradient of alpha is the inner product of branch and cotangent
            if law.norm == "batch":
                summed = own.weight + many
            else:
                summed = log_sum(own.weight + known.log_power, own.bias)
            few = log_sum(few, summed)
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
    # the step of the last layer is needed only for its moments
    _, read = jax.lax.scan(layer, (first, zero, zero), None, length=depth + 1)
    return read


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


def _dense(law: Law, gains: Gains, head_of: functools.partial, first: Signal, depth: int) -> Layers:
    """Fold over blocks with dense skips, whose state concatenates all earlier states."""
    none = jnp.full_like(first.log_q, -jnp.inf)
    zero = jnp.zeros_like(first.log_q)
    nothing = _Sums(none, zero, none, zero, zero, none, none, none, none, none)

    def layer(
        carry: tuple[Signal, _Sums, Array, Array, Array], count: Array
    ) -> tuple[tuple, tuple[Layers, Array, Array]]:
        signal, sums, log_new, log_last, _ = carry
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
            # W divides by fan_in, which is `count` times the width
            log_few=log_sum(new.few - log_count, none if law.norm == "batch" else zero),
            log_jacobian=log_last,
        )
        log_weight = gains.weight - log_count
        log_following = log_weight + new.log_jacobian
        # at its end a Jacobian meets gradients of different examples that are independent
        log_end = log_weight + new.log_end
        slopes = (known.log_slope, new.log_slope)
        return (following, new, log_following, log_end, new.log_slope), (read, *slopes)

    counts = jnp.arange(1, depth + 2).astype(first.log_q.dtype)
    _, (read, slopes, summed) = jax.lax.scan(layer, (first, nothing, zero, zero, none), counts)
    return _with_gradients(read, gains.weight, slopes, summed)


def _with_layer(
    law: Law, gains: Gains, sums: _Sums, signal: Signal, known: Head, log_new: Array
) -> _Sums:
    """Add one layer to the sums; ln E s^2 of its Jacobian from h_0 is `log_new`."""
    many, _ = _fed(law, gains, signal, known)
    if _has_parameters(law):
        own = gains.weight + known.log_own
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
