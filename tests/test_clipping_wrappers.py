"""Guards against what is not finite, and telemetry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import clipping
from jaxstab.clipping import GuardState, TelemetryState, guarded, monitored
from jaxstab.networks import Params

GOOD = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([3.0])}
BAD = {"a": jnp.asarray([np.nan, 2.0]), "b": jnp.asarray([3.0])}
MOMENTUM = optax.trace(0.5)


def _two_steps(tx):
    """Updates and state after a good step and a bad one."""

    @jax.jit
    def run():
        _, state = tx.update(GOOD, tx.init(GOOD))
        return tx.update(BAD, state)

    return run()


@pytest.mark.parametrize(
    ("policy", "per", "updates", "momenta"),
    [
        ("skip", "leaf", ([0, 0], [4.5]), ([1, 2], [4.5])),
        ("skip", "tree", ([0, 0], [0]), ([1, 2], [3])),
        ("zero", "leaf", ([0.5, 1], [4.5]), ([0.5, 1], [4.5])),
        ("zero", "tree", ([0.5, 1], [1.5]), ([0.5, 1], [1.5])),
        ("propagate", "leaf", ([np.nan, 2], [4.5]), ([0.5, 1], [4.5])),
        ("propagate", "tree", ([np.nan, 3], [4.5]), ([np.nan, 3], [4.5])),
        ("raise", "tree", ([np.nan, 3], [4.5]), ([np.nan, 3], [4.5])),
    ],
)
def test_policies(policy, per, updates, momenta):
    out, state = _two_steps(guarded(MOMENTUM, policy, per))
    for key, u, m in zip("ab", updates, momenta, strict=True):
        np.testing.assert_allclose(out[key], u)
        np.testing.assert_allclose(state.inner.trace[key], m)
    counters = GuardState(None, 2, 1, 1, 1)
    assert [int(x) for x in state[1:]] == list(counters[1:])


def test_skipping_a_leaf_keeps_its_part_of_a_nested_state_only():
    with jax.numpy_dtype_promotion("standard"):
        adam = optax.chain(
            optax.masked(optax.trace(0.5), {"a": True, "b": False}), optax.scale_by_adam()
        )
        _, first = adam.update(GOOD, adam.init(GOOD))
        _, state = _two_steps(guarded(adam, "skip"))
        zeroed = adam.update({**BAD, "a": jnp.zeros(2)}, first)[1]
    masked, moments = state.inner
    np.testing.assert_allclose(masked.inner_state.trace["a"], first[0].inner_state.trace["a"])
    for moment in ("mu", "nu"):
        np.testing.assert_allclose(getattr(moments, moment)["a"], getattr(first[1], moment)["a"])
        np.testing.assert_allclose(getattr(moments, moment)["b"], getattr(zeroed[1], moment)["b"])
    assert int(moments.count) == 2


@pytest.mark.parametrize("policy", ["skip", "zero", "propagate"])
@pytest.mark.parametrize("per", ["leaf", "layer", "tree"])
@pytest.mark.parametrize(
    "build",
    [
        lambda per: clipping.auto_clip(per=per),
        lambda per: clipping.clip_by_running_mean(1.0, decay=0.5, per=per),
        lambda per: clipping.z_clip(warmup=1, decay=0.5, per=per),
        lambda per: optax.chain(
            monitored(clipping.auto_clip(per=per)), optax.masked(clipping.clip_spikes(), True)
        ),
        lambda per: clipping.clip_spikes(threshold=1.0, decay=0.5),
    ],
    ids=["auto_clip", "running_mean", "z_clip", "chain", "spikes"],
)
def test_a_gradient_that_was_not_finite_teaches_a_clipper_nothing(build, per, policy):
    # an equal gradient, nine times, is within every threshold learnt from it, bad ones between them or not
    tx = guarded(build(per), policy)
    good = {"a": {"w": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([5.0])}}
    bad = {"a": {"w": jnp.asarray([np.nan, 4.0]), "b": jnp.asarray([5.0])}}
    grads = jax.tree.map(lambda g, b: jnp.stack([g] * 9 + [b] * 3 + [g]), good, bad)
    _, updates = jax.jit(
        lambda g: jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(good), g)
    )(grads)
    np.testing.assert_allclose(updates["a"]["w"][-1], [3.0, 4.0], rtol=1e-9)
    np.testing.assert_allclose(updates["a"]["b"], 5.0, rtol=1e-9)


def test_parts_of_a_state_belong_to_the_leaves_that_init_makes_them_for():
    # paths that end alike, equal shapes, and a state by name of leaf
    by_name = optax.GradientTransformation(
        lambda params: {
            "seen": {
                "/".join(map(str, k)): jnp.zeros(())
                for k, _ in jax.tree_util.tree_leaves_with_path(params)
            }
        },
        lambda g, s, p=None: (g, jax.tree.map(lambda n: n + 1, s)),
    )
    params = {"count": jnp.ones(()), "mu": {"count": jnp.ones(())}}
    with jax.numpy_dtype_promotion("standard"):
        tx = guarded(optax.chain(optax.scale_by_adam(), by_name), "skip")
        bad = {"count": jnp.asarray(np.nan), "mu": {"count": jnp.ones(())}}
        _, state = jax.jit(tx.update)(bad, tx.init(params))
    adam, named = state.inner
    assert int(adam.count) == 1
    assert float(adam.mu["count"]) == 0 and float(adam.mu["mu"]["count"]) == pytest.approx(0.1)
    assert list(map(float, named["seen"].values())) == [0, 1]
    # a bare array has no path at all
    tx = guarded(clipping.clip_by_norm(1.0), "skip")
    _, state = jax.jit(tx.update)(jnp.asarray(np.nan), tx.init(jnp.asarray(0.0)))
    assert int(state.inner.calls) == 1


def test_optax_finds_the_parameters_in_the_states():
    # as for placing a state on a mesh
    for tx in (
        monitored(clipping.auto_clip()),
        guarded(optax.chain(clipping.z_clip(), clipping.clip_spikes()), "skip"),
    ):
        state = tx.init(GOOD)
        marked = optax.tree.map_params(
            tx, lambda leaf: True, state, transform_non_params=lambda leaf: False
        )
        params = 4 if isinstance(state, GuardState) else 0
        assert sum(jax.tree.leaves(marked)) == params and jax.tree.structure(
            marked
        ) == jax.tree.structure(state)


def test_an_init_that_needs_all_leaves_is_refused_where_leaves_are_skipped():
    needs_all = optax.GradientTransformation(
        lambda params: params["a"].sum(), lambda g, s, p=None: (g, s)
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = guarded(needs_all, "skip")
    with pytest.raises(
        ValueError, match='policy "skip" needs per="tree": init fails for a part of the leaves'
    ):
        tx.update(params, tx.init(params))
    tx = guarded(needs_all, "skip", per="tree")
    assert float(tx.update(params, tx.init(params))[0]["a"][0]) == 1


@pytest.mark.parametrize("per", ["leaf", "tree"])
def test_parameters_in_half_precision(per):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), GOOD)
    good, bad = (jax.tree.map(lambda g: g.astype(jnp.float32), tree) for tree in (GOOD, BAD))
    with jax.numpy_dtype_promotion("standard"):
        tx = guarded(optax.chain(clipping.auto_clip(per="leaf"), MOMENTUM), "skip", per)
        _, state = jax.jit(tx.update)(good, tx.init(params), params)
        updates, state = jax.jit(tx.update)(bad, state, params)
        updates, state = jax.jit(tx.update)(good, state, params)
    assert updates["a"].dtype == state.inner[1].trace["a"].dtype == jnp.float32
    np.testing.assert_allclose(updates["a"], [1.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [4.5] if per == "tree" else [5.25], rtol=1e-6)


def test_raising_names_the_leaves():
    tx = guarded(MOMENTUM, "raise")
    updates, state = tx.update(GOOD, tx.init(GOOD))
    assert updates["b"].tolist() == [3.0]
    with pytest.raises(FloatingPointError, match=r"updates are not finite in a, c/0$"):
        tx.update({**BAD, "c": [jnp.asarray(np.inf)]}, state)
    with pytest.raises(FloatingPointError, match="not finite in the array"):
        tx.update(jnp.asarray(np.nan), tx.init(jnp.asarray(0.0)))


def test_large_and_finite_is_not_bad():
    huge = jax.tree.map(lambda g: (g * 1e37).astype(jnp.float32), GOOD)
    tx = guarded(clipping.clip_by_norm(1.0), "skip")
    out, state = jax.jit(tx.update)(huge, tx.init(huge))
    assert int(state.bad_entries) == 0 and float(optax.tree.norm(out)) == pytest.approx(
        1.0, rel=1e-6
    )


def test_counters_stop_at_the_largest_integer():
    full = jnp.asarray(2**31 - 2, jnp.int32)
    tx = monitored(guarded(optax.identity(), "propagate"))
    state = tx.init(BAD)
    state = state._replace(
        nonfinite_count=full, inner=state.inner._replace(bad_entries=full, bad_steps=full)
    )
    for _ in range(2):
        _, state = jax.jit(tx.update)({**BAD, "a": jnp.full(2, np.nan)}, state)
    assert (
        int(state.nonfinite_count)
        == int(state.inner.bad_entries)
        == int(state.inner.bad_steps)
        == 2**31 - 1
    )


def _telemetry(norms, tx, params=None, **settings):
    """The state after every step of gradients of these norms."""
    tx = monitored(tx, **settings)
    gradient = jnp.asarray([0.6, 0.8])

    def step(state, n):
        _, state = tx.update(gradient * n, state, params)
        return state, state

    return jax.jit(lambda n: jax.lax.scan(step, tx.init(gradient), n)[1])(jnp.asarray(norms))


def test_telemetry_of_a_clipper():
    norms = np.asarray([0.5, 4.0, 0.0, 8.0, 1.0, 1e200, np.nan, 2.0])
    seen = _telemetry(
        norms, clipping.clip_by_norm(1.0), decay=0.8, per="tree", params=jnp.asarray([3.0, 4.0])
    )
    clipped = np.minimum(norms, 1.0)
    fine = ~np.isnan(norms)
    np.testing.assert_allclose(seen.norm_before, np.nan_to_num(norms), rtol=1e-12)
    np.testing.assert_allclose(np.asarray(seen.norm_after)[fine], clipped[fine], rtol=1e-12)
    np.testing.assert_allclose(np.asarray(seen.update_ratio)[fine], clipped[fine] / 5, rtol=1e-12)
    fired = np.asarray([0, 1, 0, 1, 0, 1, 0, 1])
    assert seen.fired.tolist() == fired.astype(bool).tolist()
    with np.errstate(invalid="ignore"):
        expected = np.where((norms > 0) & fine, clipped / norms, 1.0)
    np.testing.assert_allclose(seen.coefficient, expected, rtol=1e-12)
    rate, rates = 0.0, []
    for t, f in enumerate(fired):
        rate += max(0.2, 1 / (t + 1)) * (f - rate)
        rates.append(rate)
    np.testing.assert_allclose(seen.firing_rate, rates, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(rates[:5]), np.cumsum(fired[:5]) / np.arange(1, 6))
    assert seen.step.tolist() == list(range(1, 9))
    assert seen.nonfinite_count.tolist() == [0] * 6 + [2, 2]
    assert seen.first_nonfinite.tolist() == [-1] * 6 + [6, 6]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(seen.log_norms["tree"], np.log(np.nan_to_num(norms)), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rounding_is_not_firing(dtype):
    # a round trip through a coarser scale rounds every entry, and clips nothing
    g = jnp.asarray(np.random.default_rng(0).normal(size=1000), dtype)
    third = optax.stateless(lambda g, p: jax.tree.map(lambda x: (x / 3) * 3, g))
    tx = monitored(third)
    _, state = jax.jit(tx.update)(g, tx.init(g))
    assert not state.fired and float(state.coefficient) == pytest.approx(
        1, abs=4 * float(jnp.finfo(dtype).eps)
    )


def test_extreme_norms_have_finite_logarithms():
    g = {"blocks": {"w": jnp.asarray([[3e38, 3e38], [1e-30, 0.0], [0.0, 0.0]], jnp.float32)}}
    tx = monitored(clipping.clip_by_norm(1.0), per="layer", stacked="blocks")
    _, state = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_allclose(
        state.log_norms["blocks"], [np.log(3e38) + np.log(2) / 2, np.log(1e-30), -np.inf], rtol=1e-6
    )
    assert float(state.norm_before) == np.inf and float(state.norm_after) == pytest.approx(1.0)
    # 2e-39 is below the least normal float32
    assert 0 <= float(state.coefficient) < 1e-38


def test_read_anywhere_in_a_chain_and_vmapped():
    params = Params(
        embed={"w": jnp.ones(2)}, blocks={"w": jnp.ones((3, 2))}, readout={"w": jnp.ones(1)}
    )

    def last(threshold):
        tx = optax.chain(monitored(clipping.clip_by_norm(threshold)), optax.sgd(0.1, momentum=0.9))
        tx = optax.GradientTransformationExtraArgs(tx.init, tx.update)
        _, state = tx.update(params, tx.init(params), params)
        return state

    states = jax.jit(jax.vmap(last))(jnp.asarray([1.0, 2.0, 100.0]))
    np.testing.assert_allclose(optax.tree.get(states, "norm_after"), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(optax.tree.get(states, "update_ratio"), [1 / 3, 2 / 3, 1.0])
    assert optax.tree.get(states, "fired").tolist() == [True, True, False]
    # every field can be asked for by its name beside optax's most common states
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.chain(
            monitored(clipping.z_clip()), optax.adamw(optax.constant_schedule(0.1)), optax.ema(0.9)
        )
        state = tx.init(params)
    for field in TelemetryState._fields:
        optax.tree.get(state, field)


def test_without_parameters_the_update_ratio_is_nan():
    seen = _telemetry([1.0, 2.0], optax.identity())
    assert np.isnan(seen.update_ratio).all() and not seen.fired.any()
