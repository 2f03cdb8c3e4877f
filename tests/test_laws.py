"""Laws of blocks: closed forms, and networks that are wide."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jaxstab import activations, analysis, networks, propagation, sweeps, theory
from jaxstab.analysis.pointwise import fixed_points

GAINS = (1.3, 0.2)
SIZE = {"width": 64, "d_in": 32}


def profiles(block, depth=4, c0=0.3, sigma_w=GAINS[0], sigma_b=GAINS[1], **size):
    return theory.predict(block, sigma_w, sigma_b, [depth], c0=c0, **(SIZE | size))


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_law_of_a_plain_block_is_its_activation(activation):
    for found, wanted in zip(profiles(theory.law(activation)), profiles(activation), strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "wanted"),
    # Yang et al. 2019 (arXiv:1902.08129), theorem 8: squared gradient of relu per layer, to the digits they give
    [
        (4, 3.08406),
        (5, 2.27371),
        (8, 1.78819),
        (32, 1.52195),
        (64, 1.49306),
        (256, 1.47323),
        (None, math.pi / (math.pi - 1)),
    ],
)
def test_batchnorm_on_relu_explodes_as_known(batch, wanted):
    block = theory.law("relu", norm="batch", batch=batch, epsilon=0.0)
    for sigma_w, sigma_b in ((1.3, 0.2), (0.4, 0.0)):
        # whatever the gain: without biases exactly, with them in the limit of depth
        _, _, backward, _ = profiles(block, depth=3, sigma_w=sigma_w, sigma_b=0.0 * sigma_b, c0=0.0)
        per_layer = jnp.exp(2 * (backward.log_grad_h[0, 1] - backward.log_grad_h[0, 2]))
        np.testing.assert_allclose(per_layer, wanted, rtol=4e-6)


@pytest.mark.slow
def test_relu_in_closed_form():
    """E relu^2 = q/2, E relu'^2 = 1/2: residual, scaled, ReZero, dropout, RMSNorm and dense, without biases."""
    w2 = GAINS[0] ** 2
    layers = np.arange(5)
    cases = [
        (theory.law("relu", skip="sum"), 1 + w2 / 2, 1 + w2 / 2),
        (theory.law("relu", skip="scaled", depth=4), 1 + w2 / 8, 1 + w2 / 8),
        (theory.law("relu", skip="rezero", alpha=0.5), 1 + w2 / 8, 1 + w2 / 8),
        (theory.law("relu", keep=0.8), w2 / 1.6, w2 / 1.6),
        (theory.law("relu", keep=0.8, skip="sum"), 1 + w2 / 1.6, 1 + w2 / 1.6),
        (theory.law("relu", skip="rezero"), 1.0, 1.0),
    ]
    for block, growth, chi in cases:
        forward, _, backward, _ = profiles(block, sigma_b=0.0)
        np.testing.assert_allclose(forward.q, w2 * growth**layers, rtol=1e-12)
        np.testing.assert_allclose(
            2 * backward.log_grad_h[0], (4 - layers) * np.log(chi), atol=1e-12
        )
    forward, _, _, _ = profiles(
        theory.law("relu", norm="rms", skip="sum", epsilon=0.0), sigma_b=0.0
    )
    np.testing.assert_allclose(forward.q, w2 * (1 + layers / 2), rtol=1e-12)
    # every layer of a dense network has the same length, sigma_w^2 q_0 / 2 where sigma_w^2 = 2
    forward, _, _, _ = profiles(theory.law("relu", skip="dense"), sigma_w=2**0.5, sigma_b=0.0)
    np.testing.assert_allclose(forward.q, 2.0, rtol=1e-12)


@pytest.mark.slow
def test_masks_of_their_own_tell_equal_inputs_apart():
    """c' = rho q_a a' / E a^2 = rho for equal inputs of relu, without biases (Schoenholz et al. 2017, section 5)."""
    apart = theory.law("relu", keep=0.8, shared_masks=False)
    _, correlation, _, _ = profiles(apart, depth=1, c0=1.0, sigma_b=0.0)
    np.testing.assert_allclose(correlation.c, [1.0, 0.8], rtol=1e-12)
    _, correlation, _, _ = profiles(theory.law("relu", keep=0.8), depth=1, c0=1.0, sigma_b=0.0)
    np.testing.assert_allclose(correlation.c, 1.0, rtol=1e-12)


