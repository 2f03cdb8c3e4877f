"""Training: the reverse sweep against automatic differentiation, a run against a plain loop, and what freezes it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_variables import variables

from jaxstab import clipping, networks, training
from jaxstab.networks import MLP
from jaxstab.networks.binding import initial_statistics
from jaxstab.networks.layers import Layer
from jaxstab.training import Examples, train

KEY = jax.random.key(2)
DEEP, LIVE, N = 7, 3, 40
X = jax.random.normal(KEY, (N, 5))
DATA = Examples(X, jnp.argmax(X[:, :3], axis=1))
BLOCKS = {
    "plain": {},
    "layer, sum": {"norm": "layer", "skip": "sum"},
    "rms after, rezero": {"norm": "rms", "norm_after": True, "skip": "rezero"},
    "batch, dropout": {"norm": "batch", "dropout": True},
    "highway": {"skip": "highway", "dropout": True},
}


def _near(found, wanted):
    # sums of some tens of terms, through a dozen updates
    tolerance = (
        {"rtol": 2e-4, "atol": 2e-6} if X.dtype == jnp.float32 else {"rtol": 1e-9, "atol": 1e-12}
    )
    chex.assert_trees_all_close(found, wanted, **tolerance)


def _first(tree, depth):
    return tree._replace(blocks=jax.tree.map(lambda leaf: leaf[:depth], tree.blocks))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.kernels] if name == "batch, dropout" else [])
        for name in BLOCKS
    ],
)
def test_gradient_is_that_of_the_network_built_at_that_depth(name):
    deep, short = (MLP(depth, 6, features_out=3, **BLOCKS[name]) for depth in (DEEP, LIVE))
    loss = lambda y: training.cross_entropy(y, DATA.y)

    def bound(mlp, params):
        wet = jax.random.key(1) if mlp.dropout else None
        stats = initial_statistics(mlp, params, X)
        return networks.chain(mlp).bind(params, stats=stats, key=wet, rate=0.2)

    def ours(depth):
        return training.value_and_grad(
            deep, bound(deep, networks.chain(deep).init(KEY, X, 1.3, 0.2)), X, loss, depth
        )

    def autodiff(params):
        y, new = short.apply(variables(bound(short, params)), X, mutable=["batch_stats"])
        return loss(y), (y, new.get("batch_stats", {}))

    found = jax.jit(ours)(LIVE)
    params = networks.chain(short).init(KEY, X, 1.3, 0.2)
    (value, (y, stats)), gradient = jax.jit(jax.value_and_grad(autodiff, has_aux=True))(params)
    _near((found.loss, found.y), (value, y))
    _near(_first(found.params, LIVE), gradient)
    assert not any(np.any(leaf[LIVE:]) for leaf in jax.tree.leaves(found.params.blocks))
    if stats:
        _near(jax.tree.map(lambda leaf: leaf[:LIVE], found.stats["blocks"]), stats["blocks"])
        _near(found.stats["readout"], stats["readout"])
    lengths = [
        jnp.log(optax.tree.norm(jax.tree.map(lambda leaf, i=i: leaf[i], gradient.blocks)))
        for i in range(LIVE)
    ]
    wanted = jnp.stack([jnp.log(optax.tree.norm(gradient.embed)), *lengths])
    _near(
        (found.log_norms[: LIVE + 1], found.log_norm_readout),
        (wanted, jnp.log(optax.tree.norm(gradient.readout))),
    )
    assert np.all(np.isnan(found.log_norms[LIVE + 1 :])) and found.finite


STEPS, BATCH = 13, 16
TEST = Examples(X[:9] + 0.3, DATA.y[:9])


def _tx(rate):
    return optax.chain(
        clipping.monitored(clipping.clip_by_norm(0.3)), optax.sgd(rate, momentum=0.9)
    )


def _run(mlp, rate=0.01, depth=None, seed=3, **options):
    params = networks.chain(mlp).init(jax.random.key(seed), X, 1.2, 0.1)
    settings = {
        "key": jax.random.key(seed),
        "steps": STEPS,
        "batch": BATCH,
        "rate": 0.1,
        "evaluate": (0, 5),
    }
    return train(mlp, params, _tx(rate), DATA, test=TEST, depth=depth, **settings | options)


@pytest.fixture(scope="module")
def runs():
    """The program of a net with everything, its depth and settings traced; the same at its own depth."""
    deep, short = (
        MLP(depth, 6, features_out=3, **BLOCKS["batch, dropout"]) for depth in (DEEP, LIVE)
    )
    traced = jax.jit(
        chex.assert_max_traces(lambda depth, rate, seed: _run(deep, rate, depth, seed), n=1)
    )
    return traced, jax.jit(lambda rate, seed: _run(short, rate, None, seed))


@pytest.mark.slow
def test_a_run_is_that_of_the_network_built_at_that_depth(runs):
    for rate, seed in ((0.01, 3), (0.03, 4)):
        (seen, state), (wanted, end) = runs[0](LIVE, rate, seed), runs[1](rate, seed)
        _near(seen._replace(log_grad_theta=seen.log_grad_theta[:, : LIVE + 1]), wanted)
        _near(_first(state.params, LIVE), end.params)
        moments, ours = (optax.tree.get(s.optimiser, "trace") for s in (end, state))
        _near(_first(ours, LIVE), moments)
        _near(state.stats["readout"], end.stats["readout"])
    # other depths and settings compile nothing: the traces are counted
    assert runs[0](DEEP, 0.02, 5)[0].first_nonfinite == -1


@pytest.mark.slow
def test_a_run_is_a_plain_loop(runs):
    mlp = MLP(LIVE, 6, features_out=3, **BLOCKS["batch, dropout"])
    seen, end = runs[1](0.01, 3)
    params, tx = networks.chain(mlp).init(jax.random.key(3), X, 1.2, 0.1), _tx(0.01)
    stats, state = initial_statistics(mlp, params, X), tx.init(params)
    draws, masks = jax.random.split(jax.random.key(3))

    @jax.jit
    def step(params, stats, state, x, y, key):
        def loss(params):
            bound = networks.chain(mlp).bind(params, stats=stats, key=key, rate=0.1)
            out, new = mlp.apply(variables(bound), x, mutable=["batch_stats"])
            right = jnp.mean(jnp.argmax(out, -1) == y, dtype=x.dtype)
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), (
                right,
                new["batch_stats"],
            )

        (value, (right, new)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        return (
            optax.apply_updates(params, updates),
            new,
            state,
            value,
            right,
            optax.tree.norm(gradient),
        )

    @jax.jit
    def accuracies(params, stats):
        bound = variables(networks.chain(mlp).bind(params, stats=stats))
        right = lambda some: jnp.mean(
            jnp.argmax(mlp.apply(bound, some.x, train=False), -1) == some.y
        )
        return right(DATA), right(TEST)

    wanted, looked = [], [accuracies(params, stats)]
    for t in range(STEPS):
        epoch, at = divmod(t, N // BATCH)
        here = jax.random.permutation(jax.random.fold_in(draws, epoch), N)[at * BATCH :][:BATCH]
        params, stats, state, *row = step(
            params, stats, state, X[here], DATA.y[here], jax.random.fold_in(masks, t)
        )
        wanted.append(row)
        if t + 1 in (5, STEPS):
            looked.append(accuracies(params, stats))
    _near(
        (seen.loss, seen.accuracy, seen.norm_before),
        tuple(jnp.asarray(column) for column in zip(*wanted, strict=True)),
    )
    _near(end.params, params)
    np.testing.assert_allclose(
        seen.coefficient, np.minimum(1, 0.3 / np.array([row[2] for row in wanted])), rtol=1e-4
    )
    np.testing.assert_allclose([*zip(seen.train_accuracy, seen.test_accuracy, strict=True)], looked)
    assert any(learned != tested for learned, tested in looked)
    # a row is what the next step saw, and at the end the last one
    whole = lambda row: (
        np.logaddexp.reduce(2 * np.append(seen.log_grad_theta[row], seen.log_grad_readout[row])) / 2
    )
    for row, t in enumerate((0, 5, STEPS - 1)):
        np.testing.assert_allclose(whole(row), np.log(wanted[t][2]), rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("evaluate", [(0, 5, STEPS - 1), (0,)])
def test_every_look_has_its_gradients(evaluate):
    # a look is at what the next step sees; the end, which has none, at what the last one saw
    steps = 1 if evaluate == (0,) else STEPS
    mlp = MLP(2, 6, features_out=3)
    options = {"key": KEY, "steps": steps, "batch": BATCH}
    run = lambda evaluate: train(
        mlp, networks.chain(mlp).init(KEY, X), optax.sgd(0.1), DATA, evaluate=evaluate, **options
    )[0]
    seen, every = run(evaluate), run(tuple(range(steps)))
    wanted = every.log_grad_readout[jnp.asarray([*evaluate, steps - 1])]
    assert np.all(np.isfinite(wanted))
    np.testing.assert_allclose(seen.log_grad_readout, wanted, rtol=1e-5)


@pytest.mark.slow
def test_an_example_that_is_not_finite_ends_a_run_for_good():
    mlp = MLP(2, 6, features_out=3)
    bad = Examples(X.at[7].set(jnp.nan), DATA.y)
    options = {"key": KEY, "steps": STEPS, "batch": 4, "evaluate": tuple(range(STEPS))}
    seen, state = train(mlp, networks.chain(mlp).init(KEY, X), optax.sgd(0.1), bad, **options)
    first = int(seen.first_nonfinite)
    # batches after it are finite again
    assert 0 < first < STEPS - 2
    assert np.all(np.isfinite(seen.loss[:first])) and np.all(np.isnan(seen.loss[first:]))
    assert np.all(np.isfinite(seen.log_grad_readout[:first])) and np.all(
        np.isnan(seen.log_grad_readout[first:])
    )
    shorter, same = train(
        mlp,
        networks.chain(mlp).init(KEY, X),
        optax.sgd(0.1),
        bad,
        **options | {"steps": first, "evaluate": ()},
    )
    assert shorter.first_nonfinite == -1
    _near(state.params, same.params)


def test_a_gradient_that_is_not_finite_ends_a_run_though_its_loss_is():
    mlp = MLP(2, 6, features_out=3)
    start = networks.chain(mlp).init(KEY, X)
    # 0, with the gradient 0 / 0
    cusp = lambda out, y: jnp.sqrt(jnp.sum((out - jax.lax.stop_gradient(out)) ** 2))
    seen, state = train(mlp, start, optax.sgd(0.1), DATA, key=KEY, steps=3, batch=4, loss=cusp)
    assert seen.first_nonfinite == 0 and seen.loss[0] == 0 and np.all(np.isnan(seen.loss[1:]))
    chex.assert_trees_all_equal(state.params, start)


@pytest.mark.slow
def test_the_optimiser_is_given_gradient_parameters_and_loss():
    mlp, rates = MLP(2, 6, features_out=3), (0.3, 0.02)
    start = networks.chain(mlp).init(KEY, X)
    move = lambda gradient, params, value: jax.tree.map(
        lambda g, p: -rates[0] * value * g - rates[1] * p, gradient, params
    )
    tx = optax.GradientTransformationExtraArgs(
        lambda _: optax.EmptyState(),
        lambda updates, state, params, *, value, **_: (move(updates, params, value), state),
    )
    _, state = train(mlp, start, tx, DATA, key=KEY, steps=3)
    loss = lambda params: training.cross_entropy(mlp.apply(variables(params), X), DATA.y)
    wanted = start
    for _ in range(3):
        value, gradient = jax.value_and_grad(loss)(wanted)
        wanted = optax.apply_updates(wanted, move(gradient, wanted, value))
    _near(state.params, wanted)


@pytest.mark.slow
@pytest.mark.kernels
def test_a_diverged_run_freezes_and_leaves_its_neighbours_alone():
    mlp = MLP(DEEP, 6, "relu", features_out=3)
    huge = 1e30 if X.dtype == jnp.float32 else 1e290
    start = networks.chain(mlp).init(KEY, X, 1.4, 0.1)

    def one(rate):
        options = {"key": KEY, "steps": STEPS, "batch": BATCH, "evaluate": (1,)}
        return train(mlp, start, optax.sgd(rate), DATA, **options)

    rates = jnp.array([0.1, huge, 0.2])
    many, states = jax.jit(jax.vmap(one))(rates)
    alone, state = jax.jit(jax.vmap(one))(rates.at[1].set(0.3))
    chex.assert_trees_all_equal(
        *(jax.tree.map(lambda leaf: leaf[::2], tree) for tree in ((many, states), (alone, state)))
    )
    # the first update is finite, the loss after it is not: the network stays as it made it
    assert many.first_nonfinite.tolist() == [-1, 1, -1] and np.all(np.isnan(many.loss[1, 2:]))
    assert np.isfinite(many.loss[1, 0]) and not np.isfinite(many.loss[1, 1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states))
    assert many.train_accuracy[1, 0] == many.train_accuracy[1, 1]
    # mapped, not vmapped: the same numbers
    mapped, _ = jax.jit(lambda rates: jax.lax.map(one, rates))(rates)
    _near(jax.tree.map(lambda leaf: leaf[::2], mapped), jax.tree.map(lambda leaf: leaf[::2], many))


@pytest.mark.slow
def test_full_batches_any_loss_and_no_telemetry():
    mlp = MLP(2, 8, "tanh", features_out=1)
    data = Examples(X, X[:, 0] * X[:, 1])
    squares = lambda out, y: jnp.mean((out[:, 0] - y) ** 2)
    options = {"key": KEY, "steps": 60, "loss": squares}
    # one that asks for the loss as well
    tx = optax.chain(optax.adam(0.03), optax.contrib.reduce_on_plateau(patience=50))
    seen, _ = jax.jit(lambda: train(mlp, networks.chain(mlp).init(KEY, X), tx, data, **options))()
    assert seen.loss[-1] < 0.2 * seen.loss[0]
    assert np.all(np.isnan(seen.accuracy)) and np.all(np.isnan(seen.train_accuracy)), (
        "these labels are no classes"
    )
    assert np.all(np.isnan(seen.coefficient)) and np.all(np.isnan(seen.test_accuracy))
    # every step sees all: a permutation of them changes nothing but rounding
    turned = Examples(X[::-1], data.y[::-1])
    again, _ = jax.jit(
        lambda: train(mlp, networks.chain(mlp).init(KEY, X), tx, turned, **options)
    )()
    np.testing.assert_allclose(again.loss, seen.loss, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"batch": 41}, "batch must be at most the number of examples, 40, got 41"),
        ({"batch": 0}, "batch must be an integer >= 1, got 0"),
        ({"evaluate": (3, 99)}, r"evaluate must be integers in \[0, 13\], got"),
        (
            {"data": Examples(X[:0], DATA.y[:0])},
            "as many labels as inputs, at least one, got 0 labels and 0 inputs",
        ),
        ({"data": Examples(X, DATA.y - 1)}, r"labels must be in \[0, 3\), got -1\.\.1"),
        ({"data": Examples(X, DATA.y + 1)}, r"labels must be in \[0, 3\), got 1\.\.3"),
        ({"depth": 3}, r"depth must be in \[0, 2\], the number of blocks, got 3"),
        ({"depth": -1}, r"depth must be in \[0, 2\], the number of blocks, got -1"),
        ({"data": Examples(DATA.y[:, None], DATA.y)}, "x must be floating, got dtype int"),
    ],
)
def test_bad_input_is_named(change, message):
    mlp = MLP(2, 6, features_out=3)
    settings = {"data": DATA, "key": KEY, "steps": STEPS, "batch": BATCH} | change
    with pytest.raises(ValueError, match=message):
        train(
            mlp, networks.chain(mlp).init(KEY, X), optax.sgd(0.1), settings.pop("data"), **settings
        )


def test_depth_is_not_given_to_blocks_that_depend_on_it():
    mlp = MLP(2, 6, skip="scaled")
    with pytest.raises(
        ValueError, match="depth must be None for a network whose blocks depend on its depth"
    ):
        training.value_and_grad(
            mlp, networks.chain(mlp).bind(networks.chain(mlp).init(KEY, X)), X, jnp.sum, 1
        )


@pytest.mark.slow
def test_a_gradient_needs_bound_parameters_and_running_statistics():
    mlp = MLP(2, 6, norm="batch")
    params = networks.chain(mlp).init(KEY, X)
    with pytest.raises(ValueError, match=r"params must come from chain\.bind\(params\)"):
        training.value_and_grad(mlp, params, X, jnp.sum)
    with pytest.raises(
        ValueError, match=r"needs running statistics: chain\.bind\(params, stats=\.\.\.\)"
    ):
        training.value_and_grad(mlp, networks.chain(mlp).bind(params), X, jnp.sum)
    # as parameters of many seeds have them, stacked
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 7), networks.chain(mlp).init(KEY, X))
    with pytest.raises(ValueError, match=r"params must have \d+ blocks, as the network, got 7"):
        training.value_and_grad(mlp, networks.Params(*map(Layer, stacked)), X, jnp.sum)


def test_a_label_without_a_logit_is_refused_or_has_no_gradient():
    y = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got 0..7"):
        training.cross_entropy(y, jnp.array([0, 7]))
    value, gradient = jax.jit(jax.value_and_grad(training.cross_entropy))(y, jnp.array([0, 7]))
    assert np.isnan(value) and np.isnan(gradient).all()
    assert np.isfinite(jax.jit(jax.grad(training.cross_entropy))(y, jnp.array([0, 3]))).all()
