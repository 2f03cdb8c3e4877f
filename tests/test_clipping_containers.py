"""Clippers where gradients live: the same numbers and labels in every container of parameters and on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType

from jaxstab import clipping

DEPTH = 4
STEPS = 3
# factories and their settings: every transformation of the package
TRANSFORMATIONS = {
    "clip_by_norm": (clipping.clip_by_norm, {"max_norm": 0.5, "per": "layer", "stacked": "stack"}),
    "normalize": (clipping.normalize, {"norm": 2.0, "per": lambda path: path[-1]}),
    "clip_by_running_mean": (clipping.clip_by_running_mean, {"per": "layer", "stacked": ["stack"]}),
    "auto_clip": (clipping.auto_clip, {"percentile": 50.0, "per": "leaf"}),
    "z_clip": (clipping.z_clip, {"z": 0.5, "warmup": 1, "max_norm": 3.0}),
    "clip_spikes": (clipping.clip_spikes, {"threshold": 1.5}),
    "with_momentum_reset": (
        clipping.with_momentum_reset,
        {"inner": clipping.clip_spikes(1.5), "every": 2, "warmup": 1},
    ),
    "svd": (clipping.clip_by_spectral_norm, {"max_norm": 0.7, "stacked": "stack"}),
    "newton_schulz": (
        clipping.clip_by_spectral_norm,
        {"max_norm": 0.7, "method": "newton_schulz", "iterations": 5},
    ),
    # some containers start from zeros, others from ones: both count as 1
    "clip_updates": (
        functools.partial(clipping.clip_updates, relative_to="parameters"),
        {"max_rms": 0.4, "least": 1.0, "per": "layer", "stacked": "stack"},
    ),
    "guarded": (
        clipping.guarded,
        {"tx": clipping.auto_clip(50.0, 4, "layer", "stack"), "policy": "skip"},
    ),
    "guarded tree": (
        clipping.guarded,
        {"tx": clipping.clip_spikes(1.5), "policy": "skip", "per": "tree"},
    ),
    "monitored": (
        clipping.monitored,
        {"tx": clipping.clip_by_norm(0.5), "per": "layer", "stacked": "stack"},
    ),
}


def _build(name, inject=False):
    factory, settings = TRANSFORMATIONS[name]
    if inject:
        # optax takes a function for a schedule, and makes arrays of integers
        static = [setting for setting in ("per", "iterations") if setting in settings]
        factory = optax.inject_hyperparams(factory, static_args=static)
    return factory(**settings)


def _gradients():
    """Gradients of three steps: a usual one, one with a NaN, a spike. A module is called "blocks" and is no stack."""
    draw = lambda *shape: (
        np.random.default_rng(shape).normal(size=(STEPS, *shape)).astype(np.float32)
    )
    tree = {
        "l": [{"kernel": draw(4, 2)}, {"bias": draw(4)}],
        "blocks": {"kernel": draw(4, 6), "bias": draw(6)},
        "stack": {"kernel": draw(DEPTH, 2, 2), "bias": draw(DEPTH, 2)},
    }
    tree = jax.tree.map(
        lambda g: g * np.asarray([1, 0.5, 3], np.float32).reshape(-1, *[1] * (g.ndim - 1)), tree
    )
    tree["l"][0]["kernel"][1, 0, 0] = np.nan
    return tree


GRADIENTS = _gradients()
KINDS = ("kernel", "bias")
LABELS = {
    "monitored": {"l/0", "l/1", "blocks", "stack"},
    "guarded": {"l/0", "l/1", "blocks", "stack"},
    "clip_by_running_mean": {"l/0", "l/1", "blocks", "stack"},
    "auto_clip": {
        "l/0/kernel",
        "l/1/bias",
        *(f"{name}/{kind}" for name in ("blocks", "stack") for kind in KINDS),
    },
    "z_clip": {"tree"},
}


def _numbers(tree):
    """Arrays by path, whatever the container; its boxes add nothing to paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    path = lambda keys: "/".join(
        str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None)))) for k in keys
    )
    return {path(keys).removesuffix("/value"): leaf for keys, leaf in leaves}


