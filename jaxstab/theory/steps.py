"""One block of the fold behind `predict`: its variances, its map of the signal, and what a layer records."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_square, log_sum
from jaxstab.theory.moments import inside
from jaxstab.theory.signals import Head, Signal, log
from jaxstab.theory.squashes import is_squashed

_LOG_2 = math.log(2)


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


class Variances(NamedTuple):
    """Logarithms of a block's variances.

    Attributes:
        weight: ln of sigma_w^2 times the weights' variance at unit gain.
        bias: ln sigma_b^2.
        branch: ln s^2, s the factor of a residual branch.
    """

    weight: Float[Array, ""]
    bias: Float[Array, ""]
    branch: Float[Array, ""]


def variances(law: Law, sigma_w: Array, sigma_b: Array, deepest: int) -> Variances:
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
    return Variances(log_weight, log_square(sigma_b), branch)


def normed(law: Law, variances: Variances, known: Head) -> Variances:
    """Divide the variances by the branch's length, where the law normalises the branch.

    Args:
        law: law of the block.
        variances: variances of W and b.
        known: head of the block.

    Returns:
        Variances of the branch that is added to the skip.
    """
    if not law.branch_norm:
        return variances
    length = log_sum(log_sum(variances.weight + known.log_power, variances.bias), log(law.epsilon))
    return variances._replace(weight=variances.weight - length, bias=variances.bias - length)


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


def step(law: Law, variances: Variances, signal: Signal, known: Head) -> Stepped:
    """Map the signal through one block without a skip or with a residual skip.

    Args:
        law: law of the block.
        variances: variances of the block.
        signal: signal that enters the block.
        known: head of the block at that signal.

    Returns:
        Signal of the next layer, and factors of the gradient.
    """
    carry = carried(law)
    log_q = signal.log_q
    finite = jnp.where(jnp.isfinite(log_q), log_q, inside(log_q))
    branch = variances.branch + log_sum(variances.weight + known.log_gain, variances.bias - finite)
    added = variances.branch + log_sum(variances.weight + known.log_power, variances.bias)
    log_gap = variances.branch + variances.weight + known.log_unit
    log_chi = variances.branch + variances.weight + known.log_slope
    isotropic = variances.branch + variances.weight + known.log_isotropic
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


def first_signal(variances: Variances, log_input: Array, c0: Array) -> Signal:
    """Compute the signal after the embedding.

    Args:
        variances: variances of the embedding.
        log_input: ln of the input's mean square.
        c0: correlation of two inputs.

    Returns:
        Signal of layer 0.
    """
    log_q = log_sum(variances.weight + log_input, variances.bias)
    # at length 0 the correlation stays c0
    weighted = jnp.where(
        log_q == -jnp.inf,
        1.0,
        jnp.exp(variances.weight + log_input - jnp.where(log_q == -jnp.inf, 0, log_q)),
    )
    distance = weighted * (1.0 - c0)
    return Signal(log_q, distance, distance)


def has_parameters(law: Law) -> bool:
    """Check that the block has a norm with parameters.

    Args:
        law: law of the block.

    Returns:
        True with a norm of any kind.
    """
    return law.norm is not None or is_squashed(law.activation)


def parameter_ratios(
    law: Law, variances: Variances, signal: Signal, known: Head, shrunk: Array | None = None
) -> tuple[Array, Array]:
    """Compute the squared gradient of a block's parameters over that of its output.

    Args:
        law: law of the block.
        variances: variances of the block.
        signal: signal that enters the block.
        known: head of the block at that signal.
        shrunk: ln of the factor by which a norm of the branch divides variances; None without a
            norm of the branch.

    Returns:
        Logarithms of the part in proportion to width, per unit of width, and of the rest.
    """
    own = jnp.full_like(known.log_power, -jnp.inf)
    if has_parameters(law):
        own = variances.weight + known.log_own
    if law.norm == "batch":
        # gradients sum to 0 over a batch: only differences of examples count, and biases get none
        return signal.log_q + known.log_unit + log(known.within), own
    if shrunk is None or not law.branch_norm:
        return known.log_power, log_sum(own, jnp.zeros_like(own))
    # W, b and the head's norm lie below the branch's norm, whose scale and bias add 2
    return known.log_power + shrunk, log_sum(log_sum(own, shrunk), jnp.full_like(own, _LOG_2))
