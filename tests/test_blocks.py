"""Blocks with norm, dropout and skips against a twin written out by hand, and against their large-width limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_variables import variables

from jaxstab import initializers, networks, propagation, spectra
from jaxstab.networks import MLP
from jaxstab.networks.binding import initial_statistics
from jaxstab.networks.layers import Layer, trained

KEY = jax.random.key(3)
DEPTH, WIDTH, BATCH = 3, 6, 5
LOSS = lambda y: jnp.mean(jnp.sin(y))

# every norm at either place, every skip, with and without dropout
CASES = [
    {"norm": "layer", "skip": "sum"},
    {"norm": "rms", "norm_after": True, "skip": "scaled", "dropout": True},
    {"norm": "batch", "dropout": True},
    {"norm": "batch", "norm_after": True, "skip": "dense"},
    {"norm": "layer", "norm_after": True, "skip": "dense", "dropout": True},
    {"norm": "rms", "skip": "highway"},
    {"norm": "batch", "skip": "rezero", "dropout": True},
    {"skip": "dense", "activation": "sigmoid"},
    {"dropout": True},
    {"norm": "dyt", "norm_after": True, "skip": "sum"},
    {"norm": "derf"},
    {"norm": "peri", "skip": "sum", "dropout": True},
]


def _network(settings, dtype=None):
    mlp = MLP(DEPTH, WIDTH, **({"activation": "gelu", "features_out": 4} | settings))
    x = jax.random.normal(jax.random.key(7), (BATCH, 4), dtype or jnp.result_type(float))
    params = networks.chain(mlp).init(KEY, x, 1.3, 0.2)
    if mlp.skip == "rezero":
        params = initializers.skip_init(params, jnp.linspace(0.3, 0.9, DEPTH))
    # norms that do something of their own
    nudge = lambda path, leaf: (
        leaf + 0.1 * jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
    )
    params = jax.tree.map_with_path(
        lambda p, leaf: nudge(p, leaf) if "norm" in str(p) else leaf, params
    )
    bound = (
        networks.chain(mlp).bind(params, key=jax.random.key(9), rate=0.3) if mlp.dropout else params
    )
    return mlp, networks.chain(mlp), params, bound, x


class Twin:
    """The network as plain functions of a list of arrays; a state is one array, or for "dense" one per layer."""

    def __init__(self, mlp, bound):
        self.mlp, self.phi = mlp, networks.chain(mlp).activation.fn
        part = lambda layer, i: jax.tree.map(lambda leaf: leaf[i], layer)
        layer = lambda tree: tree if isinstance(tree, Layer) else Layer(tree)
        blocks = layer(bound.blocks)
        self.blocks = [part(blocks, i) for i in range(DEPTH)]
        self.embed, self.readout = layer(bound.embed).params, layer(bound.readout)

    def norm(self, h, scale, bias, alpha=None):
        if alpha is not None:
            squash = {"dyt": jnp.tanh, "derf": jax.scipy.special.erf}[self.mlp.norm]
            return squash(alpha * h) * scale[None] + bias[None]
        axis = 0 if self.mlp.norm == "batch" else -1
        mean = 0 if self.mlp.norm == "rms" else h.mean(axis, keepdims=True)
        var = ((h - mean) ** 2).mean(axis, keepdims=True)
        return (h - mean) / jnp.sqrt(var + 1e-5) * scale[None] + (0 if bias is None else bias[None])

    def head(self, state, layer):
        parts = []
        for i, h in enumerate(state):
            if self.mlp.norm:
                scale, bias = layer.params["norm"]["scale"], layer.params["norm"].get("bias")
                if self.mlp.norm == "batch":
                    scale, bias = (v[i * WIDTH : (i + 1) * WIDTH] for v in (scale, bias))
                h = self.phi(h) if self.mlp.norm_after else h
                h = self.norm(h, scale, bias, layer.params["norm"].get("alpha"))
            parts.append(h if self.mlp.norm and self.mlp.norm_after else self.phi(h))
        a = jnp.concatenate(parts, axis=-1)
        if self.mlp.dropout:
            whole = WIDTH * (DEPTH + 1 if self.mlp.skip == "dense" else 1)
            noise = jax.random.uniform(layer.dropout.key, (BATCH, whole), jnp.float32)[
                :, : a.shape[1]
            ]
            a = jnp.where(noise >= 0.3, a / 0.7, 0)
        return a

    def dense(self, layer, a, name="dense"):
        kernel = layer[name]["kernel"]
        return a @ kernel[: a.shape[1]] + layer[name]["bias"][None]

    def block(self, state, layer):
        a = self.head(state, layer)
        out = self.dense(layer.params, a)
        if self.mlp.norm == "peri":
            out = self.norm(out, **layer.params["branch_norm"])
        match self.mlp.skip:
            case "sum":
                return [state[0] + out]
            case "scaled":
                return [state[0] + out / np.sqrt(DEPTH)]
            case "rezero":
                return [state[0] + layer.params["alpha"] * out]
            case "highway":
                gate = 1 / (1 + jnp.exp(-self.dense(layer.params, a, "gate")))
                return [gate * out + (1 - gate) * state[0]]
            case "dense":
                return [out, *state]
        return [out]

    def states(self, x, thetas=None, taps=None):
        """All states; with other parameters of the blocks, and something added to every state."""
        blocks = [
            layer._replace(params=theta)
            for layer, theta in zip(self.blocks, thetas or self.thetas, strict=True)
        ]
        states = [[self.dense(self.embed, x)]]
        for index in range(DEPTH + 1):
            if taps:
                states[-1] = [part + tap for part, tap in zip(states[-1], taps[index], strict=True)]
            if index < DEPTH:
                states.append(self.block(states[-1], blocks[index]))
        return states

    @property
    def thetas(self):
        return [layer.params for layer in self.blocks]

    def output(self, state):
        return self.dense(self.readout.params, self.head(state, self.readout))


def _norm(tree):
    return np.sqrt(sum(np.sum(np.asarray(leaf, float) ** 2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.slow
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_forward_and_backward_agree_with_the_twin(settings):
    mlp, chain, _, bound, x = _network(settings)
    twin = Twin(mlp, bound)

    @jax.jit
    def by_hand(x):
        states = twin.states(x)
        taps = jax.tree.map(jnp.zeros_like, states)
        loss = lambda taps, thetas: LOSS(twin.output(twin.states(x, thetas, taps)[-1]))
        return states, *jax.grad(loss, (0, 1))(taps, twin.thetas), twin.output(states[-1])

    @jax.jit
    def measured(bound, x):
        y = mlp.apply(variables(bound), x)
        return propagation.forward(chain, bound, x), propagation.backward(chain, bound, x, LOSS), y

    states, grads, thetas, y = by_hand(x)
    forward, backward, found = measured(bound, x)
    np.testing.assert_allclose(found, y, rtol=1e-10)
    np.testing.assert_allclose(
        forward.q, [np.mean(np.concatenate(s, -1) ** 2) for s in states], rtol=1e-10
    )
    np.testing.assert_allclose(backward.log_grad_h, [np.log(_norm(g)) for g in grads], atol=1e-9)
    np.testing.assert_allclose(
        backward.log_grad_theta[1:], [np.log(_norm(g)) for g in thetas], atol=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CASES[1], CASES[2], CASES[4]], ids=str)
def test_chain_is_the_module_in_any_dtype(settings):
    mlp, chain, params, bound, x = _network(settings, jnp.float32)
    chex.assert_trees_all_equal_dtypes(
        params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    )

    def both(x):
        h, _ = jax.lax.scan(
            lambda h, layer: (chain.block(layer, h), None), chain.embed(bound, x), bound.blocks
        )
        return chain.readout(bound, h), mlp.apply(variables(bound), x)

    by_chain, by_module = jax.jit(both)(x)
    assert by_chain.dtype == jnp.float32
    # two programs, a few roundings apart
    np.testing.assert_allclose(by_chain, by_module, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CASES[3]], ids=str)
def test_the_jacobian_of_a_batch(settings):
    _, chain, _, bound, x = _network(settings)
    flat = networks.flatten(chain, BATCH)

    def hidden(x):
        h, _ = jax.lax.scan(
            lambda h, layer: (chain.block(layer, h), None), chain.embed(bound, x), bound.blocks
        )
        return h

    dense = jax.jit(jax.jacobian(hidden))(x).reshape(-1, x.size)
    log_s = jax.jit(lambda x: spectra.log_singular_values(flat, bound, x, [DEPTH]))(x.ravel())[0]
    np.testing.assert_allclose(
        np.exp(log_s), np.linalg.svd(dense, compute_uv=False), rtol=1e-7, atol=1e-9
    )
    np.testing.assert_allclose(
        propagation.forward(flat, bound, x.ravel()).log_q,
        propagation.forward(chain, bound, x).log_q,
        rtol=1e-10,
    )


@pytest.mark.slow
def test_running_statistics():
    mlp, _, params, _, x = _network({"norm": "batch", "momentum": 0.8})
    stats = initial_statistics(mlp, params, x)
    assert all(
        np.all(leaf == 0)
        for leaf in (stats["blocks"]["norm"]["mean"], stats["readout"]["norm"]["mean"])
    )
    assert np.all(stats["blocks"]["norm"]["var"] == 1)
    update = jax.jit(
        lambda stats: mlp.apply(
            variables(networks.chain(mlp).bind(params, stats=stats)), x, mutable=["batch_stats"]
        )[1]["batch_stats"]
    )
    h = np.asarray(Twin(mlp, params).states(x)[1][0])
    once = update(stats)
    np.testing.assert_allclose(once["blocks"]["norm"]["mean"][1], 0.2 * h.mean(0), rtol=1e-10)
    np.testing.assert_allclose(once["blocks"]["norm"]["var"][1], 0.8 + 0.2 * h.var(0), rtol=1e-10)
    for _ in range(120):
        stats = update(stats)
    # the batch seen over and over: inference is then what training is, and takes one example at a time
    bound = networks.chain(mlp).bind(params, stats=stats)
    trained, inference = (mlp.apply(variables(bound), x, train=mode) for mode in (True, False))
    # 0.8^120 of the start is left
    np.testing.assert_allclose(inference, trained, rtol=1e-9, atol=1e-10)
    one = networks.chain(mlp, train=False)
    profile = propagation.forward(one, bound, x[0])
    assert profile.log_q.shape == (DEPTH + 1,) and np.isfinite(profile.log_q).all()
    # no gradient goes to the statistics
    backward = propagation.backward(one, bound, x[0], LOSS)
    trained_only = jax.grad(lambda p: LOSS(one.apply(p, x[0])))(bound)
    assert _norm(trained_only.blocks.batch_stats) == 0
    assert float(backward.log_grad_theta[1]) == pytest.approx(
        np.log(_norm(jax.tree.map(lambda leaf: leaf[0], trained_only.blocks.params))), rel=1e-9
    )


@pytest.mark.slow
def test_what_a_mode_lacks_is_said():
    mlp, chain, params, _, x = _network({"norm": "batch"})
    with pytest.raises(
        ValueError, match="BatchNorm in training mode mixes examples: it needs a batch"
    ):
        propagation.forward(chain, params, x[0])
    with pytest.raises(ValueError, match=r"needs running statistics: chain.bind\(params, stats="):
        propagation.forward(networks.chain(mlp, train=False), params, x[0])
    wet, chain, params, _, x = _network({"dropout": True})
    with pytest.raises(
        ValueError, match="dropout in training mode needs a key and a rate: chain.bind"
    ):
        propagation.forward(chain, params, x)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
        networks.chain(wet).bind(params, key=KEY, rate=1.5)


@pytest.mark.slow
def test_dropout_rates_are_traced_share_draws_and_reach_both_ends():
    mlp, _, params, _, x = _network({"dropout": True, "activation": "identity"})

    def apply(rate, key):
        return mlp.apply(variables(networks.chain(mlp).bind(params, key=key, rate=rate)), x)

    traced = jax.jit(chex.assert_max_traces(apply, n=1))
    dry = mlp.apply(variables(params), x, train=False)
    np.testing.assert_allclose(traced(0.0, KEY), dry, rtol=1e-12)
    # all dropped: what is left is the readout's bias, and its gradient is a number
    np.testing.assert_allclose(
        traced(1.0, KEY), np.broadcast_to(params.readout["dense"]["bias"], dry.shape)
    )
    assert np.isfinite(jax.grad(lambda r: apply(r, KEY).sum())(1.0))
    many = jax.jit(jax.vmap(jax.vmap(apply, (0, None)), (None, 0)))(
        jnp.array([0.1, 0.4]), jax.random.split(KEY, 3)
    )
    np.testing.assert_allclose(many[2, 1], traced(0.4, jax.random.split(KEY, 3)[2]), rtol=1e-10)
    per_layer = networks.chain(mlp).bind(params, key=KEY, rate=jnp.array([0.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(
        mlp.apply(variables(per_layer), x),
        np.broadcast_to(params.readout["dense"]["bias"], dry.shape),
    )


@pytest.mark.slow
def test_a_dense_network_draws_each_layer_for_the_sources_it_has():
    mlp = MLP(depth=8, width=32, skip="dense", features_out=3)
    blocks = networks.chain(mlp).init(KEY, jnp.ones(7), 1.5).blocks["dense"]["kernel"]
    assert blocks.shape == (8, 9 * 32, 32)
    for i in (0, 3, 7):
        seen, rest = np.split(np.asarray(blocks[i]), [(i + 1) * 32])
        assert not np.any(rest)
        scaled = seen.ravel() * np.sqrt(len(seen)) / 1.5
        assert abs(np.mean(scaled**2) - 1) < 4 * np.sqrt(2 / scaled.size)
    square = (
        networks.chain(MLP(depth=4, width=8, skip="dense", weights="orthogonal"))
        .init(KEY, jnp.ones(7))
        .blocks
    )
    for kernel in square["dense"]["kernel"]:
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(8), atol=1e-12)


def _factor(mlp, sigma_w, x, loss, seeds, layers, rate=0.0):
    """Squared gradient's factor per layer backwards, in nats, and its standard error over seeds."""
    chain = networks.chain(mlp)

    def one(key):
        draw, masks, direction = jax.random.split(key, 3)
        params = chain.init(draw, x, sigma_w)
        bound = chain.bind(params, key=masks if mlp.dropout else None, rate=rate)
        v = jax.random.normal(direction, (mlp.features_out,))
        g = propagation.backward(chain, bound, x, lambda y: loss(y, v)).log_grad_h
        return 2 * (g[layers[0]] - g[layers[1]]) / (layers[1] - layers[0])

    rates = jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))
    return float(rates.mean()), float(rates.std(ddof=1) / np.sqrt(seeds))