def _seen(state):
    """Norms or thresholds by label, where the transformation keeps some."""
    for field in ("log_norms", "thresholds"):
        for _, found in optax.tree.get_all_with_path(state, field):
            return found
    return {}


def _plain(tx, gradients, params):
    """The sum of the updates of all steps, and what was seen last."""

    def step(carry, g):
        state, total = carry
        updates, state = tx.update(g, state, params)
        return (state, jax.tree.map(jnp.add, total, updates)), None

    start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)
    (state, total), _ = jax.lax.scan(step, (tx.init(params), start), gradients)
    return _numbers(total), _seen(state)


def _in_dicts(tx, gradients):
    return _plain(tx, gradients, jax.tree.map(lambda g: jnp.ones_like(g[0]), gradients))


def _in_nnx_state(tx, gradients):
    boxed = nnx.State(jax.tree.map(nnx.Param, nnx.to_pure_dict(nnx.State(gradients))))
    return _in_dicts(tx, boxed)


def _in_linen_boxes(tx, gradients):
    # parameters in half precision, their gradients in single
    boxed = jax.tree.map(lambda g: linen.Partitioned(g, names=(None,) * (g.ndim - 1)), gradients)
    return _plain(tx, boxed, jax.tree.map(lambda g: jnp.ones_like(g[0], jnp.bfloat16), boxed))


def _in_train_state(tx, gradients):
    start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)
    state = TrainState.create(apply_fn=None, params=start, tx=tx).replace(
        step=jnp.zeros((), jnp.int32)
    )
    state, _ = jax.lax.scan(
        lambda state, g: (state.apply_gradients(grads=g), None), state, gradients
    )
    return _numbers(state.params), _seen(state.opt_state)


class _Layer(nnx.Module):
    def __init__(self, arrays):
        for name, array in arrays.items():
            setattr(self, name, nnx.Param(jnp.zeros_like(array[0])))


class _Model(nnx.Module):
    def __init__(self, gradients):
        self.l = nnx.List([_Layer(arrays) for arrays in gradients["l"]])
        self.blocks = _Layer(gradients["blocks"])
        self.stack = _Layer(gradients["stack"])


def _in_nnx_optimizer(tx, gradients):
    model = _Model(gradients)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    structure = jax.tree.structure(nnx.state(model, nnx.Param))
    graph, start = nnx.split((model, optimizer))

    def step(state, g):
        model, optimizer = nnx.merge(graph, state)
        optimizer.update(model, jax.tree.unflatten(structure, jax.tree.leaves(g)))
        return nnx.state((model, optimizer)), None

    model, optimizer = nnx.merge(graph, jax.lax.scan(step, start, gradients)[0])
    return _numbers(nnx.state(model, nnx.Param)), _seen(nnx.as_pure(optimizer.opt_state))


def _in_multi_steps(tx, gradients):
    # the mean of twice the same
    return _in_dicts(
        optax.MultiSteps(tx, 2).gradient_transformation(),
        jax.tree.map(lambda g: g.repeat(2, 0), gradients),
    )


def _in_partition(tx, gradients):
    # each part is masked
    labels = lambda tree: {name: "still" if name == "frozen" else "moving" for name in tree}
    tree = gradients | {"frozen": {"kernel": jnp.ones((STEPS, 2))}}
    partition = optax.partition({"moving": tx, "still": optax.set_to_zero()}, labels)
    return _in_dicts(partition, tree)


def _mesh(kind):
    return jax.make_mesh((min(2, jax.device_count()),), ("d",), axis_types=(kind,))


def _in_shard_map(run, gradients):
    # gradients that are the same on all devices
    return jax.jit(
        jax.shard_map(run, mesh=_mesh(AxisType.Auto), in_specs=jax.P(), out_specs=jax.P())
    )(gradients)


