"""NNGP and NTK of two inputs of any lengths: closed forms, SciPy, and finite networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxstab import activations, curvature, networks, theory

LENGTHS = (0.5, 3.0)


@pytest.mark.slow
def test_erf_in_closed_form():
    """E erf erf = (2/pi) arcsin(2 K12 / sqrt((1 + 2 K11)(1 + 2 K22))) (Williams 1997), at either sign of c."""
    for c0 in (-0.4, 0.7):
        found = np.asarray(theory.kernels("erf", 1.5, 0.3, 2, q0=LENGTHS, c0=c0).nngp)
        for before, after in zip(found[:-1], found[1:], strict=True):
            own = 1 + 2 * np.diagonal(before)
            wanted = 2.25 * 2 / np.pi * np.arcsin(2 * before / np.sqrt(np.outer(own, own))) + 0.09
            np.testing.assert_allclose(after, wanted, rtol=1e-9)


def test_relu_in_closed_form():
    """The arc-cosine kernels of Cho & Saul 2009: K' by degree 1, Theta' = K' + Theta sigma_w^2 (pi - theta)/(2 pi)."""
    found = theory.kernels("relu", 1.3, 0.2, 1, q0=LENGTHS, c0=-0.6)
    nngp, ntk = np.asarray(found.nngp), np.asarray(found.ntk)
    np.testing.assert_allclose(ntk[0], nngp[0], rtol=1e-14)
    root = math.sqrt(nngp[0][0, 0] * nngp[0][1, 1])
    angle = math.acos(nngp[0][0, 1] / root)
    value = (
        1.69 * root * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi) + 0.04
    )
    np.testing.assert_allclose(nngp[1][0, 1], value, rtol=1e-12)
    wanted = value + ntk[0][0, 1] * 1.69 * (math.pi - angle) / (2 * math.pi)
    np.testing.assert_allclose(ntk[1][0, 1], wanted, rtol=1e-12)


def test_an_input_and_itself_have_one_kernel_and_its_derivative():
    """relu keeps c = 1; its D is infinitely steep there, where the rounding of c would be half of its digits."""

    def tangent_kernels(sigma_w):
        return theory.kernels("relu", sigma_w, 0.0, 3, q0=LENGTHS, c0=1.0).ntk

    for found in jax.jit(lambda w: (tangent_kernels(w), jax.jacfwd(tangent_kernels)(w)))(1.3):
        between = np.sqrt(found[:, 0, 0] * found[:, 1, 1])
        np.testing.assert_allclose(found[:, 0, 1], between, rtol=1e-13)


def test_a_kinked_activation_agrees_with_scipy():
    """hard_tanh, by nested adaptive quadrature of z2 given z1."""
    found = np.asarray(theory.kernels("hard_tanh", 1.0, 0.0, 1, q0=LENGTHS, c0=0.8).nngp)
    first, second, c = *(length**0.5 for length in LENGTHS), 0.8
    density = lambda u: math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    clip = lambda z: min(max(z, -1.0), 1.0)

    def given(u):
        centre, spread = second * c * u, second * math.sqrt(1 - c**2)
        edges = sorted(
            [-8.0, 8.0, *(min(max((kink - centre) / spread, -8.0), 8.0) for kink in (-1.0, 1.0))]
        )
        pieces = zip(edges[:-1], edges[1:], strict=True)
        inner = sum(
            integrate.quad(lambda v: clip(centre + spread * v) * density(v), *piece)[0]
            for piece in pieces
        )
        return inner * clip(first * u) * density(u)

    edges = [-8.0, -1 / first, 0.0, 1 / first, 8.0]
    wanted = sum(
        integrate.quad(given, *piece, limit=200)[0]
        for piece in zip(edges[:-1], edges[1:], strict=True)
    )
    np.testing.assert_allclose(found[1][0, 1], wanted, rtol=1e-7)


CURED = {"norm": "layer", "norm_after": True, "skip": "sum", "keep": 0.8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "settings"),
    [
        ("gelu", {"skip": "sum"}),
        ("relu", CURED),
        ("tanh", {"norm": "peri", "skip": "sum"}),
        ("relu", CURED | {"norm": "rms", "norm_after": False, "shared_masks": False}),
    ],
)
def test_equal_lengths_have_the_correlations_of_the_fold(activation, settings):
    block = theory.law(activation, **settings)
    found = theory.kernels(block, 1.2, 0.3, 4, c0=0.2).nngp
    forward, correlation, _, _ = theory.predict(block, 1.2, 0.3, [4], width=4, d_in=4, c0=0.2)
    np.testing.assert_allclose(found[:, 0, 0], forward.q, rtol=1e-12)
    np.testing.assert_allclose(found[:, 0, 1] / found[:, 0, 0], correlation.c, rtol=1e-9)


