"""What every transformation keeps to, ours and optax's, alone and wrapped."""

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import clipping, diagnosis
from jaxstab.clipping import guarded, monitored
from jaxstab.networks import Params

STEPS = 100
TRANSFORMATIONS = {
    "clip_by_norm": lambda t: clipping.clip_by_norm(t),
    "clip_by_norm per layer": lambda t: clipping.clip_by_norm(t, per="layer"),
    "normalize per leaf": lambda t: clipping.normalize(t, per="leaf"),
    "clip_by_running_mean": lambda t: clipping.clip_by_running_mean(t, decay=0.9, per="layer"),
    "auto_clip": lambda t: clipping.auto_clip(50 * t, history=7),
    "auto_clip per layer": lambda t: clipping.auto_clip(50 * t, history=7, per="layer"),
    "z_clip": lambda t: clipping.z_clip(t, warmup=3, max_norm=9.0),
    "z_clip percentile": lambda t: clipping.z_clip(
        t, warmup=3, mode="percentile", per=lambda path: path[-1]
    ),
    "clip_updates": lambda t: clipping.clip_updates(t),
    "clip_updates relative": lambda t: clipping.clip_updates(
        t, relative_to="parameters", per="layer"
    ),
    "clip_spikes": lambda t: clipping.clip_spikes(t),
    "spam": lambda t: clipping.with_momentum_reset(
        optax.chain(clipping.clip_spikes(t), optax.trace(0.9)), every=7, warmup=3
    ),
    "spectral svd": lambda t: clipping.clip_by_spectral_norm(t),
    "spectral newton_schulz": lambda t: clipping.clip_by_spectral_norm(
        t, "newton_schulz", iterations=6
    ),
    "watch": lambda t: diagnosis.watch(clipping.clip_updates(t), every=7),
    "optax clip": lambda t: optax.clip(t),
    "optax clip_by_global_norm": lambda t: optax.clip_by_global_norm(t),
    "optax clip_by_block_rms": lambda t: optax.clip_by_block_rms(t),
    "optax adaptive_grad_clip": lambda t: optax.adaptive_grad_clip(t),
    "optax adam": lambda t: optax.adam(t),
}
GUARDS = {
    "zero": lambda tx: guarded(tx, "zero", "tree"),
    "skip": lambda tx: monitored(guarded(tx, "skip")),
    "skip tree": lambda tx: guarded(monitored(tx), "skip", "tree"),
    "propagate": lambda tx: guarded(tx, "propagate"),
}
GUARDED = [
    ("optax adam", "zero"),
    ("optax adam", "propagate"),
    ("auto_clip per layer", "skip"),
    ("clip_by_norm", "skip tree"),
]


def _draw(seed, *leading):
    normal = lambda *shape: (
        np.random.default_rng([seed, *shape]).normal(size=(*leading, *shape)).astype(np.float32)
    )
    return Params(
        embed={"kernel": normal(3, 2), "bias": normal(2)},
        blocks={"dense": {"kernel": normal(2, 2, 2), "bias": normal(2, 2)}},
        readout=(optax.MaskedNode(), {}),
    )


PARAMS = jax.tree.map(jnp.asarray, _draw(0))


def _gradients(bad):
    """A sequence of gradients with a spike; some NaN and inf where asked."""
    scale = np.random.default_rng(1).lognormal(size=STEPS).astype(np.float32)
    scale[40] = 1e4
    grads = jax.tree.map(lambda g: g * scale.reshape((-1,) + (1,) * (g.ndim - 1)), _draw(2, STEPS))
    if bad:
        grads.embed["bias"][50, 0], grads.embed["bias"][51, 1] = np.nan, np.inf
    return jax.tree.map(jnp.asarray, grads)


def _run(build):
    """(threshold, gradients) -> final state and updates, of build(threshold)."""

    def run(threshold, grads):
        tx = build(threshold)

        def step(state, g):
            updates, state = tx.update(g, state, PARAMS)
            return state, updates

        return jax.lax.scan(step, tx.init(PARAMS), grads)

    return run


@pytest.fixture
def promotion(request):
    # optax's adam mixes dtypes by design
    mode = "standard" if "optax" in request.node.name else "strict"
    with jax.numpy_dtype_promotion(mode):
        yield


