"""Chains of a user's own layers, against the same layers called one after the other, jax.jacobian, jax.grad, SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxstab import networks, propagation, regularizers, spectra
from jaxstab.norms import log_norm

KEY = jax.random.key(0)
X = jnp.linspace(-1, 1, 5, dtype=jnp.float32)
IMAGE = jax.random.normal(jax.random.key(1), (6, 6, 2), jnp.float32)
TOKENS = jnp.asarray([1, 3, 0])


def dense(features):
    return nn.Sequential([nn.tanh, nn.Dense(features)])


class Residual(nn.Module):
    features: int

    @nn.compact
    def __call__(self, h):
        return h + nn.Conv(self.features, (3, 3))(nn.relu(h))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, h):
        h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h))
        return h + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(h))))


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.linear = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, h):
        return h + self.linear(jnp.tanh(self.norm(h)))


def widths():
    modules = [
        nn.Dense(8),
        dense(8),
        dense(8),
        dense(8),
        dense(6),
        dense(6),
        dense(10),
        nn.Dense(3),
    ]
    return modules, X


def convolutions():
    shrink = nn.Sequential([nn.relu, nn.Conv(3, (3, 3), strides=(2, 2))])
    head = nn.Sequential([lambda h: jnp.mean(h, (0, 1)), nn.Dense(4)])
    return [nn.Conv(2, (3, 3)), Residual(2), Residual(2), nn.relu, shrink, Residual(3), head], IMAGE


def transformer():
    return [nn.Embed(5, 4), *[Transformer() for _ in range(4)], nn.Dense(5)], TOKENS


def linen_model(modules, x):
    chain = networks.from_linen(
        [m if isinstance(m, nn.Module) else nn.Sequential([m]) for m in modules]
    )
    return chain, jax.jit(chain.init)(KEY, x), x


def nnx_model():
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Linear(5, 6, rngs=rngs),
        *[NnxBlock(rngs) for _ in range(4)],
        nnx.Linear(6, 3, rngs=rngs),
    ]
    return *networks.from_nnx(nnx.Sequential(*layers), X), X


def pytree_model():
    """A state of two parts, each of which takes from the other, as coupled layers have it."""

    def coupled(theta, h):
        return {"a": h["a"] + theta @ jnp.sin(h["b"]), "b": h["b"] - theta.T @ jnp.sin(h["a"])}

    def embed(theta, x):
        return {"a": theta @ x, "b": -theta @ x}

    def readout(theta, h):
        return theta @ (h["a"] + h["b"])

    applies = [embed, *[coupled] * 3, readout]
    shapes = [(4, 5), *[(4, 4)] * 3, (2, 4)]
    keys = jax.random.split(KEY, 5)
    params = [
        jax.random.normal(key, shape, jnp.float32) / 2
        for key, shape in zip(keys, shapes, strict=True)
    ]
    return *networks.from_params(applies, params, X), X


MODELS = {
    "widths": lambda: linen_model(*widths()),
    "convolutions": lambda: linen_model(*convolutions()),
    "transformer": lambda: linen_model(*transformer()),
    "nnx": nnx_model,
    "pytree": pytree_model,
}
SEGMENTS = {
    "widths": [3, 1, 1, 1],
    "convolutions": [2, 1, 1, 1],
    "transformer": [4],
    "nnx": [4],
    "pytree": [3],
}


def depth_of(part):
    leaves = jax.tree.leaves(part)
    return len(leaves[0]) if leaves else 1


def apart(part):
    """The parameters of each layer of a segment."""
    return [jax.tree.map(lambda leaf, i=i: leaf[i], part) for i in range(depth_of(part))]


def layers(chain, params):
    """The blocks as functions, one after the other."""
    parts = [
        jax.tree.map(lambda leaf, i=i: leaf[i], part)
        for part in params.blocks.parts
        for i in range(depth_of(part))
    ]
    return [
        lambda h, block=block, part=part: block(part, h)
        for block, part in zip(chain.block, parts, strict=True)
    ]


def passed(chain, params, h, first, last):
    for block in layers(chain, params)[first:last]:
        h = block(h)
    return h


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def total(y):
    return jnp.sum(jnp.sin(y))


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return request.param, *MODELS[request.param]()


@pytest.mark.slow
@pytest.mark.kernels
def test_equal_neighbours_are_scanned_together(model):
    name, _, params, _ = model
    assert [depth_of(part) for part in params.blocks.parts] == SEGMENTS[name]
    assert params.depth == sum(SEGMENTS[name])


@pytest.mark.slow
@pytest.mark.kernels
def test_profiles(model):
    _, chain, params, x = model

    @jax.jit
    def measured(params):
        return propagation.forward(chain, params, x).log_q, propagation.backward(
            chain, params, x, total
        )

    @jax.jit
    def naive(params):
        def zero(h):
            return jax.tree.map(jnp.zeros_like, h)

        h = chain.embed(params, x)
        zeros = [zero(h)]
        for block in layers(chain, params):
            h = block(h)
            zeros.append(zero(h))

        def shifted(params, shifts):
            h = jax.tree.map(jnp.add, chain.embed(params, x), shifts[0])
            states = [h]
            for block, shift in zip(layers(chain, params), shifts[1:], strict=True):
                h = jax.tree.map(jnp.add, block(h), shift)
                states.append(h)
            return total(chain.readout(params, h)), states

        # the gradient by the shift of a state is dL/dh
        (gradient, by_shift), states = jax.grad(shifted, (0, 1), has_aux=True)(params, zeros)
        log_q = [jnp.log(jnp.mean(flat(h) ** 2)) for h in states]
        log_grad = [log_norm(flat(cotangent)) for cotangent in by_shift]
        by_layer = [gradient.embed]
        for part in gradient.blocks.parts:
            by_layer += apart(part)
        return (
            jnp.stack(log_q),
            jnp.stack(log_grad),
            jnp.stack([log_norm(theta) for theta in by_layer]),
        )

    log_q, gradient = measured(params)
    wanted_q, wanted_h, wanted_theta = naive(params)
    # float32, some layers
    np.testing.assert_allclose(log_q, wanted_q, atol=1e-5)
    np.testing.assert_allclose(gradient.log_grad_h, wanted_h, atol=2e-5)
    np.testing.assert_allclose(gradient.log_grad_theta, wanted_theta, atol=2e-5)


@pytest.mark.slow
@pytest.mark.kernels
def test_spectra_and_products(model):
    _, chain, params, x = model
    last = params.depth

    @jax.jit
    def measured(params):
        s = spectra.singular_values(chain, params, x, [last], from_layer=0)[0]
        log_s = spectra.log_singular_values(chain, params, x, [last], from_layer=0)[0]
        operator = spectra.jacobian(chain, params, x, from_layer=0, readout=True)
        v = jnp.cos(jnp.arange(operator.columns, dtype=s.dtype))
        u = jnp.cos(jnp.arange(operator.rows, dtype=s.dtype))
        return s, log_s, operator.matvec(v), operator.rmatvec(u)

    @jax.jit
    def naive(params):
        h, back = jax.flatten_util.ravel_pytree(chain.embed(params, x))

        def onward(h):
            return flat(passed(chain, params, back(h), 0, None))

        def output(h):
            return flat(chain.readout(params, passed(chain, params, back(h), 0, None)))

        return jax.jacobian(onward)(h), jax.jacobian(output)(h)

    s, log_s, product, transposed = measured(params)
    jacobian, whole = map(np.asarray, naive(params))
    wanted = np.linalg.svd(jacobian, compute_uv=False)
    np.testing.assert_allclose(s, wanted, atol=1e-5 * wanted[0])
    # values that float32 resolves in the dense Jacobian
    known = wanted > 1e-3 * wanted[0]
    np.testing.assert_allclose(log_s[known], np.log(wanted[known]), atol=2e-3)
    np.testing.assert_allclose(product, whole @ np.cos(np.arange(whole.shape[1])), atol=1e-4)
    np.testing.assert_allclose(transposed, whole.T @ np.cos(np.arange(whole.shape[0])), atol=1e-4)


@pytest.mark.slow
def test_own_layers_give_what_our_network_gives():
    """Our network taken apart into functions: the same numbers in every measurement."""
    mlp = networks.MLP(
        depth=6, width=8, activation="gelu", norm="layer", skip="sum", features_out=3
    )
    x = jnp.linspace(-1, 1, 5)
    params = networks.chain(mlp).init(KEY, x, 1.5, 0.1)
    ours = networks.chain(mlp)
    blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(6)]
    applies = [
        lambda theta, x: ours.embed(params._replace(embed=theta), x),
        *[ours.block] * 6,
        lambda theta, h: ours.readout(params._replace(readout=theta), h),
    ]
    chain, own = networks.from_params(
        applies, [params.embed, *blocks, params.readout], x, activation="gelu"
    )

    def measured(chain, params):
        return (
            propagation.forward(chain, params, x),
            propagation.correlation(chain, params, x, jnp.flip(x)),
            propagation.backward(chain, params, x, total, [2, 4, 6]),
            spectra.log_singular_values(chain, params, x, [2, 6], errors=True).log_s,
            spectra.singular_values(chain, params, x, [3, 6]),
            spectra.log_apjn(chain, params, x),
            spectra.local_log_singular_values(chain, params, x),
            spectra.lyapunov_exponents(chain, params, x, KEY, groups=2).exponent,
            regularizers.omega(chain, params, x, total),
        )

    found = jax.jit(lambda own: measured(chain, own))(own)
    wanted = jax.jit(lambda params: measured(ours, params))(params)
    # rounding of another order of sums
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found, wanted)


@pytest.mark.slow
def test_blocks_stand_alone_where_no_input_is_given():
    rngs = nnx.Rngs(0)
    layers = [
        nnx.Linear(5, 6, rngs=rngs),
        *[NnxBlock(rngs) for _ in range(3)],
        nnx.Linear(6, 3, rngs=rngs),
    ]
    together, alone = networks.from_nnx(layers, X), networks.from_nnx(layers)
    assert len(alone[1].blocks.parts) == 3 and len(together[1].blocks.parts) == 1
    found, wanted = (
        jax.jit(lambda model=model: propagation.backward(*model, X, total, [1, 3]).log_grad_h)()
        for model in (alone, together)
    )
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_layer_that_transforms_itself_has_its_jacobian():
    """`nnx.RNN` scans its variables, here while it is differentiated; h_t = tanh(u x_t + v h_{t-1})."""
    rnn = nnx.RNN(nnx.SimpleCell(1, 1, rngs=nnx.Rngs(0)))
    x = jnp.linspace(-1, 1, 3, dtype=jnp.float32)[:, None]
    chain, params = networks.from_nnx([lambda x: x, rnn, lambda h: h], x)
    s = jax.jit(lambda params: spectra.singular_values(chain, params, x, [1])[0])(params)
    u, v = (float(dense.kernel[...][0, 0]) for dense in (rnn.cell.dense_i, rnn.cell.dense_h))
    state = 0.0
    jacobian = np.zeros((3, 3))
    for t in range(3):
        state = np.tanh(u * float(x[t, 0]) + v * state)
        if t:
            jacobian[t] = v * jacobian[t - 1]
        jacobian[t, t] = u
        jacobian[t] *= 1 - state**2
    # float32
    np.testing.assert_allclose(s, np.linalg.svd(jacobian, compute_uv=False), rtol=1e-5)


@pytest.mark.slow
def test_running_statistics_go_along_and_are_not_differentiated_by():
    """BatchNorm mixes the examples of a batch, in linen and in nnx; what it writes is dropped."""
    x = jax.random.normal(KEY, (7, 5), jnp.float32)
    modules = [nn.Dense(6), nn.BatchNorm(use_running_average=False), nn.Dense(6), nn.Dense(3)]
    chain = networks.from_linen(modules)
    params = jax.jit(lambda: chain.init(KEY, x))()
    found = jax.jit(lambda: propagation.backward(chain, params, x, total))()

    def output(params):
        h = chain.embed(params, x)
        return total(chain.readout(params, passed(chain, params, h, 0, None)))

    gradient = jax.jit(jax.grad(output))(params)
    np.testing.assert_allclose(
        found.log_grad_theta[1], log_norm(gradient.blocks.parts[0].params), atol=1e-5
    )
    assert all(
        float(jnp.abs(leaf).max()) == 0
        for leaf in jax.tree.leaves(gradient.blocks.parts[0].batch_stats)
    )
    rngs = nnx.Rngs(0)
    chain, params = networks.from_nnx(
        [nnx.Linear(5, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)], x
    )
    found = jax.jit(lambda: propagation.backward(chain, params, x, total))()
    assert np.all(np.isfinite(found.log_grad_theta))


@pytest.mark.slow
def test_depths_of_states_of_unequal_shapes_are_refused():
    chain, params, x = linen_model(*widths())
    with pytest.raises(
        ValueError,
        match=r"need states of one shape for their shared readout, got \[\(8,\), \(10,\)\]",
    ):
        propagation.backward(chain, params, x, total, [2, 6])
    # five singular values at either depth
    assert spectra.singular_values(chain, params, x, [2, 6]).shape == (2, 5)
    with pytest.raises(
        ValueError, match=r"equally many singular values, got \[8, 6\] at depths \[2, 4\]; give one"
    ):
        spectra.singular_values(chain, params, x, [2, 4], from_layer=1)


def test_tokens_are_differentiated_by_what_they_embed_as():
    chain, params, x = linen_model(*transformer())
    for measure in (spectra.log_singular_values, spectra.singular_values):
        with pytest.raises(
            ValueError,
            match="x must be floating to differentiate by it, got tokens; use from_layer=0",
        ):
            measure(chain, params, x, [2])
    with pytest.raises(
        ValueError, match="x must be floating to differentiate by it, got tokens; use from_layer=0"
    ):
        spectra.jacobian(chain, params, x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: networks.from_linen(Transformer()),
            "modules must be a list of .*, got Transformer; .* networks.probe",
        ),
        (
            lambda: networks.from_nnx(NnxBlock(nnx.Rngs(0))),
            "modules must be a list of .*, got NnxBlock; .*probe",
        ),
        (lambda: networks.from_linen([nn.Dense(3)] * 2), "at least three layers, .* got 2"),
        (
            lambda: networks.from_linen([nn.Dense(3), jnp.tanh, nn.Dense(3)]),
            "layer 1 must be a linen module, got",
        ),
        (lambda: networks.from_functions([jnp.tanh] * 3), "layer 0 must be a pair of functions"),
        (
            lambda: networks.from_nnx([1, 2, 3]),
            "layer 0 must be an nnx module or a function, got int",
        ),
        (
            lambda: networks.from_nnx([nn.Dense(3)] * 3),
            "layer 0 must be an nnx module or a function, got Dense",
        ),
        (
            lambda: networks.from_params([jnp.tanh], []),
            "an entry for each of 1 functions, got 0 entries",
        ),
        (
            lambda: networks.from_params(
                [lambda w, h: h @ w] * 3,
                [jnp.ones((5, 4)), jnp.ones((3, 3)), jnp.ones(3)],
                jnp.ones(5),
            ),
            r"layer 1 \(<lambda>\) fails on the output of layer 0 \(<lambda>\), float(32|64)\[4\]",
        ),
    ],
)
def test_what_makes_no_chain_is_said_in_one_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_parameters_of_another_model_are_refused():
    _, params, x = linen_model(*widths())
    other = networks.from_linen([nn.Dense(8), dense(8), nn.Dense(3)])
    with pytest.raises(ValueError, match="params must have 1 blocks, as the chain, got 6"):
        propagation.forward(other, params, x)
    modules, _ = widths()
    wider = networks.from_linen([*modules[:-2], dense(11), modules[-1]])
    said = r"layer 6 fails with these parameters on an input float32\[6\]: For parameter .kernel.*shape \(6, 10\)\.$"
    with pytest.raises(ValueError, match=said):
        propagation.forward(wider, params, x)
    with pytest.raises(
        ValueError, match=r"layer 0 fails with these parameters on an input float32\[2\]"
    ):
        propagation.correlation(linen_model(modules, x)[0], params, x[:2], x[:2])
    ours = networks.MLP(depth=6, width=8)
    with pytest.raises(
        ValueError, match="those of the chain, of a networks.MLP, got params of layers of your own"
    ):
        propagation.forward(networks.chain(ours), params, x)
    with pytest.raises(
        ValueError, match="sigma_b must be 1 for layers of your own, whose biases .* got 0.5"
    ):
        networks.rescale(params, 2.0, 0.5)