# per-layer factors of the squared gradient at large width; layers next to input and loss are left out
LIMITS = [
    # h + F: 1 + sigma_w^2 E phi'^2
    ({"activation": "relu", "skip": "sum"}, 1.0, 0.0, 1.5),
    # norm before phi, no bias: E phi'^2 / E phi^2 at q = 1, whatever sigma_w
    ({"activation": "relu", "norm": "layer", "epsilon": 0.0}, 3.0, 0.0, 1.0),
    # norm after phi: sigma_w^2 E phi'^2 / Var phi at q = sigma_w^2, Var relu = q (1/2 - 1/(2 pi))
    (
        {"activation": "relu", "norm": "layer", "norm_after": True, "epsilon": 0.0},
        1.7,
        0.0,
        1 / (1 - 1 / np.pi),
    ),
    # inverted dropout, keep rate 0.8: sigma_w^2 E phi'^2 / 0.8
    ({"activation": "relu", "dropout": True}, 2**0.5, 0.2, 1 / 0.8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "sigma_w", "rate", "factor"), LIMITS, ids=lambda v: str(v))
def test_gradients_follow_the_large_width_limits(settings, sigma_w, rate, factor):
    mlp = MLP(depth=12, width=128, **settings)
    x = jax.random.normal(KEY, (32,))
    found, error = _factor(mlp, sigma_w, x, lambda y, v: y @ v, 16, (2, 11), rate)
    # finite width: ln|g|^2 of a relu layer drifts by -5/(2 width) (Hanin & Nica 2018), dropout's 1/rate makes it a few
    assert abs(found - np.log(factor)) < 4 * error + 12 / 128