def _check_contract(build, grads, atol=1e-5):
    """One compile over 100 steps and two thresholds, vmap = loop, fixed state, checkpoints; returns the first run."""
    chex.clear_trace_counter()
    thresholds = jnp.asarray([0.5, 1.5], jnp.float32)
    tx = build(thresholds[0])
    # a scan fails where the types of the state change
    scanned = jax.jit(chex.assert_max_traces(_run(build), n=1))
    batch = jax.tree.map(lambda g: jnp.stack([g, -3 * g]), grads)
    singles = [
        scanned(t, jax.tree.map(lambda g, i=i: g[i], batch)) for i, t in enumerate(thresholds)
    ]
    both = jax.jit(jax.vmap(_run(build)))(thresholds, batch)
    chex.assert_trees_all_close(
        both, jax.tree.map(lambda *x: np.stack(x), *singles), rtol=1e-4, atol=atol
    )
    state, updates = singles[0]
    start = tx.init(PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(start, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
    chex.assert_trees_all_equal(
        flax.serialization.from_bytes(start, flax.serialization.to_bytes(state)), state
    )
    # nor does a call after a call compile again for weak types
    again = jax.eval_shape(
        lambda g, s: tx.update(g, s, PARAMS), jax.tree.map(lambda g: g[0], grads), start
    )[1]
    assert [s.weak_type for s in jax.tree.leaves(again)] == [
        s.weak_type for s in jax.tree.leaves(start)
    ]
    return state, updates


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize("name", TRANSFORMATIONS, ids=lambda v: v.replace(" ", "-"))
def test_bare_and_monitored(name):
    build = lambda t: optax.with_extra_args_support(TRANSFORMATIONS[name](t))
    grads = _gradients(bad=False)
    # the error of Newton-Schulz is absolute, in units of the norm that comes in, which the spike makes large
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads))
    atol = 1e-6 * largest if "newton_schulz" in name else 1e-5
    seen, updates = _check_contract(lambda t: monitored(build(t), per="layer"), grads, atol)
    state = seen.inner
    assert int(seen.step) == STEPS and 0 <= float(seen.firing_rate) <= 1
    last = jax.tree.map(lambda g: g[-1], (grads, updates))
    norms = [
        np.sqrt(sum(np.sum(np.square(x, dtype=float)) for x in jax.tree.leaves(tree)))
        for tree in last
    ]
    np.testing.assert_allclose([seen.norm_before, seen.norm_after], norms, rtol=1e-5)
    # jit = no jit, with an extra argument that means nothing to it; and without parameters
    tx, first = build(jnp.asarray(0.5, jnp.float32)), jax.tree.map(lambda x: x[0], (grads, updates))
    eager, _ = tx.update(first[0], tx.init(PARAMS), PARAMS, unknown=1.0)
    chex.assert_trees_all_close(eager, first[1], rtol=1e-5, atol=1e-6)
    if name not in ("optax adaptive_grad_clip", "clip_updates relative"):  # these need parameters
        chex.assert_trees_all_equal_shapes_and_dtypes(
            jax.eval_shape(lambda: tx.update(first[0], state)), (eager, state)
        )


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
@pytest.mark.parametrize(("name", "policy"), GUARDED, ids=lambda v: v.replace(" ", "-"))
def test_guarded(name, policy):
    _, updates = _check_contract(
        lambda t: GUARDS[policy](TRANSFORMATIONS[name](t)), _gradients(bad=True)
    )
    finite = {k: np.isfinite(u).all(axis=-1) for k, u in updates.embed.items()}
    bad_steps = [] if policy != "propagate" else [50, 51]
    assert np.flatnonzero(~finite["bias"]).tolist() == bad_steps and finite["kernel"].all()


def test_extra_arguments_reach_what_is_wrapped():
    takes = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), lambda g, s, params=None, *, factor: (factor * g, s)
    )
    for tx in (
        monitored(takes),
        guarded(takes, "skip"),
        clipping.with_momentum_reset(takes, every=2),
    ):
        updates, _ = tx.update(jnp.ones(2), tx.init(jnp.ones(2)), factor=jnp.asarray(3.0))
        assert updates.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", [n for n in TRANSFORMATIONS if "optax" not in n])
def test_dtypes_of_updates_stay(name):
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float64):
        params = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), PARAMS)
        tx = monitored(TRANSFORMATIONS[name](1.0))
        updates, state = jax.eval_shape(lambda g, tx=tx: tx.update(g, tx.init(g), g), params)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert state.norm_before.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)


@pytest.mark.parametrize("tree", [(), {"a": optax.MaskedNode(), "b": {}}])
@pytest.mark.parametrize("name", [n for n in TRANSFORMATIONS if "optax" not in n])
def test_empty_trees(name, tree):
    tx = guarded(monitored(TRANSFORMATIONS[name](1.0), per="layer"), "skip")
    updates, _ = jax.eval_shape(lambda: tx.update(tree, tx.init(tree), tree))
    assert jax.tree.structure(updates) == jax.tree.structure(tree)


