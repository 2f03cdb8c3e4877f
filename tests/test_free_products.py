"""Free products against closed forms, power series and random matrices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxstab import networks, spectra, theory

DEPTHS = jnp.asarray([2.0, 8.0, 32.0, 128.0])


@functools.partial(jax.jit, static_argnums=3)
def _product_laws(d, share, depths, weights):
    return jax.vmap(lambda depth: theory.product_law(d, share, depth, weights))(depths)


def _laws(name, sigma_w, q, weights):
    """At each of DEPTHS; slopes that are equal are one, so that activations made of straight lines share a program."""
    d, share = jax.tree.map(
        np.asarray, jax.jit(functools.partial(theory.squared_slopes, name))(sigma_w, q)
    )
    np.testing.assert_allclose(np.sum(share), 1, rtol=1e-6)
    values, which = np.unique(np.append(d, 0), return_inverse=True)
    shares = np.bincount(which, np.append(share, 0)).astype(d.dtype)
    found = jax.tree.map(
        np.asarray, _product_laws(values.astype(d.dtype), shares, DEPTHS.astype(d.dtype), weights)
    )
    return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(DEPTHS))]


def _moments(name, sigma_w, q, weights):
    at = jax.jit(jax.vmap(lambda depth: theory.jacobian_moments(name, sigma_w, q, depth, weights)))
    return jax.tree.map(np.asarray, at(DEPTHS))


def _moment(law, order):
    """E s^(2 order) by parts, which a distribution function with jumps allows: trapezoids in F."""
    power = np.exp(2 * order * law.log_s)
    return np.sum(np.diff(law.share) * (power[1:] + power[:-1]) / 2)


def _series_moments(powers, depth, gaussian):
    """First three moments of a free product from its S-transform's power series; powers: E d, E d^2, E d^3."""
    # M(w) = m1/w + m2/w^2 + ...; its inverse gives S; S^L (1 + z)^-gL gives back three moments. chi normalised to 1
    m1, m2, m3 = powers
    a, b = m2 / m1**2, m3 / m1**3
    # t(m) = m - a m^2 + (2 a^2 - b) m^3 inverts m = t + a t^2 + b t^3, t = m1 / w; S = (1 + m) t / (m m1)
    log_s = np.array([1 - a, (2 * a**2 - b - a) - (1 - a) ** 2 / 2])
    log_s = depth * (log_s - gaussian * np.array([1, -1 / 2]))
    s = np.array([1, log_s[0], log_s[1] + log_s[0] ** 2 / 2])
    inverse = np.array([1, s[1] - 1, s[2] - s[1] + 1])
    a = -inverse[1]
    return 1, a, 2 * a**2 - inverse[2]


@pytest.mark.kernels
def test_linear_gaussian_is_fuss_catalan():
    x64 = jax.config.jax_enable_x64
    for depth, law in zip([2, 8, 32, 128], _laws("identity", 1.0, 1.0, "gaussian"), strict=True):
        phi = np.pi / (depth + 1) * (1 - np.geomspace(1e-9, 1, 200_000, endpoint=False))
        sine, many, more = np.sin(phi), np.sin(depth * phi), np.sin((depth + 1) * phi)
        # Haagerup & Moeller 2013, in logarithms: density and position along the angle phi
        log_lambda = (depth + 1) * np.log(more) - np.log(sine) - depth * np.log(many)
        density = (
            np.exp(
                2 * np.log(sine) + (depth - 1) * np.log(many) - depth * np.log(more) + log_lambda
            )
            / np.pi
        )
        order = np.argsort(log_lambda)
        inside = (law.share[:-2] > 1e-3) & (law.log_s[:-2] < log_lambda.max() / 2 - 1e-3)
        want = np.interp(law.log_s[:-2][inside], log_lambda[order] / 2, 2 * density[order])
        # as a root of the distance from the edge, which float32 has to 1e-5
        assert np.max(np.abs(law.density[:-2][inside] / want - 1)) < (1e-4 if x64 else 1e-2)
        edge = ((depth + 1) * np.log(depth + 1) - depth * np.log(depth)) / 2
        assert abs(law.log_s_max - edge) < (1e-12 if x64 else 1e-4)
        # the share above is the integral of that density over ln lambda
        above = -integrate.cumulative_trapezoid(
            density[order][::-1], log_lambda[order][::-1], initial=0
        )[::-1]
        got = np.interp(log_lambda[order] / 2, law.log_s, law.share)
        assert np.max(np.abs(1 - above - got)[above < 0.99]) < 2e-4


