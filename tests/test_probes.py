"""Probes of unmodified models: the output keeps every bit, sites are what submodules give, gradients are jax.grad's."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxstab import networks, propagation, spectra

X = jax.random.normal(jax.random.key(0), (5, 4), "float32")
KEY = jax.random.key(1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _=None):
        return h + nn.Dense(4)(nn.relu(nn.LayerNorm()(h))), None


class Everything(nn.Module):
    """Scan, remat, vmap, jit, a module called twice, running statistics, dropout, attention, half precision."""

    @nn.compact
    def __call__(self, x, tokens, train=True):
        h = nn.Dense(4)(x) + nn.Embed(7, 4)(tokens)
        over_layers = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        h, _ = nn.scan(Block, length=3, **over_layers)()(h, None)
        h, _ = nn.remat(Block)()(h)
        h = nn.BatchNorm(use_running_average=not train)(h)
        twice = nn.Dense(4, name="twice")
        h = twice(nn.tanh(twice(h)))
        h = nn.jit(nn.Dense)(4)(h)
        h = nn.vmap(nn.Dense, in_axes=1, out_axes=1, **over_layers)(4)(h[..., None]).sum(-1)
        h = nn.Dropout(0.1, deterministic=not train)(h)
        h = nn.MultiHeadDotProductAttention(2)(h[None])[0]
        return {"logits": nn.Dense(2, dtype=jnp.bfloat16)(h), "tokens": tokens}


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, h):
        return h + self.dropout(nnx.relu(self.norm(self.dense(h))))


class NnxModel(nnx.Module):
    """Blocks with statistics and dropout, a scan over stacked layers, a module called twice, one never called."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stacked(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.embed = nnx.Linear(4, 4, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.stack = stacked(rngs)
        self.unused = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def layers(h, layer):
            return jnp.tanh(layer(h))

        return self.embed(layers(h, self.stack))


@pytest.fixture(scope="module")
def everything():
    module, tokens = Everything(), jnp.arange(5)
    rngs = {"dropout": jax.random.key(2)}
    params = jax.jit(module.init)({"params": KEY} | rngs, X, tokens)
    return module, params, tokens, rngs, networks.probe(module, params, X, tokens, rngs=rngs)