@pytest.mark.parametrize("settings", [{"keep": 0.8}, {"skip": "rezero", "alpha": 0.7}])
def test_gradients_of_large_batches_tend_to_their_limit(settings):
    """softplus, which has a mean; two units, so that a norm's own scale and bias weigh as much as W."""
    several, many, limit = (
        profiles(theory.law("softplus", norm="batch", batch=batch, **settings), width=2)[2]
        for batch in (512, 1024, None)
    )
    # what is of the order of 1/batch cancels, and what is left is of its square
    extrapolated = 2 * many.log_grad_theta - several.log_grad_theta
    np.testing.assert_allclose(extrapolated, limit.log_grad_theta, atol=1e-4)


def test_batches_under_the_same_masks_have_no_correlation_for_a_reason():
    """The masks correlate two batches example by example; a network of width 192 had 0.84 where 0.75 was predicted."""
    block = theory.law("softplus", norm="batch", batch=8, keep=0.5, skip="sum")
    assert "same masks of dropout" in theory.missing(block)["c"]
    _, correlation, backward, _ = profiles(block)
    assert np.all(np.isnan(correlation.c[1:])) and np.all(np.isfinite(backward.log_grad_theta))
    traced = jax.jit(
        lambda keep: profiles(theory.law("tanh", norm="batch", batch=8, keep=keep), depth=2)[1].c
    )
    assert np.all(np.isnan(traced(0.5)[1:])) and np.all(np.isfinite(traced(1.0)))


def test_jacobians_of_dense_batches_end_as_those_without_skips():
    """One dense block's state is (h_0, h_1): its mean square is the sum of those of the two layers."""
    settings = {"norm": "batch", "batch": 4, "keep": 0.5}
    plain, dense = (theory.law("softplus", skip=skip, **settings) for skip in (None, "dense"))
    apart = [jnp.exp(profiles(plain, depth=depth)[3].log_mean_square[0]) for depth in (0, 1)]
    together = jnp.exp(profiles(dense, depth=1)[3].log_mean_square[0])
    np.testing.assert_allclose(together, sum(apart), rtol=1e-12)


def test_scales_of_norms_behind_dense_skips():
    """RMSNorm alone: per layer below, n entries of W, and one scale's sigma_w^2 / layers; one bias besides."""
    block = theory.law("identity", norm="rms", epsilon=0.0, skip="dense")
    few, many = (
        jnp.exp(2 * profiles(block, sigma_b=0.0, width=width)[2].log_grad_theta[0, 1:])
        for width in (64, 128)
    )
    per_unit = (many - few) / 64
    layers = np.arange(1, 5)
    besides = (few - 64 * per_unit) / per_unit
    np.testing.assert_allclose(besides, (1 + GAINS[0] ** 2) / layers, rtol=1e-9)


WIDTH = 128
SEEDS = 48
BLOCKS = {
    "dropout, LayerNorm, residual": {"norm": "layer", "skip": "sum", "keep": 0.8},
    "RMSNorm after": {"norm": "rms", "norm_after": True},
    "dense, LayerNorm": {"norm": "layer", "skip": "dense"},
    "DyT": {"norm": "dyt"},
    "Peri-LN": {"norm": "peri"},
    "Peri-LN, scaled, dropout": {"norm": "peri", "skip": "scaled", "keep": 0.8},
    "Derf after, residual": {"norm": "derf", "norm_after": True, "skip": "sum"},
    "BatchNorm, residual": {"norm": "batch", "batch": 8, "skip": "sum"},
}


