"""Monitoring of a training run: norms by layer, stable ranks and firing rates every k updates."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxstab.clipping import TelemetryState
from jaxstab.clipping.settings import check_integer
from jaxstab.norms import Norm, group_norms
from jaxstab.norms.groups import accumulator, zero_norms
from jaxstab.norms.logarithms import unit
from jaxstab.norms.paths import Grouping, Per, Stacked, check_grouping, named_leaves, stack_of

# steps of the power method at the first summary, and at each later one, which continues from it
FIRST_STEPS = 40
LATER_STEPS = 2

# (number of the update, numbers by name)
Send = Callable[[int, dict[str, float]], object]


class Watched(NamedTuple):
    """Latest summary of `watch`; NaN before the first.

    Attributes:
        last_step: number of the summarised update, counted from 0; -1 before the first.
        log_gradient: ln of the norm of the gradient by name of group; -inf for zero.
        log_update: ln of the norm of the update, the transformed gradient, by name of group.
        log_parameters: ln of the norm of the parameters before the update, by name of group.
        stable_rank: |W|_F^2 / |W|_2^2 by name of kernel, one value per layer of a stack.
        firing_rates: rate of each `clipping.monitored` in the transformation, "0", "1", ...
        nonfinite: count of NaN and infinite entries of the gradient.
    """

    last_step: Int[Array, ""]
    log_gradient: dict[str, Float[Array, "*depth"]]
    log_update: dict[str, Float[Array, "*depth"]]
    log_parameters: dict[str, Float[Array, "*depth"]]
    stable_rank: dict[str, Float[Array, "*depth"]]
    firing_rates: dict[str, Float[Array, ""]]
    nonfinite: Int[Array, ""]


class WatchState(NamedTuple):
    """State of `watch`.

    Attributes:
        inner: state of the wrapped transformation.
        calls: updates made so far.
        watched: the last summary.
        vectors: estimates of the kernels' largest right singular vectors, of unit norm.
    """

    inner: PyTree
    calls: Int[Array, ""]
    watched: Watched
    vectors: dict[str, Float[Array, "*depth n"]]


def watch(
    tx: optax.GradientTransformation,
    every: ArrayLike = 10,
    per: Per = "layer",
    stacked: Stacked = (),
    send: Send | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keep in the state, every k updates, a summary of gradient, update and parameters.

    The wrapped transformation makes the same updates as tx. The state keeps one structure, so that
    `jax.lax.scan` can carry it, and `optax.tree.get(state, "watched")` reads the summary in any
    chain. A summary calls tx a second time, so that host callbacks of tx run twice. Updates between
    summaries cost nothing extra, except under `jax.vmap` over states, where JAX runs both branches
    of a conditional.

    A doubling norm of the updates precedes a spike of the loss. A falling stable rank is a sign of
    collapsing kernels. The largest singular value comes from the power method, which continues from
    summary to summary. The stable rank is therefore too large: by a few percent for a random kernel
    at the first summary, and by less later.

    Args:
        tx: any transformation; `clipping.monitored` within tx gives firing rates.
        every: updates from one summary to the next, an integer >= 1, which may be traced. The
            first update has a summary.
        per: groups of norms: "tree", "leaf", "layer" or a callable of `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.
        send: host function of (number of the update, numbers by name), called with each summary,
            such as a function of `jaxstab.diagnosis.writers`; None to send nothing. Layer 3 of a
            stack is named "log_update/blocks/dense@3". Under `jax.vmap` every network calls `send`.

    Returns:
        The transformation; its state is a `WatchState`.

    Example:
        >>> tx = watch(optax.sgd(0.5), every=2)
        >>> params = {"dense": {"kernel": jnp.diag(jnp.asarray([2.0, 1.0]))}}
        >>> state = tx.init(params)
        >>> updates, state = jax.jit(tx.update)(params, state, params)
        >>> float(jnp.exp(state.watched.log_update["dense"]).round(3))
        1.118...
        >>> float(state.watched.stable_rank["dense/kernel"].round(3))
        1.25
    """
    grouping = check_grouping(per, stacked)
    check_integer("every", every, 1)
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> WatchState:
        inner = tx.init(params)
        unknown = {
            label: jnp.full_like(zero, jnp.nan)
            for label, zero in zero_norms(params, *grouping).items()
        }
        vectors = {name: _start(kernel) for name, kernel in _kernels(params, stacked).items()}
        watched = Watched(
            last_step=jnp.full((), -1, jnp.int32),
            log_gradient=unknown,
            log_update=unknown,
            log_parameters=unknown,
            stable_rank={name: jnp.full_like(v[..., 0], jnp.nan) for name, v in vectors.items()},
            firing_rates={name: rate * jnp.nan for name, rate in _firing_rates(inner).items()},
            nonfinite=jnp.zeros((), jnp.int32),
        )
        return WatchState(inner, jnp.zeros((), jnp.int32), watched, vectors)

    def update(
        updates: PyTree, state: WatchState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, WatchState]:
        due = state.calls % jnp.asarray(every).astype(jnp.int32) == 0

        def summary() -> tuple[Watched, dict[str, Array]]:
            # a second call, since XLA would write updates read here to memory at every step
            out, inner = tx.update(updates, state.inner, params, **extra)
            trees = jax.lax.stop_gradient((updates, out, params))
            summarised = _summary(*trees, inner, state, grouping)
            if send is not None:
                jax.debug.callback(functools.partial(_send, send), due, summarised[0])
            return summarised

        watched, vectors = jax.lax.cond(due, summary, lambda: (state.watched, state.vectors))
        # XLA updates moments in place only if their new values depend on the summary
        before = _after(watched.last_step >= 0, state.inner)
        out, inner = tx.update(updates, before, params, **extra)
        return out, WatchState(inner, optax.safe_increment(state.calls), watched, vectors)

    return optax.GradientTransformationExtraArgs(init, update)