@pytest.mark.kernels
def test_relu_orthogonal_in_closed_form():
    x64 = jax.config.jax_enable_x64
    laws = _laws("relu", 2**0.5, 1.0, "orthogonal")
    for depth, law in zip([2, 8, 32, 128], laws, strict=True):
        assert abs(law.zeros - 0.5) < 1e-6 and abs(law.share[0] - 0.5) < 1e-5
        edge = (depth * np.log(depth) - (depth - 1) * np.log(depth - 1)) / 2
        assert abs(law.log_s_max - edge) < (1e-9 if x64 else 1e-4)
    # two projections of half the dimensions: the arcsine law
    law = laws[0]
    s = np.linspace(0.01, 1.99, 50)
    want = 0.5 + np.arcsin(s / 2) / np.pi
    got = jax.jit(theory.JacobianLaw.cdf)(
        jax.tree.map(jnp.asarray, law), jnp.log(jnp.asarray(s, law.log_s.dtype))
    )
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_an_atom_lies_on_top_of_projections_of_high_rank():
    share = 0.95
    q = stats.norm.ppf((1 + share) / 2) ** -2
    gain = share**-0.5
    for depth, law in zip([2, 8, 32, 128], _laws("hard_tanh", gain, q, "orthogonal"), strict=True):
        atom = max(0, 1 - depth * (1 - share))
        np.testing.assert_allclose(law.zeros, 1 - share, atol=1e-5)
        np.testing.assert_allclose(law.share[-1] - law.share[-2], atom, atol=1e-4)
        edge = depth * np.log(depth) - (depth - 1) * np.log(depth - 1) + np.log((1 - share) / share)
        top = -depth * np.log(share) if atom else edge
        np.testing.assert_allclose(law.log_s_max, top / 2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sigma_w", "q", "weights"),
    [
        ("tanh", 1.05**0.5, 0.0259, "orthogonal"),
        ("tanh", 1.8, 1.5, "gaussian"),
        ("erf", 1.0, 0.3, "orthogonal"),
        ("leaky_relu", 1.4, 1.0, "orthogonal"),
    ],
)
def test_any_activation_has_the_moments_of_its_s_transform(name, sigma_w, q, weights):
    from jaxstab.activations import get

    u = np.linspace(-9, 9, 60_000)  # none at 0, where leaky_relu has its kink
    weight = np.exp(-(u**2) / 2)
    d = sigma_w**2 * np.asarray(jax.jit(get(name).derivative)(jnp.asarray(q**0.5 * u))) ** 2
    powers = [np.sum(weight * d**k) / np.sum(weight) for k in (1, 2, 3)]
    moments = _moments(name, sigma_w, q, weights)
    for i, (depth, law) in enumerate(
        zip([2, 8, 32, 128], _laws(name, sigma_w, q, weights), strict=True)
    ):
        want = _series_moments(powers, depth, weights == "gaussian")
        scale = powers[0] ** depth
        got = [_moment(law, k) / scale**k for k in (1, 2, 3)]
        # trapezoids between 512 points, steepest for the third moment of the widest law
        np.testing.assert_allclose(got, want, rtol=3e-3)
        np.testing.assert_allclose(moments.log_mean[i], depth * np.log(powers[0]), atol=1e-3)
        np.testing.assert_allclose(moments.relative_variance[i], want[1] - 1, rtol=1e-3)
        assert np.all(np.diff(law.log_s) >= 0) and np.all(np.diff(law.share) >= 0)
        assert law.share[0] < 1e-4 and law.share[-1] == 1


@pytest.mark.slow
def test_random_matrices_have_this_law():
    n, depth, rng = 300, 2, np.random.default_rng(0)
    q, sigma_w = 1.0, 1.3
    u = np.sqrt(2) * np.asarray(
        jax.scipy.special.erfinv(jnp.asarray((np.arange(n) + 0.5) / n * 2 - 1))
    )
    slope = sigma_w / np.cosh(q**0.5 * u) ** 2
    product = np.eye(n)
    for _ in range(depth):
        haar, r = np.linalg.qr(rng.normal(size=(n, n)))
        product = (haar * np.sign(np.diag(r))) @ (slope[:, None] * product)
    log_s = np.sort(np.log(np.linalg.svd(product, compute_uv=False)))
    law = jax.tree.map(
        np.asarray, jax.jit(lambda: theory.jacobian_law("tanh", sigma_w, q, depth, "orthogonal"))()
    )
    got = np.interp(log_s, law.log_s, law.share)
    # eigenvalues are rigid: with fixed diagonals only a few places of n off
    assert np.max(np.abs(got - (np.arange(n) + 0.5) / n)) < 4 / n


