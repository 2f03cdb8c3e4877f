"""Finite width: held tables, multi-precision integrals, and networks."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxstab import activations, curvature, initializers, networks, propagation, theory
from jaxstab.activations import leaky_relu
from jaxstab.curvature.kernels import gauss_newton_gram
from jaxstab.theory.features import features
from jaxstab.theory.finite_width import critical_width_gain
from jaxstab.theory.gradient_grams import below_readout


@pytest.mark.parametrize(
    ("slope", "width", "mean", "gaussian", "at_he", "haar"),
    # held table A3
    [
        (0.01, 10, 0.64745942, 1.655053, -0.157310, 1.571724),
        (0.1, 5, 0.13903952, 1.945812, -0.324081, 1.749119),
        (0.1, 100, 1.94859211, 1.424745, -0.012395, 1.417616),
        (0.2, 20, 1.11057799, 1.472981, -0.060325, 1.436015),
    ],
)
def test_leaky_relu_has_its_exact_laws(slope, width, mean, gaussian, at_he, haar):
    phi = leaky_relu(slope)
    unit = theory.log_growth(phi, width, width**0.5)
    assert float(unit.mean) == pytest.approx(mean, abs=5e-9) and unit.survival == 1.0
    assert critical_width_gain(phi, width) == pytest.approx(gaussian, abs=5e-7)
    assert float(
        theory.log_growth(phi, width, math.sqrt(2 / (1 + slope**2))).mean
    ) == pytest.approx(at_he, abs=5e-7)
    assert critical_width_gain(phi, width, "orthogonal") == pytest.approx(haar, abs=5e-7)


def test_the_mean_is_the_integral_of_multi_precision():
    """E ln S = int (e^-t - M(t)^n) dt/t, and chi^2 itself for linear units."""
    for slope, width in ((0.3, 1), (0.05, 7)):
        transform = lambda t, a=slope: ((1 + 2 * t) ** -0.5 + (1 + 2 * a**2 * t) ** -0.5) / 2
        excess = lambda x, n=width, m=transform: mpmath.exp(-mpmath.exp(x)) - m(mpmath.exp(x)) ** n
        wanted = float(mpmath.quad(excess, [-60, -20, -5, 0, 5, 20, 60, 200])) / 2
        assert float(theory.log_growth(leaky_relu(slope), width, width**0.5).mean) == pytest.approx(
            wanted, abs=1e-10
        )
    linear = theory.log_growth("identity", 6, 1.0)
    wanted = (mpmath.digamma(3) + mpmath.log(2) - mpmath.log(6)) / 2, mpmath.polygamma(1, 3) / 4
    np.testing.assert_allclose(
        [linear.mean, linear.variance], [float(value) for value in wanted], rtol=1e-11
    )
    haar = theory.log_growth("identity", 6, 1.3, "orthogonal")
    np.testing.assert_allclose([haar.mean, haar.variance], [math.log(1.3), 0.0], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "weights"), [("relu", "gaussian"), (leaky_relu(0.1), "orthogonal")]
)
def test_networks_have_these_laws_at_any_depth(activation, weights):
    width, depth, count = 6, 8, 600
    mlp = networks.MLP(depth, width, activation, weights=weights, features_out=width)
    chain = networks.chain(mlp)
    x = jnp.ones(4)

    def lost(key):
        weights_key, end_key = jax.random.split(key)
        params = chain.init(weights_key, x, 1.5, 0.1)
        end = jax.random.normal(end_key, (width,))
        log_grad = propagation.backward(chain, params, x, lambda y: end @ y).log_grad_h
        return log_grad[0] - log_grad[-1]

    samples = np.asarray(jax.jit(lambda keys: jax.lax.map(lost, keys, batch_size=100))(
        jax.random.split(jax.random.key(3), count)
    ))  # fmt: skip
    layer = theory.log_growth(activation, width, 1.5, weights)
    alive = samples[np.isfinite(samples)]
    # a network survives where every one of its layers does
    share = layer.survival**depth
    assert abs(len(alive) / count - share) <= 4 * math.sqrt(share * (1 - share) / count)
    mean, variance = depth * float(layer.mean), depth * float(layer.variance)
    assert abs(np.mean(alive) - mean) <= 4 * math.sqrt(variance / len(alive))
    # the variance of a sample variance is 2/n of its square for a normal law, at most twice that here
    assert abs(np.var(alive) / variance - 1) <= 4 * math.sqrt(4 / len(alive))


def test_moments_and_lyapunov_exponents():
    # Hanin 2018: 1 + 5/n; Monte Carlo over one layer
    assert theory.log_growth("relu", 10).fourth_moment == pytest.approx(1.5, rel=1e-12)
    generator = np.random.default_rng(0)
    slopes = np.where(generator.random((200_000, 4)) < 0.5, 1.0, 0.3)
    normal = generator.normal(size=slopes.shape)
    squares = np.sum((slopes * normal) ** 2, 1)
    of_weights = {"gaussian": squares, "orthogonal": squares / np.sum(normal**2, 1)}
    for weights, lengths in of_weights.items():
        ratio = np.mean(lengths**2) / np.mean(lengths) ** 2
        layer = theory.log_growth(leaky_relu(0.3), 4, weights=weights)
        # the ratio's standard error is some 6e-3
        assert abs(layer.fourth_moment - ratio) < 0.025
    # the sum of the exponents is the mean of ln |det W|
    logs = [np.linalg.slogdet(generator.normal(size=(5, 5)) * 1.4 / 5**0.5)[1] for _ in range(4000)]
    error = np.std(logs) / len(logs) ** 0.5
    assert abs(np.sum(theory.lyapunov_exponents(5, 1.4)) - np.mean(logs)) < 4 * error


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
def test_exponents_of_masked_products_are_those_of_a_product(weights):
    """Benettin's mean of ln r_ii over 4,000 layers, by NumPy; fewer than 3 units alive have a chance of 1e-4."""
    n, layers = 12, 4000
    generator = np.random.default_rng(1)
    q = np.linalg.qr(generator.normal(size=(n, 3)))[0]
    steps = np.empty((layers, 3))
    for step in steps:
        w = generator.normal(size=(n, n)) / n**0.5
        if weights == "orthogonal":
            w, r = np.linalg.qr(w)
            w = w * np.sign(np.diag(r))
        masks = np.zeros(n)
        while np.sum(masks) < 3:
            masks = generator.random(n) < 0.7
        q, r = np.linalg.qr(masks[:, None] * (1.3 * w @ q))
        step[:] = np.log(np.abs(np.diag(r)))
    expected = theory.lyapunov_exponents(n, 1.3, alive=0.7, weights=weights)[:3]
    # the steps of one index are independent
    errors = np.std(steps, axis=0) / layers**0.5
    assert np.all(np.abs(np.mean(steps, axis=0) - expected) < 4 * errors)


