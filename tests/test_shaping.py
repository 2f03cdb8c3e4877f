"""DKS and TAT: held table A8, the defining conditions by another route, and a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from jaxstab import theory
from jaxstab.activations import Activation
from jaxstab.theory import ResidualStages, shaped

STAGES = ResidualStages((3, 4, 23, 3))


@pytest.mark.parametrize(
    ("name", "method", "target", "alpha", "beta", "gamma", "delta"),
    [
        # held table A8
        ("tanh", "dks", 1.2, 0.07461073058, 0.55669151999, 18.00263596444, -0.50343787687),
        ("tanh", "tat", 0.2, 0.05802052182, 0.52186398041, 22.36066261763, -0.47964307044),
        # the published values of the same network (Martens et al. 2021, Zhang et al. 2022)
        ("softplus", "dks", 1.2, 0.18761008, 0.40688063, 8.87867254, -0.92134662),
        ("softplus", "tat", 0.2, 0.15011490, 0.53745999, 10.54880188, -0.99648101),
        ("gelu", "dks", 1.2, 0.070432531, 0.259489298, 20.211589023, -0.158153790),
    ],
)
def test_held_numbers(name, method, target, alpha, beta, gamma, delta):
    found = shaped(name, STAGES, method, **{"zeta" if method == "dks" else "tau": target})
    numbers = [found.alpha, found.beta, found.gamma, found.delta]
    # the published targets of a layer are bisected to 1e-8 of the network's
    np.testing.assert_allclose(numbers, [alpha, beta, gamma, delta], rtol=5e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "above", "below"),
    # published values at 0.6 and -0.6 of the same network, tau = 4.5
    [("softplus", 0.69235748, -0.49351664), ("gelu", 0.69224295, -0.49198103)],
)
def test_held_values(name, above, below):
    found = shaped(name, STAGES, "tat", tau=4.5)
    np.testing.assert_allclose(found.activation(jnp.array([0.6, -0.6])), [above, below], atol=1e-8)


def test_leaky_relu_by_its_slope():
    found = shaped("leaky_relu", STAGES, "tat", eta=0.75)
    # held table A8; the published bisection stops at 1e-8 of eta
    np.testing.assert_allclose(
        [found.base.parameters["slope"], found.gamma], [0.62918002903, 1.19699654978], atol=2e-9
    )
    assert (found.alpha, found.beta, found.delta, found.slope) == (1.0, 0.0, 0.0, 1.0)
    kernel = theory.correlation_map
    depth = 12
    plain = shaped("leaky_relu", depth, "tat", eta=0.8)
    c = 0.0
    for _ in range(depth):
        c = float(kernel(plain.activation, 1.0, 0.0, 1.0, c))
    assert c == pytest.approx(0.8, abs=1e-8)
    deep = shaped("leaky_relu", STAGES, zeta=1.2)
    np.testing.assert_allclose(
        [deep.base.parameters["slope"], deep.gamma, deep.delta],
        [0.8761257083, 1.0651832700, -0.0494186924],
        atol=5e-8,
    )


def test_relu_against_its_closed_form():
    """E phi = Phi(b) + a p(b), E phi^2 = (1 + a^2) Phi(b) + a p(b) at beta = 1, alpha = a, b = 1/a."""
    found = shaped("relu", STAGES, zeta=1.2)

    def moments(a):
        above, at = stats.norm.cdf(1 / a), stats.norm.pdf(1 / a)
        mean = above + a * at
        variance = (1 + a**2) * above + a * at - mean**2
        return mean, variance, a**2 * above / variance

    alpha = optimize.brentq(lambda a: moments(a)[2] - found.slope, 0.3, 0.5, xtol=1e-14)
    mean, variance, _ = moments(alpha)
    np.testing.assert_allclose(
        [found.alpha, found.beta, found.gamma, found.delta],
        [alpha, 1.0, variance**-0.5, -mean],
        rtol=1e-10,
    )
    # held table A8 misses its own C'(1) by 5e-7 there: a rule of fixed nodes across the kink
    np.testing.assert_allclose(
        [found.alpha, found.gamma, found.delta],
        [0.36853600467, 2.72172998876, -1.00037385855],
        rtol=3e-5,
    )
    # beyond pi / (pi - 1) a layer, beta is negative
    assert shaped("relu", 2, zeta=3.0).beta == -1.0


def _independent(found):
    """E f, E f^2, E f f' u, E f'^2, E f''^2 by Simpson's rule between kinks, error about step^4 = 1e-12."""
    f = found.activation.fn
    slope = jax.grad(f)
    functions = jax.jit(jax.vmap(lambda u: (f(u), slope(u), jax.grad(slope)(u))))
    bends = [kink for kink in found.activation.kinks if abs(kink) < 12]
    edges = [-12.0, *bends, 12.0]
    sums = np.zeros(5)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        # at a kink itself phi'' has the value of one side
        u = np.linspace(low + 1e-12, high - 1e-12, 20_001)
        y, d, e = map(np.asarray, functions(u))
        integrands = np.array([y, y**2, y * d * u, d**2, e**2])
        sums += integrate.simpson(integrands * stats.norm.pdf(u), x=u)
    return sums


def _bump(z):
    return jnp.log(jnp.cosh(z)) + 0.5 * z


