"""Gradient-based design of blocks that make a network of a given depth critical or isometric."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.checks import check_choice, check_count, plain_number
from jaxstab.theory.free_products import squared_slopes
from jaxstab.theory.laws import Law, as_law
from jaxstab.theory.maps import (
    AnyActivation,
    derivative_moment,
    length_map,
    second_moment_slope,
)
from jaxstab.theory.prediction import predict
from jaxstab.theory.reasons import missing_fields

GOALS = ("critical", "isometric", "length_critical", "doubly_critical")
# conditions on one layer, which do not depend on depth
_OF_LAYER = ("length_critical", "doubly_critical")
# open intervals of the free parameters that do not belong to the block
_GAINS = {"sigma_w": (0.0, math.inf), "sigma_b": (0.0, math.inf), "q0": (0.0, math.inf)}
# tolerance of every condition, in nats or relative to 1
_REACHED = 1e-6
# the search ends below this: a mixture's share at q = 0.01 is off by a hundred times as much
_ENOUGH = 1e-11
# halvings of a step, and the share of the promised fall that a step must bring
_HALVINGS = 30
_FALL = 1e-4


class Design(NamedTuple):
    """Result of `design`: a block and its gains.

    Attributes:
        parameters: values of the free parameters, by name.
        block: law of the block with these parameters.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.
        q0: mean square of the input; for "length_critical" and "doubly_critical" the length fixed
            point.
        missed: residual of each condition of the goal.
        reached: whether all residuals are at most 1e-6. Only linear networks reach isometry; for
            others the residuals are the smallest found.
    """

    parameters: dict[str, float]
    block: Law
    sigma_w: float
    sigma_b: float
    q0: float
    missed: tuple[float, ...]
    reached: bool


class _Net(NamedTuple):
    """A block with its gains and the mean square of the input, all traced."""

    block: Law
    sigma_w: Array
    sigma_b: Array
    q0: Array


def design(
    block: AnyActivation | Law | Callable[..., AnyActivation | Law],
    start: Mapping[str, float],
    depth: int | None = None,
    goal: str = "critical",
    *,
    target: float = 0.0,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    q0: float = 1.0,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    steps: int = 200,
) -> Design:
    """Find parameters of a block with which a network meets a goal.

    L-BFGS minimises the sum of squares of the goal's conditions, by the gradient of the prediction:

        critical          ln |dL/dh_0| - ln |dL/dh_L| = target
        isometric         ln E s^2 = 0 and Var s^2 / (E s^2)^2 = 0, s the singular values of
                          dh_L/dh_0. Variances of layers add (Pennington et al. 2017), also those of
                          residual blocks, whose J = 1 + alpha W D are free of each other
        length_critical   dq'/dq = 1 and q' = q at q = q0, so that all lengths near q0 are kept to
                          first order. For a mixture with free share this is
                          q0 g'(q0) = g(q0), g = E phi^2 (Lesser & Chowdhury 2026)
        doubly_critical   length_critical, and chi_1 = 1 (Roberts et al. 2022, 5.3)

    The result is a local minimum: another start may give another.

    Args:
        block: activation or law, or a function that builds one from the free parameters that are
            not gains, such as `activations.leaky_relu` from "slope".
        start: initial values of the free parameters, by name: parameters of `block`, and "sigma_w",
            "sigma_b" and "q0", each > 0.
        depth: number of blocks L; None for "length_critical" and "doubly_critical".
        goal: "critical", "isometric", "length_critical" or "doubly_critical".
        target: for "critical", the growth of the gradient's norm from h_L down to h_0, in nats.
            A residual block reaches only targets > 0.
        sigma_w: weight gain, unless free.
        sigma_b: bias standard deviation, unless free.
        q0: mean square of the input, unless free.
        bounds: open intervals of free parameters, by name, such as (0, 1) for a share.
        steps: maximal number of steps of the optimiser, >= 1.

    Returns:
        The design. Measure a network built with it before use, even where `reached` is True.

    Raises:
        ValueError: if a name is unknown, a start is out of its bounds, or theory has no finite
            prediction at the start.

    Example:
        >>> from jaxstab import activations
        >>> found = design(activations.leaky_relu, {"slope": 0.5}, 30, sigma_w=1.3)
        >>> print(f"{found.parameters['slope']:.5f}, reached: {found.reached}")  # sqrt(2 / 1.3^2 - 1)
        0.42829, reached: True
    """
    check_choice("goal", goal, GOALS)
    if goal not in _OF_LAYER:
        if depth is None:
            raise ValueError(f"depth must be given for {goal}, got None")
        depth = check_count("depth", depth, 1)
    check_count("steps", steps, 1)
    free = {name: plain_number(name, value) for name, value in start.items()}
    ranges = _ranges(free, bounds or {})
    fixed = {"sigma_w": sigma_w, "sigma_b": sigma_b, "q0": q0}

    first = _net(block, fixed, free).block
    if goal == "isometric":
        _check_isometric(first)
    if goal in _OF_LAYER:
        _check_plain(goal, first)

    def conditions(parameters: dict[str, Any]) -> Float[Array, " condition"]:
        return _conditions(_net(block, fixed, parameters), goal, depth, target)

    with jax.enable_x64(True):
        values, missed = _minimised(conditions, free, ranges, steps)
    if not np.all(np.isfinite(missed)):
        reason = missing_fields(first).get("log_grad_h", "moments there are not finite")
        raise ValueError(f"no prediction of {goal} at start {dict(start)}: {reason}")
    made = _net(block, fixed, values)
    return Design(
        values,
        made.block,
        float(made.sigma_w),
        float(made.sigma_b),
        float(made.q0),
        tuple(missed.tolist()),
        bool(np.all(np.abs(missed) <= _REACHED)),
    )


def _ranges(
    free: dict[str, float], bounds: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Check the bounds and return the open interval of each free parameter."""
    if not free:
        raise ValueError("start must name at least one free parameter, got none")
    if unknown := sorted(set(bounds) - set(free)):
        raise ValueError(f"bounds must be of free parameters, got {', '.join(unknown)}")
    ranges = {}
    for name, value in free.items():
        low, high = bounds.get(name, _GAINS.get(name, (-math.inf, math.inf)))
        if not low < value < high:
            raise ValueError(f"start of {name} must lie in ({low:g}, {high:g}), got {value:g}")
        ranges[name] = (low, high)
    return ranges


