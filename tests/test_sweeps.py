"""Sweeps: cells are what single networks give, in few compiles, with the linear algebra kept sound."""

import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups_at_work import files
from threadpoolctl import threadpool_info

from jaxstab import activations, networks, propagation, records, store, sweeps, training
from jaxstab.activations import Activation
from jaxstab.cli.settings import Sweep
from jaxstab.cli.sweep import grid_of
from jaxstab.records import Data
from jaxstab.store import claims, opening
from jaxstab.sweeps import plan as plan_of
from jaxstab.sweeps.examples import samples
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.plan import MEMORY, measuring_plan, memory

GRID = sweeps.Grid(
    {"activation": ("tanh", "relu"), "depth": (1, 3), "seed": range(2), "sigma_w": (0.8, 1.5, 3.0)},
    sigma_b=0.1, width=10, inputs=2, dtype="float64",
)  # fmt: skip
DATA = Data(
    np.random.default_rng(0).uniform(size=(30, 7)).astype(np.float32),
    np.arange(30, dtype=np.int32) % 3,
    "toy",
)


@pytest.fixture(scope="module")
def signals():
    return sweeps.run(GRID, sweeps.signal, DATA)


@pytest.fixture(scope="module")
def jacobians():
    return sweeps.run(GRID, sweeps.jacobian, DATA)


@pytest.mark.slow
def test_dimensions_and_coordinates(signals, jacobians):
    cell = {"activation": 2, "seed": 2, "sigma_w": 3, "input": 2}
    assert dict(signals.log_q.sizes) == cell | {"layer": 4}
    assert dict(signals.log_grad_h.sizes) == cell | {"depth": 2, "layer": 4}
    assert dict(jacobians.log_s.sizes) == cell | {"depth": 2, "index": 7}
    assert signals.activation.values.tolist() == ["tanh", "relu"]
    assert signals.sigma_w.values.tolist() == [0.8, 1.5, 3.0]
    assert jacobians.depth.values.tolist() == [1, 3]
    assert signals.attrs["data"] == "toy" and '"width": 10' in signals.attrs["grid"]
    # a rate decides nothing that is measured
    assert "learning_rate" not in signals.attrs["grid"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sigma_w", "seed", "number"), [("tanh", 1.5, 0, 1), ("relu", 3.0, 1, 0)]
)
def test_a_cell_is_what_the_single_network_gives(
    signals, jacobians, activation, sigma_w, seed, number
):
    # same key, same gains, one network at a time and not jitted as a whole
    sample = jax.tree.map(lambda a: a[seed], samples(GRID, DATA))
    mlp = GRID.mlp(GRID.kinds[GRID.labels("activation").index(activation)], 3, 3)
    params, chain = (
        networks.chain(mlp).init(jax.random.key(seed), sample.x[0], sigma_w, 0.1),
        networks.chain(mlp),
    )
    one = jax.tree.map(lambda a: a[number], sample)
    at = {"activation": activation, "sigma_w": sigma_w, "seed": seed, "input": number}
    for record in jax.jit(lambda p: sweeps.signal(chain, p, one, (1, 3)))(params):
        for field, value in record._asdict().items():
            np.testing.assert_allclose(
                signals[field].sel(at), value, rtol=1e-9, atol=1e-11, err_msg=field
            )
    record = jax.jit(lambda p: sweeps.jacobian(chain, p, one, (1, 3)))(params)
    np.testing.assert_allclose(jacobians.log_s.sel(at), record.log_s, atol=1e-9)


CURED = [{"norm": "layer", "skip": "sum", "dropout": 0.3}, {"norm": "batch", "batch": 3}]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("cure", CURED, ids=str)
def test_cured_networks_sweep_too(cure):
    grid = GRID.but(sigma_w=(1.5,), activation=("tanh",), seed=(0,), **cure)

    def both(*args):
        return *sweeps.signal(*args), sweeps.jacobian(*args)

    result, sample = sweeps.run(grid, both, DATA), samples(grid, DATA, cure.get("batch"))
    mlp, key, one = (
        grid.mlp(grid.kinds[0], 3, 3),
        jax.random.key(0),
        jax.tree.map(lambda a: a[0, 1], sample),
    )
    params = networks.chain(mlp).init(key, one.x, 1.5, 0.1)
    if mlp.dropout:
        params = networks.chain(mlp).bind(
            params, key=jax.random.split(jax.random.fold_in(key, 1), 2)[1], rate=0.3
        )
    forward, correlation, backward, spectrum = jax.jit(
        lambda p: both(networks.chain(mlp), p, one, (1, 3))
    )(params)
    cell = result.isel(activation=0, seed=0, sigma_w=0, input=1)
    for record in (forward, correlation, backward, spectrum):
        for field, value in record._asdict().items():
            # BatchNorm kills the mean and the length of every feature: what rounding leaves there is no value
            known = (field != "log_s") | (value > -25)
            np.testing.assert_allclose(
                np.where(known, cell[field], 0),
                np.where(known, value, 0),
                rtol=1e-9,
                atol=1e-9,
                err_msg=field,
            )
    assert cell.sizes["index"] == 7 * cure.get("batch", 1)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("cure", [{"norm": "batch", "batch": 4}, {"skip": "dense"}], ids=str)