@pytest.mark.slow
def test_batchnorm_explodes_as_predicted():
    # linear, batch of 8, epsilon = 0, width >> batch: (B - 2)/(B - 3) per layer (Yang et al. 2019)
    mlp = MLP(depth=12, width=256, activation="identity", norm="batch", epsilon=0.0, features_out=4)
    x = jax.random.normal(KEY, (8, 32))
    weigh = jax.random.normal(jax.random.key(5), (8, 1))
    found, error = _factor(mlp, 1.0, x, lambda y, v: jnp.sum(weigh * y * v[None]), 12, (2, 10))
    # finite width biases by O(batch / width)
    assert abs(found - np.log(6 / 5)) < 4 * error + 8 / 256


@pytest.mark.slow
def test_independent_masks_decorrelate_twins():
    # identity phi, keep rate r: the diagonal grows by sigma_w^2/r, the off-diagonal by sigma_w^2: c -> r c
    mlp = MLP(depth=1, width=2000, activation="identity", dropout=True)
    x = jax.random.normal(KEY, (10,))
    params = networks.chain(mlp).init(KEY, x)
    one, two = (networks.chain(mlp).bind(params, key=jax.random.key(i), rate=0.25) for i in (1, 2))
    chain = networks.chain(mlp)
    c = propagation.correlation(chain, one, x, x, other=two).c
    # a mean of products over 2,000 units, and over as many masks
    assert abs(c[1] - 0.75 * c[0]) < 4 * np.sqrt(2 / 2000)
    np.testing.assert_allclose(propagation.correlation(chain, one, x, x).c, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [CASES[i] for i in (1, 3, 5)], ids=str)