def _same_bits(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_reading_and_pushing_by_zero_keep_every_bit_of_a_linen_model(everything):
    module, params, tokens, rngs, probe = everything
    output, updates = jax.jit(
        lambda v: module.apply(v, X, tokens, rngs=rngs, mutable=["batch_stats"])
    )(params)
    read = jax.jit(lambda v: probe.read(v, X, tokens))(params)
    pushed = jax.jit(lambda v, shifts: probe.read(v, X, tokens, shifts=shifts, sites=()))(
        params, probe.zeros()
    )
    _same_bits((read.output, read.updates), (output, updates))
    _same_bits((pushed.output, pushed.updates), (output, updates))


def test_sites_are_the_submodules_in_order_of_execution(everything):
    probe = everything[-1]
    names = [site.name for site in probe.sites]
    assert names[:8] == [
        "Dense_0", "Embed_0", "ScanBlock_0/LayerNorm_0", "ScanBlock_0/Dense_0", "ScanBlock_0",
        "CheckpointBlock_0/LayerNorm_0", "CheckpointBlock_0/Dense_0", "CheckpointBlock_0",
    ]  # fmt: skip
    assert names[-2:] == ["Everything['logits']", "Everything['tokens']"]
    assert names.index("twice") + 1 == names.index("twice:1")
    assert probe.missed == ()
    sites = {site.name: site for site in probe.sites}
    assert sites["ScanBlock_0/Dense_0"].shape == (3, 5, 4)
    assert sites["Dense_1"].dtype == jnp.bfloat16
    assert not sites["Everything['tokens']"].floating
    assert (sites["twice"].activation, sites["twice:1"].activation) == ("tanh", None)
    assert sites["ScanBlock_0/LayerNorm_0"].activation == "relu"
    rows = [row.name for row in probe.rows]
    assert rows[2:6] == [
        "ScanBlock_0/LayerNorm_0@0",
        "ScanBlock_0/Dense_0@0",
        "ScanBlock_0@0",
        "ScanBlock_0/LayerNorm_0@1",
    ]


@pytest.mark.slow
def test_a_nnx_model_keeps_its_bits_its_class_and_its_state():
    model = NnxModel(nnx.Rngs(0, dropout=1))
    before = nnx.state(model)
    graph = nnx.graphdef(model)
    probe = networks.probe(model, None, X)
    read = jax.jit(lambda state: probe.read(state, X))(before)
    pushed = jax.jit(lambda state, shifts: probe.read(state, X, shifts=shifts))(
        before, probe.zeros()
    )

    @jax.jit
    def direct(state):
        copy = nnx.merge(graph, state)
        return copy(X), nnx.state(copy, lambda path, value: not isinstance(value, nnx.Param))

    output, updates = direct(before)
    _same_bits((read.output, read.updates), (output, updates))
    _same_bits(pushed.output, output)
    _same_bits(nnx.state(model), before)
    assert (
        type(model) is NnxModel and type(model.embed) is nnx.Linear and nnx.graphdef(model) == graph
    )
    assert [site.name for site in probe.sites if site.kind in ("Linear", "NnxBlock")] == [
        "embed", "blocks/0/dense", "blocks/0", "blocks/1/dense", "blocks/1", "stack", "embed:1",
    ]  # fmt: skip
    assert {site.name: site.shape for site in probe.sites}["stack"] == (3, 5, 4)
    assert [missed.name for missed in probe.missed] == ["unused"]


def _loss(y):
    return jnp.sum(jnp.sin(y))


@pytest.fixture(scope="module")
def mlp():
    """A network of our own, the same in linen and as a function, and what `propagation` says of it."""
    own = networks.MLP(depth=4, width=6, features_out=3, activation="tanh")
    chain = networks.chain(own)
    params = chain.init(KEY, X[0], sigma_w=1.4, sigma_b=0.2)
    dense = [
        params.embed,
        *(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(4)),
        params.readout,
    ]
    weights = [layer.get("dense", layer) for layer in dense]
    measured = jax.jit(
        lambda p: (propagation.backward(chain, p, X[0], _loss), propagation.forward(chain, p, X[0]))
    )(params)
    return weights, measured


class Tanh(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(6):
            x = nn.Dense(3 if i == 5 else 6)(x if i == 0 else nn.tanh(x))
        return x


def _function(weights, x):
    for i, layer in enumerate(weights):
        x = (x if i == 0 else jnp.tanh(x)) @ layer["kernel"] + layer["bias"]
        x = networks.tag(str(i), x)
    return x


def _nnx_mlp(weights):
    layers = [nnx.Linear(*layer["kernel"].shape, rngs=nnx.Rngs(0)) for layer in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.kernel[...], layer.bias[...] = weight["kernel"], weight["bias"]
    return nnx.Sequential(*[part for layer in layers for part in (layer, jnp.tanh)][:-1])


@pytest.mark.slow
@pytest.mark.parametrize("door", ["linen", "nnx", "function"])
def test_a_probe_measures_what_a_chain_measures(mlp, door):
    weights, (backward, forward) = mlp
    weights = [
        {name: jnp.asarray(leaf, "float32") for name, leaf in layer.items()} for layer in weights
    ]
    model, params = {
        "linen": lambda: (
            Tanh(),
            {"params": {f"Dense_{i}": layer for i, layer in enumerate(weights)}},
        ),
        "nnx": lambda: (_nnx_mlp(weights), None),
        "function": lambda: (_function, weights),
    }[door]()
    probe = networks.probe(model, params, X[0], kind=("Dense", "Linear", "tag"))
    assert len(probe.rows) == 6

    @jax.jit
    def measure(params):
        signal = propagation.forward(probe, params, X[0])
        return propagation.backward(probe, params, X[0], _loss), signal

    gradient, signal = measure(params)
    # both in float32
    np.testing.assert_allclose(gradient.log_grad_h[:5], backward.log_grad_h, atol=2e-6)
    np.testing.assert_allclose(gradient.log_grad_theta[:5], backward.log_grad_theta, atol=2e-6)
    np.testing.assert_allclose(signal.log_q[:5], forward.log_q, atol=2e-6)
    np.testing.assert_allclose(signal.saturation[:5], forward.saturation)


class Unrolled(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, x):
        if self.scan:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(Block, length=3, **axes)(name="block")(x, None)[0]
        for i in range(3):
            x, _ = Block(name=f"block{i}")(x)
        return x


@pytest.mark.slow
def test_rows_of_a_scan_are_those_of_the_unrolled_model():
    stacked = Unrolled(True).init(KEY, X)
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked["params"]["block"]) for i in range(3)]
    unrolled = {"params": {f"block{i}": layer for i, layer in enumerate(layers)}}

    def measure(model, params):
        probe = networks.probe(model, params, X)
        forward = propagation.forward(probe, params, X)
        alike = propagation.correlation(probe, params, X, X + 0.1)
        gradient = propagation.backward(probe, params, X, _loss)
        return forward, alike, gradient.log_grad_h, gradient.log_grad_theta

    scanned = jax.jit(lambda params: measure(Unrolled(True), params))(stacked)
    plain = jax.jit(lambda params: measure(Unrolled(False), params))(unrolled)
    for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(plain), strict=True):
        # float32
        np.testing.assert_allclose(one, other, atol=3e-6, err_msg=str(jax.tree.structure(plain)))


