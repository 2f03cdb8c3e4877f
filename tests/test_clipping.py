"""Clippers against NumPy: bounds, directions, extreme magnitudes, non-finite entries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, strategies

from jaxstab import clipping
from jaxstab.clipping import (
    clip_by_norm,
    clip_by_spectral_norm,
    clip_spikes,
    normalize,
    with_momentum_reset,
)
from jaxstab.networks import Params

GROUPED = {"tree": lambda path: "all", "leaf": "/".join, "layer": lambda path: "/".join(path[:-1])}


def _once(build):
    """Jitted (setting, updates) -> updates of the first step."""
    return jax.jit(lambda setting, g: build(setting).update(g, build(setting).init(g))[0])


def _length(*arrays):
    return np.sqrt(sum(np.sum(np.asarray(a, float) ** 2) for a in arrays))


clip_tree, clip_leaf = _once(clip_by_norm), _once(lambda t: clip_by_norm(t, per="leaf"))
normalise = _once(normalize)
MAGNITUDES = [0.0, 1e-45, 1e-30, 0.5, -2.0, 1e10, 1e25, -3e38]
VECTORS = strategies.lists(
    strategies.sampled_from(MAGNITUDES) | strategies.floats(-(2.0**99), 2.0**99, width=32),
    min_size=4,
    max_size=4,
)


@given(VECTORS, strategies.sampled_from([0.0, 1e-3, 1.0, 1e20]))
@example([0.0, 0.0, -3e38, 0.125], 1e20)
@pytest.mark.kernels
def test_clip_by_norm_for_any_float32(entries, limit):
    g = {"a": jnp.asarray(entries[:1], jnp.float32), "b": jnp.asarray(entries[1:], jnp.float32)}
    t = jnp.asarray(limit, jnp.float32)
    u = clip_tree(t, g)
    before, after = _length(*g.values()), _length(*u.values())
    x, y = (np.concatenate([np.asarray(tree[k], float) for k in "ab"]) for tree in (g, u))
    tiny = float(np.finfo(np.float32).tiny)
    if before <= limit * (1 - 1e-6):
        np.testing.assert_array_equal(x, y)
    elif before > limit * (1 + 1e-6) and before > 4 * tiny:
        # entries pushed below the least float are flushed to zero
        assert after == pytest.approx(limit, rel=1e-6, abs=4 * tiny)
        np.testing.assert_allclose(y, x * (limit / before), rtol=1e-6, atol=2 * tiny)
    # clipping again changes no more than rounding
    for first, second in zip(u.values(), clip_tree(t, u).values(), strict=True):
        np.testing.assert_allclose(second, first, rtol=1e-6)


@given(VECTORS)
def test_normalize_for_any_float32(entries):
    g = jnp.asarray(entries, jnp.float32)
    u = np.asarray(normalise(jnp.float32(3.0), g), float)
    if _length(g) < 1e-37:
        assert _length(u) == pytest.approx(0, abs=1e-37) or _length(u) == pytest.approx(3, rel=1e-5)
    else:
        np.testing.assert_allclose(u, 3 * np.asarray(g, float) / _length(g), rtol=1e-5, atol=1e-37)


@pytest.mark.kernels
def test_where_optax_returns_zeros():
    g = jnp.full(4, 1e25, jnp.float32)
    theirs = optax.clip_by_global_norm(1.0)
    assert np.all(theirs.update(g, theirs.init(g))[0] == 0)
    np.testing.assert_allclose(clip_tree(jnp.float32(1.0), g), 0.5, rtol=1e-6)
    np.testing.assert_allclose(
        clip_tree(jnp.float32(1.0), jnp.full(4, 3e38, jnp.float32)), 0.5, rtol=1e-6
    )


@pytest.mark.parametrize("per", GROUPED)
def test_groups_are_clipped_each_by_its_own_norm(per):
    g = {
        "a": {"w": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([12.0])},
        "c": {"w": jnp.asarray([0.6, 0.8])},
    }
    label = GROUPED[per]
    by_name = jax.jit(lambda g: clip_by_norm(2.0, per).update(g, clip_by_norm(2.0).init(g))[0])(g)
    by_label = jax.jit(lambda g: clip_by_norm(2.0, label).update(g, clip_by_norm(2.0).init(g))[0])(
        g
    )
    groups = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(g):
        groups.setdefault(label(tuple(k.key for k in path)), []).append(leaf)
    for (path, leaf), u, v in zip(
        jax.tree_util.tree_leaves_with_path(g),
        jax.tree.leaves(by_name),
        jax.tree.leaves(by_label),
        strict=True,
    ):
        group = groups[label(tuple(k.key for k in path))]
        np.testing.assert_allclose(u, leaf * min(1.0, 2.0 / _length(*group)), rtol=1e-12)
        np.testing.assert_array_equal(u, v)


def test_each_layer_of_a_stack_is_clipped_by_itself():
    rng = np.random.default_rng(0)
    sizes = np.asarray([0.01, 1.0, 100.0, 1e30])
    dense = {
        "kernel": rng.normal(size=(4, 3, 3)) * sizes[:, None, None],
        "bias": rng.normal(size=(4, 3)) * sizes[:, None],
    }
    g = Params(
        embed={"w": jnp.ones(2)}, blocks={"dense": jax.tree.map(jnp.asarray, dense)}, readout=()
    )
    u = _once(lambda t: clip_by_norm(t, per="layer"))(1.0, g)
    for i in range(4):
        factor = min(1.0, 1.0 / _length(dense["kernel"][i], dense["bias"][i]))
        np.testing.assert_allclose(
            u.blocks["dense"]["kernel"][i], dense["kernel"][i] * factor, rtol=1e-12
        )
        np.testing.assert_allclose(
            u.blocks["dense"]["bias"][i], dense["bias"][i] * factor, rtol=1e-12
        )


@pytest.mark.kernels
def test_what_is_not_finite_passes_and_the_rest_is_clipped_as_if_it_were_absent():
    g = jnp.asarray([3.0, np.nan, 4.0, -np.inf, 0.0], jnp.float32)
    for t, expected in (
        (1.0, [0.6, np.nan, 0.8, -np.inf, 0]),
        (0.0, [0, np.nan, 0, -np.inf, 0]),
        (9.0, g),
    ):
        np.testing.assert_allclose(clip_tree(jnp.float32(t), g), expected, rtol=1e-6)
    leaves = clip_leaf(jnp.float32(1.0), [g, jnp.asarray([30.0, 40.0], jnp.float32)])
    np.testing.assert_allclose(leaves[1], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)])
def test_small_dtypes(dtype, rtol):
    # one rounding of each entry; the norm, 600, has a square beyond float16
    u = clip_tree(jnp.float32(30.0), jnp.full(40_000, 3, dtype))
    assert u.dtype == dtype
    np.testing.assert_allclose(u.astype(jnp.float32), 0.15, rtol=rtol)


def test_thresholds_by_schedule_and_their_derivative():
    g = jnp.asarray([3.0, 4.0])
    tx = clip_by_norm(lambda calls: jnp.where(calls < 2, 4.0, 2.0))

    def step(state, _):
        updates, state = tx.update(g, state)
        return state, updates

    _, updates = jax.lax.scan(step, tx.init(g), length=4)
    np.testing.assert_allclose(np.linalg.norm(updates, axis=1), [4.0, 4.0, 2.0, 2.0])
    # a norm clipper's derivative, also at zero and where the norm overflows
    slope = jax.jit(jax.grad(lambda t, g: jnp.sum(clip_tree(t, g)), argnums=(0, 1)))
    np.testing.assert_allclose(slope(1.0, g)[0], 1.4, rtol=1e-12)
    np.testing.assert_array_equal(slope(1.0, jnp.zeros(2))[1], [1.0, 1.0])
    assert np.all(np.isfinite(slope(1.0, g * 1e200)[1]))


def test_running_mean():
    norms = np.concatenate([np.random.default_rng(3).lognormal(size=60), [1e30], np.ones(60)])
    tx = clipping.clip_by_running_mean(multiple=1.5, decay=0.9)

    def step(state, n):
        updates, state = tx.update(n[None], state)
        return state, (updates[0], state.statistics["tree"].mean)

    _, (clipped, means) = jax.jit(lambda n: jax.lax.scan(step, tx.init(jnp.zeros(1)), n))(
        jnp.asarray([0, *norms])
    )
    # zeros have no mean to measure by: the norm after them passes, and enters as the mean of both
    assert clipped[0] == 0 and clipped[1] == norms[0] and means[1] == norms[0] / 2
    mean = 0.0
    for t, n in enumerate([0, *norms]):
        expected = n if mean == 0 else min(n, 1.5 * mean)
        assert float(clipped[t]) == pytest.approx(expected, rel=1e-12)
        entering = n if mean == 0 else min(n, 10 * mean)
        mean += max(0.1, 1 / (t + 1)) * (entering - mean)
        assert float(means[t]) == pytest.approx(mean, rel=1e-12)
    # a spike of 1e30 has not blinded it
    assert mean < 1.2


def _spike_reference(gradients, threshold, decay):
    v, entered, out = np.zeros(gradients.shape[1]), 0, []
    for g in gradients:
        g = g.copy()
        if entered:
            limit = np.sqrt(threshold * v / (1 - decay**entered))
            hit = np.isfinite(g) & (v > 0) & (np.abs(g) > limit)
            g[hit] = np.sign(g[hit]) * limit[hit]
        if np.all(np.isfinite(g)):
            v, entered = decay * v + (1 - decay) * g**2, entered + 1
        out.append(g)
    return np.array(out)


def test_spikes():
    rng = np.random.default_rng(5)
    gradients = rng.normal(size=(300, 4))
    gradients[100, 1], gradients[200], gradients[250, 2] = 1e9, -1e12, np.nan
    gradients[:150, 3] = 0
    tx = clip_spikes(threshold=25.0, decay=0.95)
    scanned = jax.jit(
        lambda g: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(g[0]), g)[1]
    )
    clipped = scanned(jnp.asarray(gradients))
    np.testing.assert_allclose(clipped, _spike_reference(gradients, 25.0, 0.95), rtol=1e-9)
    assert np.abs(clipped[100, 1]) < 10 and np.all(np.abs(clipped[200]) < 10)
    # a coordinate that was dead comes alive
    assert clipped[150, 3] == gradients[150, 3] != 0
    # squares of float32 that overflow
    huge = scanned(jnp.asarray(gradients * 1e25, jnp.float32))
    np.testing.assert_allclose(
        np.asarray(huge, float) / 1e25, _spike_reference(gradients, 25.0, 0.95), rtol=1e-4
    )


def test_momentum_reset():
    tx = with_momentum_reset(optax.trace(0.5), every=5, warmup=3)
    g = np.random.default_rng(6).normal(size=(14, 2))
    _, updates = jax.jit(
        lambda g: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(g[0]), g)
    )(jnp.asarray(g))
    momentum = np.zeros(2)
    for t in range(14):
        since = t % 5
        momentum = g[t] + (0.0 if since == 0 else 0.5) * momentum
        warming = t >= 5 and since < 3
        share = 1 - 0.99 * (1 + np.cos(np.pi * since / 4)) / 2 if warming else 1.0
        # the share is computed in float32
        np.testing.assert_allclose(updates[t], share * momentum, rtol=1e-5)


def test_momentum_reset_takes_the_initial_state_of_the_parameters():
    # an exponential mean of the parameters starts from them
    averaging = optax.GradientTransformation(
        lambda p: p, lambda g, s, p=None: (g, 0.5 * s + 0.5 * p)
    )
    tx = with_momentum_reset(averaging, every=2, warmup=0)
    state = tx.init(jnp.asarray(8.0))
    for p, expected in ((4.0, 6.0), (0.0, 3.0), (1.0, 1.0)):
        _, state = tx.update(jnp.asarray(0.0), state, jnp.asarray(p))
        assert float(state.inner) == expected


def _matrix(spectrum, m, n, rng):
    left, right = (np.linalg.qr(rng.normal(size=(k, k)))[0][:, : len(spectrum)] for k in (m, n))
    return (left * spectrum) @ right.T


SPECTRA = {
    "flat": np.ones(12),
    "eight decades": np.logspace(0, -8, 12),
    "rank one": np.r_[1.0, np.zeros(11)],
    "close": 1 + 1e-3 * np.arange(12)[::-1],
    "large": np.logspace(25, 22, 12),
}
capped = {
    method: jax.jit(
        jax.vmap(
            _once(lambda t, method=method: clip_by_spectral_norm(t, method)), in_axes=(0, None)
        )
    )
    for method in ("svd", "newton_schulz")
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("method", "error"), [("svd", 1e-6), ("newton_schulz", 2e-6)])
def test_spectral_clip_in_float32(method, error, spectrum):
    s = SPECTRA[spectrum]
    for m, n in ((20, 12), (12, 20)):
        matrix = _matrix(s, m, n, np.random.default_rng(len(spectrum)))
        caps = s[0] * np.asarray([1.1, 0.999, 0.5, 1e-3, 1e-6])
        got = capped[method](jnp.asarray(caps, jnp.float32), jnp.asarray(matrix, jnp.float32))
        u, _, v = np.linalg.svd(matrix, full_matrices=False)
        for cap, x in zip(caps, np.asarray(got, float), strict=True):
            expected = (u * np.minimum(s, cap)) @ v
            assert np.linalg.norm((x - expected) / np.linalg.norm(matrix), 2) < error


def test_spectral_clip_takes_matrices_only_and_batches():
    rng = np.random.default_rng(8)
    blocks = {"kernel": rng.normal(size=(3, 4, 4)), "bias": 9 * rng.normal(size=(3, 4))}
    g = {
        "blocks": jax.tree.map(jnp.asarray, blocks),
        "readout": {"kernel": jnp.asarray(rng.normal(size=(4, 2)))},
    }
    g["blocks"]["kernel"] = g["blocks"]["kernel"].at[1].multiply(1e-3)
    for method in capped:
        u = _once(lambda t, method=method: clip_by_spectral_norm(t, method, 24, stacked="blocks"))(
            0.5, g
        )
        np.testing.assert_array_equal(u["blocks"]["bias"], blocks["bias"])
        np.testing.assert_array_equal(u["blocks"]["kernel"][1], g["blocks"]["kernel"][1])
        for before, after in zip(
            [*g["blocks"]["kernel"], g["readout"]["kernel"]],
            [*u["blocks"]["kernel"], u["readout"]["kernel"]],
            strict=True,
        ):
            s = np.linalg.svd(before)[1]
            np.testing.assert_allclose(np.linalg.svd(after)[1], np.minimum(s, 0.5), atol=1e-8)
    # what is not finite passes, the rest is clipped as if it were zero
    bad = {"w": jnp.diag(jnp.asarray([5.0, 0.1])).at[0, 1].set(jnp.nan)}
    np.testing.assert_allclose(
        _once(clip_by_spectral_norm)(0.5, bad)["w"], [[0.5, np.nan], [0, 0.1]], atol=1e-12
    )