def _net(
    block: AnyActivation | Law | Callable[..., AnyActivation | Law],
    fixed: dict[str, float],
    parameters: dict[str, Any],
) -> _Net:
    """Build the block and its gains from free parameters; other gains come from `fixed`."""
    own = {name: value for name, value in parameters.items() if name not in _GAINS}
    gains = fixed | {name: value for name, value in parameters.items() if name in _GAINS}
    made: Any = block
    if own:
        made = block(**own)  # type: ignore[operator,call-arg]
    return _Net(as_law(made), *(gains[name] for name in _GAINS))


def _conditions(
    net: _Net, goal: str, depth: int | None, target: float
) -> Float[Array, " condition"]:
    """Compute the residuals of a goal's conditions."""
    if goal == "doubly_critical":
        return _doubly_critical(net)
    if goal == "length_critical":
        return _length_critical(net)
    assert depth is not None
    if goal == "critical":
        return _critical(net, depth, target)
    return _isometric(net, depth)


def _check_isometric(law: Law) -> None:
    """Check that a block is one whose variance of s^2 is known."""
    if law.norm is not None or not (law.skip is None or law.residual):
        raise ValueError(
            "isometric needs blocks without norm, with skip None, sum, scaled or rezero, got "
            f"norm {law.norm}, skip {law.skip}"
        )


def _check_plain(goal: str, law: Law) -> None:
    """Check that a block's length map is that of its activation."""
    if law.norm is not None or law.skip is not None or law.keep != 1:
        raise ValueError(
            f"{goal} needs blocks without norm, skip and dropout, got norm {law.norm}, "
            f"skip {law.skip}, keep {law.keep}"
        )


def _critical(net: _Net, depth: int, target: float) -> Array:
    # gradients of states do not depend on width and d_in
    backward = predict(net.block, net.sigma_w, net.sigma_b, [depth], width=64, d_in=64, q0=net.q0)[
        2
    ]
    return backward.log_grad_h[0, :1] - target


def _length_critical(net: _Net) -> Array:
    phi = net.block.activation
    return jnp.stack(
        [
            net.sigma_w**2 * second_moment_slope(phi, net.q0) - 1,
            length_map(phi, net.sigma_w, net.sigma_b, net.q0) / net.q0 - 1,
        ]
    )


def _doubly_critical(net: _Net) -> Array:
    chi_1 = net.sigma_w**2 * derivative_moment(net.block.activation, net.q0)
    return jnp.concatenate([chi_1[None] - 1, _length_critical(net)])