def test_orthogonal_and_linear_is_an_isometry():
    for depth, law in zip([2, 8, 32, 128], _laws("identity", 0.9, 1.0, "orthogonal"), strict=True):
        np.testing.assert_allclose(law.log_s_max, depth * np.log(0.9), rtol=1e-12)
        np.testing.assert_allclose(law.share[-2:], [0, 1], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights", "depth", "bound"),
    [
        ("identity", "gaussian", 128, (4 / 64) ** 2),
        ("tanh", "gaussian", 8, (4 / 64) ** 2),
        ("relu", "orthogonal", 32, (4 / 64) ** 2),
        # beside the lower edge, where the density diverges
        ("leaky_relu", "orthogonal", 2, 0.025),
    ],
)
def test_the_distribution_function_is_as_good_as_it_says(name, weights, depth, bound):
    fine, coarse = (
        theory.jacobian_law(name, 1.4, 1.0, depth, weights, points) for points in (1024, 64)
    )
    at = jnp.linspace(fine.log_s[0], fine.log_s[-1] - 1e-9, 20_001)
    error = jnp.abs(fine.cdf(at) - coarse.cdf(at))
    assert float(jnp.max(error)) < bound


@pytest.mark.slow
def test_one_gaussian_layer_is_marchenko_pastur():
    # held row A9: edges (1 +- sqrt(n_out / n_in))^2 of s^2
    for n_out in (32, 160):
        ratio = n_out / 64
        law = theory.jacobian_law("identity", 1.0, 1.0, None, widths=(64, n_out))
        edges = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
        assert float(law.log_s_max) == pytest.approx(np.log(edges[1]) / 2, abs=1e-8)
        square = np.linspace(*edges, 4001)[1:-1]
        # density of s^2 among the min(n_in, n_out) values
        density = np.sqrt((edges[1] - square) * (square - edges[0])) / (2 * np.pi * square)
        want = integrate.cumulative_trapezoid(density / min(1, ratio), square, initial=0)
        got = law.cdf(jnp.log(square) / 2)
        # straight lines between 512 points
        np.testing.assert_allclose(got, want, atol=2e-4)
        assert float(law.zeros) == 0.0


def _orthogonal(rng, above, below):
    most = max(above, below)
    haar, r = np.linalg.qr(rng.normal(size=(most, most)))
    return (haar * np.sign(np.diag(r)))[:above, :below] * max(1.0, above / below) ** 0.5


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("widths", [(180, 360, 90, 270), (300, 60, 300, 300), (220, 220, 220)])
def test_changing_widths_against_random_matrices(widths, weights):
    # two slopes: atoms, gaps of the density, and square layers by the other route
    d = np.array([0.0, 0.4, 1.6])
    share = np.array([0.1, 0.45, 0.45])
    given = (jnp.asarray(d), jnp.asarray(share))
    law = jax.tree.map(np.asarray, theory.product_law(*given, None, weights, widths=widths))
    rng = np.random.default_rng(1)
    product = np.eye(widths[0])
    for below, above in itertools.pairwise(widths):
        slope = np.sqrt(d)[np.searchsorted(np.cumsum(share) * below, np.arange(below) + 0.5)]
        if weights == "gaussian":
            matrix = rng.normal(size=(above, below)) / below**0.5
        else:
            matrix = _orthogonal(rng, above, below)
        product = matrix @ (rng.permutation(slope)[:, None] * product)
    s = np.linalg.svd(product, compute_uv=False)[::-1]
    count = len(s)
    rank = np.sum(s > 1e-9)
    # exact: the least of the layers' alive units
    assert float(law.zeros) == pytest.approx(1 - rank / count, abs=1e-12)
    got = np.interp(np.log(s[-rank:]), law.log_s, law.share)
    # eigenvalues are rigid: a few places off
    assert np.max(np.abs(got - (np.arange(count) + 0.5)[-rank:] / count)) < 4 / count
    if len(set(widths)) == 1:
        square = theory.product_law(*given, len(widths) - 1, weights)
        at = jnp.linspace(-2.0, float(square.log_s_max) - 1e-6, 300)
        want = square.cdf(at)
        # beside an edge where the density diverges either is good to 0.01
        np.testing.assert_allclose(np.interp(at, law.log_s, law.share), want, atol=0.01)