@pytest.mark.parametrize("name", [n for n in TRANSFORMATIONS if "optax" not in n and n != "watch"])
def test_leaves_that_are_not_floating_are_refused(name):
    # clip_spikes dropped the imaginary part in silence
    tx = TRANSFORMATIONS[name](1.0)
    for dtype in (jnp.complex64, jnp.int32, jnp.bool_):
        updates = {"a": jnp.ones((2, 2), dtype)}
        with pytest.raises(ValueError, match="a must be floating, got dtype"):
            tx.update(updates, tx.init({"a": jnp.ones((2, 2))}), {"a": jnp.ones((2, 2))})
    updates, _ = tx.update({"a": 0.5}, tx.init({"a": 1.0}), {"a": 1.0})
    assert updates["a"].shape == ()


BAD = [
    (lambda: clipping.clip_by_norm(-1.0), r"max_norm must be >= 0, got -1.0"),
    (lambda: clipping.clip_by_norm(float("nan")), r"max_norm must be >= 0, got nan"),
    (lambda: clipping.clip_by_norm(np.ones(3)), r"max_norm must be a scalar, got shape \(3,\)"),
    (
        lambda: clipping.clip_by_norm(1.0, per="module"),
        r"per must be one of tree, leaf, layer or a callable",
    ),
    (
        lambda: clipping.clip_by_norm(1.0, stacked="blocks"),
        r"stacked needs per=\"layer\".*, got per='tree'",
    ),
    (lambda: clipping.normalize(-1.0), r"norm must be >= 0"),
    (lambda: clipping.clip_by_running_mean(-1.0), r"multiple must be >= 0"),
    (lambda: clipping.clip_by_running_mean(decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
    (lambda: clipping.auto_clip(101.0), r"percentile must be in \[0, 100\], got 101.0"),
    (lambda: clipping.auto_clip(history=0), r"history must be an integer >= 1, got 0"),
    (lambda: clipping.z_clip(-1.0), r"z must be >= 0"),
    (lambda: clipping.z_clip(decay=-0.1), r"decay must be in"),
    (
        lambda: clipping.z_clip(mode="median"),
        r"mode must be one of zscore, percentile, got 'median'",
    ),
    (lambda: clipping.z_clip(option="max"), r"option must be one of adaptive_scaling, mean"),
    (lambda: clipping.z_clip(warmup=0), r"warmup must be an integer >= 1"),
    (lambda: clipping.z_clip(max_norm=-1.0), r"max_norm must be >= 0"),
    (lambda: clipping.clip_updates(-1.0), r"max_rms must be >= 0"),
    (lambda: clipping.clip_updates(least=np.nan), r"least must be >= 0, got nan"),
    (lambda: clipping.clip_updates(per="all"), r"per must be one of"),
    (
        lambda: clipping.clip_updates(relative_to="parameters").update(
            jnp.ones(2), clipping.clip_updates().init(None)
        ),
        r"clip_updates\(relative_to=\"parameters\"\) needs the parameters",
    ),
    (
        lambda: clipping.clip_updates(relative_to="weights"),
        r"relative_to must be one of parameters, got 'weights'",
    ),
    (lambda: clipping.clip_spikes(-1.0), r"threshold must be >= 0"),
    (lambda: clipping.clip_spikes(decay=float("nan")), r"decay must be in"),
    (
        lambda: clipping.with_momentum_reset(optax.trace(0.9), every=0),
        r"every must be an integer >= 1, got 0",
    ),
    (
        lambda: clipping.with_momentum_reset(optax.trace(0.9), warmup=-1),
        r"warmup must be an integer >= 0",
    ),
    (
        lambda: clipping.clip_by_spectral_norm(1.0, "qr"),
        r"method must be one of svd, newton_schulz, got 'qr'",
    ),
    (
        lambda: clipping.clip_by_spectral_norm(1.0, iterations=2),
        r"iterations must be an integer >= 5",
    ),
    (
        lambda: guarded(optax.identity(), "ignore"),
        r"policy must be one of skip, zero, raise, propagate",
    ),
    (lambda: guarded(optax.identity(), "skip", per="layer"), r"per must be one of leaf, tree"),
    (lambda: diagnosis.watch(optax.identity(), every=0), r"every must be an integer >= 1, got 0"),
    (lambda: diagnosis.watch(optax.identity(), per="all"), r"per must be one of"),
    (lambda: monitored(optax.identity(), per="all"), r"per must be one of"),
    (lambda: monitored(optax.identity(), decay=1.5), r"decay must be in"),
]


@pytest.mark.parametrize(("build", "message"), BAD)
def test_bad_settings_are_refused_at_construction(build, message):
    with pytest.raises(ValueError, match=message):
        build()