def _in_shards(run, gradients):
    # each device has gradients of its own, which happen to be equal
    mesh = _mesh(AxisType.Auto)
    own = jax.tree.map(lambda g: jnp.stack([g] * mesh.size), gradients)
    one = lambda own: jax.tree.map(lambda x: x[None], run(jax.tree.map(lambda g: g[0], own)))
    found = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P("d")))(own)
    return jax.tree.map(lambda x: x[-1], found)


def _on_an_explicit_mesh(run, gradients):
    def place(path, g):
        axes = (None, "d") if path[0].key != "blocks" else (None, None, "d")
        return jax.device_put(g, jax.P(*axes[: g.ndim]))

    with jax.set_mesh(_mesh(AxisType.Explicit)):
        return jax.jit(run)(jax.tree_util.tree_map_with_path(place, gradients))


CONTAINERS = {
    "nnx.State": _in_nnx_state,
    "linen boxes": _in_linen_boxes,
    "TrainState": _in_train_state,
    "nnx.Optimizer": _in_nnx_optimizer,
    "partition": _in_partition,
}
PLACES = {"shard_map": _in_shard_map, "shards": _in_shards, "Explicit mesh": _on_an_explicit_mesh}


def _run(container, gradients, inject=False):
    """All transformations in one program."""
    return {name: container(_build(name, inject), gradients) for name in TRANSFORMATIONS}


alone = jax.jit(functools.partial(_run, _in_dicts))


@pytest.fixture(scope="module")
def expected():
    return jax.device_get(alone(GRADIENTS))


def _check(found, expected):
    for name, (updates, seen) in expected.items():
        got_updates, got_seen = found[name]
        assert np.all(got_updates.pop("frozen/kernel", 0) == 0)
        assert set(seen) == set(got_seen) == LABELS.get(name, set()), name
        for wanted, got in ((updates, got_updates), (seen, got_seen)):
            assert set(wanted) == set(got), name
            for path, value in wanted.items():
                # float32 summed in another order
                np.testing.assert_allclose(
                    got[path], value, rtol=1e-5, atol=3e-6, err_msg=f"{name}: {path}"
                )


@pytest.mark.slow
def test_the_numbers_themselves(expected):
    # the module called "blocks" is one group
    usual = {path: g.astype(float) for path, g in _numbers(GRADIENTS).items()}
    kernel, bias = usual["blocks/kernel"], usual["blocks/bias"]
    lengths = np.sqrt((kernel**2).sum((1, 2)) + (bias**2).sum(1))
    clipped = (kernel * (0.5 / lengths)[:, None, None]).sum(0)
    np.testing.assert_allclose(expected["clip_by_norm"][0]["blocks/kernel"], clipped, rtol=1e-5)
    seen = expected["monitored"][1]
    assert float(seen["blocks"]) == pytest.approx(np.log(lengths[-1]), rel=1e-5)
    # the stack is a group per layer
    lengths = np.sqrt((usual["stack/kernel"] ** 2).sum((2, 3)) + (usual["stack/bias"] ** 2).sum(2))
    np.testing.assert_allclose(seen["stack"], np.log(lengths[-1]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("container", CONTAINERS, ids=lambda v: v.replace(" ", "-"))
def test_containers(container, expected):
    _check(
        jax.device_get(jax.jit(functools.partial(_run, CONTAINERS[container]))(GRADIENTS)), expected
    )


@pytest.mark.slow
def test_multi_steps():
    # once NaN, optax's accumulator stays NaN; and its arithmetic mixes dtypes
    finite = jax.tree.map(np.nan_to_num, GRADIENTS)
    expected = jax.device_get(alone(finite))
    with jax.numpy_dtype_promotion("standard"):
        found = jax.jit(functools.partial(_run, _in_multi_steps))(finite)
    _check(jax.device_get(found), expected)


@pytest.mark.slow
def test_injected_hyperparameters(expected):
    _check(
        jax.device_get(jax.jit(functools.partial(_run, _in_dicts, inject=True))(GRADIENTS)),
        expected,
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda v: v.replace(" ", "-"))
def test_places(place, expected):
    run = functools.partial(_run, _in_dicts)
    _check(jax.device_get(PLACES[place](run, GRADIENTS)), expected)
