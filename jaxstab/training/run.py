"""One training run, as a loop on the device: minibatches by key, any optax transformation, and what was seen."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from jaxstab import networks
from jaxstab.checks import check_batch, check_count, check_floating, check_labels, check_looks
from jaxstab.networks import MLP, Params
from jaxstab.records import Training
from jaxstab.training.gradient import Gradient, output, value_and_grad

_TELEMETRY = ("norm_before", "coefficient")
Loss = Callable[[Float[Array, "batch d_out"], Int[Array, " batch"]], Float[Array, ""]]


class Examples(NamedTuple):
    """What is learned.

    Attributes:
        x: inputs.
        y: class labels from 0, or whatever else the loss compares with.
    """

    x: Float[Array, "n d_in"]
    y: Array


class State(NamedTuple):
    """What a run carries from update to update.

    Attributes:
        params: parameters.
        stats: BatchNorm's running statistics; empty without it.
        optimiser: state of the optax transformation.
    """

    params: Params
    stats: PyTree
    optimiser: PyTree


def cross_entropy(y: Float[Array, "*batch d_out"], labels: Int[Array, "*batch"]) -> Float[Array, ""]:
    """Mean softmax cross-entropy, in nats.

    Args:
        y: logits, of one example or a batch.
        labels: classes.

    Returns:
        The mean; NaN, as is its gradient, where a label has no logit.

    Raises:
        ValueError: if labels whose values Python knows are not integers in [0, d_out).

    Example:
        >>> round(float(cross_entropy(jnp.zeros((3, 10)), jnp.arange(3))), 4)  # ln 10
        2.3026
    """
    check_labels(labels, y.shape[-1])
    told_apart = jnp.all((labels >= 0) & (labels < y.shape[-1]))
    # a factor, so that the gradient is NaN too
    known = jnp.where(told_apart, jnp.ones((), y.dtype), jnp.full((), jnp.nan, y.dtype))
    return known * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, labels))


def start(mlp: MLP, params: Params, tx: optax.GradientTransformation, x: Float[Array, "*batch d_in"]) -> State:
    """The state before the first update.

    Args:
        mlp: the network.
        params: its parameters, before `bind`.
        tx: the optimiser.
        x: inputs, for their size and dtype.

    Returns:
        The state.

    Example:
        >>> mlp, x = MLP(depth=2, width=4, norm="batch"), jnp.ones((8, 5))
        >>> state = start(mlp, networks.init(mlp, jax.random.key(0), x), optax.sgd(0.1, momentum=0.9), x)
        >>> state.stats["blocks"]["norm"]["var"].shape, int(optax.tree.norm(state.optimiser))
        ((2, 4), 0)
    """
    return State(params, networks.initial_stats(mlp, x), tx.init(params))


class _Run(NamedTuple):
    """The loop's carry: the state, the last gradient, the order of this epoch, and what was seen."""

    state: State
    last: Gradient
    order: Int[Array, " n"]
    series: dict[str, Float[Array, " step"]]
    norms: Float[Array, "row layer"]
    first_nonfinite: Int[Array, ""]


