"""AutoClip and ZClip, step for step, against plain NumPy renderings of their papers: spikes, NaN and inf planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.clipping import auto_clip, clip_updates, z_clip

STEPS = 1000


def _gradients():
    """[step, 3]: norms that drift, spikes of all sizes, and steps that are not finite, the first among them."""
    rng = np.random.default_rng(7)
    g = rng.normal(size=(STEPS, 3)) * np.exp(np.cumsum(0.03 * rng.normal(size=STEPS)))[:, None]
    g[rng.choice(np.arange(30, STEPS), 30, replace=False)] *= 10.0 ** rng.uniform(
        1, 12, size=(30, 1)
    )
    bad = rng.choice(np.arange(1, STEPS), 20, replace=False)
    g[bad[:10], 0], g[bad[10:], 2] = np.nan, -np.inf
    g[0, 1] = np.nan
    return g


def _clipped(g, threshold):
    """Finite entries scaled to a norm of at most threshold."""
    finite = np.isfinite(g)
    norm = np.sqrt(np.sum(g[finite] ** 2))
    return np.where(finite & (norm > threshold), g * (threshold / max(norm, 1e-300)), g)


def _norm_that_counts(g):
    return np.linalg.norm(g) if np.all(np.isfinite(g)) else None


def _auto_clip(gradients, percentile, history):
    """Seetharaman et al. 2020, with a bounded history."""
    norms, out = [], []
    for g in gradients:
        if _norm_that_counts(g) is not None:
            norms.append(_norm_that_counts(g))
        out.append(_clipped(g, np.percentile(norms[-history:], percentile) if norms else np.inf))
    return np.array(out)


def _z_clip(gradients, z_max, alpha, mode, option, factor, warmup, max_norm):
    """Kumar et al. 2025."""
    start, mean, variance, out = [], None, None, []
    for g in gradients:
        norm = np.sqrt(np.sum(g[np.isfinite(g)] ** 2))
        threshold = np.inf
        if mean is not None:
            deviation = np.sqrt(variance)
            z = (norm - mean) / deviation
            if z > z_max:
                threshold = {
                    ("zscore", "adaptive_scaling"): factor
                    * (mean + z_max * deviation / (z / z_max)),
                    ("zscore", "mean"): mean,
                }.get((mode, option), mean + z_max * deviation)
        if np.all(np.isfinite(g)):
            if mean is None:
                start.append(norm)
                if len(start) == warmup:
                    mean, variance = np.mean(start), np.var(start)
            else:
                entering = min(norm, threshold)
                mean = alpha * mean + (1 - alpha) * entering
                variance = alpha * variance + (1 - alpha) * (entering - mean) ** 2
        out.append(_clipped(g, min(threshold, max_norm)))
    return np.array(out)


def _scanned(build):
    def run(setting, g):
        tx = build(setting)
        return jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(g[0]), g)[1]

    return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize("history", [1000, 50, 1])
def test_auto_clip(history):
    gradients = _gradients()
    scanned = _scanned(lambda percentile: auto_clip(percentile, history))
    for percentile in (0.0, 10.0, 63.0, 100.0):
        expected = _auto_clip(gradients, percentile, history)
        np.testing.assert_allclose(
            scanned(percentile, jnp.asarray(gradients)), expected, rtol=1e-11
        )


@pytest.mark.parametrize(
    ("mode", "option", "factor", "max_norm"),
    [
        ("zscore", "adaptive_scaling", 1.0, None),
        ("zscore", "adaptive_scaling", 0.7, 3.0),
        ("zscore", "mean", 1.0, None),
        ("percentile", "mean", 1.0, None),
    ],
)
def test_z_clip(mode, option, factor, max_norm):
    gradients = _gradients()
    scanned = _scanned(
        lambda z: z_clip(z, 0.97, mode, option, factor, warmup=25, max_norm=max_norm)
    )
    for z in (0.5, 2.5):
        expected = _z_clip(
            gradients, z, 0.97, mode, option, factor, 25, np.inf if max_norm is None else max_norm
        )
        # rounding is carried along by the running statistics
        np.testing.assert_allclose(scanned(z, jnp.asarray(gradients)), expected, rtol=1e-9)
        if z == 2.5:
            assert np.sum(np.abs(expected) < np.abs(gradients)) > 60, (
                "spikes were planted for something"
            )


@pytest.mark.kernels
def test_float32_norms_whose_squares_overflow():
    gradients = _gradients() * 1e20
    got = _scanned(lambda z: z_clip(z))(2.5, jnp.asarray(gradients, jnp.float32))
    expected = _z_clip(gradients, 2.5, 0.97, "zscore", "adaptive_scaling", 1.0, 25, np.inf)
    np.testing.assert_allclose(got, expected.astype(np.float32), rtol=1e-3)
    got = _scanned(lambda p: auto_clip(p, 50))(10.0, jnp.asarray(gradients, jnp.float32))
    np.testing.assert_allclose(got, _auto_clip(gradients, 10.0, 50).astype(np.float32), rtol=1e-5)


def test_constant_norms_have_no_outliers_and_a_larger_one_is_clipped_to_their_mean():
    tx = z_clip(warmup=3)
    state = tx.init(jnp.zeros(1))
    update = jax.jit(tx.update)
    for norm, expected in [(2.0, 2.0)] * 5 + [(50.0, 2.0), (1.0, 1.0)]:
        updates, state = update(jnp.asarray([norm]), state)
        assert float(updates[0]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("relative_to", [None, "parameters"])
def test_clip_updates(relative_to):
    # Adam's update after a spike of the gradient: in units of the RMS of leaves, and of each layer of a stack
    rng = np.random.default_rng(3)
    theta = {"w": rng.normal(size=(3, 4, 2)) * np.asarray([0.0, 1e-2, 1.0])[:, None, None]}
    u = {"w": rng.normal(size=(3, 4, 2)) * np.asarray([1e-200, 0.5, 30.0])[:, None, None]}
    u["w"][2, 0, 0] = np.inf

    def clipped(u, theta):
        """What one group becomes."""
        rms = lambda x: np.sqrt(np.sum(x[np.isfinite(x)] ** 2) / x.size)
        limit = 0.1 * max(rms(theta), 1e-3) if relative_to else 0.1
        return np.where(np.isfinite(u), u * min(1.0, limit / max(rms(u), 1e-300)), u)

    tree = {"blocks": u}, {"blocks": theta}
    for settings, expected in (
        ({"per": "leaf"}, clipped(u["w"], theta["w"])),
        (
            {"per": "layer", "stacked": "blocks"},
            np.stack([clipped(*pair) for pair in zip(u["w"], theta["w"], strict=True)]),
        ),
    ):
        tx = clip_updates(0.1, relative_to, **settings)
        out, _ = jax.jit(lambda u, theta, tx=tx: tx.update(u, tx.init(theta), theta))(*tree)
        # a float64 norm against NumPy's; the scale of the update may be rounded twice
        np.testing.assert_allclose(out["blocks"]["w"], expected, rtol=1e-12)
