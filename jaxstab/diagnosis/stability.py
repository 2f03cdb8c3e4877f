"""Largest stable step of a loss at one batch: its sharpness, and its fall along an update."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from jaxstab import curvature
from jaxstab.diagnosis.intervals import Interval
from jaxstab.networks import Probe
from jaxstab.norms import log_norm
from jaxstab.norms.logarithms import wide_enough

# products with the Hessian for its largest eigenvalue
PRODUCTS = 20
# evaluations of the loss along the update
PASSES = 12
# cosine with the negative gradient above which an update is a step of gradient descent
ALONG = 0.999


class Stability(NamedTuple):
    """First update of an optimiser compared with the largest stable step of the loss.

    Attributes:
        sharpness: largest eigenvalue of the Hessian of the loss by the trained parameters, with
            the bound of its residual as interval; NaN where unknown.
        largest_rate: largest stable rate of gradient descent, 2 / sharpness; inf where no curvature
            is positive.
        rate: |update| / |gradient| where the update is a step of gradient descent, else NaN.
        share: share of the update up to which the loss falls. The interval runs from the last share
            with a fall to the first with a rise; NaN where the search did not see both.
        why: reasons for missing numbers; empty where none is missing.
    """

    sharpness: Interval
    largest_rate: float
    rate: float
    share: Interval
    why: str

    def __str__(self) -> str:
        """Format as one line."""
        parts = []
        if not math.isnan(self.sharpness.value):
            parts.append(
                f"largest stable rate of gradient descent {self.largest_rate:.3g} "
                f"(2 / sharpness, {self.sharpness})"
            )
        if not math.isnan(self.rate):
            parts.append(f"rate of the first update {self.rate:.3g}")
        if not math.isnan(self.share.value):
            parts.append(f"the loss falls up to {self.share.value:.3g} times the first update")
        elif self.share.low > 0:
            parts.append(
                f"the loss falls up to {self.share.low:.3g} times the first update or more"
            )
        if self.why:
            parts.append(self.why)
        return "; ".join(parts)


def stability(
    probe: Probe,
    params: PyTree,
    inputs: Sequence[PyTree],
    loss: Callable[[PyTree], Float[Array, ""]],
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
) -> Stability:
    """Measure the sharpness of a loss, and how far it falls along an optimiser's first update.

    The cost is 20 products with the Hessian, each of two gradients' time, and 12 forward passes.

    Args:
        probe: the model.
        params: parameters of the model.
        inputs: inputs of the model.
        loss: scalar function of the output.
        tx: optimiser of the trained parameters: the "params" of a linen module, the `nnx.Param` of
            an nnx module.
        key: PRNG key of the first vector.

    Returns:
        Record of sharpness, rates and share.

    Raises:
        ValueError: if the optimiser does not take the trained parameters.
    """
    outputs, theta = probe.function(params)

    def goal(theta: PyTree, inputs: Sequence[PyTree]) -> Float[Array, ""]:
        return loss(outputs(theta, *inputs))

    gradient = jax.jit(jax.grad(goal, allow_int=True))(theta, inputs)
    gradient = jax.tree.map(_real, theta, gradient)
    update = _first_update(tx, theta, gradient)
    rate = _rate(_widened(update), _widened(gradient))

    def along(theta: PyTree, update: PyTree, inputs: Sequence[PyTree]) -> tuple:
        found = curvature.critical_sharpness(
            lambda theta: goal(theta, inputs), theta, update, passes=PASSES
        )
        return found.rate, found.rate_low, found.rate_high

    log_size = float(log_norm(_widened(update)))
    if not math.isfinite(log_size):
        share = Interval(math.nan, math.nan, math.nan)
        why = "the first update is zero or not finite; give the optimiser without its warm-up"
    else:
        share = Interval(*map(float, jax.jit(along)(theta, update, inputs)))
        why = ""
    sharpness, missing = _sharpness(goal, theta, inputs, key)
    largest_rate = math.nan
    if not math.isnan(sharpness.value):
        largest_rate = float(curvature.largest_stable_rate(sharpness.value))
    reasons = "; ".join(reason for reason in (why, missing) if reason)
    return Stability(sharpness, largest_rate, rate, share, reasons)


def _widened(tree: PyTree) -> PyTree:
    """Cast floats of two bytes to four bytes, where sums and eigenvalues are accurate."""

    def wider(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(wide_enough(leaf.dtype))

    return jax.tree.map(wider, tree)


def _real(leaf: Array, gradient: Array) -> Array:
    """Replace the float0 gradient of an integer leaf by zeros."""
    if gradient.dtype == jax.dtypes.float0:
        return jnp.zeros_like(leaf)
    return gradient


def _first_update(tx: optax.GradientTransformation, theta: PyTree, gradient: PyTree) -> PyTree:
    def update(theta: PyTree, gradient: PyTree) -> PyTree:
        # optax mixes integers and floats, which strict dtype promotion refuses
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(gradient, tx.init(theta), theta)[0]

    try:
        return jax.jit(update)(theta, gradient)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"tx fails on the trained parameters: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """First line of an error's message, or the name of its class where the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _rate(update: PyTree, gradient: PyTree) -> float:
    """|update| / |gradient| where the update points down the gradient; NaN elsewhere."""
    u = curvature.ravel(update)[0]
    g = curvature.ravel(gradient)[0]
    log_u, log_g = log_norm(u), log_norm(g)
    cosine = -jnp.sum(u * jnp.exp(-log_u) * g * jnp.exp(-log_g))
    if cosine > ALONG:
        return float(jnp.exp(log_u - log_g))
    return math.nan


def _sharpness(
    goal: Callable, theta: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]
) -> tuple[Interval, str]:
    """Compute the largest eigenvalue of the Hessian, or the reason for a missing one."""

    def measured(theta: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]) -> Any:
        def of_wide(wide: PyTree) -> Float[Array, ""]:
            own = jax.tree.map(lambda leaf, given: leaf.astype(given.dtype), wide, theta)
            return goal(own, inputs)

        operator = curvature.hessian(of_wide, _widened(theta))
        return curvature.largest(operator, key, PRODUCTS)

    try:
        found = jax.jit(measured)(theta, inputs, key)
    except (TypeError, ValueError, NotImplementedError) as refused:
        return Interval(math.nan, math.nan, math.nan), f"no sharpness: {_reason(refused)}"
    value = math.ldexp(float(found.value), int(found.exponent))
    bound = math.ldexp(float(found.error), int(found.exponent))
    return Interval(value, value - bound, value + bound), ""