def test_gradients_are_those_of_jax_grad_under_vmap():
    def model(w, x):
        h, gate = networks.tag("pair", (jnp.tanh(w @ x), x * 2))
        return checkpoint_name(w @ (h + gate), "named before")

    w = jax.random.normal(KEY, (4, 4), "float32")
    probe = networks.probe(model, w, X[0])
    assert [site.name for site in probe.sites] == ["pair[0]", "pair[1]", "named before"]

    def gradients(x):
        return propagation.backward(probe, w, x, lambda y: 2 * _loss(y))

    found = jax.jit(jax.vmap(gradients))(X)
    cotangents = jax.vmap(lambda x: jnp.cos(w @ (jnp.tanh(w @ x) + x * 2)))(X)
    np.testing.assert_allclose(found.sites["named before"], 2 * cotangents, atol=1e-5)
    np.testing.assert_allclose(found.sites["pair[0]"], 2 * cotangents @ w, atol=1e-5)
    np.testing.assert_allclose(
        found.log_grad_h[:, 1], np.log(2 * np.linalg.norm(cotangents @ w, axis=1)), atol=1e-5
    )


def test_complex_sites_have_gradients_and_chains_of_them_are_refused():
    """Hold |dL/dh| = 2 |w^+ w h| and |dL/dy| = 2 |y| of L = |y|^2, y = w h; |dL/d(a + i b)| is of (a, b)."""
    w = jax.lax.complex(*jax.random.normal(KEY, (2, 4, 4), "float32"))

    def model(w, x):
        return jnp.abs(networks.tag("y", w @ networks.tag("h", x.astype("complex64")))) ** 2

    probe = networks.probe(model, w, X[0])

    @jax.jit
    def measured(w):
        gradient = propagation.backward(probe, w, X[0], jnp.sum)
        return gradient.log_grad_h, propagation.forward(probe, w, X[0]).log_q

    log_grad_h, log_q = measured(w)
    w, h = np.asarray(w), np.asarray(X[0])
    y = w @ h
    norms = [np.linalg.norm(w.conj().T @ y), np.linalg.norm(y)]
    # float32; a complex unit is two real ones
    np.testing.assert_allclose(log_grad_h, np.log(2 * np.asarray(norms)), atol=1e-5)
    np.testing.assert_allclose(
        log_q, np.log([np.mean(h**2) / 2, np.mean(np.abs(y) ** 2) / 2]), atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"layer 0 \(<lambda>\) must return real states, got complex64"
    ):
        networks.from_params([lambda w, h: w @ h.astype(w.dtype)] * 3, [w] * 3, X[0])


