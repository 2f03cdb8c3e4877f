"""Grids of trainings: a cell is its network trained, whatever computes it, and whatever is computed beside it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxstab import datasets, networks, records, sweeps, training
from jaxstab.store import fields
from jaxstab.sweeps import Grid, Split, Train, Variant
from jaxstab.sweeps.durable import batches
from jaxstab.sweeps.plan import cell_axes, cut
from jaxstab.sweeps.training_plan import bounds, flops, memory, training_plan
from jaxstab.sweeps.trainings import Trainings

DIGITS = datasets.load("digits")
DATA = Split(
    records.Data(DIGITS.x[:120], DIGITS.y[:120], "some"),
    records.Data(DIGITS.x[120:150], DIGITS.y[120:150], "more"),
)
# two kinds of network, depths that share a program, a learning rate that diverges
AXES = {
    "variant": (Variant("plain", "relu"), Variant("normed", "tanh", norm="batch", skip="sum")),
    "depth": (2, 3, 6), "sigma_w": (1.0, 1.5), "learning_rate": (0.05, 1e30), "clip": (0.5, math.inf),
    "dropout": (0.0, 0.2), "seed": range(2),
}  # fmt: skip
GRID = Grid(AXES, sigma_b=0.05**0.5, width=8, batch=16, optimiser="momentum")
TRAIN = Train(steps=6, evaluate=(0, 3))


def job_of(grid, measure=TRAIN, **options):
    return Trainings(grid, measure, DATA, training_plan(grid, measure, DATA, **options))


def results_of(job, groups=None):
    groups = range(job.plan.groups) if groups is None else groups
    return list(job.compute(parts_of(job, groups), groups))


def parts_of(job, groups):
    return batches(groups, len(job.devices), job.program, job.rank)


@pytest.fixture(scope="module")
def swept():
    made = []
    make = Trainings._program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainings, "_program", lambda *args: made.append(args[1:]) or make(*args))
        found = sweeps.run(GRID, TRAIN, DATA)
    return found, made


@pytest.mark.slow
def test_a_program_serves_all_depths_and_settings(swept):
    found, made = swept
    assert sorted(made) == [(0, 6, 1), (1, 6, 1)] and sweeps.plan(GRID, TRAIN, DATA).programs == 2
    assert found.loss.dims == (*AXES, "step") and found.loss.size == 6 * GRID.count == 6 * 192


@pytest.mark.slow
def test_a_cell_is_its_network_trained(swept):
    found, _ = swept
    mlp = GRID.mlp(GRID.kinds[1], 3, 10)
    train, test = (training.Examples(jnp.asarray(p.normalised().x), jnp.asarray(p.y)) for p in DATA)

    @jax.jit
    def alone(sigma_w, seed):
        drawn, key = jax.random.split(jax.random.key(seed))
        params = networks.chain(mlp).init(drawn, train.x[:2], sigma_w, 0.05**0.5)
        options = {"steps": 6, "batch": 16, "rate": 0.2, "evaluate": (0, 3), "test": test}
        tx = GRID.optimise(
            GRID.kinds[1],
            {"learning_rate": 0.05, "clip": 0.5, "momentum": None, "weight_decay": None},
        )
        return training.train(mlp, params, tx, train, key=key, **options)[0]

    at = {"variant": "normed", "depth": 3, "learning_rate": 0.05, "clip": 0.5, "dropout": 0.2}
    for sigma_w, seed in ((1.0, 0), (1.5, 1)):
        wanted = alone(jnp.float32(sigma_w), jnp.int32(seed))
        cell = found.sel(at, method=None).sel(sigma_w=sigma_w, seed=seed)
        # the sharpness was not recorded
        known = {name: cell[name].values for name in records.Training._fields if name in cell}
        nothing = {name: np.zeros(0) for name in ("sharpness", "sharpness_error")}
        own = records.Training(**(known | nothing))
        own = own._replace(log_grad_theta=own.log_grad_theta[:, :4])
        # float32, a few updates
        chex.assert_trees_all_close(own, wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.slow
def test_cells_that_diverge_are_told_and_disturb_nobody(swept):
    dataset, _ = swept
    wild = dataset.sel(learning_rate=1e30, clip=math.inf, variant="plain")
    tame = dataset.sel(learning_rate=0.05)
    assert (wild.first_nonfinite >= 0).all() and (tame.first_nonfinite == -1).all()
    assert np.isfinite(tame.loss).all() and np.isfinite(tame.sel(clip=0.5).coefficient).all()
    # the same without the learning rate that diverges: the same neighbours or others
    again = sweeps.run(GRID.but(learning_rate=(0.05,)), TRAIN, DATA)
    np.testing.assert_array_equal(again.loss.sel(learning_rate=0.05), tame.loss)
    # a depth has its layers
    layers = np.isfinite(tame.log_grad_theta).all(
        [d for d in tame.log_grad_theta.dims if d not in ("depth", "layer")]
    )
    np.testing.assert_array_equal(layers.sum("layer"), [3, 4, 7])


@pytest.mark.slow
def test_a_store_resumes_and_unfinished_cells_are_holes(swept, tmp_path):
    whole, _ = swept
    grid = GRID.but(variant=AXES["variant"][:1])

    def interrupted(results):
        for count, result in enumerate(results):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    place = tmp_path / "trained.zarr"
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_into(place, grid, TRAIN, DATA, progress=interrupted)
    part = sweeps.load(place)
    plan = sweeps.plan(grid, TRAIN, DATA)
    # the deepest first
    assert int(part.done.sum()) == 3 * plan.size and bool(part.done.isel(depth=-1).any())
    assert not bool(part.done.isel(depth=0).any()) and np.isnan(part.loss.where(~part.done)).all()
    # a coordinate that is lost is told, and written anew by the next run
    (place / "depth" / "c.0").write_bytes(b"torn")
    with pytest.raises(ValueError, match="values along depth are missing or torn; the command"):
        sweeps.load(place)
    found = sweeps.run_into(place, grid, TRAIN, DATA)
    assert bool(found.done.all()) and found.attrs["data_chance"] == DATA.chance
    xr.testing.assert_equal(found[list(whole.data_vars)], whole.sel(variant=["plain"]))
    # without a warning, which would be an error here
    other = xr.open_zarr(place).load()
    xr.testing.assert_identical(other.drop_attrs(), found.drop_attrs())
    assert other.depth.attrs["units"] == "layers"


@pytest.mark.slow
@pytest.mark.long
def test_any_setting_of_network_or_optimiser_is_an_axis():
    axes = {"width": (4, 8), "batch": (8, 16), "momentum": (0.0, 0.9), "depth": (1, 2)}
    grid = Grid(axes, optimiser="momentum", activation="relu", sigma_w=2**0.5)
    found = sweeps.run(grid, Train(4, ()), DATA)
    assert found.loss.dims == ("width", "batch", "depth", "momentum", "step")
    assert sweeps.plan(grid, Train(4, ()), DATA).programs == 4
    one = Grid(
        {},
        width=8,
        batch=16,
        momentum=0.9,
        depth=1,
        optimiser="momentum",
        activation="relu",
        sigma_w=2**0.5,
    )
    alone = sweeps.run(one, Train(4, ()), DATA).loss.squeeze()
    np.testing.assert_allclose(
        found.loss.sel(width=8, batch=16, momentum=0.9, depth=1), alone, rtol=1e-5
    )
    # without momentum it is plain gradient descent
    plain = sweeps.run(one.but(momentum=None, optimiser="sgd"), Train(4, ()), DATA).loss.squeeze()
    np.testing.assert_allclose(
        found.loss.sel(width=8, batch=16, momentum=0.0, depth=1), plain, rtol=1e-5
    )


@pytest.mark.slow
def test_networks_of_the_users_own_train_by_depth_and_gain():
    def init(key, h):
        return {"kernel": jax.random.normal(key, (h.shape[-1], 10), h.dtype) / h.shape[-1] ** 0.5}

    def network(depth):
        layer = (init, lambda theta, h: jnp.tanh(h) @ theta["kernel"])
        return networks.from_functions([layer] * (depth + 2))

    grid = Grid(
        {"depth": (1, 3), "sigma_w": (0.5, 1.5)}, network=network, batch=16, learning_rate=0.1
    )
    found = sweeps.run(grid, Train(3, (0,)), DATA)
    assert found.loss.dims == ("depth", "sigma_w", "step") and bool(np.isfinite(found.loss).all())
    x = training.Examples(jnp.asarray(DATA.train.x), jnp.asarray(DATA.train.y))
    chain = network(3)
    drawn, key = jax.random.split(jax.random.key(0))
    params = networks.rescale(chain.init(drawn, x.x[:2]), 1.5)
    alone = jax.jit(
        lambda p: training.train(
            chain, p, grid.optimise(grid.kinds[0], dict(CELL)), x, key=key, steps=3, batch=16
        )[0]
    )
    np.testing.assert_allclose(found.loss.sel(depth=3, sigma_w=1.5), alone(params).loss, rtol=1e-5)


CELL = {"learning_rate": 0.1, "momentum": None, "weight_decay": None}


SCRIPT = """
import sys
from pathlib import Path
import jax; jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from jaxstab import datasets, records
from jaxstab.sweeps import Grid, Split, Train
from jaxstab.sweeps.durable import batches
from jaxstab.sweeps.training_plan import training_plan
from jaxstab.sweeps.trainings import Trainings
digits = datasets.load("digits")
data = Split(*(records.Data(digits.x[part], digits.y[part], "") for part in (slice(0, 120), slice(120, 150))))
axes = {"depth": (2, 3), "sigma_w": (1.0, 1.2, 1.4, 1.6, 1.8)}
grid = Grid(axes, activation="tanh", weights="orthogonal", sigma_b=0.2, width=8, batch=16)
for place in sys.argv[2:]:
    used, lanes = map(int, Path(place).stem.split("-"))
    plan = training_plan(grid, Train(4), data, lanes, lanes=lanes)
    job = Trainings(grid, Train(4), data, plan, devices=jax.local_devices()[:used])
    losses = np.zeros((2, 5, 4), np.float32)
    parts = batches(range(plan.groups), used, job.program, job.rank)
    for result in job.compute(parts, range(plan.groups)):
        at = tuple(plan.at(result.group).values())
        losses[at] = result.values["loss"][job.plan.inside(result.group)]
    np.save(place, losses)
