"""Training of chains of a user's own layers, against plain loops over the same Flax modules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxstab import clipping, networks, training
from jaxstab.networks import chains
from jaxstab.training import Examples, train
from jaxstab.training.run import start

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (12, 5), jnp.float32)
DATA = Examples(X, jnp.argmax(X[:, :3], axis=1))
STEPS = 4


def squares(y, labels):
    return jnp.mean((y - labels) ** 2)


class Block(nn.Module):
    """A residual block with running statistics and dropout; its mode is an argument."""

    @nn.compact
    def __call__(self, h, train):
        a = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(h))
        return h + nn.Dropout(0.25, deterministic=not train)(nn.Dense(6)(a))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.linear = nnx.Linear(6, 6, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, h):
        return h + self.dropout(self.linear(jax.nn.relu(self.norm(h))))


def unstacked(params):
    """The parameters of each layer."""
    layers = []
    for part in params.blocks.parts:
        size = chains.layers_of(part)
        layers += [jax.tree.map(lambda leaf, i=i: leaf[i], part) for i in range(size)]
    return [params.embed, *layers, params.readout]


@pytest.mark.slow
@pytest.mark.kernels
def test_running_statistics_and_dropout_train_as_in_a_plain_loop():
    modules = [nn.Dense(6), Block(), Block(), Block(), nn.Dense(3)]
    chain = networks.from_linen(modules)
    params = jax.jit(chain.init)(KEY, X)
    assert len(params.blocks.parts) == 1
    tx = optax.chain(clipping.monitored(clipping.clip_by_norm(0.5), per="layer"), optax.adam(0.03))

    @jax.jit
    def run(params):
        return train(
            chain, params, tx, DATA, key=jax.random.key(3), steps=STEPS, test=DATA, evaluate=(0,)
        )

    seen, end = run(params)
    _, masks = jax.random.split(jax.random.key(3))
    trained, collections, state, _ = start(chain, params, tx, X)

    def output(trained, collections, keys, train):
        h = X
        new = []
        layers = zip(modules, unstacked(trained), collections, keys, strict=True)
        for module, theta, rest, key in layers:
            options = {"train": train} if isinstance(module, Block) else {}
            variables = {"params": theta} | (rest or {})
            rngs = {"dropout": key}
            h, changed = module.apply(variables, h, rngs=rngs, mutable=["batch_stats"], **options)
            new.append(changed)
        return h, new

    @jax.jit
    def step(t, trained, collections, state):
        keys = jax.random.split(jax.random.fold_in(masks, t), 5)

        def loss(trained):
            y, new = output(trained, collections, keys, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(y, DATA.y).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), new, state, value

    none = networks.Params(None, None, None)
    stats = unstacked(none._replace(**collections))
    losses = []
    for t in range(STEPS):
        trained, stats, state, value = step(t, trained, stats, state)
        losses.append(value)
    # float32, four steps of Adam
    np.testing.assert_allclose(seen.loss, losses, rtol=1e-5)
    chex.assert_trees_all_close(end.params, trained, atol=2e-5)
    ended = unstacked(none._replace(**end.stats))
    for found, wanted in zip(ended[1:4], stats[1:4], strict=True):
        chex.assert_trees_all_close(found, wanted, atol=1e-5)

    @jax.jit
    def inference(trained, stats):
        return output(trained, stats, jax.random.split(KEY, 5), train=False)[0]

    y = inference(trained, stats)
    np.testing.assert_allclose(
        seen.test_accuracy[-1], jnp.mean(jnp.argmax(y, -1) == DATA.y), atol=1e-6
    )


@pytest.mark.slow
def test_nnx_layers_train_and_their_statistics_move():
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Linear(5, 6, rngs=rngs),
        *[NnxBlock(rngs) for _ in range(3)],
        nnx.Linear(6, 3, rngs=rngs),
    ]
    chain, params = networks.from_nnx(layers, X)
    assert len(params.blocks.parts) == 1

    @jax.jit
    def run(params):
        options = {"key": KEY, "steps": 60, "batch": 6}
        return train(chain, params, optax.adam(0.03), DATA, **options)

    seen, end = run(params)
    assert seen.loss[-5:].mean() < 0.6 * seen.loss[:5].mean() and seen.first_nonfinite == -1
    mean = end.stats["blocks"].parts[0]["norm"]["mean"]
    assert mean.shape == (3, 6) and np.all(np.abs(mean).max(axis=1) > 0)
    # what was trained is a network again, in inference
    bound = chain.bind(end.params, stats=end.stats)
    y = networks.state(chain.inference, bound, X)
    right = jnp.mean(jnp.argmax(chain.inference.readout(bound, y), -1) == DATA.y)
    np.testing.assert_allclose(seen.train_accuracy[-1], right, atol=1e-6)


@pytest.mark.slow
def test_one_gradient_of_nnx_layers_is_that_of_the_model():
    """BatchNorm in training mode: the same loss, gradient and running statistics as the merged model has."""
    rngs = nnx.Rngs(0)
    norms = [nnx.BatchNorm(6, momentum=0.5, rngs=rngs) for _ in range(2)]
    layers = [nnx.Linear(5, 6, rngs=rngs), *norms, nnx.Linear(6, 3, rngs=rngs)]
    chain, params = networks.from_nnx(layers, X)
    model = nnx.Sequential(*layers)
    graph, theta, rest = nnx.split(model, nnx.Param, ...)

    def loss(theta):
        # variables of this trace, not those outside
        model = nnx.merge(graph, theta, jax.tree.map(jnp.copy, rest))
        value = training.cross_entropy(model(X), DATA.y)
        return value, nnx.state(model, nnx.BatchStat)

    @jax.jit
    def both(params, theta):
        found = training.value_and_grad(
            chain, chain.bind(params), X, lambda y: training.cross_entropy(y, DATA.y)
        )
        return found, jax.value_and_grad(loss, has_aux=True)(theta)

    found, ((value, stats), gradient) = both(params, theta)
    np.testing.assert_allclose(found.loss, value, rtol=1e-6)
    ours = jax.tree.leaves(unstacked(found.params))
    assert sorted(leaf.shape for leaf in ours) == sorted(
        leaf.shape for leaf in jax.tree.leaves(gradient)
    )
    np.testing.assert_allclose(optax.tree.norm(ours), optax.tree.norm(gradient), rtol=1e-5)
    moved = jax.tree.leaves(found.stats["blocks"])
    np.testing.assert_allclose(optax.tree.norm(moved), optax.tree.norm(stats), rtol=1e-5)


@pytest.mark.slow
def test_images_of_one_input_each_and_a_regression():
    """A chain that takes one image trains over a batch; states change their shapes."""
    images = jax.random.normal(KEY, (8, 4, 4, 1), jnp.float32)
    data = Examples(images, jnp.mean(images, axis=(1, 2)))
    shrink = nn.Sequential([nn.tanh, nn.Conv(3, (3, 3), strides=(2, 2))])
    head = nn.Sequential([lambda h: jnp.mean(h, (0, 1)), nn.Dense(1)])
    chain = networks.from_linen(
        [nn.Conv(2, (3, 3)), shrink, nn.Sequential([nn.tanh, nn.Conv(3, (3, 3))]), head]
    )
    params = jax.jit(chain.init)(KEY, images[0])
    many = networks.over_batch(chain)

    def run(params):
        return train(many, params, optax.adam(0.05), data, key=KEY, steps=60, loss=squares)

    seen, _ = jax.jit(run)(params)
    assert seen.loss[-1] < 0.2 * seen.loss[0] and np.all(np.isnan(seen.accuracy))
    outputs = jax.jit(jax.vmap(lambda x: whole(chain, params, x)))(images)
    wanted = jnp.mean((outputs - data.y) ** 2)
    np.testing.assert_allclose(seen.loss[0], wanted, rtol=1e-5)
    with pytest.raises(
        ValueError,
        match=r"an output for each of 8 examples, got shape .*networks.over_batch\(chain\)",
    ):
        train(chain, params, optax.adam(0.05), data, key=KEY, steps=1, loss=squares)


def whole(chain, params, x):
    return chain.readout(params, networks.state(chain, params, x))


@pytest.mark.slow
def test_tokens_whose_labels_are_a_class_each():
    tokens = jax.random.randint(KEY, (6, 4), 0, 5)
    data = Examples(tokens, jnp.roll(tokens, -1, axis=1))
    chain = networks.from_linen(
        [nn.Embed(5, 4), *[nn.Sequential([nn.tanh, nn.Dense(4)])] * 2, nn.Dense(5)]
    )
    params = jax.jit(chain.init)(KEY, tokens)
    seen, _ = jax.jit(
        lambda params: train(chain, params, optax.adam(0.1), data, key=KEY, steps=40, batch=3)
    )(params)
    assert seen.loss[-1] < 0.8 * seen.loss[0]
    assert seen.train_accuracy[-1] > 0.4


@pytest.mark.slow
def test_masks_of_examples_differ_in_a_chain_of_one_input():
    chain = networks.from_linen([nn.Dense(4), nn.Dropout(0.5, deterministic=False), nn.Dense(3)])
    params = chain.init(KEY, X[0])
    ones = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
    bound = chain.bind(ones, key=KEY)
    y = whole(networks.over_batch(chain), bound, jnp.ones((12, 5), jnp.float32))
    assert len(set(y[:, 0].tolist())) > 1
    # in inference nothing is dropped: five ones, and so on
    still = whole(chain.inference, ones, jnp.ones(5, jnp.float32))
    np.testing.assert_allclose(still, 4 * 6 + 1)
    with pytest.raises(
        ValueError,
        match=r"Dropout needs a key for random numbers: use chain.bind\(params, key=...\)",
    ):
        whole(chain, params, X[0])


@pytest.mark.slow
def test_our_network_taken_apart_trains_alike():
    mlp = networks.MLP(
        depth=3, width=6, activation="gelu", norm="layer", skip="sum", features_out=3
    )
    params = networks.chain(mlp).init(KEY, X, 1.3, 0.1)
    ours = networks.chain(mlp)
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(3)]
    applies = [
        lambda theta, x: ours.embed(params._replace(embed=theta), x),
        *[ours.block] * 3,
        lambda theta, h: ours.readout(params._replace(readout=theta), h),
    ]
    chain, own = networks.from_params(applies, [params.embed, *blocks, params.readout], X)

    @jax.jit
    def runs(params, own, depth):
        options = {"key": KEY, "steps": STEPS, "batch": 6, "evaluate": (0, 2)}
        tx = optax.sgd(0.1, momentum=0.9)
        of_mlp = train(mlp, params, tx, DATA, **options)
        of_depth = train(chain, own, tx, DATA, depth=depth, **options)
        return of_mlp, train(chain, own, tx, DATA, **options), of_depth

    of_mlp, of_chain, of_depth = runs(params, own, 3)
    # rounding of another order of sums
    chex.assert_trees_all_close(of_chain[0], of_mlp[0], atol=1e-5)
    chex.assert_trees_all_close(of_depth[0], of_mlp[0], atol=1e-5)
    chex.assert_trees_all_close(
        of_chain[1].params.blocks.parts[0], of_mlp[1].params.blocks, atol=1e-5
    )


def test_what_does_not_train_is_said_in_one_line():
    chain = networks.from_linen([nn.Dense(6), nn.Dense(5), nn.Dense(4), nn.Dense(3)])
    params = chain.init(KEY, X)

    def run(**options):
        return train(chain, params, optax.sgd(0.1), DATA, key=KEY, steps=1, **options)

    with pytest.raises(
        ValueError,
        match="rate must be 0 for layers of your own, which have their own rates, got 0.1",
    ):
        run(rate=0.1)
    with pytest.raises(ValueError, match="a traced depth needs states of one shape"):
        jax.jit(lambda depth: run(depth=depth))(1)
    other = networks.from_linen([nn.Dense(6), nn.Dense(6), nn.Dense(4), nn.Dense(3)])
    with pytest.raises(
        ValueError, match=r"layer 1 fails with these parameters on an input float32\[12, 6\]: "
    ) as said:
        train(other, params, optax.sgd(0.1), DATA, key=KEY, steps=1)
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0..2|got 1..3"):
        train(chain, params, optax.sgd(0.1), Examples(X, DATA.y + 1), key=KEY, steps=1)