@pytest.mark.slow
def test_the_jacobian_between_sites_is_that_of_jax():
    layers = nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(5), nn.tanh, nn.Dense(3)])
    params = layers.init(KEY, X[0])
    probe = networks.probe(layers, params, X[0])
    dense = [params["params"][f"layers_{i}"] for i in (0, 2, 4)]

    def after(first, h):
        for i in range(first, 3):
            h = (jnp.tanh(h) if i else h) @ dense[i]["kernel"] + dense[i]["bias"]
        return h

    def references():
        h = X[0] @ dense[0]["kernel"] + dense[0]["bias"]
        by_input = jax.jacobian(lambda x: after(0, x))(X[0])
        return by_input, jax.jacobian(lambda h: after(1, h))(h)

    def measured(site):
        operator = spectra.jacobian(probe, params, X[0], site, "layers_4")
        forwards = jax.vmap(operator.matvec)(jnp.eye(operator.columns, dtype="float32")).T
        backwards = jax.vmap(operator.rmatvec)(jnp.eye(operator.rows, dtype="float32"))
        return forwards, backwards, spectra.extremes(operator, KEY, top=1).log_s[0]

    for site, reference in zip((None, "layers_0"), jax.jit(references)(), strict=True):
        forwards, backwards, largest = jax.jit(measured, static_argnums=0)(site)
        np.testing.assert_allclose(forwards, reference, atol=1e-6)
        np.testing.assert_allclose(backwards, reference, atol=1e-6)
        np.testing.assert_allclose(largest, np.log(np.linalg.norm(reference, 2)), atol=1e-5)
    with pytest.raises(ValueError, match="to_layer must not come before from_layer"):
        spectra.jacobian(probe, params, X[0], "layers_4", "layers_0")


def test_what_cannot_be_read_is_listed():
    def model(w, x):
        y = jax.lax.cond(w[0] > 0, lambda: networks.tag("in a branch", w), lambda: -w)
        return networks.tag("after", y * x)

    probe = networks.probe(model, X[0], X[1])
    assert [site.name for site in probe.sites] == ["after"]
    assert str(probe.missed[0]) == "in a branch (tag): within cond: in a branch, which may not run"
    # layers of a chain are its submodules, and what a model itself owns is no submodule
    mlp = networks.MLP(depth=4, width=6, features_out=3)
    params = jax.eval_shape(lambda: networks.chain(mlp).init(KEY, X[0]))
    assert networks.probe(mlp, params, X).missed == ()
    weights = [jnp.ones((X.shape[-1], X.shape[-1]), X.dtype)] * 5
    chain, params = networks.from_params([lambda w, h: jnp.tanh(h) @ w] * 5, weights, X[0])
    probe = networks.probe(chain, params, X)
    assert probe.missed == () and len(probe.owned(params, "blocks/parts/0")) == 1
    function = lambda w, x: networks.tag("y", w[0] * x)
    assert networks.probe(function, [jnp.ones((), X.dtype)], X).missed == ()


class Jitted(nnx.Module):
    """Methods under nnx.jit and jax.checkpoint, and one that needs no object."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 4, rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        return self.twice(self.dense(x))

    @nnx.remat
    def twice(self, x):
        return self.other(self.dense(x))

    @staticmethod
    def other(x):
        return x


def test_boxed_parameters_and_methods_under_transforms_have_their_places():
    """Hold owners of linen's boxed leaves, and sites of methods that nnx wraps."""
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    boxed = nn.Sequential([nn.Dense(4, kernel_init=kernel) for _ in range(2)])
    params = jax.eval_shape(boxed.init, KEY, X)
    probe = networks.probe(boxed, params, X)
    assert probe.missed == () and probe.owned(params["params"], "layers_1") == [2, 3]
    jitted = nnx.Sequential(Jitted(nnx.Rngs(0)))
    names = [site.name for site in networks.probe(jitted, None, X).sites]
    inner = ["layers/0/dense", "layers/0/dense:1", "layers/0.twice", "layers/0"]
    assert names == [*inner, "Sequential"]


