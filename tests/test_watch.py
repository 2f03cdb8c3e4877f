"""A watched run is the same run, and its summaries are what NumPy finds in it."""

import csv
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_variables import variables

from jaxstab import clipping, diagnosis, networks
from jaxstab.diagnosis import writers
from jaxstab.diagnosis.running import of_run
from jaxstab.extras import MissingExtraError

STEPS, EVERY = 30, 7
X = jax.random.normal(jax.random.key(0), (16, 5), "float32")
MLP = networks.MLP(depth=3, width=24, activation="tanh", features_out=2)
BARE = optax.chain(clipping.monitored(clipping.clip_by_norm(0.3)), optax.sgd(0.3, momentum=0.9))


def _run(tx, params):
    """Gradients, updates, parameters before each update, and the states after it."""

    def loss(params):
        return jnp.mean(jnp.square(MLP.apply(variables(params), X)))

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        seen = (gradient, updates, params, optax.tree.get(state, "firing_rate"))
        if hasattr(state, "watched"):
            seen += (state.watched,)
        return (optax.apply_updates(params, updates), state), seen

    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]


@pytest.fixture(scope="module")
def params():
    return networks.chain(MLP).init(jax.random.key(1), X, sigma_w=1.2)


@pytest.fixture(scope="module")
def bare(params):
    return jax.device_get(jax.jit(lambda params: _run(BARE, params))(params))


