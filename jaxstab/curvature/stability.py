r"""Stable learning rates of optimisers on a loss of given curvature.

On the quadratic L = h w^2 / 2 every optimiser below is a linear recursion, and diverges once a root
of its characteristic polynomial leaves the unit circle. In full-batch training the largest
eigenvalue rises to that bound, the edge of stability, and stays there (Cohen et al. 2021; 2022 for
adaptive optimisers).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_choice, check_count
from jaxstab.curvature.chunks import examples_of, mean_over_chunks
from jaxstab.curvature.symmetric import check_square
from jaxstab.curvature.vectors import ravel
from jaxstab.norms.logarithms import wide_enough
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.operators import Operator, Scaled, scaled

OPTIMISERS = ("sgd", "momentum", "nesterov", "adam")


class CriticalSharpness(NamedTuple):
    """Smallest learning rate at which an update raises the loss, and the corresponding curvature.

    Attributes:
        sharpness: 2 / rate.
        rate: eta_c; NaN if the search found rates on one side only.
        rate_low: largest tried rate at which the loss did not rise; 0 for none.
        rate_high: smallest tried rate at which the loss rose or was not finite; inf for none.
    """

    sharpness: Float[Array, ""]
    rate: Float[Array, ""]
    rate_low: Float[Array, ""]
    rate_high: Float[Array, ""]


@explained
def largest_stable_rate(
    largest: Float[ArrayLike, "..."], optimiser: str = "sgd", beta: ArrayLike = 0.9
) -> Float[Array, "..."]:
    r"""Compute the learning rate at which an optimiser begins to diverge along an eigenvector of the Hessian.

    With h the eigenvalue and updates as in optax,

        sgd         2 / h                               w <- w - eta g
        momentum    2 (1 + beta) / h                    v <- g + beta v, w <- w - eta v
        nesterov    2 (1 + beta) / ((1 + 2 beta) h)     v <- g + beta v, w <- w - eta (g + beta v)
        adam        2 (1 + beta) / ((1 - beta) h)       m <- beta m + (1 - beta) g, w <- w - eta m / P

    The recursions are second order, z^2 - a z + b = 0, stable for |b| < 1 and |a| < 1 + b. With s =
    eta h, momentum has a = 1 + beta - s and b = beta; nesterov a = (1 + beta)(1 - s) and b = beta
    (1 - s); adam is momentum with (1 - beta) eta for eta (Cohen et al. 2021, appendix B; 2022,
    section 3).

    Args:
        largest: largest eigenvalue h of the Hessian, as from `extremes`; for adam, of the
            preconditioned Hessian, see `preconditioned`.
        optimiser: "sgd", "momentum", "nesterov" or "adam".
        beta: decay of the momentum, in [0, 1); unused by sgd.

    Returns:
        The largest stable rate; inf if the eigenvalue is not positive.

    Raises:
        ValueError: if the optimiser is unknown, or a concrete beta is not in [0, 1).

    Example:
        >>> [round(float(largest_stable_rate(10.0, name)), 3) for name in OPTIMISERS]
        [0.2, 0.38, 0.136, 3.8]
    """
    check_choice("optimiser", optimiser, OPTIMISERS)
    if not isinstance(beta, jax.core.Tracer) and not np.all(
        (np.asarray(beta) >= 0) & (np.asarray(beta) < 1)
    ):
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    h = jnp.asarray(largest)
    if not jnp.issubdtype(h.dtype, jnp.floating):
        h = h.astype(float)
    beta = jnp.asarray(beta, h.dtype)
    factors = {
        "sgd": jnp.ones_like(beta),
        "momentum": 1 + beta,
        "nesterov": (1 + beta) / (1 + 2 * beta),
        "adam": (1 + beta) / (1 - beta),
    }
    positive = h > 0
    return jnp.where(
        positive, 2 * factors[optimiser] / jnp.where(positive, h, jnp.ones_like(h)), jnp.inf
    )


@explained
def preconditioned(operator: Operator, preconditioner: PyTree) -> Operator:
    """Make the operator P^(-1/2) A P^(-1/2), which has the eigenvalues of P^-1 A.

    Args:
        operator: symmetric operator A.
        preconditioner: positive diagonal of P: a vector, or a pytree like the parameters.

    Returns:
        The operator. Its eigenvectors are P^(1/2) times those of P^-1 A.

    Raises:
        ValueError: if the operator is not square, or P differs from the operator in size.

    Example:
        >>> from jaxstab import curvature
        >>> operator = curvature.hessian(lambda w: jnp.sum(w**2), jnp.ones(2))
        >>> preconditioned(operator, jnp.asarray([1.0, 4.0])).matvec(jnp.ones(2)).tolist()
        [2.0, 0.5]
    """
    check_square(operator)
    root = jnp.sqrt(_direction(operator, preconditioner, "preconditioner"))

    def apply(v: Float[Array, "k n"]) -> Scaled:
        y, exponent = operator.apply(v / root[None])
        return scaled(y / root[None], exponent)

    return operator._replace(apply=apply, adjoint=apply)


@explained
def adam_preconditioner(
    state: PyTree, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-8
) -> Float[Array, " n"]:
    """Compute the diagonal by which Adam divides its momentum, P = (1 - b1^t) (sqrt(nu / (1 - b2^t)) + eps).

    Args:
        state: state of `optax.adam`, or of an optimiser that contains it, after t >= 1 updates.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: number added to the root.

    Returns:
        The diagonal, for `preconditioned`. Adam is stable while the largest eigenvalue of P^-1 H
        stays below 2 (1 + b1) / ((1 - b1) eta), 38 / eta by default.

    Raises:
        ValueError: if the state holds no `optax.ScaleByAdamState`, or several.

    Example:
        >>> gradient = jnp.asarray([3.0, 4.0])
        >>> state = optax.ScaleByAdamState(jnp.asarray(1), 0.1 * gradient, 0.001 * gradient**2)  # after one update
        >>> [round(float(entry), 3) for entry in adam_preconditioner(state)]
        [0.3, 0.4]
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_adam)
    states = [node for node in nodes if _is_adam(node)]
    if len(states) != 1:
        raise ValueError(
            f"state must hold the moments of one optax.adam, got {len(states)} "
            "optax.ScaleByAdamState"
        )
    nu = ravel(states[0].nu)[0]
    t = states[0].count.astype(nu.dtype)
    b1, b2, eps = (jnp.asarray(value, nu.dtype) for value in (b1, b2, eps))
    return (1 - b1**t) * (jnp.sqrt(nu / (1 - b2**t)) + eps)