@pytest.mark.slow
def test_sites_are_chosen_by_path_class_and_stride(everything):
    module, params, tokens, rngs, whole = everything

    def names(**choice):
        return [
            site.name
            for site in networks.probe(module, params, X, tokens, rngs=rngs, **choice).sites
        ]

    assert names(path="ScanBlock_0/*") == ["ScanBlock_0/LayerNorm_0", "ScanBlock_0/Dense_0"]
    assert names(kind=("LayerNorm", "Embed")) == [
        "Embed_0",
        "ScanBlock_0/LayerNorm_0",
        "CheckpointBlock_0/LayerNorm_0",
    ]
    assert names(every=5) == [site.name for site in whole.sites][::5]
    with pytest.raises(ValueError, match="no site has a path like 'none'.*Dense_0"):
        names(path="none")
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        names(every=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, v, t: p.read(v, X[:3], t[:3]),
            r"inputs\[0\] must be float32\[5, 4\], as when the probe was made, got float32\[3, 4\]",
        ),
        (
            lambda p, v, t: p.read(v["params"], X, t),
            'must be its variables, a dict with "params", got dict of',
        ),
        (
            lambda p, v, t: p.read(v, X, t, sites=["nowhere"]),
            "no site is named 'nowhere'; there are Dense_0, Embed_0",
        ),
        (
            lambda p, v, t: p.read(v, X, t, shifts={"Dense_0": X[0]}),
            r"must have its shape \(5, 4\), got \(4,\)",
        ),
        (
            lambda p, v, t: networks.probe(Everything, v, X, t),
            "a linen module, an nnx module, a chain or",
        ),
        (
            lambda p, v, t: networks.probe(Everything(), {"params": {}}, X, t),
            r"fails with these parameters on an input float32\[5, 4\], int64\[5\]: .*Dense_0",
        ),
        (
            lambda p, v, t: networks.probe(lambda w, x: x @ w, X.T, X),
            r"no readable value; name values by networks.tag",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(everything, call, message):
    _, params, tokens, _, probe = everything
    with pytest.raises(ValueError, match=message):
        call(probe, params, tokens)


class Attention(nn.Module):
    """Attention in a scan, and a hand-written one."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0])
        blocks = nn.scan(
            lambda module, x, _: (module(x, mask=mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = blocks(nn.MultiHeadDotProductAttention(2, name="heads"), x, None)
        return jax.nn.softmax(3 * x @ x.mT) @ x


def _entropy(p):
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_logits_and_entropies_of_heads_are_those_of_the_hand_written_attention(kind):
    """Hold max logit, entropy and that of equal weights, in a scan, under a mask, and by hand."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 6), "float32")
    if kind == "nnx":
        heads = nnx.MultiHeadAttention(
            2, 6, decode=False, rngs=nnx.Rngs(1), param_dtype=x.dtype, dtype=x.dtype
        )
        probe = networks.probe(heads, None, x, kind=("*", "softmax"))
        got = jax.jit(lambda: propagation.attention(probe, None, x))()
        at = [row.name for row in probe.rows].index("softmax.logits")
        got = jax.tree.map(lambda rows: rows[at : at + 1], got)
        q, k = (layer(x) for layer in (heads.query, heads.key))
        logits = [np.einsum("bqhd,bkhd->bhqk", q, k) / 3**0.5]
        uniform = [np.log(4)]
    else:
        model = Attention()
        params = jax.jit(model.init)(jax.random.key(2), x)
        probe = networks.probe(model, params, x, kind="softmax")
        assert [row.name for row in probe.rows] == [
            "heads.logits@0",
            "heads.logits@1",
            "softmax.logits",
        ]
        got = jax.jit(lambda: propagation.attention(probe, params, x))()
        logits, uniform = [], [np.mean(np.log([1, 2, 3, 4]))] * 2
        h = x
        for step in range(2):
            w = jax.tree.map(operator.itemgetter(step), params["params"]["heads"])
            q, k, v = (
                np.einsum("bti,ihd->bthd", h, w[name]["kernel"])
                for name in ("query", "key", "value")
            )
            z = np.einsum("bqhd,bkhd->bhqk", q, k) / 3**0.5
            z = np.where(np.tri(4, dtype=bool), z, -np.inf)
            logits.append(z)
            mixed = np.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(z), v)
            h = np.einsum("bqhd,hdo->bqo", mixed, w["out"]["kernel"])
    for row, z in enumerate(logits):
        assert np.allclose(got.max_logit[row, :2], np.max(z, axis=(0, 2, 3)), rtol=1e-5)
        entropy = np.mean(_entropy(np.asarray(jax.nn.softmax(z))), axis=(0, 2))
        assert np.allclose(got.entropy[row, :2], entropy, rtol=1e-5)
        assert np.allclose(got.uniform[row, :2], uniform[row], rtol=1e-6)
    if kind == "linen":
        # three examples are its heads: nothing tells them apart
        z = 3 * h @ np.swapaxes(h, 1, 2)
        assert np.allclose(got.max_logit[2], np.max(z, axis=(1, 2)), rtol=1e-5)
        assert np.isnan(got.entropy[0, 2])
        same = probe.read(params, x, shifts=probe.zeros()).output
        assert np.array_equal(same, model.apply(params, x))