def test_exponents_have_ranges():
    # Haar weights alone stretch nothing
    np.testing.assert_allclose(theory.lyapunov_exponents(5, weights="orthogonal"), 0, atol=1e-14)
    with pytest.raises(ValueError, match="alive must be in"):
        theory.lyapunov_exponents(4, alive=0.0)
    with pytest.raises(ValueError, match="sigma_w must be > 0"):
        theory.lyapunov_exponents(4, float("nan"))


def test_the_leading_order_is_that_of_the_exact_law():
    for weights in ("gaussian", "orthogonal"):
        exact = theory.log_growth(leaky_relu(0.2), 400, math.sqrt(2 / 1.04), weights).mean
        shift = theory.typical_shift(leaky_relu(0.2), 1.0, 400, weights)
        # the next order is 1/width of it, times a few
        assert float(shift) == pytest.approx(float(exact), rel=0.03)


def test_the_initialiser_takes_the_width_into_account():
    drawn = initializers.critical(leaky_relu(0.1), width=100)(jax.random.key(0), (100, 100))
    plain = initializers.critical(leaky_relu(0.1))(jax.random.key(0), (100, 100))
    np.testing.assert_allclose(drawn / plain, 1.424745 / math.sqrt(2 / 1.01), rtol=1e-6)
    with pytest.raises(
        ValueError, match="linear on either side of 0, such as relu and leaky_relu, got tanh"
    ):
        initializers.critical("tanh", width=100)


