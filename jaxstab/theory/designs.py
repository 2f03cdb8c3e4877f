"""Design by gradient: parameters of a block at which a network of a given depth is critical or isometric."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.checks import check_choice, check_count, plain_number
from jaxstab.theory.free_products import squared_slopes
from jaxstab.theory.laws import Law, as_law, missing_fields
from jaxstab.theory.maps import (
    AnyActivation,
    derivative_moment,
    length_map,
    second_moment_slope,
)
from jaxstab.theory.prediction import predict

GOALS = ("critical", "isometric", "length_critical", "doubly_critical")
# those of one layer, which no depth changes
_OF_LAYER = ("length_critical", "doubly_critical")
# what a block's maps take besides its own parameters, and where it may lie
_GAINS = {"sigma_w": (0.0, math.inf), "sigma_b": (0.0, math.inf), "q0": (0.0, math.inf)}
# of every condition, in nats or relative to 1
_REACHED = 1e-6
# below which the search ends: the share of a mixture at q = 0.01 moves by a hundred times as much
_ENOUGH = 1e-11
# halvings of a step, and the share of the promised fall that a step must bring
_HALVINGS = 30
_FALL = 1e-4


class Design(NamedTuple):
    """A block and gains that were found.

    Attributes:
        parameters: values of what was free, by name.
        block: the law of the block with them.
        sigma_w: weight gain.
        sigma_b: bias standard deviation.
        q0: mean square of the input; with "length_critical" and "doubly_critical" the length fixed
            point.
        missed: what is left of each condition of the goal, 0 where it is met.
        reached: whether all of them are met to 1e-6. Isometry is met by linear networks only:
            there it is as near as the parameters come.
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
    """Find parameters of a block that bring a network to a goal, from the gradient of what theory predicts.

    Minimises the sum of squares of the goal's conditions by L-BFGS:

        critical          ln |dL/dh_0| - ln |dL/dh_L| = target
        isometric         ln E s^2 = 0 and Var s^2 / (E s^2)^2 = 0, s the singular values of
                          dh_L/dh_0; layers' variances add (Pennington et al. 2017), those of
                          residual blocks too, whose J = 1 + alpha W D are free
        length_critical   dq'/dq = 1 and q' = q at q = q0: the length map stays at each length near
                          q0 to first order. With a mixture of units and its share free,
                          q0 g'(q0) = g(q0), g = E phi^2 (Lesser & Chowdhury 2026)
        doubly_critical   chi_1 = 1 besides (Roberts et al. 2022, 5.3)

    It finds the solution nearest downhill from the start: another start may find another.

    Args:
        block: activation or law; or a function of the free parameters besides gains that gives one,
            such as `activations.leaky_relu` of "slope".
        start: what is free, by name, with its first value: parameters of `block`, and "sigma_w",
            "sigma_b" and "q0", which are > 0 there.
        depth: blocks L; None for "length_critical" and "doubly_critical".
        goal: "critical", "isometric", "length_critical" or "doubly_critical".
        target: of "critical": nats by which the gradient's norm grows from h_L down to h_0. Skips
            add, so that a residual scale reaches only targets > 0.
        sigma_w: weight gain, unless it is free.
        sigma_b: bias standard deviation, unless it is free.
        q0: mean square of the input, unless it is free.
        bounds: of free parameters of the block, by name, open intervals; such as (0, 1) of a share.
        steps: most steps of the optimiser, >= 1.

    Returns:
        The design. Whether `reached` or not, measure a network built with it before use.

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
    """Open intervals of what is free."""
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
    """The network of given parameters; gains that are not among them are `fixed`."""
    own = {name: value for name, value in parameters.items() if name not in _GAINS}
    gains = fixed | {name: value for name, value in parameters.items() if name in _GAINS}
    made: Any = block
    if own:
        made = block(**own)  # type: ignore[operator,call-arg]
    return _Net(as_law(made), *(gains[name] for name in _GAINS))


def _conditions(
    net: _Net, goal: str, depth: int | None, target: float
) -> Float[Array, " condition"]:
    """The conditions of a goal, each 0 where it is met."""
    if goal == "doubly_critical":
        return _doubly_critical(net)
    if goal == "length_critical":
        return _length_critical(net)
    assert depth is not None
    if goal == "critical":
        return _critical(net, depth, target)
    return _isometric(net, depth)


def _check_isometric(law: Law) -> None:
    """Refuse blocks whose singular values have no law here."""
    if law.norm is not None or not (law.skip is None or law.residual):
        raise ValueError(
            "isometric is for blocks without norm, with skip None, sum, scaled or rezero, got "
            f"norm {law.norm}, skip {law.skip}"
        )


def _check_plain(goal: str, law: Law) -> None:
    """Refuse blocks whose length map is not that of their activation."""
    if law.norm is not None or law.skip is not None or law.keep != 1:
        raise ValueError(
            f"{goal} is for blocks without norm, skip and dropout, got norm {law.norm}, "
            f"skip {law.skip}, keep {law.keep}"
        )


def _critical(net: _Net, depth: int, target: float) -> Array:
    # neither size counts for gradients of states
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
    """ln E s^2, and the root of the relative variance."""
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
        # of J = 1 + A: a = E s^2 of A, and v its relative variance, give (2 a + a^2 v) / (1 + a)^2
        branch = jnp.expm1(growth)
        own = (2 * branch + branch**2 * own) / (1 + branch) ** 2
    total = jnp.sum(own)
    root = jnp.sqrt(jnp.where(total > 0, total, 1.0))
    return jnp.stack([jnp.sum(growth), jnp.where(total > 0, root, 0.0)])


def _from_line(x: ArrayLike, low: float, high: float) -> Array:
    """A number of the real line, as one of an open interval."""
    if math.isinf(low) and math.isinf(high):
        return jnp.asarray(x)
    if math.isinf(high):
        return low + jnp.exp(x)
    if math.isinf(low):
        return high - jnp.exp(x)
    return low + (high - low) * jax.nn.sigmoid(x)


def _on_line(value: float, low: float, high: float) -> float:
    """The inverse of `_from_line`."""
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
    """Parameters of the least sum of squares, and the conditions there; NaN conditions at the start end it."""
    # optax takes a third of a second to import, which all of theory would pay
    import optax

    names = list(start)

    def named(x: Array) -> dict[str, Array]:
        return {name: _from_line(x[i], *ranges[name]) for i, name in enumerate(names)}

    def objective(x: Array) -> tuple[Array, Array]:
        missed = conditions(named(x))
        return jnp.sum(missed**2), missed

    value_and_slope = jax.jit(jax.value_and_grad(objective, has_aux=True))
    # the search along a step is ours, so that one program does for it and for the gradient
    optimiser = optax.lbfgs(linesearch=None)
    x = jnp.asarray([_on_line(start[name], *ranges[name]) for name in names])
    (value, missed), slope = value_and_slope(x)
    state = optimiser.init(x)
    fresh = True
    for _ in range(steps):
        if not np.isfinite(value) or np.max(np.abs(missed)) <= _ENOUGH:
            break
        # L-BFGS of optax mixes integers of two widths, which a caller may have forbidden
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
            # what it remembers of the curvature may be wrong
            state = optimiser.init(x)
            fresh = True
    values = {name: float(part) for name, part in named(x).items()}
    return values, np.asarray(missed)


def _moved(
    value_and_slope: Callable, x: Array, step: Array, wanted: float, value: float
) -> tuple[Array, Array, Array, Array] | None:
    """The first of halved steps that brings enough; None where none does."""
    for halving in range(_HALVINGS):
        size = 0.5**halving
        trial = x + size * step
        (new, missed), slope = value_and_slope(trial)
        enough = value + size * (wanted - value)
        if np.isfinite(new) and bool(jnp.all(jnp.isfinite(slope))) and new < enough:
            return trial, new, missed, slope
    return None