def test_attention_is_told_from_other_softmaxes():
    """Hold which softmaxes are attention: those whose weights average over positions, by hand or not."""

    def by_hand(z):
        power = jnp.exp(z)
        return power / power.sum(-1, keepdims=True)

    def jitted(z, x):
        return jax.jit(jax.nn.softmax)(z) @ x

    def model(w, x):
        z = x @ w @ x.mT
        experts = x[:, None] * w[None]
        router = jax.nn.softmax(x @ w)
        thinned = jnp.where(x @ x.T > 0, jax.nn.softmax(z), 0.0)
        mixed = jitted(z, x) + by_hand(z) @ x + jax.checkpoint(jitted)(z, x) + thinned @ x
        chosen = (router[..., None] * experts).sum(1) + jnp.einsum("te,ted->td", router, experts)
        return jax.nn.log_softmax(mixed + chosen), jax.nn.softmax(mixed)

    x = X[:4]
    count = {
        kind: len(networks.probe(model, x, x, kind=kind).sites) for kind in ("softmax", "attention")
    }
    assert count == {"softmax": 6, "attention": 4}
    probe = networks.probe(lambda w, x: by_hand(x @ w) @ x, x, x, kind="attention")
    entropy = jax.jit(lambda: propagation.attention(probe, x, x).entropy)()
    np.testing.assert_allclose(entropy, [[np.mean(_entropy(by_hand(x @ x)))]], rtol=1e-5)


def test_scopes_of_a_function_without_tags_are_its_sites():
    """Hold names, values and gradients of what leaves `jax.named_scope`, nested, in jit and in scan."""

    def model(w, x):
        with jax.named_scope("stem"):
            with jax.named_scope("dense"):
                h = x @ w[0]
            h = jnp.tanh(h)

        @jax.jit
        def inner(h):
            with jax.named_scope("inner"):
                return jnp.sin(h @ w[1])

        def step(h, w):
            with jax.named_scope("block"):
                return jnp.tanh(h @ w), None

        h, _ = jax.lax.scan(step, inner(h), w)
        with jax.named_scope("pair"):
            left = h + 1
            right = h * 2
        return left @ right.T

    w = jax.random.normal(KEY, (3, 4, 4), "float32")
    probe = networks.probe(model, w, X)
    names = ["stem/dense", "stem", "inner", "block", "pair[0]", "pair[1]"]
    assert [site.name for site in probe.sites] == names
    assert probe.sites[0].activation == "tanh" and probe.sites[3].shape == (3, 5, 4)
    read = jax.jit(lambda w: probe.read(w, X, shifts=probe.zeros()))(w)
    _same_bits(read.output, jax.jit(model)(w, X))
    dense = X @ w[0]
    np.testing.assert_allclose(read.sites["stem/dense"], dense, rtol=1e-6)
    np.testing.assert_allclose(read.sites["stem"], np.tanh(dense), rtol=1e-5)
    left, right = read.sites["pair[0]"], read.sites["pair[1]"]
    np.testing.assert_allclose(left - 1, right / 2, atol=1e-6)
    found = jax.jit(lambda: propagation.backward(probe, w, X, jnp.sum).sites)()
    np.testing.assert_allclose(found["pair[0]"], np.ones((5, 5)) @ np.asarray(right), rtol=1e-5)