def _isometric(net: _Net, depth: int) -> Array:
    """Compute ln E s^2 and the square root of the relative variance of s^2."""
    law = net.block
    forward, _, backward, _ = predict(
        law, net.sigma_w, net.sigma_b, [depth], width=64, d_in=64, q0=net.q0
    )

    def spread(log_q: Array) -> Array:
        d, share = squared_slopes(law.activation, 1.0, jnp.exp(log_q))
        second = jnp.sum(share * d**2) / jnp.sum(share * d) ** 2
        # dropout's masks are part of the diagonal
        return second / law.keep - 1 + float(law.weights != "orthogonal")

    own = jax.vmap(spread)(forward.log_q[:-1])
    growth = 2 * (backward.log_grad_h[0, :-1] - backward.log_grad_h[0, 1:])
    if law.residual:
        # J = 1 + A, where s^2 of A has mean a and relative variance v: (2 a + a^2 v) / (1 + a)^2
        branch = jnp.expm1(growth)
        own = (2 * branch + branch**2 * own) / (1 + branch) ** 2
    total = jnp.sum(own)
    root = jnp.sqrt(jnp.where(total > 0, total, 1.0))
    return jnp.stack([jnp.sum(growth), jnp.where(total > 0, root, 0.0)])


def _from_line(x: ArrayLike, low: float, high: float) -> Array:
    """Map the real line onto an open interval."""
    if math.isinf(low) and math.isinf(high):
        return jnp.asarray(x)
    if math.isinf(high):
        return low + jnp.exp(x)
    if math.isinf(low):
        return high - jnp.exp(x)
    return low + (high - low) * jax.nn.sigmoid(x)


def _on_line(value: float, low: float, high: float) -> float:
    """Map an open interval onto the real line, the inverse of `_from_line`."""
    if math.isinf(low) and math.isinf(high):
        return value
    if math.isinf(high):
        return math.log(value - low)
    if math.isinf(low):
        return math.log(high - value)
    return math.log(value - low) - math.log(high - value)


def _minimised(
    conditions: Callable[[dict[str, Any]], Array],
    start: dict[str, float],
    ranges: dict[str, tuple[float, float]],
    steps: int,
) -> tuple[dict[str, float], np.ndarray]:
    """Minimise the sum of squared residuals; return the parameters and the residuals there."""
    # imported here, as optax takes a third of a second to import
    import optax

    names = list(start)

    def named(x: Array) -> dict[str, Array]:
        return {name: _from_line(x[i], *ranges[name]) for i, name in enumerate(names)}

    def objective(x: Array) -> tuple[Array, Array]:
        missed = conditions(named(x))
        return jnp.sum(missed**2), missed

    value_and_slope = jax.jit(jax.value_and_grad(objective, has_aux=True))
    # our own line search reuses the program of value and gradient
    optimiser = optax.lbfgs(linesearch=None)
    x = jnp.asarray([_on_line(start[name], *ranges[name]) for name in names])
    (value, missed), slope = value_and_slope(x)
    state = optimiser.init(x)
    fresh = True
    for _ in range(steps):
        if not np.isfinite(value) or np.max(np.abs(missed)) <= _ENOUGH:
            break
        # optax's L-BFGS mixes integer dtypes, which the caller's promotion mode may forbid
        with jax.numpy_dtype_promotion("standard"):
            step, state = optimiser.update(slope, state, x)
        fall = float(jnp.vdot(slope, step))
        if not fall < 0:
            state = optimiser.init(x)
            step = -slope
            fall = -float(jnp.vdot(slope, slope))
        moved = _moved(value_and_slope, x, step, float(value) + _FALL * fall, float(value))
        if moved is not None:
            x, value, missed, slope = moved
            fresh = False
        elif fresh:
            break
        else:
            # the remembered curvature may be wrong
            state = optimiser.init(x)
            fresh = True
    values = {name: float(part) for name, part in named(x).items()}
    return values, np.asarray(missed)


def _moved(
    value_and_slope: Callable, x: Array, step: Array, wanted: float, value: float
) -> tuple[Array, Array, Array, Array] | None:
    """Halve a step until the objective falls enough; return None where no halving suffices."""
    for halving in range(_HALVINGS):
        size = 0.5**halving
        trial = x + size * step
        (new, missed), slope = value_and_slope(trial)
        enough = value + size * (wanted - value)
        if np.isfinite(new) and bool(jnp.all(jnp.isfinite(slope))) and new < enough:
            return trial, new, missed, slope
    return None