def test_dropout_thins_the_tangent_kernel():
    """sigma_w^2 D Theta with D / rho under the same masks, and only on the diagonal under masks of their own."""
    for shared, beside in ((True, 0.8), (False, 1.0)):
        dry = theory.kernels("relu", 1.3, 0.2, 1, c0=0.3)
        wet = theory.kernels(theory.law("relu", keep=0.8, shared_masks=shared), 1.3, 0.2, 1, c0=0.3)
        ratio = (dry.ntk[1] - dry.nngp[1]) / (wet.ntk[1] - wet.nngp[1])
        np.testing.assert_allclose(ratio, [[0.8, beside], [beside, 0.8]], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "settings"),
    [
        ("relu", {}),
        ("tanh", {"skip": "sum"}),
        ("relu", {"norm": "layer"}),
        ("relu", {"norm": "layer", "norm_after": True, "skip": "sum"}),
        ("tanh", {"norm": "peri", "skip": "sum"}),
        ("relu", {"skip": "dense"}),
        (activations.mixture("relu", "tanh", 0.5), {}),
    ],
)
def test_tangent_kernels_of_finite_networks_agree(activation, settings):
    width, depth, count = 96, 2, 64
    mlp = networks.MLP(depth, width, activation, features_out=1, **settings)
    chain = networks.chain(mlp)
    # two inputs of mean squares 0.5 and 3 and correlation 0.4
    x = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 2)))[0].T * 12**0.5
    x = (
        jnp.asarray([[1.0, 0.0], [0.4, math.sqrt(1 - 0.16)]] @ x)
        * jnp.sqrt(jnp.asarray(LENGTHS))[:, None]
    )

    def measured(key):
        return curvature.tangent_kernel(chain, chain.init(key, x, 1.3, 0.2), x)

    keys = jax.random.split(jax.random.key(2), count)
    samples = jax.jit(lambda keys: jax.lax.map(measured, keys, batch_size=16))(keys)
    block = theory.law(activation, **settings)
    states = theory.kernels(block, 1.3, 0.2, depth, q0=LENGTHS, c0=0.4, width=width, d_in=12)
    wanted = states.readout_own[-1] + states.readout_below[-1]
    error = np.std(samples, axis=0, ddof=1) / count**0.5
    # four standard errors, and what three layers of this width shift a mean by
    assert np.all(
        np.abs(np.mean(samples, axis=0) - wanted) < 4 * error + 3 / width * np.abs(wanted)
    )
    # the band is not what makes them agree
    assert np.all(4 * error < 0.25 * np.abs(wanted))


def test_mixed_units_have_mean_kernels():
    """A and D of a mixture are means of its activations', each at the mixture's own covariance."""
    half = theory.kernels(activations.mixture("relu", "erf", 0.25), 1.3, 0.0, 1, q0=LENGTHS, c0=0.3)
    parts = [theory.kernels(name, 1.3, 0.0, 1, q0=LENGTHS, c0=0.3) for name in ("relu", "erf")]
    for found, first, second in zip(half, *parts, strict=True):
        np.testing.assert_allclose(found[0], 0.75 * first[0] + 0.25 * second[0], rtol=1e-9)


def test_dense_kernels_of_linear_layers():
    """phi(z) = z, without biases: K_l is the mean of all K before it, and n sum K is W's own share of Theta."""
    found = theory.kernels(theory.law("identity", skip="dense"), 1.5, 0.0, 3, width=8, d_in=8)
    nngp, ntk = [2.25 * np.eye(2)], [8 * np.eye(2) + 1]
    for _ in range(3):
        fed = 2.25 * np.mean(ntk, axis=0)
        ntk.append(8 * np.sum(nngp, axis=0) + 1 + fed)
        nngp.append(2.25 * np.mean(nngp, axis=0))
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk, ntk, rtol=1e-12)


@pytest.mark.slow
def test_deep_critical_kernels_tend_to_a_quarter_and_a_third():
    """Held row A10: off-diagonal over diagonal of a critical NTK at great depth, relu 1/4, smooth phi 1/3."""
    depth = 600
    relu = np.asarray(theory.kernels("relu", 2**0.5, 0.0, depth).ntk[-1])
    assert relu[0, 1] / relu[0, 0] == pytest.approx(0.25, abs=0.01)
    smooth = np.asarray(
        theory.kernels("erf", float(theory.critical_sigma_w("erf", 0.3)), 0.3, depth, c0=0.5).ntk[
            -1
        ]
    )
    # corrections fall as ln(depth)/depth
    assert smooth[0, 1] / smooth[0, 0] == pytest.approx(1 / 3, abs=0.02)


def test_laws_without_kernels_are_refused():
    for block, reason in (
        (theory.law("tanh", norm="batch"), "BatchNorm mixes examples"),
        (theory.law("tanh", skip="highway"), "highway: states are not Gaussian"),
        (theory.law("tanh", skip="dense", norm="peri"), "peri with dense"),
    ):
        with pytest.raises(ValueError, match=f"no kernels of .*{reason}"):
            theory.kernels(block, 1.0, 0.0, 1)
    with pytest.raises(ValueError, match="width and d_in must be given together, got 8 and None"):
        theory.kernels("tanh", 1.0, 0.0, 1, width=8)