def test_sharpness_is_that_of_the_dense_matrices(cure):
    """Depths that are traced, and those of blocks that depend on it, against `jax.hessian` of the shallower network."""
    grid = GRID.but(sigma_w=(1.5,), activation=("tanh",), seed=(1,), inputs=1, width=3, **cure)
    found = sweeps.run(grid, sweeps.sharpness, DATA)
    sample = jax.tree.map(lambda a: a[0, 0], samples(grid, DATA, cure.get("batch")))
    mlp = grid.mlp(grid.kinds[0], 3, 3)
    chain = networks.chain(mlp)
    params = chain.init(jax.random.key(1), sample.x, 1.5, 0.1)

    def matrices(depth):
        shallower = params._replace(blocks=jax.tree.map(lambda leaf: leaf[:depth], params.blocks))
        vector, unravel = jax.flatten_util.ravel_pytree(shallower)
        outputs = lambda vector: chain.apply(unravel(vector), sample.x)
        loss = lambda y: training.cross_entropy(y, sample.label)
        y = outputs(vector)
        jacobian = jax.jacobian(outputs)(vector).reshape(y.size, -1)
        inner = jax.hessian(loss)(y).reshape(y.size, y.size)
        return jax.hessian(lambda v: loss(outputs(v)))(vector), jacobian.T @ inner @ jacobian

    for depth in (1, 3):
        hessian, outer = (
            np.linalg.eigvalsh(a)[-1] for a in jax.jit(matrices, static_argnums=0)(depth)
        )
        cell = found.squeeze().sel(depth=depth)
        # twelve products find the largest of a hundred well-separated values to 1e-6
        np.testing.assert_allclose(cell.log_sharpness, np.log(hessian), atol=1e-5)
        np.testing.assert_allclose(cell.log_gauss_newton, np.log(outer), atol=1e-5)
        assert cell.sharpness_error < 1e-2


def test_inputs_have_unit_mean_square_and_differ():
    sample = samples(GRID, DATA)
    assert sample.x.shape == (2, 2, 7)
    np.testing.assert_allclose(jnp.mean(sample.x**2, axis=-1), 1.0, rtol=1e-6)
    assert not np.allclose(sample.x, sample.other)
    again = samples(GRID, DATA)
    chex.assert_trees_all_equal(sample, again)


@pytest.mark.slow
def test_one_compile_per_activation_whatever_the_rest():
    traces = []

    def measure(chain, params, sample, depths):
        traces.append(chain.activation.name)
        return propagation.forward(chain, params, sample.x)

    wide = GRID.but(depth=(1, 2, 3, 5, 7), sigma_w=np.linspace(0.5, 4, 7), seed=range(3))
    plan = sweeps.plan(wide, measure, DATA, chunk_size=3)
    assert plan.cells == 2 * 7 * 3 and plan.programs == 2
    assert [axis.chunk for axis in plan.axes.values()] == [1, 1, 3]
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **kw: (
            events.append(kw.get("fun_name")) if "backend_compile" in name else None
        )
    )
    result = sweeps.run(wide, measure, DATA, chunk_size=3)
    assert result.log_q.notnull().all()
    assert traces == ["tanh", "relu"]
    if any(events):
        assert sum("group" in str(name) for name in events) == 2