@explained
def directional_sharpness(operator: Operator, direction: PyTree) -> Float[Array, ""]:
    """Compute the curvature along a direction, d^T A d / |d|^2 (Pan & Li 2023).

    Args:
        operator: symmetric operator A, such as `hessian`.
        direction: d, such as the gradient or an update: a vector, or a pytree like the parameters.

    Returns:
        The curvature; NaN for d = 0.

    Raises:
        ValueError: if the operator is not square, or the direction differs from it in size.

    Example:
        >>> from jaxstab import curvature
        >>> operator = curvature.hessian(lambda w: jnp.sum(w**2 * jnp.asarray([1.0, 3.0])), jnp.ones(2))
        >>> round(float(directional_sharpness(operator, jnp.asarray([5.0, 5.0]))), 3)
        4.0
    """
    check_square(operator)
    d = _direction(operator, direction, "direction")
    # unit length before the product allows any magnitude of the direction
    d = d / jax.lax.stop_gradient(jnp.max(jnp.abs(d)))
    d = d / jnp.linalg.norm(d)
    return jnp.sum(d * operator.matvec(d))


@explained
def critical_sharpness(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    update: PyTree,
    examples: PyTree = None,
    guess: ArrayLike = 1.0,
    passes: int = 10,
    chunk_size: int | None = None,
) -> CriticalSharpness:
    r"""Compute the critical sharpness 2 / eta_c by forward passes alone (Kalra et al. 2026, arXiv 2601.16979).

    eta_c is the smallest rate at which L(theta + eta u) exceeds L(theta). For a quadratic loss and u
    along its gradient, 2 / eta_c is the directional sharpness g^T H g / |g|^2, at most the largest
    eigenvalue. The search changes the rate until it has one rate at which the loss rises and one at
    which it does not. It then follows the secant of (L(theta + eta u) - L(theta)) / eta, which is
    linear in eta for a quadratic loss. If the loss rises and falls several times, the search finds
    one crossing.

    Args:
        loss: as in `hessian`, never differentiated.
        params: any pytree.
        update: u, the update at rate 1 in optax's sign: the negative gradient for gradient descent.
            Only floating leaves are used.
        examples: as in `hessian`.
        guess: first rate of the search, > 0, such as the learning rate or the last eta_c.
        passes: number of evaluations of the loss besides that at params, >= 2; 5 are enough from a
            guess within a factor of 4.
        chunk_size: number of examples at a time, >= 1; None for all.

    Returns:
        The sharpness, the rate and its bracket.

    Raises:
        ValueError: if passes < 2, the update differs from the parameters in size, a concrete guess
            is not > 0, there are no examples, or chunk_size < 1.

    Example:
        >>> w, scales = jnp.asarray([1.0, 1.0]), jnp.asarray([1.0, 10.0])
        >>> loss = lambda w: jnp.sum(scales * w**2) / 2
        >>> found = critical_sharpness(loss, w, -jax.grad(loss)(w))
        >>> round(float(found.sharpness), 3), round((1 + 10**3) / (1 + 10**2), 3)
        (9.911, 9.911)
    """
    check_count("passes", passes, 2)
    if not isinstance(guess, jax.core.Tracer) and not np.all(np.asarray(guess) > 0):
        raise ValueError(f"guess must be > 0, got {guess}")
    vector, unravel = ravel(params)
    direction = ravel(update)[0]
    if direction.shape != vector.shape:
        raise ValueError(f"update must have {vector.size} entries, as params, got {direction.size}")
    given: tuple[PyTree, ...] = ()
    size = 1
    if examples is not None:
        given = (examples,)
        size = examples_of(examples)
    if chunk_size is not None:
        size = min(size, check_count("chunk_size", chunk_size, 1))
    wide = wide_enough(vector.dtype)

    def value(rate: Float[Array, ""]) -> Float[Array, ""]:
        step = rate.astype(wide) * direction.astype(wide)
        moved = unravel((vector.astype(wide) + step).astype(vector.dtype))
        mean = mean_over_chunks(lambda chunk: loss(moved, *chunk), given, size)
        return mean.astype(wide_enough(mean.dtype))

    # parameters of few bits are moved, and losses compared, in wider floats
    base = value(jnp.zeros((), wide))

    def step(_: Array, bracket: _Bracket) -> _Bracket:
        return _narrowed(bracket, (value(bracket.rate) - base) / bracket.rate)

    rate = jnp.asarray(guess, base.dtype)
    zero = jnp.zeros_like(rate)
    infinite = jnp.full_like(rate, jnp.inf)
    begun = _Bracket(rate, zero, zero, infinite, infinite, jnp.full_like(rate, 4.0))
    narrowed = jax.lax.fori_loop(0, passes, step, varying_like(begun, base))
    rate = jnp.where(narrowed.closed, narrowed.crossing, jnp.nan)
    return CriticalSharpness(2 / rate, rate, narrowed.low, narrowed.high)