# a callable of the user's own, a kinked activation, and a periodic one
@pytest.mark.slow
@pytest.mark.parametrize("activation", [_bump, "elu", "sin"])
def test_conditions_by_another_route(activation):
    depth = 30
    deep = shaped(activation, depth, zeta=2.0)
    mean, length, length_slope, slope, _ = _independent(deep)
    np.testing.assert_allclose([mean, length, length_slope], [0.0, 1.0, 1.0], atol=1e-9)
    assert slope**depth == pytest.approx(2.0, rel=1e-8)
    tailored = shaped(activation, depth, "tat", tau=0.6)
    _, *ones, curvature = _independent(tailored)
    np.testing.assert_allclose(ones, 1.0, atol=1e-9)
    assert curvature * depth == pytest.approx(0.6, rel=1e-7)


@pytest.mark.slow
def test_it_is_an_activation_like_any_other():
    found = shaped("tanh", 40, zeta=1.5)
    again = shaped("tanh", 40, zeta=1.5)
    assert found == again
    assert hash(found.activation) == hash(again.activation)
    phi = found.activation
    maps = [
        theory.second_moment(phi, 1.0),
        theory.second_moment_slope(phi, 1.0),
        theory.derivative_moment(phi, 1.0) ** 40 / 1.5,
    ]
    np.testing.assert_allclose(maps, 1.0, rtol=1e-8)
    assert float(theory.correlation_map(phi, 1.0, 0.0, 1.0, 0.0)) == pytest.approx(0.0, abs=1e-9)


def test_a_network_keeps_lengths_and_has_the_designed_slope():
    """At width 400, depth 20: q stays 1, and 1 - c of near inputs grows to zeta times its first value."""
    depth, width, zeta = 20, 400, 1.5
    phi = shaped("tanh", depth, zeta=zeta).activation
    rng = np.random.default_rng(0)
    x = rng.standard_normal((width, 2))
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    x /= np.sqrt(np.mean(x**2, 0))
    step = jax.jit(phi.fn)

    def apart(h):
        return np.mean((h[:, 0] - h[:, 1]) ** 2) / np.mean(h**2)

    before = apart(x)
    for _ in range(depth):
        x = rng.standard_normal((width, width)) @ np.asarray(step(x)) / np.sqrt(width)
    # var ln q grows by about 2 / width a layer: standard deviation sqrt(40 / 400), four of them
    assert abs(np.log(np.mean(x**2))) < 4 * np.sqrt(2 * depth / width)
    assert abs(np.log(apart(x) / before / zeta)) < 4 * np.sqrt(2 * depth / width)


def test_mirrored_solutions_and_mild_targets():
    """For C'(1) -> 1, tanh(beta) = 1/2 and alpha^2 = 2 (C'(1) - 1), next order alpha^2; beta < 0 is its mirror."""
    found = shaped("tanh", 10, zeta=1.00001)
    assert found.beta == pytest.approx(np.arctanh(0.5), abs=1e-5)
    assert found.alpha**2 == pytest.approx(2 * (found.slope - 1), rel=1e-4)


def test_a_network_of_ones_own():
    """Two branches, of which the deeper one has the largest slope."""
    branches = lambda x, layer: max(layer(x), layer(layer(layer(x))))
    assert shaped("tanh", branches, zeta=1.3) == shaped("tanh", 3, zeta=1.3)


@pytest.mark.parametrize(
    ("activation", "layers", "settings", "message"),
    [
        ("relu", 10, {"method": "tat"}, "phi' jumps, at z = 0; use dks, or tat of leaky_relu"),
        ("identity", 10, {}, "reaches 1 at most$"),
        ("identity", 10, {"method": "tat"}, "has no solution with alpha in"),
        ("tanh", 0, {}, "layers must be an integer >= 1, got 0"),
        ("tanh", 10, {"zeta": 1.0}, r"zeta must lie in \(1, inf\), got 1"),
        ("tanh", 10, {"zeta": float("nan")}, "zeta must lie in"),
        ("tanh", 10, {"tau": 0.2}, "dks of tanh has the target zeta, got tau"),
        ("leaky_relu", 10, {"method": "tat", "tau": 0.2}, "has the target eta, got tau"),
        ("leaky_relu", 1, {"method": "tat"}, r"values in \[0, 0.31831\], got 0.9"),
        ("leaky_relu", 1, {"zeta": 2.0}, "use more layers or a lower zeta"),
        ("tanh", 10, {"method": "lsuv"}, "method must be one of dks, tat, got 'lsuv'"),
        ("tanh", ResidualStages(()), {}, "need a block"),
        ("tanh", ResidualStages(3), {}, "blocks must be a tuple, one count a stage, got 3"),
        ("tanh", lambda x, layer: x, {}, r"reach values in \[1, 1\], got 1.5"),
        ("tanh", ResidualStages((2, 0)), {}, "blocks must be an integer >= 1, got 0"),
        (Activation("step", lambda z: jnp.sign(z), (0.0,)), 10, {}, "phi jumps at z = 0"),
    ],
)
def test_what_has_no_solution_is_refused_in_one_line(activation, layers, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        shaped(activation, layers, **settings)
    assert "\n" not in str(error.value)