@pytest.mark.slow
def test_moments_of_changing_widths():
    # by the S-transform against the points of the law, a case of either kind of weights
    for widths, weights in [((60, 20, 90, 30), "gaussian"), ((60, 30, 90, 45), "orthogonal")]:
        given = ("leaky_relu", 1.3, 0.8)
        law = jax.tree.map(np.asarray, theory.jacobian_law(*given, None, weights, widths=widths))
        moments = theory.jacobian_moments(*given, None, weights, widths=widths)
        first, second = (_moment(law, order) for order in (1, 2))
        assert np.log(first) == pytest.approx(float(moments.log_mean), abs=1e-3)
        assert second / first**2 - 1 == pytest.approx(float(moments.relative_variance), rel=3e-3)


@pytest.mark.slow
def test_networks_of_changing_widths_have_this_law():
    sizes = (96, 192, 48, 96)
    sigma_w = 1.4
    point = theory.fixed_point("tanh", sigma_w, 0.2)

    def layer(width):
        def init(key, h):
            keys = jax.random.split(key)
            kernel = jax.random.normal(keys[0], (h.size, width)) * sigma_w / h.size**0.5
            return {"kernel": kernel, "bias": 0.2 * jax.random.normal(keys[1], (width,))}

        return init, lambda theta, h: jnp.tanh(h) @ theta["kernel"] + theta["bias"]

    chain = networks.from_functions([layer(width) for width in (*sizes, 1)])
    # tanh of it has the fixed point's V
    x = jnp.arctanh(jnp.full(64, float(theory.second_moment("tanh", point.q)) ** 0.5))

    def values(key):
        params = chain.init(key, x)
        return spectra.singular_values(chain, params, x, [3], from_layer=0)[0]

    seeds = 16
    s = np.asarray(jax.jit(jax.vmap(values))(jax.random.split(jax.random.key(0), seeds)))
    law = theory.jacobian_law("tanh", sigma_w, point.q, None, points=96, widths=sizes)
    # the bottleneck's exact zeros
    assert float(law.zeros) == 0.5
    nonzero = np.log(s[:, :48])
    place = 2 * np.asarray(law.cdf(jnp.asarray(nonzero))) - 1
    for power in (1, 2):
        mean = np.mean(place**power, axis=1)
        error = np.std(mean, ddof=1) / seeds**0.5
        # uniform in (0, 1), up to a few places of the narrowest layer
        assert abs(np.mean(mean) - 1 / (power + 1)) < 4 * error + 1 / 48


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="weights must be gaussian or orthogonal, got 'normal'"):
        theory.jacobian_law("tanh", 1.0, 1.0, 4, "normal")
    with pytest.raises(ValueError, match="depth must be at least 2 with orthogonal weights, got 1"):
        theory.jacobian_moments("tanh", 1.0, 1.0, 1, "orthogonal")
    with pytest.raises(ValueError, match="points must be an integer >= 16, got 3"):
        theory.jacobian_law("tanh", 1.0, 1.0, 4, "gaussian", 3)
    with pytest.raises(ValueError, match="depth must be None or 2 for 3 widths, got 3"):
        theory.jacobian_law("tanh", 1.0, 1.0, 3, widths=(8, 4, 8))
    with pytest.raises(ValueError, match="depth or widths must be given, got neither"):
        theory.jacobian_law("tanh", 1.0, 1.0, None)
    with pytest.raises(ValueError, match="at least two, got"):
        theory.jacobian_moments("tanh", 1.0, 1.0, None, widths=(8,))
    with pytest.raises(ValueError, match="widths must be an integer >= 1, got 0"):
        theory.jacobian_moments("tanh", 1.0, 1.0, None, widths=(8, 0))
    with pytest.raises(ValueError, match="widths of one orthogonal layer must decrease"):
        theory.jacobian_law("tanh", 1.0, 1.0, None, "orthogonal", widths=(8, 9))