def test_comparisons_tell_finite_width_from_disagreement():
    found = theory.compare(
        jnp.asarray([0.05, 1.0, -3.0]),
        0.0,
        jnp.asarray([0.1, 0.1, 0.1]),
        depth=100,
        width=100,
        size=1.25,
    )
    np.testing.assert_allclose(found.z, [0.5, 10.0, -30.0])
    np.testing.assert_allclose(found.beyond, [0.0, 0.0, -17.5])
    np.testing.assert_allclose(found.band, 1.25)


@pytest.mark.parametrize(
    ("phi", "kurtosis", "skip"),
    [("identity", 1, None), ("relu", 2, None), ("tanh", None, "sum")],
)
def test_gradients_of_several_outputs_wander_as_wishart_matrices(phi, kurtosis, skip):
    """Mean and E tr S^2 of the kernel below a readout, from the recursion of E tr G^2 and E (tr G)^2."""
    width, outputs, depth, d_in, draws = 12, 3, 4, 5, 4000
    law = theory.Law(activations.get(phi), skip=skip)
    gain = 2**0.5 if phi == "relu" else 1.0
    found = theory.kernels(law, gain, 0.0, depth, c0=0.5, width=width, d_in=d_in)
    about = features(law.activation)

    @jax.jit
    @jax.vmap
    def drawn(key):
        sums = below_readout(
            law.activation, about, law, found, jnp.asarray(depth - 1), key, width, outputs
        )
        whole = sums.apart + sums.shared
        return whole, sums.shared, jnp.sum(whole**2)

    whole, shared, square = drawn(jax.random.split(jax.random.key(0), draws))

    def near(values, wanted):
        # 4 standard errors
        error = 4 * jnp.std(values, axis=0) / draws**0.5
        assert jnp.all(jnp.abs(jnp.mean(values, axis=0) - wanted) < error), (wanted, error)

    near(whole, found.readout_below[depth - 1, 0, 0] * jnp.eye(outputs))
    near(shared, found.readout_below[depth - 1, 0, 1] * jnp.eye(outputs))
    if kurtosis is None:
        return
    # z ~ N(0, G): E (z^T z)^2 = 2 tr G^2 + (tr G)^2
    squares, trace = outputs, outputs**2
    layers = []
    for _ in range(depth):
        own = kurtosis / width * (2 * squares + trace)
        squares, trace = own + (1 - 1 / width) * squares, own + (1 - 1 / width) * trace
        layers.append(squares)
    # from the last layer down; a gain that keeps lengths leaves each layer's kernel as it is
    kernel = [*[float(found.readout_own[0, 0, 0])] * (depth - 1), float(found.ntk[0, 0, 0])]
    # G_l is a martingale: E tr(G_l G_m) = E tr G_l^2 for m below l
    wanted = sum(
        kernel[i] * kernel[j] * layers[min(i, j)] for i in range(depth) for j in range(depth)
    )
    near(square, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("phi", "gain"), [("relu", 2**0.5), ("tanh", 1.5)])
def test_the_largest_fisher_eigenvalue_of_deep_networks(phi, gain):
    """Median of 12 networks of ten outputs at depth 16 and half that width against the prediction."""
    depth, width, examples, c0 = 16, 32, 4, 0.3
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((24, examples + 1)))[0].T
    x = jnp.asarray(24**0.5 * ((1 - c0) ** 0.5 * frame[1:] + c0**0.5 * frame[:1]))
    net = networks.mlp(depth, width, phi)

    @jax.jit
    @jax.vmap
    def gram(key):
        params = net.init(key, x, sigma_w=gain)
        kernel = curvature.tangent_kernel(net, params, x)
        return gauss_newton_gram(kernel, jax.vmap(lambda x: net.apply(params, x))(x))

    measured = np.log(np.linalg.eigvalsh(gram(jax.random.split(jax.random.key(0), 12)))[:, -1])
    predicted = theory.sharpness(
        phi, gain, 0.0, (depth,), width=width, d_in=24, examples=examples, c0=c0
    )
    missed = np.median(measured) - float(predicted.log_gauss_newton[0])
    scatter = measured.std(ddof=1) / 12**0.5
    # lengths that fluctuate move it by O(depth / width)
    assert abs(missed) < 1.5 * depth / width + 3 * scatter
    # the band's share of what networks show: 0.85 to 2.3, and of 12 networks to 0.21 of it
    share = float(predicted.log_gauss_newton_sd[0]) / measured.std(ddof=1)
    assert 0.5 < share < 3.5
