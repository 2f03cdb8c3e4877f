"""Designs against closed forms, held numbers, and networks that are built with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import activations, networks, propagation, spectra, theory
from jaxstab.networks import MLP

SEEDS = 12


def _root_mean_square_growth(mlp, found, change=None):
    """ln of the root-mean-square gradient at h_0 over that at h_L, and its standard error over networks."""
    x = jnp.full(mlp.width, found.q0**0.5)
    chain = networks.chain(mlp)

    def growth(key):
        params = chain.init(key, x, found.sigma_w, found.sigma_b)
        params = params if change is None else change(params)
        log_norm = propagation.backward(chain, params, x, lambda y: y[0]).log_grad_h
        return log_norm[0] - log_norm[-1]

    square = np.exp(
        2 * np.asarray(jax.jit(jax.vmap(growth))(jax.random.split(jax.random.key(3), SEEDS)))
    )
    mean = np.mean(square)
    return np.log(mean) / 2, np.std(square, ddof=1) / SEEDS**0.5 / mean / 2


@pytest.mark.slow
def test_a_share_of_linear_units_makes_relu_critical():
    depth = 12

    def mixed(share):
        return activations.mixture("relu", "identity", share)

    found = theory.design(mixed, {"share": 0.5}, depth, sigma_w=1.3, bounds={"share": (0, 1)})
    # chi_1 = sigma_w^2 ((1 - p) / 2 + p)
    assert found.reached
    assert found.parameters["share"] == pytest.approx(2 / 1.3**2 - 1, abs=1e-6)
    mlp = MLP(depth, 120, mixed(round(120 * found.parameters["share"]) / 120))
    mean, error = _root_mean_square_growth(mlp, found)
    # units are whole: the share is 0.1833, not 0.1834
    assert abs(mean) < 4 * error + 1e-3 * depth


@pytest.mark.slow
def test_a_residual_scale_reaches_the_growth_asked_for():
    depth = 24

    def block(alpha):
        return theory.law("tanh", skip="rezero", alpha=alpha)

    found = theory.design(
        block, {"alpha": 0.5}, depth, target=0.4, sigma_w=1.5, bounds={"alpha": (0, 4)}
    )
    alpha = found.parameters["alpha"]
    assert found.reached
    # by another route: the length map p' = p + alpha^2 sigma_w^2 V(p), factor 1 + alpha^2 sigma_w^2 M(p)
    branch = (alpha * 1.5) ** 2
    length, growth = 1.5**2, 0.0
    for _ in range(depth):
        growth += np.log1p(branch * float(theory.derivative_moment("tanh", length))) / 2
        length += branch * float(theory.second_moment("tanh", length))
    assert growth == pytest.approx(0.4, abs=1e-6)
    mlp = MLP(depth, 100, "tanh", skip="rezero")
    set_alpha = lambda params: params._replace(
        blocks=params.blocks | {"alpha": jnp.full_like(params.blocks["alpha"], alpha)}
    )
    mean, error = _root_mean_square_growth(mlp, found, set_alpha)
    # the factor's mean moves by O(1) per layer / width, times the branch's share of it
    assert abs(mean - 0.4) < 4 * error + 0.4 / 100**0.5


@pytest.mark.slow
def test_held_doubly_critical_point():
    start = {"sigma_w": 1.6, "sigma_b": 0.3, "q0": 2.0}
    found = theory.design("gelu", start, goal="doubly_critical")
    # held row A1
    assert found.q0 == pytest.approx((3 + 17**0.5) / 2, rel=1e-7)
    assert found.sigma_w**2 == pytest.approx(1.98305825743817, rel=1e-8)
    assert found.sigma_b**2 == pytest.approx(0.17292239075607, rel=1e-7)
    assert found.reached


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("q", "share", "square"), [(0.01, 0.91120560, 3.15893005), (1.0, 0.77581455, 2.74415492)]
)
def test_held_shares_of_mixtures_whose_length_stays(q, share, square):
    """Hold row A4, and that networks of the design keep small changes of the length."""
    depth, width = 4, 400

    def mixed(share):
        return activations.mixture("tanh", "swish", share)

    start = {"share": 0.5, "sigma_w": 1.5}
    found = theory.design(mixed, start, goal="length_critical", q0=q, bounds={"share": (0, 1)})
    assert found.reached
    # eight digits are held, to the last one of which both round
    assert found.parameters["share"] == pytest.approx(share, abs=1.5e-8)
    assert found.sigma_w**2 == pytest.approx(square, abs=1.5e-8)
    mlp = MLP(depth, width, mixed(round(width * share) / width))
    chain = networks.chain(mlp)
    # the embedding has the same gain, and its output is the first length
    x = jnp.full(width, q**0.5 / found.sigma_w)

    def measured(key):
        params = chain.init(key, x, found.sigma_w, 0.0)

        def log_growth(scale):
            log_q = propagation.forward(chain, params, scale * x).log_q
            return log_q[-1] - log_q[0]

        return jnp.stack(jax.jvp(log_growth, (1.0,), (1.0,)))

    numbers = np.asarray(jax.jit(jax.vmap(measured))(jax.random.split(jax.random.key(7), SEEDS)))
    error = np.std(numbers, axis=0, ddof=1) / SEEDS**0.5
    # both are zero, up to O(depth / width)
    assert np.all(np.abs(np.mean(numbers, axis=0)) < 4 * error + depth / width)


@pytest.mark.slow
def test_the_most_isometric_gain_has_the_predicted_spectrum():
    depth = 10
    block = theory.law("tanh", weights="orthogonal")
    found = theory.design(block, {"sigma_w": 1.5}, depth, "isometric", q0=0.1)
    assert not found.reached
    assert 1.0 < found.sigma_w < 1.2
    mlp = MLP(depth, 100, "tanh", weights="orthogonal")
    chain = networks.chain(mlp)
    x = jnp.full(100, found.q0**0.5)

    def moments(key):
        params = chain.init(key, x, found.sigma_w, 0.0)
        square = spectra.singular_values(chain, params, x, [depth], from_layer=0)[0] ** 2
        mean = jnp.mean(square)
        return jnp.log(mean), jnp.mean(square**2) / mean**2 - 1

    measured = jax.jit(jax.vmap(moments))(jax.random.split(jax.random.key(5), SEEDS))
    predicted = found.missed[0], found.missed[1] ** 2
    for ours, theirs in zip(map(np.asarray, measured), predicted, strict=True):
        error = np.std(ours, ddof=1) / SEEDS**0.5
        # and O(depth / width) of finite width
        assert abs(np.mean(ours) - theirs) < 4 * error + 0.5 * abs(theirs) * depth / 100


@pytest.mark.slow
def test_variances_of_residual_layers_add():
    depth, width = 6, 300

    def block(slope):
        return theory.law(activations.leaky_relu(slope), skip="rezero", alpha=0.4)

    found = theory.design(block, {"slope": 0.3}, depth, "isometric", sigma_w=1.2, steps=1)
    slope = found.parameters["slope"]
    rng = np.random.default_rng(0)
    moments = []
    for _ in range(4):
        product = np.eye(width)
        for _ in range(depth):
            diagonal = np.where(rng.random(width) < 0.5, slope, 1.0)
            branch = 0.4 * 1.2 / width**0.5 * rng.normal(size=(width, width)) * diagonal
            product = product + branch @ product
        square = np.linalg.svd(product, compute_uv=False) ** 2
        moments.append((np.log(np.mean(square)), np.mean(square**2) / np.mean(square) ** 2 - 1))
    log_mean, variance = np.mean(moments, axis=0)
    # of moments of 4 x 300 rigid values: 1 / width, times the layers
    assert found.missed[0] == pytest.approx(log_mean, abs=0.02)
    assert found.missed[1] ** 2 == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goal": "chaotic"}, "goal must be one of critical, isometric, length_critical, doubly"),
        ({"depth": None}, "depth must be given for critical, got None"),
        ({"start": {}}, "start must name at least one free parameter, got none"),
        ({"start": {"sigma_w": -1.0}}, r"start of sigma_w must lie in \(0, inf\), got -1"),
        ({"bounds": {"slope": (0, 1)}}, "bounds must be of free parameters, got slope"),
        (
            {"block": theory.law("tanh", norm="layer"), "goal": "isometric"},
            "isometric needs blocks without norm",
        ),
        (
            {"block": theory.law("tanh", skip="sum"), "goal": "length_critical"},
            "length_critical needs blocks without norm, skip and dropout, got norm None, skip sum",
        ),
    ],
)
def test_mistakes_are_named(settings, message):
    given = {"block": "tanh", "start": {"sigma_w": 1.0}, "depth": 4} | settings
    with pytest.raises(ValueError, match=message) as error:
        theory.design(**given)
    assert "\n" not in str(error.value)