def train(
    mlp: MLP,
    params: Params,
    tx: optax.GradientTransformation,
    data: Examples,
    *,
    key: Key[Array, ""],
    steps: int,
    batch: int | None = None,
    test: Examples | None = None,
    loss: Loss = cross_entropy,
    rate: ArrayLike = 0.0,
    depth: Int[Array, ""] | int | None = None,
    evaluate: Sequence[int] = (),
) -> tuple[Training, State]:
    """Train one network; vmap or map over runs.

    A run whose loss or gradient is not finite stops there: its state stays what it was, the step is told.

    Args:
        mlp: the network.
        params: its parameters at the start, before `bind`.
        tx: any optax transformation that asks for no more than gradient, parameters and loss (a line search asks for
            the function); its settings may be traced. A leaf holds a parameter of all blocks, those beyond `depth` too:
            what looks at a leaf as a whole (LARS, LAMB, AGC, Muon) sees them.
        data: what to train on.
        key: PRNG key of minibatches and of dropout's masks.
        steps: number of updates, >= 1.
        batch: examples per update, drawn epoch by epoch in a new order, what is left of an epoch dropped; None for all.
        test: what to test on; None for none, accuracy NaN.
        loss: (outputs, labels) -> scalar.
        rate: of dropout, as in `networks.bind`.
        depth: blocks that take part, may be traced, see `value_and_grad`; None for all.
        evaluate: numbers of updates after which to look at all data, in [0, steps]; the end is always one.

    Returns:
        What was seen, and the state at the end.

    Raises:
        ValueError: if steps < 1, batch is beyond the data, evaluate is not within [0, steps], there are no
            data, labels are no classes that the network tells apart, x is not floating, or as `value_and_grad` does.

    Example:
        >>> mlp = MLP(depth=2, width=16, activation="relu", features_out=2)
        >>> x = jax.random.normal(jax.random.key(0), (64, 5))
        >>> data = Examples(x, (x[:, 0] > 0).astype(int))
        >>> params = networks.init(mlp, jax.random.key(1), x, sigma_w=2**0.5)
        >>> run = lambda: train(mlp, params, optax.adam(0.01), data, key=jax.random.key(2), steps=100, batch=16)
        >>> seen, state = jax.jit(run)()
        >>> seen.loss.shape, bool(seen.train_accuracy[-1] > 0.9), int(seen.first_nonfinite)
        ((100,), True, -1)
    """
    for some in (data, test):
        if some is not None and loss is cross_entropy:
            check_labels(some.y, mlp.features_out)
    _check(data, steps, batch, evaluate)
    points = sorted({*evaluate, steps})
    draws, masks = jax.random.split(key)
    # the rows that a step's gradient norms go to, those of the last step to the end's too; the last is for the rest
    rows = jnp.full((steps, 2), len(points)).at[jnp.asarray(points[:-1], jnp.int32), 0].set(jnp.arange(len(points) - 1))
    rows = rows.at[-1, 1].set(len(points) - 1)

    def gradient(t: Array, state: State, some: Examples, last: Gradient | None) -> Gradient:
        wet = jax.random.fold_in(masks, t) if mlp.dropout else None
        bound = networks.bind(mlp, state.params, stats=state.stats, key=wet, rate=rate)
        return value_and_grad(mlp, bound, some.x, lambda out: loss(out, some.y), depth, last)

    def update(t: Array, run: _Run) -> _Run:
        order, some = _minibatch(data, batch, draws, t, run.order)
        found = gradient(t, run.state, some, run.last)
        new = _updated(tx, run.state, found)
        return _recorded(run._replace(order=order), t, rows[t], found, new, _right(found.y, some.y))

    def segment(run: _Run, ends: tuple[Array, Array]) -> tuple[_Run, tuple[Array, Array]]:
        run = jax.lax.fori_loop(*ends, update, run)
        right = lambda some: _accuracy(mlp, run.state, some, depth) if some else jnp.full((), jnp.nan, data.x.dtype)
        return run, (right(data), right(test))

    state = start(mlp, params, tx, data.x)
    first = jax.eval_shape(gradient, jnp.zeros((), jnp.int32), state, Examples(data.x[:batch], data.y[:batch]), None)
    run = _begun(state, first, len(data.x), steps, len(points))
    run, (learned, tested) = jax.lax.scan(
        segment, run, (jnp.asarray([0, *points[:-1]], jnp.int32), jnp.asarray(points, jnp.int32))
    )
    return Training(
        **run.series,
        train_accuracy=learned,
        test_accuracy=tested,
        log_grad_theta=run.norms[:-1, :-1],
        log_grad_readout=run.norms[:-1, -1],
        first_nonfinite=run.first_nonfinite,
    ), run.state