class _Bracket(NamedTuple):
    """Rates at which the loss did not rise (low) and rose (high), with (L(theta + eta u) - L(theta)) / eta."""

    # the next rate to try
    rate: Array
    low: Array
    slope_low: Array
    high: Array
    slope_high: Array
    # ratio of the next rate to the last while only one side is known
    factor: Array

    @property
    def closed(self) -> Array:
        return (self.low > 0) & jnp.isfinite(self.high)

    @property
    def middle(self) -> Array:
        return jnp.sqrt(self.low) * jnp.sqrt(self.high)

    @property
    def crossing(self) -> Array:
        """Zero of the secant through both ends."""
        share = self.slope_low / (self.slope_low - self.slope_high)
        secant = self.low + (self.high - self.low) * share
        return jnp.where(jnp.isfinite(self.slope_high), secant, self.middle)


def _narrowed(bracket: _Bracket, slope: Array) -> _Bracket:
    """Update the bracket by a pass at its rate; take the middle next unless it halved in ln rate."""
    rises = ~(slope <= 0)
    finite = jnp.where(jnp.isfinite(slope), slope, jnp.inf)
    new = _Bracket(
        rate=bracket.rate,
        low=jnp.where(rises, bracket.low, bracket.rate),
        slope_low=jnp.where(rises, bracket.slope_low, finite),
        high=jnp.where(rises, bracket.rate, bracket.high),
        slope_high=jnp.where(rises, finite, bracket.slope_high),
        factor=2 * bracket.factor,
    )
    wider = jnp.where(rises, bracket.rate / bracket.factor, bracket.rate * bracket.factor)
    halved = new.high / new.low <= jnp.sqrt(bracket.high / bracket.low)
    within = jnp.where(halved, new.crossing, new.middle)
    return new._replace(rate=jnp.where(new.closed, within, wider))


def _direction(operator: Operator, given: PyTree, name: str) -> Float[Array, " n"]:
    d = ravel(given)[0]
    if d.size != operator.columns:
        raise ValueError(
            f"{name} must have {operator.columns} entries, as the parameters, got {d.size}"
        )
    return d.astype(operator.dtype)


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