def _after(done: Bool[Array, ""], state: PyTree) -> PyTree:
    """Return the state unchanged, but dependent on a scalar that is always true."""

    def depending(x: Any) -> Any:
        floating = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)
        if floating:
            return jnp.where(done, x, jnp.zeros_like(x))
        return x

    return jax.tree.map(depending, state)


def _summary(
    gradient: PyTree,
    update: PyTree,
    params: PyTree | None,
    inner: PyTree,
    state: WatchState,
    grouping: Grouping,
) -> tuple[Watched, dict[str, Array]]:
    """Compute the summary of one update, and the vectors for the next power method."""
    old = state.watched
    norms = group_norms(gradient, *grouping)
    weights = {}
    if params is not None:
        weights = group_norms(params, *grouping)

    def logs(norms: dict[str, Norm]) -> dict[str, Array]:
        nothing = {label: jnp.full_like(log, jnp.nan) for label, log in old.log_update.items()}
        return nothing | {k: norm.log.astype(nothing[k].dtype) for k, norm in norms.items()}

    ranks = {name: jnp.full_like(rank, jnp.nan) for name, rank in old.stable_rank.items()}
    vectors = dict(state.vectors)
    if params is not None:
        steps = jnp.where(old.last_step < 0, FIRST_STEPS, LATER_STEPS)
        kernels = _kernels(params, grouping.stacked)
        frobenius = _frobenius(kernels)
        for name, kernel in kernels.items():
            log_largest, vectors[name] = _largest(kernel, vectors[name], steps)
            ranks[name] = jnp.exp(2 * (frobenius[name].log - log_largest))
    bad = [jnp.sum(norm.nonfinite, dtype=jnp.int32) for norm in norms.values()]
    watched = Watched(
        last_step=state.calls,
        log_gradient=logs(norms),
        log_update=logs(group_norms(update, *grouping)),
        log_parameters=logs(weights),
        stable_rank=ranks,
        firing_rates=_firing_rates(inner),
        nonfinite=sum(bad, jnp.zeros((), jnp.int32)),
    )
    return watched, vectors


def _kernels(params: PyTree, stacked: Stacked) -> dict[str, Float[Array, "*depth m n"]]:
    """Leaves of two axes or more as matrices: the last axis is n, the others are m."""
    is_stacked = stack_of(params, stacked)
    kernels = {}
    for path, leaf in named_leaves(params):
        in_stack = is_stacked(path)
        if jnp.ndim(leaf) - in_stack >= 2 and jnp.size(leaf):
            shape = jnp.shape(leaf)
            kernels["/".join(path)] = jnp.reshape(leaf, (*shape[:in_stack], -1, shape[-1]))
    return kernels


def _frobenius(kernels: dict[str, Array]) -> dict[str, Norm]:
    """Compute |W|_F of each kernel, per layer of a stack."""
    modules = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    return group_norms(modules, "layer", lambda path: kernels[path[0]].ndim == 3)


def _start(kernel: Float[Array, "*depth m n"]) -> Float[Array, "*depth n"]:
    """Draw a random unit vector, the same for every layer."""
    dtype = accumulator(kernel.dtype)
    vector = jax.random.normal(jax.random.key(0), kernel.shape[-1:], dtype)
    zeros = jnp.zeros_like(kernel[..., 0, :], dtype)
    return zeros + jnp.broadcast_to(unit(vector)[0], zeros.shape)


def _largest(
    kernel: Float[Array, "*depth m n"], vector: Float[Array, "*depth n"], steps: Int[Array, ""]
) -> tuple[Float[Array, "*depth"], Float[Array, "*depth n"]]:
    """Compute ln |W|_2 and its right singular vector by the power method of W^T W."""
    if kernel.ndim == 3:
        return jax.vmap(_largest, (0, 0, None))(kernel, vector, steps)
    matrix = kernel.astype(vector.dtype)

    def step(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        vector, _ = carry
        left, _ = unit(matrix @ vector)
        return unit(left @ matrix)

    start = (vector, jnp.zeros_like(vector[0]))
    after, log_largest = jax.lax.fori_loop(0, steps, step, start)
    # a zero or non-finite kernel spoils its vector: keep the old one
    sound = jnp.isfinite(log_largest)
    return log_largest, jnp.where(sound, after, vector)


def _firing_rates(inner: PyTree) -> dict[str, Float[Array, ""]]:
    nodes = jax.tree.leaves(inner, is_leaf=lambda node: isinstance(node, TelemetryState))
    states = [node for node in nodes if isinstance(node, TelemetryState)]
    return {str(i): node.firing_rate for i, node in enumerate(states)}


def _send(send: Send, due: ArrayLike, watched: Watched) -> None:
    # under vmap both branches of the conditional run
    if due:
        send(int(watched.last_step), _numbers(watched))


def _numbers(watched: Watched) -> dict[str, float]:
    """Flatten a summary to numbers by name, with one name per layer of a stack."""
    numbers = {"nonfinite": float(watched.nonfinite)}
    for quantity in watched._fields:
        values = getattr(watched, quantity)
        if not isinstance(values, dict):
            continue
        for name, value in values.items():
            array = np.asarray(value)
            if array.ndim == 0:
                numbers[f"{quantity}/{name}"] = float(array)
            else:
                layers = {f"{quantity}/{name}@{i}": float(x) for i, x in enumerate(array)}
                numbers |= layers
    return numbers