@pytest.mark.slow
@pytest.mark.long
def test_activations_share_the_programs_of_the_houses_measures():
    leaky = activations.leaky_relu(jnp.asarray(0.2))
    axes = {
        "activation": ("tanh", "relu", "gelu", leaky),
        "norm": (None, "layer"),
        "sigma_w": (0.8, 1.5),
    }
    grid = sweeps.Grid(axes, depth=3, width=10, inputs=1, dtype="float64")
    assert sweeps.plan(grid, sweeps.signal, DATA).programs == 2
    whole = sweeps.run(grid, sweeps.signal, DATA)
    for name, norm, place in (("relu", None, (1, 0)), ("gelu", "layer", (2, 1))):
        alone = sweeps.run(grid.but(activation=(name,), norm=(norm,)), sweeps.signal, DATA)
        for field in alone:
            # a program of its own rounds otherwise
            np.testing.assert_allclose(
                whole[field].values[place], alone[field].values[0, 0], rtol=1e-12, atol=1e-14
            )


def _lengths(chain, params, sample, depths):
    return propagation.forward(chain, params, sample.x)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_chunks_change_nothing(signals, chunk_size):
    again = sweeps.run(GRID, _lengths, DATA, chunk_size=chunk_size)
    for name in again:
        np.testing.assert_allclose(again[name], signals[name], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_a_diverging_cell_is_data():
    growing = GRID.but(activation=("identity",), sigma_w=(1.0, 1e200), inputs=1)
    result = sweeps.run(growing, sweeps.signal, DATA)
    assert result.log_q.sel(sigma_w=1.0).notnull().all()
    assert not np.isfinite(result.log_q.sel(sigma_w=1e200)).all()


@pytest.mark.slow
def test_users_measure_with_a_record_of_their_own():
    def measure(chain, params, sample, depths):
        return records.CorrelationProfile(
            propagation.correlation(chain, params, sample.x, sample.other).c ** 2
        )

    mine = GRID.but(activation=(Activation("cube", lambda z: z**3 / 9),))
    result = sweeps.run(mine, measure, DATA)
    assert result.c.dims == ("activation", "seed", "sigma_w", "input", "layer")
    assert result.activation.values.tolist() == ["cube"]


@pytest.mark.slow
def test_orthogonal_networks_sweep_too():
    result = sweeps.run(
        GRID.but(weights="orthogonal", activation=("identity",), inputs=1),
        sweeps.jacobian,
        DATA,
    )
    expected = np.log(GRID.values("sigma_w"))[:, None] * (1 + np.array([1, 3]))[None]
    # seven inputs are spread over ten units, each of which has variance sigma_w^2
    expected = expected + np.log(10 / 7) / 2
    found = result.log_s.isel(activation=0, input=0).transpose("seed", "index", "sigma_w", "depth")
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-10)


@pytest.mark.slow
def test_progress_sees_every_chunk():
    seen = []

    def progress(chunks):
        for chunk in chunks:
            seen.append(len(chunks))
            yield chunk

    sweeps.run(GRID, _lengths, DATA, chunk_size=3, progress=progress)
    assert seen == [4] * 4 == [sweeps.plan(GRID, _lengths, DATA, chunk_size=3).groups] * 4


def test_a_plan_grows_with_the_grid():
    images = Data(np.zeros((99, 784), np.float32), np.zeros(99, int), "images")
    small = measuring_plan(GRID, None, images)
    large = measuring_plan(GRID.but(width=2000), None, images)
    assert small.memory < large.memory
    default = measuring_plan(grid_of(Sweep()), None, images)
    assert default.cells == 384 and default.programs == 1 and default.memory <= MEMORY


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"depth": (1, 2, 4, 8, 16), "width": 64, "inputs": 4, "activation": "relu"},
        {"depth": (2, 8), "width": 16, "skip": "dense", "inputs": 2},
        {"depth": (4, 8), "width": 32, "norm": "batch", "batch": 8, "inputs": 2},
    ],
)
def test_memory_is_as_stated(settings):
    depths = settings.pop("depth")
    axes = {"depth": depths, "sigma_w": (1.0, 2.0), "seed": range(2)}
    grid = sweeps.Grid(axes, outputs=10, **settings)
    mlp = grid.mlp(grid.kinds[0], max(depths), 10)
    chain = networks.chain(mlp)
    inputs, batch = settings["inputs"], settings.get("batch")
    shape = (2, inputs, batch) if batch else (2, inputs)
    x = jax.ShapeDtypeStruct((*shape, 64), jnp.float32)
    samples = sweeps.Sample(x, x, jax.ShapeDtypeStruct(shape, int))
    measures = [sweeps.signal, sweeps.jacobian]
    if mlp.norm is None and mlp.skip is None:
        # twice the compile of the others: one network is enough
        measures.append(sweeps.sharpness)
    for measure in measures:

        @jax.jit
        def run(keys, sigma_w, samples, measure=measure):
            def seed(key, samples):
                unit = chain.init(key, samples.x[0])
                bound = lambda gain: chain.bind(unit, sigma_w=gain)
                one = lambda gain, sample: measure(chain, bound(gain), sample, depths)
                return jax.vmap(lambda gain: jax.vmap(lambda sample: one(gain, sample))(samples))(
                    sigma_w
                )

            return jax.vmap(seed)(keys, samples)

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
        data = Data(np.zeros((1, 64), np.float32), np.zeros(1, int), "shape")
        compiled = run.lower(keys, jax.ShapeDtypeStruct((4,), jnp.float32), samples).compile()
        held = compiled.memory_analysis().temp_size_in_bytes
        # two seeds of four gains each
        assert abs(memory(grid, grid.kinds[0], measure, data).of(2, 8) / held - 1) <= 0.25, (
            measure,
            held,
        )


