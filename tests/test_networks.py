"""Networks: the chain is the module, the draw is the law, the gains are traced."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from flax_variables import variables

from jaxstab import initializers, networks, theory
from jaxstab.networks import MLP
from jaxstab.networks.binding import initial_statistics, statistics
from jaxstab.networks.layers import trained

KEY = jax.random.key(0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, None])
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.kernels
def test_chain_computes_what_the_module_does(weights, dtype):
    dtype = dtype or jnp.result_type(float)
    mlp, x = (
        MLP(depth=3, width=16, activation="gelu", features_out=4, weights=weights),
        jnp.linspace(-1, 1, 9, dtype=dtype),
    )
    params, chain = networks.chain(mlp).init(KEY, x, 1.4, 0.3), networks.chain(mlp)
    h = chain.embed(params, x)
    for i in range(3):
        h = chain.block(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), h)
    y = chain.readout(params, h)
    assert y.dtype == dtype and y.shape == (4,) and params.depth == 3
    chex.assert_trees_all_equal_dtypes(
        params, jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    )
    np.testing.assert_allclose(y, mlp.apply(variables(params), x), rtol=1e-5)


SETTINGS = {
    "activation": "gelu", "features_out": 3, "weights": "orthogonal", "norm": "rms",
    "norm_after": True, "dropout": True, "skip": "highway", "epsilon": 0.01, "momentum": 0.5,
    "gate_bias": -1.0,
}  # fmt: skip


@pytest.mark.slow
def test_mlp_is_the_chain_of_the_module_with_the_same_settings():
    net, module, x = networks.mlp(3, 6, **SETTINGS), MLP(3, 6, **SETTINGS), jnp.linspace(-1, 1, 5)
    assert net.family == module
    params = net.init(KEY, x, sigma_w=1.4, sigma_b=0.3)
    chex.assert_trees_all_equal(params, networks.chain(module).init(KEY, x, 1.4, 0.3))
    dry = net.inference
    y = module.apply(variables(params), x, train=False)
    np.testing.assert_allclose(dry.apply(params, x), y, rtol=1e-12)
    short = params._replace(blocks=jax.tree.map(lambda leaf: leaf[:2], params.blocks))
    np.testing.assert_allclose(dry.apply(params, x, depth=2), dry.apply(short, x), rtol=1e-12)
    for depth in (-1, 4):
        with pytest.raises(ValueError, match="depth must be"):
            dry.apply(params, x, depth=depth)
    assert theory.law(**net.law, keep=0.9) == theory.law(
        "gelu", norm="rms", norm_after=True, skip="highway", keep=0.9, weights="orthogonal",
        depth=3, epsilon=0.01, gate_bias=-1.0,
    )  # fmt: skip


def test_bound_layers_hold_what_a_run_carries():
    net, x = networks.mlp(3, 4, norm="batch", dropout=True), jnp.ones((6, 5))
    params = net.init(KEY, x)
    stats = initial_statistics(net, params, x)
    bound = net.bind(params, stats=stats, key=KEY, rate=0.2, sigma_w=2.0)
    chex.assert_trees_all_equal(trained(bound), params)
    chex.assert_trees_all_equal(statistics(bound), stats)
    # what is bound stays, in whatever form the states are
    moved = jax.tree.map(lambda leaf: leaf + 1, stats)
    again = networks.flatten(net, 6).bind(bound, stats=moved)
    chex.assert_trees_all_equal(initial_statistics(net, again, x), moved)
    assert again.blocks.dropout is bound.blocks.dropout
    assert again.readout.sigma_w is bound.readout.sigma_w
    assert statistics(params) == initial_statistics(networks.mlp(3, 4), params, x) == {}


def test_layers_of_ones_own_have_their_own_rates_and_gains():
    chain = networks.from_linen([linen.Dense(4)] * 3)
    params = chain.init(KEY, jnp.ones(4, jnp.float32))
    chex.assert_trees_all_equal(trained(chain.bind(params, key=KEY)), params)
    with pytest.raises(ValueError, match=r"rate must be 0 for layers of your own, .* got 0.1"):
        chain.bind(params, rate=0.1)
    with pytest.raises(ValueError, match=r"sigma_w must be None for layers of your own"):
        chain.bind(params, sigma_w=2.0)


def test_a_chain_always_has_an_inference_mode_and_is_a_static_argument():
    plain, wet = networks.mlp(2, 4), networks.mlp(2, 4, dropout=True)._replace(precision="default")
    law = {"activation": "tanh", "skip": "sum"}
    own = networks.from_functions([(lambda key, h: {}, lambda theta, h: h)] * 3, law=law)
    assert plain.inference is plain and own.inference.law == own.law == law
    assert wet.inference.precision == "default" and wet.inference.family.dropout
    x = jnp.ones((3, 4))
    params = wet.init(KEY, x)
    flat = networks.flatten(wet, 3)
    y = wet.inference.apply(params, x)
    np.testing.assert_allclose(flat.inference.apply(params, x.ravel()), y.ravel(), rtol=1e-6)
    for chain in (plain, wet, own, flat):
        assert jax.jit(lambda chain: chain.law["activation"] is not None, static_argnums=0)(chain)


def test_chains_of_other_layers_have_no_law():
    chain = networks.from_linen([linen.Dense(4)] * 3)
    assert chain.family is None and chain.law is None
    x = jnp.ones(4, jnp.float32)
    for call in (
        lambda: initializers.looks_linear(chain, KEY, x),
        lambda: initializers.fixup(chain, chain.init(KEY, x)),
    ):
        with pytest.raises(ValueError, match=r"network must be a networks\.mlp"):
            call()


@pytest.mark.slow
def test_network_is_the_formula():
    mlp, x = MLP(depth=2, width=5, activation="tanh", features_out=3), jnp.linspace(0.1, 1, 4)
    params = networks.chain(mlp).init(KEY, x, 1.3, 0.2)
    dense = lambda layer, h: h @ layer["dense"]["kernel"] + layer["dense"]["bias"]
    h = dense(params.embed, x)
    for i in range(2):
        h = dense(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), jnp.tanh(h))
    np.testing.assert_allclose(
        mlp.apply(variables(params), x), dense(params.readout, jnp.tanh(h)), rtol=1e-12
    )


def test_weights_and_biases_follow_the_law():
    mlp = MLP(depth=4, width=300)
    params = networks.chain(mlp).init(KEY, jnp.ones(200), 1.7, 0.4)
    for kernel, fan_in in (
        (params.embed["dense"]["kernel"], 200),
        (params.blocks["dense"]["kernel"], 300),
    ):
        scaled = np.asarray(kernel).ravel() * np.sqrt(fan_in) / 1.7
        n = len(scaled)
        # standard errors of the second and fourth moments of a normal sample; a truncated normal's kurtosis is 2.37
        assert abs(np.mean(scaled**2) - 1) < 4 * np.sqrt(2 / n)
        assert abs(np.mean(scaled**4) - 3) < 4 * np.sqrt(96 / n)
    biases = (
        np.concatenate(
            [np.asarray(p["dense"]["bias"]).ravel() for p in (params.embed, params.blocks)]
        )
        / 0.4
    )
    assert abs(np.mean(biases**2) - 1) < 4 * np.sqrt(2 / len(biases))


def test_orthogonal_weights_are_haar():
    mlp = MLP(depth=400, width=6, weights="orthogonal")
    kernels = (
        np.asarray(networks.chain(mlp).init(KEY, jnp.ones(6), 2.0).blocks["dense"]["kernel"]) / 2.0
    )
    np.testing.assert_allclose(
        kernels @ kernels.transpose(0, 2, 1), np.broadcast_to(np.eye(6), kernels.shape), atol=1e-12
    )
    # QR without its sign fix biases the diagonal: Haar has trace of mean 0 and variance 1
    traces = np.trace(kernels, axis1=1, axis2=2)
    assert abs(traces.mean()) < 4 / np.sqrt(400)
    assert abs(np.mean(traces**2) - 1) < 4 * np.sqrt(2 / 400)


@pytest.mark.slow
def test_orthogonal_weights_have_the_gain_s_mean_square_in_every_shape():
    # E h^2 = sigma_w^2 E a^2 over outputs h for any input a, exactly where fan_in <= fan_out; else on average over a
    for shape in ((8, 8), (5, 12), (3, 3, 4, 50), (1, 7), (64, 128)):
        kernel = np.asarray(networks.WEIGHTS["orthogonal"](KEY, shape)).reshape(-1, shape[-1])
        a = np.linspace(-1, 2, len(kernel))
        np.testing.assert_allclose(
            np.mean((a @ kernel) ** 2), np.mean(a**2), rtol=1e-12, err_msg=str(shape)
        )
    for shape in ((12, 5), (3, 3, 4, 10), (7, 1)):
        kernel = np.asarray(networks.WEIGHTS["orthogonal"](KEY, shape)).reshape(-1, shape[-1])
        np.testing.assert_allclose(
            kernel.T @ kernel, np.eye(shape[-1]), atol=1e-12, err_msg=str(shape)
        )
    for shape in ((3,), (0, 4)):
        with pytest.raises(ValueError, match="two axes or more, none of length 0, got shape"):
            networks.WEIGHTS["orthogonal"](KEY, shape)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [None, "dense"])
def test_orthogonal_networks_have_the_lengths_of_theory_from_a_narrow_input_to_a_wide_output(skip):
    mlp = MLP(
        depth=2, width=16, activation="identity", features_out=40, weights="orthogonal", skip=skip
    )
    x = jnp.linspace(-1, 1, 6)
    chain = networks.chain(mlp)
    params = chain.init(KEY, x, 1.5)
    h = chain.embed(params, x)[:16]
    q = 1.5**2 * float(jnp.mean(x**2))
    assert float(jnp.mean(h**2)) == pytest.approx(q, rel=1e-12)
    if skip is None:
        # no outputs are lost on the way: the mean square of each layer is exact
        y = mlp.apply(variables(params), x)
        assert float(jnp.mean(y**2)) == pytest.approx(1.5**6 * q, rel=1e-12)


@pytest.mark.slow
def test_units_of_layers_still_to_come_are_in_no_jacobian_of_a_dense_network():
    net = networks.mlp(depth=5, width=3, skip="dense")
    params = net.init(KEY, jnp.ones(4), 1.5)
    h = networks.state(net, params, jnp.ones(4), 1)
    jacobian = jax.jacobian(
        lambda h: net.block(jax.tree.map(lambda leaf: leaf[1], params.blocks), h)
    )(h)
    # h_1 = (its own units, those of h_0, 12 that are not there yet); h_2 has three units more
    assert np.linalg.matrix_rank(jacobian) == 6 and not np.any(jacobian[:, 6:])
    np.testing.assert_array_equal(jacobian[3:9, :6], np.eye(6))


@pytest.mark.slow
def test_gains_share_one_draw_and_are_traced():
    mlp, x = MLP(depth=2, width=8), jnp.ones(3)
    traced = chex.assert_max_traces(lambda w, b: networks.chain(mlp).init(KEY, x, w, b), n=1)
    init = jax.jit(traced)
    unit, scaled = init(1.0, 1.0), init(2.5, 0.5)
    chex.assert_trees_all_close(scaled, networks.rescale(unit, 2.5, 0.5), rtol=1e-12)
    np.testing.assert_allclose(
        scaled.embed["dense"]["kernel"], 2.5 * unit.embed["dense"]["kernel"], rtol=1e-12
    )
    np.testing.assert_allclose(
        scaled.embed["dense"]["bias"], 0.5 * unit.embed["dense"]["bias"], rtol=1e-12
    )
    many = jax.vmap(lambda key, w: networks.chain(mlp).init(key, x, w).blocks)(
        jax.random.split(KEY, 3), jnp.ones(3)
    )
    assert many["dense"]["kernel"].shape == (3, 2, 8, 8)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"depth": 0, "width": 4}, "depth must be an integer >= 1, got 0"),
        ({"depth": 2, "width": -1}, "width must be an integer >= 1, got -1"),
        ({"depth": 2, "width": 4, "features_out": 0}, "features_out"),
        ({"depth": 2, "width": 4, "weights": "uniform"}, "gaussian, orthogonal, .*, got 'uniform'"),
        (
            {"depth": 2, "width": 4, "norm": "group"},
            "norm must be one of None, batch, layer, rms, peri, dyt, derf, got 'group'",
        ),
        (
            {"depth": 2, "width": 4, "skip": "resnet"},
            "None, sum, scaled, rezero, highway, dense, got 'resnet'",
        ),
        ({"depth": 2, "width": 4, "epsilon": -1.0}, "epsilon must be >= 0, got -1.0"),
        ({"depth": 2, "width": 4, "momentum": 1.5}, r"momentum must be in \[0, 1\], got 1.5"),
        ({"depth": 2, "width": 4, "activation": "rellu"}, "did you mean relu"),
        ({"depth": 2, "width": 4, "activation": jax.nn.softmax}, "not elementwise"),
    ],
)
def test_bad_networks_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        MLP(**settings)


def test_bad_inputs_are_refused():
    mlp = MLP(depth=2, width=4)
    with pytest.raises(ValueError, match="sigma_w must be finite and >= 0, got -1"):
        networks.chain(mlp).init(KEY, jnp.ones(3), -1.0)
    with pytest.raises(ValueError, match="sigma_b must be finite"):
        networks.chain(mlp).init(KEY, jnp.ones(3), 1.0, jnp.nan)
