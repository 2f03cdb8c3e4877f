"""One training run as a loop on the device, under any optax transformation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from jaxstab.checks import check_count
from jaxstab.curvature.monitors import SharpnessState, begun, measured
from jaxstab.curvature.objectives import cross_entropy
from jaxstab.curvature.products import hessian_by_gradient
from jaxstab.networks import MLP, Chain, Params, views
from jaxstab.networks.binding import initial_statistics
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import chain_of
from jaxstab.networks.layers import trained
from jaxstab.records import Training
from jaxstab.training.examples import Examples, Loss, accuracy, check_outputs, check_run, minibatch
from jaxstab.training.gradient import Gradient, value_and_grad

_TELEMETRY = ("norm_before", "coefficient")


class State(NamedTuple):
    """State that a run carries from update to update.

    Attributes:
        params: trained parameters; `Chain.bind(params, stats=stats)` binds them to the network.
        stats: BatchNorm's running statistics, and other state of layers of the user's own; empty
            without such state.
        optimiser: state of the optax transformation.
        curvature: records of the sharpness along the run; None where it is not measured.
    """

    params: Params
    stats: PyTree
    optimiser: PyTree
    curvature: SharpnessState | None = None


@with_network
def start(
    network: MLP | Chain, params: Params, tx: optax.GradientTransformation, x: PyTree
) -> State:
    """Make the state before the first update.

    Args:
        network: an MLP or a chain.
        params: parameters of the network, before `bind`.
        tx: the optimiser.
        x: inputs, which give shapes and dtype.

    Returns:
        State before the first update.

    Example:
        >>> from jaxstab import networks
        >>> net, x = networks.mlp(depth=2, width=4, norm="batch"), jnp.ones((8, 5))
        >>> state = start(net, net.init(jax.random.key(0), x), optax.sgd(0.1, momentum=0.9), x)
        >>> state.stats["blocks"]["norm"]["var"].shape, int(optax.tree.norm(state.optimiser))
        ((2, 4), 0)
    """
    theta = trained(params)
    return State(theta, initial_statistics(network, params, x), tx.init(theta))


class _Run(NamedTuple):
    """Carry of the loop: state, last gradient, order of the epoch, and recorded series."""

    state: State
    last: Gradient
    order: Int[Array, " n"]
    series: dict[str, Float[Array, " step"]]
    norms: Float[Array, "row layer"]
    first_nonfinite: Int[Array, ""]


@with_network
def train(
    network: MLP | Chain,
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
    curvature_every: int | None = None,
) -> tuple[Training, State]:
    """Train one network; vmap or map over runs.

    A run stops at the first loss or gradient that is not finite: its state stays unchanged, and
    `first_nonfinite` holds the step. The sharpness is the largest eigenvalue of the Hessian of the
    loss over all of `data`, from 10 products that start at the last eigenvector. Unlike
    `curvature.monitor_sharpness`, it is computed only at its records even under `jax.vmap`.

    Args:
        network: an MLP, or a chain of the user's own layers that takes a batch;
            `networks.over_batch` makes such a chain of one that takes one input.
        params: initial parameters, before `bind`.
        tx: optax transformation of gradient, parameters and loss (a line search needs more); its
            settings may be traced. A leaf holds a parameter of all blocks, those beyond `depth`
            included, so that transformations by leaf (LARS, LAMB, AGC, Muon) act on all of them.
        data: training examples.
        key: PRNG key of minibatches and of dropout's masks.
        steps: number of updates, >= 1.
        batch: examples per update, drawn in a new order each epoch, with the rest of an epoch
            dropped; None for all.
        test: test examples; None for a test accuracy of NaN.
        loss: scalar function of (outputs, labels).
        rate: rate of an MLP's dropout, as in `Chain.bind`; layers of the user's own have theirs.
        depth: number of blocks to use, may be traced, see `value_and_grad`; None for all.
        evaluate: numbers of updates after which to evaluate all data, in [0, steps]; the end of the
            run always has an evaluation.
        curvature_every: updates from one record of the sharpness to the next, >= 1; None for no
            record. BatchNorm sees minibatches of `batch`, dropout the masks of the step.

    Returns:
        Record of the run and its final state. The recorded sharpness is that before updates 0,
        every, 2 every, ...; the edge of stability is at `curvature.largest_stable_rate`.

    Raises:
        ValueError: if steps or curvature_every < 1, batch exceeds the data, evaluate is not within
            [0, steps], there are no data, labels are not classes of the network, x of an MLP is not
            floating, a chain does not take a batch, or `value_and_grad` raises.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=16, activation="relu", features_out=2)
        >>> x = jax.random.normal(jax.random.key(0), (64, 5))
        >>> data = Examples(x, (x[:, 0] > 0).astype(int))
        >>> params = net.init(jax.random.key(1), x, sigma_w=2**0.5)
        >>> run = lambda: train(net, params, optax.adam(0.01), data, key=jax.random.key(2), steps=100, batch=16)
        >>> seen, state = jax.jit(run)()
        >>> seen.loss.shape, bool(seen.train_accuracy[-1] > 0.9), int(seen.first_nonfinite)
        ((100,), True, -1)
    """
    chain = chain_of(network)
    check_run(data, steps, batch, evaluate, isinstance(chain.block, tuple))
    every = curvature_every
    if every is not None:
        every = check_count("curvature_every", every, 1)
    points = sorted({*evaluate, steps})
    draws, masks = jax.random.split(key)
    rows = _rows_of_norms(points, steps)

    def gradient(t: Array, state: State, some: Examples, last: Gradient | None) -> Gradient:
        own = jax.random.fold_in(masks, t)
        bound = chain.bind(state.params, stats=state.stats, key=own, rate=rate)
        return value_and_grad(network, bound, some.x, lambda out: loss(out, some.y), depth, last)

    curvature = _curvature_records(gradient, _for_curvature(chain, data, batch), every)

    def update(t: Array, run: _Run) -> _Run:
        order, some = minibatch(data, batch, draws, t, run.order)
        gradient_now = gradient(t, run.state, some, run.last)
        new = _updated(tx, run.state, gradient_now)
        new = new._replace(curvature=curvature(t, run.state))
        return _recorded(
            run._replace(order=order),
            t,
            rows[t],
            gradient_now,
            new,
            accuracy(gradient_now.y, some.y),
        )

    def segment(run: _Run, ends: tuple[Array, Array]) -> tuple[_Run, tuple[Array, Array]]:
        run = jax.lax.fori_loop(*ends, update, run)
        learned, tested = (_accuracy(chain, run.state, some, depth) for some in (data, test))
        return run, (learned.astype(first.loss.dtype), tested.astype(first.loss.dtype))

    state = start(chain, params, tx, data.x)
    if every is not None:
        state = state._replace(curvature=begun(state.params, -(-steps // every)))
    some = data.at(slice(batch))
    bound = chain.bind(state.params, stats=state.stats, key=masks, rate=rate)
    check_outputs(views.output_shape(chain, bound, some.x), loss, some.size, data, test)
    first = jax.eval_shape(gradient, jnp.zeros((), jnp.int32), state, some, None)
    run = _begun(state, first, data.size, steps, len(points))
    run, (learned, tested) = jax.lax.scan(
        segment, run, (jnp.asarray([0, *points[:-1]], jnp.int32), jnp.asarray(points, jnp.int32))
    )
    return _training(run, learned, tested), run.state


def _training(
    run: _Run, learned: Float[Array, " evaluation"], tested: Float[Array, " evaluation"]
) -> Training:
    """Make the record of a finished run."""
    sharpness = error = jnp.zeros(0)
    if run.state.curvature is not None:
        sharpness = run.state.curvature.sharpness
        error = run.state.curvature.error
    return Training(
        **run.series,
        train_accuracy=learned,
        test_accuracy=tested,
        log_grad_theta=run.norms[:-1, :-1],
        log_grad_readout=run.norms[:-1, -1],
        sharpness=sharpness,
        sharpness_error=error,
        first_nonfinite=run.first_nonfinite,
    )


def _rows_of_norms(points: list[int], steps: int) -> Int[Array, "step 2"]:
    """Number the rows of gradient norms that each step writes, one row for each evaluation."""
    # steps without an evaluation write to the unread row len(points); the last writes the end's too
    unread = jnp.full((steps, 2), len(points))
    before = jnp.asarray(points[:-1], jnp.int32)
    rows = unread.at[before, 0].set(jnp.arange(len(points) - 1))
    return rows.at[-1, 1].set(len(points) - 1)


def _begun(state: State, gradient: Gradient, examples: int, steps: int, looks: int) -> _Run:
    """Make the carry before the first update; `gradient` holds shapes."""
    dtype = gradient.loss.dtype
    return _Run(
        state=state,
        last=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), gradient),
        order=jnp.arange(examples, dtype=jnp.int32),
        series=dict.fromkeys(("loss", "accuracy", *_TELEMETRY), jnp.full(steps, jnp.nan, dtype)),
        norms=jnp.full((looks + 1, len(gradient.log_norms) + 1), jnp.nan, dtype),
        first_nonfinite=jnp.full((), -1, jnp.int32),
    )


def _updated(tx: optax.GradientTransformation, state: State, gradient: Gradient) -> State:
    """Compute the state after an update, also for a gradient that is not finite."""
    # optax mixes integers and floats, which strict dtype promotion refuses
    with jax.numpy_dtype_promotion("standard"):
        updates, optimiser = optax.with_extra_args_support(tx).update(
            gradient.params,
            state.optimiser,
            state.params,
            value=gradient.loss,
            grad=gradient.params,
        )
    return State(optax.apply_updates(state.params, updates), gradient.stats, optimiser)


def _recorded(
    run: _Run, t: Array, rows: Array, gradient: Gradient, new: State, accuracy: Array
) -> _Run:
    """Record step t; freeze the state from the first non-finite loss or gradient on."""
    going = run.first_nonfinite < 0
    clipped = {name: _telemetry(new.optimiser, name, gradient.loss.dtype) for name in _TELEMETRY}
    series = {"loss": gradient.loss, "accuracy": accuracy.astype(gradient.loss.dtype)} | clipped
    norms = jnp.append(gradient.log_norms, gradient.log_norm_readout).astype(run.norms.dtype)
    norms = jnp.where(going, norms, jnp.nan)
    return run._replace(
        state=jax.tree.map(
            lambda new, old: jnp.where(going & gradient.finite, new, old), new, run.state
        ),
        last=gradient,
        series=jax.tree.map(
            lambda row, value: row.at[t].set(jnp.where(going, value, jnp.nan)), run.series, series
        ),
        norms=run.norms.at[rows].set(jnp.broadcast_to(norms, (2, len(norms)))),
        first_nonfinite=jnp.where(going & ~gradient.finite, t, run.first_nonfinite),
    )


def _curvature_records(
    gradient: Callable[[Array, State, Examples, Gradient | None], Gradient],
    examples: tuple[Examples, int | None],
    every: int | None,
) -> Callable[[Array, State], SharpnessState | None]:
    """Make the function that records the sharpness every `every` updates."""
    whole, chunk = examples

    def records(t: Array, state: State) -> SharpnessState | None:
        if state.curvature is None or every is None:
            return None
        known = state.curvature

        def by_parameters(params: Params, some: Examples) -> Params:
            return gradient(t, state._replace(params=params), some, None).params

        def measure() -> SharpnessState:
            operator = hessian_by_gradient(by_parameters, state.params, whole, chunk)
            return measured(known, operator, t // every)

        # t is not batched under vmap, so that only one branch runs
        return jax.lax.cond(t % every == 0, measure, lambda: known)

    return records


def _for_curvature(chain: Chain, data: Examples, batch: int | None) -> tuple[Examples, int | None]:
    """Select the examples of the Hessian: whole minibatches where blocks mix examples."""
    if chain.update is None:
        return data, None
    size = batch or data.size
    return data.at(slice(data.size // size * size)), size


def _accuracy(
    chain: Chain, state: State, data: Examples | None, depth: Array | int | None
) -> Array:
    """Compute the accuracy in inference mode; NaN without data."""
    if data is None:
        return jnp.full((), jnp.nan)
    params = chain.bind(state.params, stats=state.stats)
    return accuracy(chain.inference.apply(params, data.x, depth), data.y)


def _telemetry(optimiser: PyTree, name: str, dtype: jnp.dtype) -> Array:
    """Read a record of the outermost `clipping.monitored`; NaN without one."""
    telemetry = optax.tree.get_all_with_path(optimiser, name)
    if not telemetry:
        return jnp.full((), jnp.nan, dtype)
    return telemetry[0][1].astype(dtype)