def inputs(batch):
    """Two inputs, or two batches, of mean square 1, any two examples of which have correlation 0.3."""
    shape = (2, 32) if batch is None else (2, batch, 32)
    count = math.prod(shape[:-1])
    orthonormal = np.linalg.qr(np.random.default_rng(5).normal(size=(32, count)))[0].T
    root = np.linalg.cholesky(np.full((count, count), 0.3) + 0.7 * np.eye(count))
    return jnp.asarray((root @ orthonormal).reshape(shape) * 32**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_wide_networks_agree(name):
    settings = dict(BLOCKS[name])
    batch, keep = settings.pop("batch", None), settings.pop("keep", 1.0)
    mlp = networks.MLP(4, WIDTH, "tanh", features_out=6, dropout=keep < 1, **settings)
    chain = networks.chain(mlp)
    x, other = inputs(batch)

    def measured(key):
        weights, masks, ends = jax.random.split(key, 3)
        # drawing was a third of this test: keys of "rbg", and float32, take half of it
        params = chain.init(weights, x.astype(jnp.float32), *GAINS)
        params = jax.tree.map(lambda leaf: leaf.astype(x.dtype), params)
        if keep < 1:
            params = chain.bind(params, key=masks, rate=1 - keep)
        end = jax.random.normal(ends, (6,) if batch is None else (batch, 6))
        backward = propagation.backward(chain, params, x, lambda y: jnp.sum(end * y))
        return (
            jnp.exp(propagation.forward(chain, params, x).log_q),
            propagation.correlation(chain, params, x, other).c,
            jnp.exp(2 * (backward.log_grad_h - backward.log_grad_h[-1])),
            jnp.exp(2 * (backward.log_grad_theta - backward.log_grad_h[-1])),
        )

    keys = jax.random.split(jax.random.key(1, impl="rbg"), SEEDS)
    found = jax.jit(lambda keys: jax.lax.map(measured, keys, batch_size=16))(keys)
    forward, correlation, backward, _ = profiles(
        theory.law("tanh", batch=batch, keep=keep, **settings), width=WIDTH
    )
    squares = [jnp.exp(2 * rows[0]) for rows in (backward.log_grad_h, backward.log_grad_theta)]
    for samples, wanted in zip(
        found, (jnp.exp(forward.log_q), correlation.c, *squares), strict=True
    ):
        error = np.std(samples, axis=0, ddof=1) / SEEDS**0.5
        # four standard errors, and what four layers of finite width shift a mean by
        band = 4 * error + 4 / WIDTH * np.abs(wanted)
        assert np.all(np.abs(np.mean(samples, axis=0) - wanted) < band), (
            np.mean(samples, axis=0),
            wanted,
        )


def _conditional_relu(q, c, epsilon):
    """E[Var(relu | u) / (Var + epsilon)] and E[E(relu'^2 | u) / (Var + epsilon)] by SciPy, moments in closed form."""

    def ratios(u):
        centre, spread = math.sqrt(q * c) * u, math.sqrt(q * (1 - c))
        share = special.ndtr(centre / spread)
        density = spread * math.exp(-((centre / spread) ** 2) / 2) / math.sqrt(2 * math.pi)
        mean = centre * share + density
        variance = (centre**2 + spread**2) * share + centre * density - mean**2 + epsilon
        return np.array([variance - epsilon, share]) / variance

    def integrand(u):
        return ratios(u) * math.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)

    # beyond, the normal density is below 1e-14
    return integrate.quad_vec(integrand, -8.0, 8.0, epsabs=1e-13)[0]


@pytest.mark.parametrize(("sigma_b", "c0", "epsilon"), [(0.5, 0.3, 1e-5), (0.0, 0.7, 1e-2)])
def test_batchnorm_behind_relu_agrees_with_scipy(sigma_b, c0, epsilon):
    block = theory.law("relu", norm="batch", norm_after=True, epsilon=epsilon)
    forward, correlation, backward, _ = profiles(block, depth=2, sigma_b=sigma_b, c0=c0)
    w2 = GAINS[0] ** 2
    q = w2 + sigma_b**2
    power, slope = _conditional_relu(q, (w2 * c0 + sigma_b**2) / q, epsilon)
    after = w2 * power + sigma_b**2
    chi = np.exp(2 * (backward.log_grad_h[0, 0] - backward.log_grad_h[0, 1]))
    np.testing.assert_allclose(forward.q[1], after, rtol=1e-11)
    np.testing.assert_allclose(correlation.c[1], sigma_b**2 / after, atol=1e-12)
    np.testing.assert_allclose(chi, w2 * slope, rtol=1e-11)
    # without biases nothing is shared behind the first block: Var relu = (1 - 1/pi) q / 2
    if sigma_b == 0:
        wanted = w2 / (after * (1 - 1 / np.pi) + 2 * epsilon)
        np.testing.assert_allclose(2 * backward.log_grad_h[0, 1], np.log(wanted), rtol=1e-9)