@pytest.mark.slow
def test_summaries_are_what_numpy_finds(params, bare, tmp_path):
    sent = []
    board = pytest.importorskip("tensorboardX.event_file_writer")
    table = writers.csv(tmp_path / "watched.csv")
    events = writers.tensorboard(tmp_path / "events")

    def send(step, numbers):
        sent.append(step)
        table(step, numbers)
        events(step, numbers)

    tx = diagnosis.watch(BARE, every=EVERY, send=send)
    *same, watched = jax.device_get(jax.jit(lambda params: _run(tx, params))(params))
    jax.effects_barrier()
    assert board and list((tmp_path / "events").iterdir())
    # the run itself, bit for bit
    jax.tree.map(np.testing.assert_array_equal, tuple(same), bare)
    due = [step for step in range(STEPS) if step % EVERY == 0]
    assert sorted(sent) == due
    assert watched.last_step.tolist() == [step - step % EVERY for step in range(STEPS)]

    gradients, updates, weights, rates = bare
    np.testing.assert_array_equal(watched.firing_rates["0"][due], rates[due])
    for trees, logs in (
        (gradients, watched.log_gradient),
        (updates, watched.log_update),
        (weights, watched.log_parameters),
    ):
        parts = (trees.blocks["dense"][name].reshape(STEPS, 3, -1) for name in ("kernel", "bias"))
        norms = np.linalg.norm(np.concatenate(list(parts), -1), axis=-1)
        # float32 sums
        np.testing.assert_allclose(logs["blocks/dense"][due], np.log(norms[due]), atol=1e-5)
    kernels = weights.blocks["dense"]["kernel"][due]
    values = np.linalg.svd(kernels, compute_uv=False)
    ranks = np.sum(values**2, -1) / values[..., 0] ** 2
    found = watched.stable_rank["blocks/dense/kernel"][due]
    # the power method is below the largest value, by at most 2 % of its square here
    assert np.all(found > ranks * (1 - 1e-5)) and np.all(found < ranks * 1.02)

    with (tmp_path / "watched.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert sorted({int(line["step"]) for line in lines}) == due
    of_layer = {
        int(line["step"]): float(line["value"])
        for line in lines
        if line["name"] == "log_update/blocks/dense@2"
    }
    last = watched.log_update["blocks/dense"]
    assert of_layer == {step: float(last[step, 2]) for step in due}


@pytest.mark.slow
def test_many_runs_at_once_and_gradients_that_are_not_finite():
    sent = []
    tx = diagnosis.watch(optax.sgd(1.0), every=2, send=lambda step, _: sent.append(step))

    def run(scale):
        g = {"w": jnp.asarray([[3.0, 0.0], [0.0, 4.0]]) * scale}
        state = tx.init(g)
        for _ in range(2):
            _, state = tx.update(g, state, g)
        return state.watched

    watched = jax.jit(jax.vmap(run))(jnp.asarray([1.0, 0.0, np.nan]))
    jax.effects_barrier()
    assert sorted(sent) == [0, 0, 0]
    assert watched.last_step.tolist() == [0, 0, 0] and watched.nonfinite.tolist() == [0, 0, 4]
    np.testing.assert_allclose(watched.log_update["root"][:2], [np.log(5), -np.inf])
    # 40 steps of the power method on singular values 3 and 4
    np.testing.assert_allclose(watched.stable_rank["w"], [25 / 16, np.nan, np.nan], rtol=1e-6)
    # without parameters there are no norms of them, and the state has the same types
    state = tx.init({"w": jnp.ones((2, 2))})
    _, after = jax.jit(tx.update)({"w": jnp.ones((2, 2))}, state)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    assert np.isnan(after.watched.log_parameters["root"])


def test_a_table_is_continued_and_what_cannot_be_written_is_refused(tmp_path):
    for step in (0, 10):
        writers.csv(tmp_path / "a.csv")(step, {'log_update/a,"b"': 0.5})
    with (tmp_path / "a.csv").open() as file:
        assert list(csv.reader(file))[1:] == [
            ["0", 'log_update/a,"b"', "0.5"],
            ["10", 'log_update/a,"b"', "0.5"],
        ]
    with pytest.raises(OSError, match=r"cannot write .*no/a.csv: No such file"):
        writers.csv(tmp_path / "no" / "a.csv")


def test_writers_of_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxstab\[wandb\]'"):
        writers.wandb(project="mine")
    logged = []
    run = types.SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)))
    fake = types.SimpleNamespace(init=lambda **settings: logged.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writers.wandb(project="mine")(3, {"a": 1.0, "b": float("nan")})
    assert logged == [{"project": "mine"}, (3, {"a": 1.0})]


def _watched(steps, gradient, ratio, rate):
    """Summaries of a run with the given norms of gradients, ratios by group and firing rate."""
    ones = np.ones(len(steps))
    groups = {name: np.log(value) * ones for name, value in ratio.items()}
    return diagnosis.Watched(
        last_step=np.asarray(steps),
        log_gradient={name: np.log(gradient / len(ratio) ** 0.5) for name in ratio},
        log_update=groups,
        log_parameters=dict.fromkeys(ratio, 0 * ones),
        stable_rank={},
        firing_rates={"0": rate * ones},
        nonfinite=np.zeros(len(steps), int),
    )


def test_a_run_is_told_that_its_clipping_and_updates_are_out_of_line():
    """Hold clippers that never or always fire, a threshold from norms, and layers that move too little."""
    steps = np.arange(0, 410, 10)
    norms = np.linspace(1, 2, 41)
    even = {"a": 1e-3, "b": 2e-3, "c": 1e-3}
    assert of_run(_watched(steps, norms, even, 0.1)) == []
    (never,) = of_run(_watched(steps, norms, even, 0.0))
    assert (never.fault, never.where) == ("clipping never fires", "clipper 0")
    # Wilson's upper end at z = 2: z^2 / (n + z^2)
    np.testing.assert_allclose(never.measured.high, 4 / 405, rtol=1e-9)
    assert "a threshold of 1.9 lets 90% of them through" in never.change
    (always,) = of_run(_watched(steps, norms, even, 1.0))
    assert always.fault == "clipping always fires"
    (odd,) = of_run(_watched(steps, norms, even | {"d": 1e-6}, 0.1))
    assert (odd.fault, odd.where) == ("update out of line", "d")
    np.testing.assert_allclose(odd.measured, [1e-6] * 3, rtol=1e-9)
    (large,) = of_run(_watched(steps, norms, {"a": 0.5, "b": 0.5}, 0.1))
    assert large.fault == "updates too large" and "lower the learning rate by 2.7" in large.change
    # one summary, no update yet, few updates, a stack of layers
    one = jax.tree.map(lambda leaf: leaf[-1], _watched(steps, norms, even, 0.0))
    assert [finding.fault for finding in of_run(one)] == ["clipping never fires"]
    assert of_run(one._replace(last_step=np.asarray(-1))) == []
    assert of_run(one._replace(last_step=np.asarray(5))) == []
    layers = {name: np.zeros((41, 5)) for name in even}
    stacked = _watched(steps, norms, even, 0.1)._replace(
        log_update={"a": np.log(1e-3) - np.eye(5)[3] * 9 * np.ones((41, 1))},
        log_parameters={"a": layers["a"]},
    )
    assert [finding.where for finding in of_run(stacked)] == ["a@3"]
    spoilt = stacked._replace(
        nonfinite=np.arange(41) // 40, log_update=layers, log_parameters=layers
    )
    assert of_run(spoilt)[0].where == "update 400"