@pytest.mark.slow
def test_blas_threads_are_limited_while_running_and_restored():
    during = []

    def progress(chunks):
        for chunk in chunks:
            yield chunk
            during.append(
                max(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
            )

    before = threadpool_info()
    sweeps.run(GRID.but(activation=("tanh",)), sweeps.jacobian, DATA, progress=progress)
    assert during and set(during) == {1}
    assert threadpool_info() == before


TWO_DECOMPOSITIONS = """
import numpy as np, jax, jax.numpy as jnp
from jaxstab import networks, records, sweeps
from jaxstab.records import Data

def measure(chain, params, sample, depths):
    kernel = networks.rescale(params, 1.0).blocks.params["dense"]["kernel"]
    two = jnp.linalg.svd(kernel, compute_uv=False)[0], jnp.linalg.svd(kernel + 1, compute_uv=False)[0]
    return records.CorrelationProfile(two[0] + two[1] + jnp.linalg.eigvalsh(kernel + kernel.mT)[0])

data = Data(np.random.default_rng(0).uniform(size=(30, 7)).astype(np.float32), np.zeros(30, np.int32), "toy")
grid = sweeps.Grid({"depth": (4,), "seed": range(8), "sigma_w": np.linspace(0.5, 4, 24)}, width=96)
for _ in range(3):
    assert sweeps.run(grid, measure, data, chunk_size=24).c.notnull().all()
"""
TWO_DEVICES = """
import jax; jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jaxstab import sweeps
from jaxstab.records import Data

data = Data(np.random.default_rng(0).uniform(size=(30, 7)).astype(np.float32), np.zeros(30, np.int32), "toy")
axes = {"depth": (2, 6), "sigma_w": (0.5, 1.0, 1.5), "seed": range(4)}
grid = sweeps.Grid(axes, activation="relu", width=30)
assert len(jax.devices()) == 2 and sweeps.plan(grid, sweeps.jacobian, data).groups == 4
one = sweeps.run(grid, sweeps.jacobian, data, devices=jax.devices()[:1])
for _ in range(2):
    two = sweeps.run(grid, sweeps.jacobian, data)
    for name in one:
        np.testing.assert_array_equal(two[name], one[name])

# under a mesh the batch axis of a user's own program is divided with no change of code, and nothing is sent around
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxstab import networks, spectra
factors = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 12, 12)), jnp.float32)
divided = jax.device_put(factors, NamedSharding(Mesh(np.array(jax.devices()), ("batch",)), PartitionSpec("batch")))
program = jax.jit(jax.vmap(spectra.product_log_singular_values))
found = program(divided)
assert len(found.sharding.device_set) == 2 and "all-gather" not in program.lower(divided).compile().as_text()
np.testing.assert_allclose(found, program(factors), rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.long
def test_several_batched_decompositions_in_one_program_do_not_hang():
    # side by side on a 2-thread pool with BLAS threads of their own, such programs have stalled for good
    subprocess.run([sys.executable, "-c", TWO_DECOMPOSITIONS], check=True, timeout=240)


@pytest.mark.slow
@pytest.mark.long
def test_two_devices_do_what_one_does_and_do_not_hang():
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    subprocess.run([sys.executable, "-c", TWO_DEVICES], check=True, timeout=240, env=environment)


@pytest.mark.slow
@pytest.mark.long
def test_a_users_stacked_decompositions_keep_to_one_cpu_device():
    # on two, each would wait for threads that the other has
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    divided = 'import jax; jax.config.update("jax_num_cpu_devices", 2)\n' + TWO_DECOMPOSITIONS
    divided += "from jaxstab.sweeps.run import job_of\nassert len(job_of(grid, measure, data).devices) == 1\n"
    subprocess.run([sys.executable, "-c", divided], check=True, timeout=240, env=environment)


@pytest.mark.slow
def test_the_plan_in_numbers_is_the_one_that_runs():
    seen = []
    plan = sweeps.plan(GRID, _lengths, DATA, chunk_size=4)
    chunk = tuple(axis.chunk for axis in plan.axes.values())
    sweeps.run(
        GRID,
        _lengths,
        DATA,
        chunk_size=4,
        progress=lambda found: (seen.append(f) or f for f in found),
    )
    assert {result.values["log_q"].shape[:3] for result in seen} == {chunk} and len(
        seen
    ) == plan.groups


def test_grids_take_numpy_and_are_the_same_as_of_plain_numbers():
    axes = {"depth": np.arange(1, 4), "sigma_w": np.linspace(1, 2, 3), "clip": [1]}
    mixed = sweeps.Grid(
        axes, sigma_b=np.float32(0.5), width=np.int64(8), learning_rate=jnp.array(0.5)
    )
    axes = {"depth": (1, 2, 3), "sigma_w": (1.0, 1.5, 2.0), "clip": (1.0,)}
    plain = sweeps.Grid(axes, sigma_b=0.5, width=8, learning_rate=0.5)
    assert mixed == plain and mixed.to_json() == plain.to_json() and hash(mixed) == hash(plain)
    with pytest.raises(ValueError, match=r"sigma_b must be one real number, got \(0.0, 0.1\)"):
        sweeps.Grid({}, sigma_b=(0.0, 0.1))


def _stop_after(count):
    """A progress bar that is told to stop before the result after so many is kept."""

    def progress(results):
        for number, result in enumerate(results):
            if number == count:
                raise KeyboardInterrupt
            yield result

    return progress


@pytest.mark.slow
def test_a_durable_run_goes_on_to_what_a_plain_run_gives(tmp_path, signals):
    whole, place = tmp_path / "whole.zarr", tmp_path / "measured.zarr"
    one = GRID.but(activation=("tanh",))
    settings = {"chunk_size": 1}
    kept = sweeps.run_into(whole, one, _lengths, DATA, **settings)
    for name in ("log_q", "dead"):
        np.testing.assert_allclose(
            kept[name], signals[name].sel(activation=["tanh"]), rtol=1e-10, atol=1e-12
        )
    assert kept.done.all() and json.loads(kept.attrs["grid"])["sigma_w"] == [0.8, 1.5, 3.0]
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_into(place, one, _lengths, DATA, **settings, progress=_stop_after(2))
    assert store.progress(place).done == 2
    # the other part alone, while somebody else has this one
    with claims.claim(opening.open_grid(place, **_of(one)), shard=(1, 2)):
        with pytest.raises(BlockingIOError, match="is being computed by pid"):
            sweeps.run_into(place, one, _lengths, DATA, **settings)
        sweeps.run_into(place, one, _lengths, DATA, **settings, shard=(2, 2))
    assert store.progress(place).done == 4
    found = sweeps.run_into(place, one, _lengths, DATA, **settings)
    assert found.identical(kept) and files(place) == files(whole)


def _of(grid):
    job = Measuring(grid, _lengths, DATA, plan_of(grid, _lengths, DATA, 1))
    return {name: getattr(job, name) for name in ("settings", "fields", "axes", "coordinates")}


@pytest.mark.slow
def test_a_store_of_another_measure_is_refused(tmp_path):
    def times(factor):
        def measure(chain, params, sample, depths):
            found = propagation.correlation(chain, params, sample.x, sample.other)
            return records.CorrelationProfile(found.c * factor)

        return measure

    small = GRID.but(activation=("tanh",), seed=(0,))
    sweeps.run_into(tmp_path / "own.zarr", small, times(2.0), DATA)
    sweeps.run_into(tmp_path / "own.zarr", small, times(2.0), DATA)
    # the same source, and another value that it closes over
    with pytest.raises(store.OtherSweepError, match="program"):
        sweeps.run_into(tmp_path / "own.zarr", small, times(3.0), DATA)