def test_gains_beside_the_weights_are_gains_of_the_weights(settings):
    mlp, chain, params, _, x = _network(settings)
    key = jax.random.key(9) if mlp.dropout else None
    along = jax.tree.map(jnp.cos, params)
    gains, one = jnp.array([0.7, 1.3, 0.9, 1.6, 1.2]), jnp.ones(DEPTH + 2)

    @jax.jit
    def measured(params, gains):
        bound = lambda params: networks.chain(mlp).bind(params, key=key, rate=0.3, sigma_w=gains)
        loss = lambda params: LOSS(mlp.apply(variables(bound(params)), x))
        profiles = (
            propagation.forward(chain, bound(params), x),
            propagation.backward(chain, bound(params), x, LOSS),
        )
        return jax.jvp(loss, (params,), (along,)), jax.grad(loss)(params), profiles

    times = lambda layer, by: (
        layer | {"dense": layer["dense"] | {"kernel": layer["dense"]["kernel"] * by}}
    )
    by = (gains[0], gains[1:-1, None, None], gains[-1])
    scaled = networks.Params(*map(times, params, by))
    whole = networks.rescale(networks.chain(mlp).bind(params, sigma_w=gains), 1.0)
    chex.assert_trees_all_close(trained(whole), scaled)
    chex.assert_trees_all_close(
        measured(params, gains), measured(scaled, one), rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_many_gains_share_one_copy_of_the_weights():
    mlp, x, gains = MLP(8, 64, "tanh"), jnp.linspace(-1, 1, 4), jnp.linspace(0.5, 2, 5)
    params, chain = networks.chain(mlp).init(KEY, x, 1.0, 0.2), networks.chain(mlp)

    def over(network):
        def measured(params):
            profile = propagation.backward(chain, params, x, LOSS, [1, 8])
            return profile, spectra.singular_values(chain, params, x, [1, 8])

        program = jax.jit(
            lambda params, gains: jax.vmap(lambda gain: measured(network(params, gain)))(gains)
        )
        return program.lower(params, gains).compile()

    beside = over(lambda params, gain: networks.chain(mlp).bind(params, sigma_w=gain))
    whole = over(lambda params, gain: networks.rescale(params, gain, 1.0))
    chex.assert_trees_all_close(beside(params, gains), whole(params, gains), rtol=1e-9, atol=1e-9)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    held = lambda program: program.memory_analysis().temp_size_in_bytes
    # one input, of few features: nothing else is large
    assert held(beside) < 2 * weights and held(whole) > 5 * weights


@pytest.mark.slow
def test_a_network_with_no_gain_of_its_own_comes_back_as_it_is():
    mlp, _, params, bound, x = _network({"dropout": True, "norm": "layer"})
    chex.assert_trees_all_equal(trained(networks.rescale(bound, 1.0)), params)
    chex.assert_trees_all_equal(networks.rescale(params, 1.0), params)
    # of weight zero: no NaN, and biases alone
    silent = lambda params: mlp.apply(
        variables(networks.chain(mlp).bind(params, sigma_w=0.0)), x[0], train=False
    )
    y, gradient = jax.jit(lambda p: (silent(p), jax.grad(lambda p: LOSS(silent(p)))(p)))(params)
    np.testing.assert_array_equal(y, params.readout["dense"]["bias"])
    assert np.isfinite(_norm(gradient))


def test_gains_that_are_none_are_refused():
    mlp, _, params, _, _ = _network({})
    for sigma_w in (-1.0, np.nan, np.inf, np.ones(DEPTH), np.ones((DEPTH + 2, 1))):
        with pytest.raises(
            ValueError,
            match=r"sigma_w must be (finite and >= 0|one number, or one per layer, \[5\]), got",
        ):
            networks.chain(mlp).bind(params, sigma_w=sigma_w)
