"""Initialisers: the gains are the theory's, the draws do what their papers say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_variables import variables

from jaxstab import initializers, networks, propagation, theory
from jaxstab.activations import Activation
from jaxstab.networks import MLP

KEY = jax.random.key(2)


@pytest.mark.parametrize("name", ["identity", "relu", "tanh", "erf", "hard_tanh", "sin"])
def test_closed_forms_are_critical(name):
    found = initializers.gain(name)
    # at q = 0 theory's own integrals start from 1e-12
    q = 1.0 if np.isinf(found.q) else max(found.q, 1e-6)
    assert found.critical
    assert found.sigma_w**2 * float(theory.derivative_moment(name, q)) == pytest.approx(
        1.0, abs=1e-5
    )


def test_solved_gains():
    solved = initializers.gain("tanh", 0.05**0.5)
    assert solved.sigma_w**2 == pytest.approx(1.76095, abs=1e-5) and solved.q == pytest.approx(
        0.57005, abs=1e-5
    )
    assert "solved chi_1 = 1 at sigma_b = 0.2236" in solved.source
    # another's activation under a known name is not the known one
    mine = initializers.gain(Activation("relu", lambda z: 3.0 * jnp.maximum(z, 0), (0.0,)))
    assert mine.sigma_w == pytest.approx(2**0.5 / 3, rel=1e-9) and mine.source.startswith("solved")


def test_without_a_critical_gain_the_length_is_kept():
    # gelu's lengths leave q = 0 at 1/phi'(0) = 2: critical there, but no network stays
    found = initializers.gain("gelu")
    assert not found.critical and "no critical gain" in found.source
    kept = theory.length_map("gelu", found.sigma_w, 0.0, 1.0)
    assert float(kept) == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(
        ValueError,
        match=r"gelu has no critical gain at sigma_b = 0.0; use gain\('gelu', 0.0\), which keeps",
    ):
        initializers.critical("gelu")


def test_selus_own_gain_misleads():
    # held row A6: lengths contract, and the squared gradient grows by 1.0716 a layer
    with pytest.warns(UserWarning, match=r"chi_1 = 1.0716 per layer .* \(slope 0.7826\)"):
        own = initializers.gain("selu", keep="length")
    assert own.sigma_w == pytest.approx(1.0, abs=1e-6) and not own.critical
    found = initializers.gain("selu")
    assert found.critical
    assert "gain 1 would keep q = 1, where lengths contract (slope 0.7826)" in found.source
    assert "grow by 1.0716 per layer" in found.source
    # gelu's lengths leave q = 1: nothing to warn of
    assert "would keep" not in initializers.gain("gelu").source


@pytest.mark.slow
def test_critical_networks_keep_their_gradient():
    mlp = MLP(depth=20, width=150, activation="relu", weights=initializers.critical("relu"))
    x = jax.random.normal(KEY, (20,))

    def drift(key):
        g = propagation.backward(
            networks.chain(mlp), networks.chain(mlp).init(key, x), x, lambda y: y[0]
        ).log_grad_h
        return 2 * (g[0] - g[-1])

    found = jax.jit(jax.vmap(drift))(jax.random.split(KEY, 24))
    # chi_1 = 1, less the -5/(2 n) per layer of finite width (Hanin & Nica 2018)
    expected = -20 * 5 / (2 * 150)
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(24)


@pytest.mark.parametrize(
    "name", ["glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_uniform"]
)
def test_those_of_jax_nn_by_name(name):
    kernel = (
        networks.chain(MLP(depth=1, width=200, weights=name))
        .init(KEY, jnp.ones(300))
        .embed["dense"]["kernel"]
    )
    variance = {"glorot": 2 / 500, "he": 2 / 300, "lecun": 1 / 300}[name.split("_")[0]]
    # a uniform or truncated sample's mean square has a standard error below a normal one's
    assert abs(np.mean(kernel**2) / variance - 1) < 4 * np.sqrt(2 / kernel.size)


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "skip"), [("relu", None), ("gelu", "sum")])
def test_looks_linear_is_linear(activation, skip):
    mlp = MLP(
        depth=5, width=12, activation=activation, skip=skip, weights="orthogonal", features_out=3
    )
    x = jax.random.normal(KEY, (6, 7))
    net = networks.chain(mlp)
    params = jax.jit(lambda key: initializers.looks_linear(net, key, x, 1.1, 0.2))(KEY)
    half = mlp.clone(width=6, activation="identity")
    expected = half.apply(variables(networks.chain(half).init(KEY, x, 1.1, 0.2)), x)
    np.testing.assert_allclose(mlp.apply(variables(params), x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_looks_linear_has_the_singular_values_that_it_states():
    depth, half, sigma_w = 4, 6, 1.1
    mlp = MLP(depth, 2 * half, "relu", weights="orthogonal")
    x = jax.random.normal(KEY, (half,))
    params = initializers.looks_linear(mlp, KEY, x, sigma_w)
    network = networks.chain(mlp)

    def through(h, shift):
        h = h + network.embed(params, x + shift)
        return jax.lax.scan(lambda h, layer: (network.block(layer, h), None), h, params.blocks)[0]

    of_state, of_input = jax.jit(jax.jacfwd(through, (0, 1)))(jnp.zeros(2 * half), jnp.zeros(half))
    s = np.linalg.svd(of_state, compute_uv=False)
    np.testing.assert_allclose(s, np.repeat([2**0.5 * sigma_w**depth, 0], half), atol=1e-12)
    s = np.linalg.svd(of_input, compute_uv=False)
    np.testing.assert_allclose(s, 2**0.5 * sigma_w ** (depth + 1), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"skip": "sum"}, {"skip": "dense"}, {"norm": "batch"}], ids=str
)
def test_lsuv_gives_every_layer_unit_variance(settings):
    mlp = MLP(depth=6, width=20, activation="tanh", weights="orthogonal", **settings)
    x = 3.0 * jax.random.normal(KEY, (40, 9), jnp.float32) ** 2
    params = networks.chain(mlp).init(KEY, x, 0.3, 0.1)
    new = jax.jit(lambda params, target: initializers.lsuv(mlp, params, x, target))(params, 1.7)
    branch, chain = mlp.layers(train=True)[1].clone(skip=None), networks.chain(mlp)

    def layer(h, block):
        return chain.block(block, h), jnp.var(branch.apply({"params": block}, h))

    h = chain.embed(new, x)
    out, variances = jax.jit(lambda h: jax.lax.scan(layer, h, new.blocks))(h)
    for found in (jnp.var(h[:, :20]), *variances, jnp.var(chain.readout(new, out))):
        # rescaling ten times leaves what the biases, a tenth of the spread, add: below float32's rounding
        assert float(found) == pytest.approx(1.7, rel=1e-4)
    np.testing.assert_array_equal(new.blocks["dense"]["bias"], params.blocks["dense"]["bias"])


@pytest.mark.slow
def test_fixup_and_skip_init_start_as_the_identity():
    x = jax.random.normal(KEY, (4,))
    for skip in ("sum", "rezero"):
        mlp = MLP(depth=3, width=6, activation="relu", skip=skip, weights="he_normal")
        params = initializers.fixup(networks.chain(mlp), networks.chain(mlp).init(KEY, x, 1.0, 0.5))
        h = networks.chain(mlp).embed(params, x)
        states = propagation.forward(networks.chain(mlp), params, x)
        np.testing.assert_allclose(states.q, np.mean(h**2), rtol=1e-12)
        assert not np.any(mlp.apply(variables(params), x))
    assert np.all(params.blocks["alpha"] == 1)
    assert np.all(initializers.skip_init(params).blocks["alpha"] == 0)
    np.testing.assert_allclose(initializers.skip_init(params, 3**-0.5).blocks["alpha"], 3**-0.5)


def test_what_does_not_fit_is_refused():
    x = jnp.ones(4)
    mlp = MLP(depth=2, width=5, activation="relu")
    params = networks.chain(mlp).init(KEY, x)
    with pytest.raises(ValueError, match=r"needs phi\(z\) - phi\(-z\) = c z, .* got tanh"):
        initializers.looks_linear(MLP(2, 4, "tanh"), KEY, x)
    with pytest.raises(
        ValueError, match="looks_linear needs an even width, .* got width 5, norm None, skip None"
    ):
        initializers.looks_linear(mlp, KEY, x)
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        initializers.lsuv(mlp, params, x[None], steps=0)
    with pytest.raises(
        ValueError, match="fixup needs a network with skip sum, scaled or rezero and no norm, got"
    ):
        initializers.fixup(mlp, params)
    with pytest.raises(
        ValueError, match="skip_init needs parameters with multipliers alpha, as of MLP"
    ):
        initializers.skip_init(params)
    with pytest.raises(ValueError, match="weights must be gaussian, .* got 'he_normal'"):
        initializers.critical("tanh", weights="he_normal")