def _begun(state: State, gradient: Gradient, examples: int, steps: int, looks: int) -> _Run:
    """The carry before the first update; `gradient` is one of shapes."""
    dtype = gradient.loss.dtype
    return _Run(
        state=state,
        last=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gradient),
        order=jnp.arange(examples, dtype=jnp.int32),
        series=dict.fromkeys(("loss", "accuracy", *_TELEMETRY), jnp.full(steps, jnp.nan, dtype)),
        norms=jnp.full((looks + 1, len(gradient.log_norms) + 1), jnp.nan, dtype),
        first_nonfinite=jnp.full((), -1, jnp.int32),
    )


def _updated(tx: optax.GradientTransformation, state: State, found: Gradient) -> State:
    """The state after an update, whatever the gradient is."""
    # optax mixes integers and floats, which strict users have switched off
    with jax.numpy_dtype_promotion("standard"):
        updates, optimiser = optax.with_extra_args_support(tx).update(
            found.params, state.optimiser, state.params, value=found.loss, grad=found.params
        )
    return State(optax.apply_updates(state.params, updates), found.stats, optimiser)


def _recorded(run: _Run, t: Array, rows: Array, found: Gradient, new: State, accuracy: Array) -> _Run:
    """The carry after step t: frozen from the first loss or gradient on that is not finite."""
    going = run.first_nonfinite < 0
    clipped = {name: _telemetry(new.optimiser, name, found.loss.dtype) for name in _TELEMETRY}
    series = {"loss": found.loss, "accuracy": accuracy} | clipped
    norms = jnp.where(going, jnp.append(found.log_norms, found.log_norm_readout), jnp.nan)
    return run._replace(
        state=jax.tree.map(lambda new, old: jnp.where(going & found.finite, new, old), new, run.state),
        last=found,
        series=jax.tree.map(lambda row, value: row.at[t].set(jnp.where(going, value, jnp.nan)), run.series, series),
        norms=run.norms.at[rows].set(jnp.broadcast_to(norms, (2, len(norms)))),
        first_nonfinite=jnp.where(going & ~found.finite, t, run.first_nonfinite),
    )


def _minibatch(data: Examples, size: int | None, key: Array, t: Array, order: Array) -> tuple[Array, Examples]:
    """The examples of step t, and the order of its epoch."""
    if size is None:
        return order, data
    per_epoch = len(order) // size
    shuffled = lambda: jax.random.permutation(
        jax.random.fold_in(key, t // per_epoch), jnp.arange(len(order), dtype=jnp.int32)
    )
    order = jax.lax.cond(t % per_epoch == 0, shuffled, lambda: order)
    here = jax.lax.dynamic_slice_in_dim(order, t % per_epoch * size, size)
    return order, Examples(data.x[here], data.y[here])


def _accuracy(mlp: MLP, state: State, data: Examples, depth: Array | int | None) -> Array:
    """Share of the examples classified right, in inference."""
    params = networks.bind(mlp, state.params, stats=state.stats)
    return _right(output(networks.chain(mlp, train=False), params, data.x, depth), data.y)


def _right(y: Array, labels: Array) -> Array:
    """Share of the labels that are the largest output; NaN where they are no classes."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return jnp.full((), jnp.nan, y.dtype)
    return jnp.mean(jnp.argmax(y, -1).astype(labels.dtype) == labels, dtype=y.dtype)


def _telemetry(optimiser: PyTree, name: str, dtype: jnp.dtype) -> Array:
    """What `clipping.monitored` saw, the outermost where there are several; NaN without."""
    found = optax.tree.get_all_with_path(optimiser, name)
    return found[0][1].astype(dtype) if found else jnp.full((), jnp.nan, dtype)


def _check(data: Examples, steps: int, batch: int | None, evaluate: Sequence[int]) -> None:
    check_count("steps", steps, 1)
    check_floating("x", data.x.dtype)
    if len(data.x) == 0 or len(data.x) != len(data.y):
        raise ValueError(f"needs as many labels as inputs, at least one, got {len(data.y)} and {len(data.x)}")
    check_looks(evaluate, steps)
    check_batch(batch, len(data.x))