def test_batchnorm_behind_phi_agrees_with_networks_of_large_batches():
    """Means and variances of units over a batch differ, as its examples share much: c = 0.49, then 0.27."""
    width, batch, depth, seeds, sigma_b = 512, 256, 2, 6, 0.8
    mlp = networks.MLP(depth, width, "tanh", features_out=6, norm="batch", norm_after=True)
    chain = networks.chain(mlp)
    orthonormal = np.linalg.qr(np.random.default_rng(5).normal(size=(width, batch)))[0].T
    common = np.full((batch, batch), 0.3) + 0.7 * np.eye(batch)
    x = jnp.asarray(np.linalg.cholesky(common) @ orthonormal * width**0.5)

    @jax.jit
    def measured(key):
        weights, ends = jax.random.split(key)
        params = chain.init(weights, x, GAINS[0], sigma_b)
        end = jax.random.normal(ends, (batch, 6))
        states = networks.states(chain, params, x)
        h = jnp.concatenate([states.below[0], states.last[None]])
        q = jnp.mean(h**2, axis=(1, 2))
        both = jnp.mean(jnp.sum(h, axis=1) ** 2, axis=1) / batch
        log_grad_h = propagation.backward(chain, params, x, lambda y: jnp.sum(end * y)).log_grad_h
        return q, (both / q - 1) / (batch - 1), jnp.exp(2 * (log_grad_h[:-1] - log_grad_h[1:]))

    samples = [measured(key) for key in jax.random.split(jax.random.key(1), seeds)]
    block = theory.law("tanh", norm="batch", norm_after=True)
    forward, correlation, backward, _ = profiles(block, depth=depth, sigma_b=sigma_b)
    log_grad_h = backward.log_grad_h[0]
    chi = np.exp(2 * (log_grad_h[:-1] - log_grad_h[1:]))
    for found, wanted in zip(
        zip(*samples, strict=True), (forward.q, correlation.c, chi), strict=True
    ):
        mean = np.mean(found, axis=0)
        error = np.std(found, axis=0, ddof=1) / seeds**0.5
        # four standard errors; two layers of finite width; a finite batch, by whose statistics
        # examples are as correlated as -1/(B - 1), and whose linear chi is (B - 2)/(B - 3)
        band = 4 * error + 2 / width * np.abs(wanted) + 2 / batch
        assert np.all(np.abs(mean - wanted) < band), (mean, wanted, band)


@pytest.mark.slow
def test_numbers_of_a_law_are_traced():
    def slope(keep, alpha):
        block = theory.law("tanh", skip="rezero", keep=keep, alpha=alpha)
        return profiles(block)[2].log_grad_h[0, 0]

    keeps = jnp.asarray([0.5, 0.9])
    together = jax.jit(jax.vmap(lambda keep: slope(keep, 0.7)))(keeps)
    np.testing.assert_allclose(together, [slope(keep, 0.7) for keep in keeps], rtol=1e-10)
    derivatives = jax.jit(jax.grad(slope, (0, 1)))(0.8, 0.7)
    step = 1e-5
    wanted = (
        (slope(0.8 + step, 0.7) - slope(0.8 - step, 0.7)) / (2 * step),
        (slope(0.8, 0.7 + step) - slope(0.8, 0.7 - step)) / (2 * step),
    )
    # truncation of the difference is of the order of step^2
    np.testing.assert_allclose(derivatives, wanted, rtol=1e-7)