"""


@pytest.mark.slow
@pytest.mark.long
def test_numbers_do_not_depend_on_the_number_of_devices(tmp_path):
    # devices used, and lanes; the first in a process of one device, the others in one of eight
    files = [tmp_path / f"{used}-{lanes}.npy" for used, lanes in ((1, 1), (8, 1), (2, 2))]
    commands = [
        [sys.executable, "-c", SCRIPT, *of] for of in (("1", *files[:1]), ("8", *files[1:]))
    ]
    # orthogonal weights are decompositions; nothing is set in the environment
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    runs = [
        subprocess.Popen(line, env=environment, cwd=Path(__file__).parent.parent)
        for line in commands
    ]
    assert [run.wait(timeout=240) for run in runs] == [0] * len(runs)
    one, eight, lanes = map(np.load, files)
    assert np.all(one > 0)
    np.testing.assert_array_equal(one, eight)
    # side by side in lanes: another program, float tolerance over the first steps
    np.testing.assert_allclose(one, lanes, rtol=1e-4)


@pytest.mark.slow
def test_where_memory_runs_out_lanes_are_halved(monkeypatch):
    grid = Grid({"sigma_w": (1.0, 1.2, 1.4, 1.6)}, depth=2, width=8, batch=16)
    make, tried = Trainings._program, []

    def short_of_memory(self, kind, bound, lanes):
        tried.append(lanes)
        if lanes > limit:

            class Full:
                def lower(self, *_):
                    raise jax.errors.JaxRuntimeError(
                        "RESOURCE_EXHAUSTED: out of memory allocating 99 bytes"
                    )

            return Full()
        return make(self, kind, bound, lanes)

    monkeypatch.setattr(Trainings, "_program", short_of_memory)
    limit = 1
    job = job_of(grid, Train(3), lanes=4)
    (result,) = results_of(job)
    assert job.lanes == 1 and tried == [4, 2, 1] and np.all(np.isfinite(result.values["loss"]))
    limit = 0
    with pytest.raises(
        MemoryError, match="one network at a time ran out of memory: RESOURCE_EXHAUSTED"
    ):
        results_of(job_of(grid, Train(3), lanes=4))


@pytest.mark.slow
@pytest.mark.parametrize(("pending", "made"), [(range(2), 2), ([0], 1)])
def test_programs_of_groups_that_do_not_come_are_not_compiled(monkeypatch, pending, made):
    grid = Grid({"activation": ("tanh", "relu")}, depth=1, width=4, batch=8)
    make, lowered = Trainings._program, []
    monkeypatch.setattr(
        Trainings, "_program", lambda *args: lowered.append(args[1:]) or make(*args)
    )
    (result,) = job_of(grid, Train(1)).compute([[0]], pending)
    assert np.all(np.isfinite(result.values["loss"])) and len(lowered) == made


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_memory_is_what_xla_says(optimiser):
    grid = Grid({}, depth=12, width=64, batch=48, optimiser=optimiser)
    measure = Train(20)
    plan = training_plan(grid, measure, DATA)
    job = Trainings(grid, measure, DATA, plan, devices=jax.local_devices()[:1])
    stated = memory(grid, grid.kinds[0], measure, 12, DATA)
    assert abs(stated / job.memory(0) - 1) < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("skip", [None, "sum", "highway", "dense"])
def test_flops_are_three_products_per_kernel_but_two_for_the_first(skip):
    grid = Grid({"variant": (Variant("other"), Variant("this", skip=skip))}, width=8, batch=16)
    kind = grid.kinds[1]
    params = networks.chain(grid.mlp(kind, 6, DATA.classes)).init(
        jax.random.key(0), jnp.asarray(DATA.train.x[:2])
    )
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    )
    found = flops(grid, kind, TRAIN, 6, DATA)
    assert found == 6 * 16 * 2 * (3 * kernels - DATA.features * 8)


def test_programs_grow_as_the_logarithm_of_depths():
    deep = Grid({"depth": range(1, 101), "seed": range(50)}, width=300, batch=100)
    found = bounds(deep, deep.kinds[0], Train(1000))
    assert len(set(found.values())) <= 1 + math.log(100, 1.25)
    assert all(depth <= bound for depth, bound in found.items())
    few = Grid({"depth": (4, 8, 16, 32, 64), "sigma_w": np.linspace(0.5, 2.5, 12)})
    assert len(set(bounds(few, few.kinds[0], Train(100)).values())) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": (0.0, 0.1)}, "learning_rate must be finite and > 0, got 0"),
        ({"depth": (0, 2)}, "depth must be an integer >= 1, got 0"),
        ({"depth": (4, 2)}, "depth must be ascending values, at least one, got"),
        ({"sigma_w": ()}, "sigma_w must be ascending values, at least one, got"),
        ({"clip": (0.0,)}, "clip must be > 0, got"),
        ({"dropout": (1.0,)}, r"dropout must be in \[0, 1\), got"),
        ({"seed": (-1,)}, "seed must be an integer >= 0, got -1"),
        ({"seed": (2**31,)}, "seed must be at most 2147483647"),
        ({"optimiser": "sdg"}, "optimiser must be one of sgd, momentum, .* got 'sdg'"),
        ({"optimiser": "sgd", "weight_decay": 0.1}, "weight_decay must be left out: optimiser sgd takes none, adamw"),
        ({"variant": (Variant("a"), Variant("a"))}, "variant must be one or more Variants of different names"),
        ({"variant": (Variant("a", skip="jump"),)}, "skip must be one of"),
        ({"batch": 1}, "BatchNorm needs a batch of at least 2"),
        ({"sigma_w": 1.0}, "sigma_w must be numbers along one axis, got 1.0"),
        ({"sigma_w": np.ones((2, 2))}, "sigma_w must be numbers along one axis"),
        ({"sigma_w": ("1",)}, "sigma_w must be one real number, got '1'"),
        ({"width": (8, 9)}, r"width must be one real number, got \(8, 9\)"),
    ],
)  # fmt: skip
def test_bad_grids_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        GRID.but(**change)


@pytest.mark.parametrize(
    ("axes", "fixed", "message"),
    [
        ({"widht": (1,)}, {}, "a setting must be one of .*width.* got 'widht'"),
        ({"width": (1,)}, {"width": 2}, "width must be an axis or a fixed setting, got both"),
        ({"dtype": ("float32",)}, {}, "dtype must be one value of the whole grid, got an axis"),
        ({"activation": ("tanh", "tanh")}, {}, "activation must be of different values"),
        ({"activation": "tanh"}, {}, "activation must be one or more values, got 'tanh'"),
    ],
)  # fmt: skip
def test_bad_axes_are_named(axes, fixed, message):
    with pytest.raises(ValueError, match=message):
        Grid(axes, **fixed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2.5}, "steps must be an integer >= 1, got 2.5"),
        ({"steps": 0}, "steps must be an integer >= 1, got 0"),
        ({"evaluate": (999,)}, r"evaluate must be integers in \[0, 200\], got"),
    ],
)
def test_bad_trainings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Train(**settings)


def test_axes_and_data_that_a_measure_does_not_know_are_named():
    with pytest.raises(ValueError, match="learning_rate must be axes of trainings"):
        sweeps.run(Grid({"learning_rate": (0.1,)}), sweeps.signal, DATA.train)
    with pytest.raises(ValueError, match="data must be one Data to measure at, got a Split"):
        sweeps.run(Grid({}), sweeps.signal, DATA)


def test_a_grid_too_large_for_memory_says_so():
    with pytest.raises(
        ValueError,
        match=r"training one of the largest networks takes \d+ bytes, at most 1000 may be used",
    ):
        training_plan(GRID, TRAIN, DATA, budget=1000)


@pytest.mark.slow
def test_a_precision_switched_on_for_a_while_reaches_the_compiler():
    switched = not jax.config.jax_enable_x64
    dtype = "float64" if switched else "float32"
    grid = Grid({}, depth=1, width=4, batch=8, dtype=dtype)
    with jax.enable_x64(switched):
        found = sweeps.run(grid, Train(1), DATA)
    assert found.loss.dtype == dtype and np.isfinite(found.loss).all()


def test_chance_is_the_commonest_class():
    some = records.Data(DIGITS.x[:10], np.repeat([1, 2], (7, 3)), "uneven")
    assert Split(some, some).chance == 0.7


@pytest.mark.parametrize("seeds", [10**9, 2**31])
def test_more_cells_than_a_store_can_list_are_refused_before_they_are_made(seeds):
    grid = Grid({"seed": range(seeds)})
    with pytest.raises(ValueError, match=f"at most 10000000 networks, got {seeds}"):
        cut(grid, {}, cell_axes(grid, prefixes=False))


def test_where_a_cell_stands_does_not_depend_on_how_programs_are_shared_out(monkeypatch):
    grid = Grid({"depth": (1, 2, 4, 8, 16, 32), "sigma_w": (1.0, 1.5), "seed": range(3)}, width=16)
    before = job_of(grid)
    monkeypatch.setattr(sys.modules["jaxstab.sweeps.training_plan"], "COMPILE", 0.0)
    after = job_of(grid)
    assert after.plan.programs > before.plan.programs and after.axes == before.axes
    # groups of a program follow one another, the deepest first
    order = [
        after.program(group)
        for batch in parts_of(after, range(after.plan.groups))
        for group in batch
    ]
    changes = sum(a != b for a, b in zip(order, order[1:], strict=False))
    assert len(set(order)) == after.plan.programs == 1 + changes
    assert order == sorted(order, reverse=True)
    assert fields.part(after.axes, 0)[0] == slice(0, 1)