@pytest.mark.slow
def test_what_is_not_known_is_nan_for_a_reason():
    block = theory.law("tanh", skip="highway")
    reasons = theory.missing(block)
    assert reasons.pop("kernels") == reasons["c"]
    assert set(reasons.values()) == {
        "highway: states are not Gaussian, as gates differ from unit to unit"
    }
    assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(profiles(block)))
    block = theory.law("relu", norm="batch", batch=8)
    forward, _, _, spectrum = profiles(block)
    assert (
        np.all(np.isnan(forward.dead))
        and np.all(np.isnan(spectrum.log_s))
        and np.all(np.isfinite(forward.log_q))
    )
    assert "saturation" not in theory.missing(block) and np.all(np.isfinite(forward.saturation))
    behind = {"norm": "batch", "norm_after": True}
    assert "log_grad_theta" in theory.missing(theory.law("relu", **behind))
    assert "batch=None is the limit" in theory.missing(theory.law("relu", batch=8, **behind))["c"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"norm": "group"}, "norm must be .*'group'"),
        ({"skip": "long"}, "skip must be .*'long'"),
        ({"keep": 0.0}, r"keep must be in \(0, 1\], got 0.0"),
        ({"norm": "batch", "batch": 3}, "batch must be .*4"),
        ({"epsilon": -1.0}, "epsilon must be >= 0 and finite, got -1.0"),
        ({"alpha": math.inf}, "alpha must be finite, got inf"),
        ({"weights": "uniform"}, "weights must be .*'uniform'"),
        ({"weights": jnp.ones}, "weights must be one of gaussian"),
    ],
)
def test_settings_without_a_law_are_refused_in_one_line(settings, said):
    with pytest.raises(ValueError, match=said) as caught:
        theory.law("tanh", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.kernels
def test_theory_is_traced_in_either_precision():
    """Within a caller's own jit and vmap, with x64 on and off: integers of one program keep one dtype."""
    gains = jnp.asarray([1.0, 1.5])
    blocks = [
        theory.law("relu", norm="batch", batch=8),
        theory.law("tanh", skip="dense", norm="layer"),
    ]

    def all_of(sigma):
        predicted = [
            theory.predict(block, sigma, 0.1, [2], **SIZE)[2].log_grad_h for block in blocks
        ]
        return (
            theory.critical_points("tanh", sigma).sigma_w,
            theory.fixed_points("gelu", sigma, 0.1).q,
            predicted,
        )

    found = jax.jit(jax.vmap(all_of))(gains)
    wanted = [all_of(float(gain)) for gain in gains]
    for i, one in enumerate(wanted):
        jax.tree.map(
            lambda row, value, i=i: np.testing.assert_allclose(row[i], value, rtol=1e-5), found, one
        )


@pytest.mark.slow
def test_theory_takes_a_chain_for_the_law_that_it_carries():
    chain = networks.mlp(4, 8, "tanh", skip="sum")
    assert theory.missing(chain) == theory.missing(theory.law("tanh", skip="sum"))
    for function in (theory.predict, theory.fixed_point, theory.fixed_points):
        given = ([4],) if function is theory.predict else ()
        sizes = {"width": 8, "d_in": 8} if function is theory.predict else {}
        found = function(chain, *GAINS, *given, **sizes)
        wanted = function(theory.law("tanh", skip="sum"), *GAINS, *given, **sizes)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    # the band of a comparison is what the law's activation shifts
    relu = networks.mlp(4, 8, "relu")
    one = theory.compare(-1.24, 0.0, 0.1, depth=100, width=100, block=relu)
    np.testing.assert_allclose(one.band, 1.25)
    with pytest.raises(ValueError, match="size must be None if block is given"):
        theory.compare(0.0, 0.0, 0.1, depth=1, width=8, size=1.0, block=relu)
    mine = relu._replace(law=None)
    with pytest.raises(ValueError, match="the chain has no law"):
        theory.fixed_point(mine, 1.0, 0.0)
    with pytest.raises(ValueError, match="keyword of law must be one of activation, .* got 'skp'"):
        theory.fixed_point(mine._replace(law={"activation": "relu", "skp": 1}), 1.0, 0.0)


@pytest.mark.slow
def test_sweeps_predict_networks_with_cures():
    cures = {"norm": "layer", "skip": "sum", "dropout": 0.1}
    axes = {"activation": ("tanh",), "depth": (4,), "sigma_w": (GAINS[0],)}
    grid = sweeps.Grid(axes, sigma_b=GAINS[1], width=64)
    found = analysis.predict(grid.but(**cures), 32, 0.3)
    block = theory.law("tanh", norm="layer", skip="sum", keep=0.9)
    np.testing.assert_allclose(
        found.log_grad_h.squeeze(), profiles(block)[2].log_grad_h[0], rtol=1e-10
    )
    # lengths of residual networks grow; BatchNorm has no law below four examples
    assert np.all(found.fixed_point_q == np.inf) and np.all(found.fixed_point_xi_grad == np.inf)
    assert np.all(np.isnan(analysis.predict(grid.but(norm="batch", batch=3), 32, 0.3).log_grad_h))


def test_sweeps_predict_activations_whose_parameters_are_arrays():
    leaky = activations.leaky_relu(jnp.asarray(0.2))
    numbers = activations.leaky_relu(0.2)
    found = [fixed_points(theory.law(phi), np.array([1.0, 1.3]), 0.1).q for phi in (leaky, numbers)]
    np.testing.assert_array_equal(*found)
