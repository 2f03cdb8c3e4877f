"""Grids of trainings: a cell is its network trained, whatever computes it, and whatever is computed beside it."""

import dataclasses
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

from jaxstab import datasets, networks, records, store, trainability, training
from jaxstab.store import opening
from jaxstab.trainability import Grid, Split, Variant
from jaxstab.trainability.grid import AXES
from jaxstab.trainability.plan import cut
from jaxstab.trainability.run import coordinates, labelled
from jaxstab.trainability.run import fields as fields_of

RUN = sys.modules["jaxstab.trainability.run"]
DIGITS = datasets.load("digits")
DATA = Split(
    records.Data(DIGITS.x[:120], DIGITS.y[:120], "some"),
    records.Data(DIGITS.x[120:150], DIGITS.y[120:150], "more"),
)
# two kinds of network, depths that share a program, a learning rate that diverges
GRID = Grid(
    variants=(Variant("plain", "relu"), Variant("normed", "tanh", norm="batch", skip="sum")),
    depths=(2, 3, 6), sigma_w=(1.0, 1.5), learning_rates=(0.05, 1e30), clips=(0.5, math.inf), dropouts=(0.0, 0.2),
    seeds=2, width=8, steps=6, batch=16, optimiser="momentum", evaluate=(0, 3),
)  # fmt: skip


def together(grid, results, plan):
    results = list(results)
    assert [r.group for r in results] == list(range(len(plan.groups)))
    rows = {
        name: np.concatenate([getattr(r.seen, name) for r in results]) for name in fields_of(grid)
    }
    return rows, results


@pytest.fixture(scope="module")
def swept():
    plan, made = trainability.plan(GRID, DATA), []
    make = RUN._Programs._program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RUN._Programs, "_program", lambda *args: made.append(args[1:]) or make(*args))
        rows, _ = together(GRID, trainability.run(GRID, plan, DATA), plan)
    return plan, rows, made


def test_a_program_serves_all_depths_and_settings(swept):
    plan, _, made = swept
    assert sorted(made) == [(0, 6, 1), (1, 6, 1)] and plan.programs == 2
    assert len(GRID.cells.depth) == 2 * 3 * 2 * 2 * 2 * 2 * 2
    found = np.concatenate([group.cells for group in plan.groups])
    np.testing.assert_array_equal(np.sort(found[found >= 0]), np.arange(len(GRID.cells.depth)))


def test_a_cell_is_its_network_trained(swept):
    plan, rows, _ = swept
    at = np.concatenate([group.cells for group in plan.groups])
    cells = GRID.cells
    kind, depth, clip = np.array(cells.variant), np.array(cells.depth), np.array(cells.clip)
    pick = np.flatnonzero(
        (kind == 1) & (depth == 3) & (clip == 0.5) & (cells.dropout > 0) & (cells.learning_rate < 1)
    )
    mlp = GRID.network(1, 3, 10)
    train, test = (training.Examples(jnp.asarray(p.normalised().x), jnp.asarray(p.y)) for p in DATA)

    @jax.jit
    def alone(sigma_w, sigma_b, rate, clip, dropout, seed):
        drawn, key = jax.random.split(jax.random.key(seed))
        params = networks.init(mlp, drawn, train.x[:2], sigma_w, sigma_b)
        options = {"steps": 6, "batch": 16, "rate": dropout, "evaluate": (0, 3), "test": test}
        return training.train(mlp, params, GRID.optimise(rate, clip), train, key=key, **options)[0]

    for number in pick[:2]:
        cell = [column[number] for column in cells]
        wanted = alone(*cell[2:])
        row = np.flatnonzero(at == number)[0]
        found = records.Training(**{name: rows[name][row] for name in rows})
        found = found._replace(log_grad_theta=found.log_grad_theta[:, :4])
        # float32, a few updates
        chex.assert_trees_all_close(found, wanted, rtol=2e-3, atol=1e-4)


def test_cells_that_diverge_are_told_and_disturb_nobody(swept):
    plan, rows, _ = swept
    dataset = labelled(GRID, plan, rows, np.ones(len(plan.groups), bool))
    assert bool(dataset.done.all()) and dataset.loss.dims == (*AXES, "step")
    wild = dataset.sel(learning_rate=1e30, clip=math.inf, variant="plain")
    tame = dataset.sel(learning_rate=0.05)
    assert (wild.first_nonfinite >= 0).all() and (tame.first_nonfinite == -1).all()
    assert np.isfinite(tame.loss).all() and np.isfinite(tame.sel(clip=0.5).coefficient).all()
    # the same without the learning rate that diverges: the same neighbours or others
    calm = dataclasses.replace(GRID, learning_rates=(0.05,))
    plan = trainability.plan(calm, DATA)
    again = labelled(
        calm,
        plan,
        together(calm, trainability.run(calm, plan, DATA), plan)[0],
        np.ones(len(plan.groups), bool),
    )
    np.testing.assert_array_equal(again.loss.sel(learning_rate=0.05), tame.loss)
    # a depth has its layers
    layers = np.isfinite(tame.log_grad_theta).all(
        [d for d in tame.log_grad_theta.dims if d not in ("depth", "layer")]
    )
    np.testing.assert_array_equal(layers.sum("layer"), [3, 4, 7])


def test_unfinished_cells_are_holes(swept):
    plan, rows, _ = swept
    done = np.arange(len(plan.groups)) < 1
    dataset = labelled(GRID, plan, rows, done)
    assert int(dataset.done.sum()) == np.sum(plan.groups[0].cells >= 0)
    assert np.isnan(dataset.loss.where(~dataset.done)).all()


SCRIPT = """
import sys
from pathlib import Path
import jax; jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from jaxstab import datasets, records, trainability
from jaxstab.trainability import Grid, Split
sys.modules["jaxstab.trainability.plan"].WORK = 1  # groups as small as they get
digits = datasets.load("digits")
data = Split(*(records.Data(digits.x[part], digits.y[part], "") for part in (slice(0, 120), slice(120, 150))))
haar = (trainability.Variant("tanh", weights="orthogonal"),)
grid = Grid(haar, depths=(2, 3), sigma_w=(1.0, 1.2, 1.4, 1.6, 1.8), width=8, steps=4, batch=16)
for place in sys.argv[2:]:
    used, lanes = map(int, Path(place).stem.split("-"))
    plan = trainability.plan(grid, data, lanes=lanes)
    losses = np.zeros((10, 4), np.float32)
    for result in trainability.run(grid, plan, data, devices=jax.local_devices()[:used]):
        cells = plan.groups[result.group].cells
        losses[cells[cells >= 0]] = result.seen.loss[cells >= 0]
    np.save(place, losses)
"""


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


def test_where_memory_runs_out_lanes_are_halved(monkeypatch):
    grid = Grid(depths=(2,), sigma_w=(1.0, 1.2, 1.4, 1.6), width=8, steps=3, batch=16)
    make, tried = RUN._Programs._program, []

    def short_of_memory(self, variant, bound, lanes):
        tried.append(lanes)
        if lanes > limit:

            class Full:
                def lower(self, *_):
                    raise jax.errors.JaxRuntimeError(
                        "RESOURCE_EXHAUSTED: out of memory allocating 99 bytes"
                    )

            return Full()
        return make(self, variant, bound, lanes)

    monkeypatch.setattr(RUN._Programs, "_program", short_of_memory)
    plan = trainability.plan(grid, DATA, lanes=4)
    limit = 1
    (result,) = trainability.run(grid, plan, DATA)
    assert result.lanes == 1 and tried == [4, 2, 1] and np.all(np.isfinite(result.seen.loss))
    limit = 0
    with pytest.raises(
        MemoryError, match="one network at a time ran out of memory: RESOURCE_EXHAUSTED"
    ):
        list(trainability.run(grid, plan, DATA))


@pytest.mark.parametrize(("pending", "made"), [(None, 2), ([0], 1)])
def test_programs_of_groups_that_do_not_come_are_not_compiled(monkeypatch, pending, made):
    kinds = Variant("tanh"), Variant("relu", activation="relu")
    grid = Grid(kinds, depths=(1,), sigma_w=(1.0,), width=4, steps=1, batch=8)
    make, lowered = RUN._Programs._program, []
    monkeypatch.setattr(
        RUN._Programs, "_program", lambda *args: lowered.append(args[1:]) or make(*args)
    )
    plan = trainability.plan(grid, DATA)
    (result,) = trainability.run(grid, plan, DATA, [[0]], pending=pending)
    assert np.all(np.isfinite(result.seen.loss)) and len(lowered) == made


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_memory_is_what_xla_says(optimiser):
    grid = Grid(depths=(12,), sigma_w=(1.0,), width=64, steps=20, batch=48, optimiser=optimiser)
    programs = RUN._Programs(
        grid, trainability.plan(grid, DATA, size=1), DATA, jax.local_devices()[:1], "highest", [0]
    )
    cells = type(grid.cells)(*(column[:1] for column in grid.cells))
    one = np.array([12], np.int32), np.array([1], np.int32), cells, programs.examples
    analysis = programs._program(0, 12, 1).lower(*one).compile().memory_analysis()
    stated = trainability.memory(grid, 0, 12, DATA)
    assert abs(stated / (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) - 1) < 0.25


@pytest.mark.parametrize("skip", [None, "sum", "highway", "dense"])
def test_flops_are_three_products_per_kernel_but_two_for_the_first(skip):
    grid = dataclasses.replace(GRID, variants=(Variant("other"), Variant("this", skip=skip)))
    params = networks.init(
        grid.network(1, 6, DATA.classes), jax.random.key(0), jnp.asarray(DATA.train.x[:2])
    )
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree.leaves_with_path(params)
        if "kernel" in jax.tree_util.keystr(path)
    )
    found = trainability.flops(grid, 1, 6, DATA)
    assert found == grid.steps * grid.batch * 2 * (3 * kernels - DATA.features * grid.width)


def test_programs_grow_as_the_logarithm_of_depths():
    deep = Grid(depths=tuple(range(1, 101)), seeds=50, width=300, steps=1000, batch=100)
    assert trainability.plan(deep, DATA, budget=2**40).programs <= 1 + math.log(100, 1.25)
    assert trainability.plan(Grid(steps=100, batch=64), DATA).programs <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rates": (0.0, 0.1)}, "learning_rates must be finite and > 0, got"),
        ({"depths": (0, 2)}, "depths must be integers >= 1, got"),
        ({"depths": (4, 2)}, "depths must be ascending values, at least one, got"),
        ({"sigma_w": ()}, "sigma_w must be ascending values, at least one, got"),
        ({"clips": (0.0,)}, "clips must be > 0, got"),
        ({"dropouts": (1.0,)}, r"dropouts must be in \[0, 1\), got"),
        ({"seeds": 0}, "seeds must be an integer >= 1, got 0"),
        ({"optimiser": "sdg"}, "optimiser must be one of sgd, momentum, .* got 'sdg'"),
        ({"evaluate": (999,)}, r"evaluate must be integers in \[0, 6\], got"),
        (
            {"variants": (Variant("a"), Variant("a"))},
            "variants must be one or more of different names",
        ),
        ({"variants": (Variant("a", skip="jump"),)}, "skip must be one of"),
    ],
)
def test_bad_grids_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GRID, **change)


def test_a_grid_too_large_for_memory_says_so():
    with pytest.raises(
        ValueError,
        match=r"one network of the largest kind takes \d+ bytes to train, 1000 may be used",
    ):
        trainability.plan(GRID, DATA, budget=1000)


def test_a_precision_switched_on_for_a_while_reaches_the_compiler():
    switched = not jax.config.jax_enable_x64
    grid = Grid(
        depths=(1,),
        sigma_w=(1.0,),
        width=4,
        steps=1,
        batch=8,
        dtype="float64" if switched else "float32",
    )
    with jax.enable_x64(switched):
        (found,) = trainability.run(grid, trainability.plan(grid, DATA), DATA)
    assert found.seen.loss.dtype == grid.dtype and np.isfinite(found.seen.loss).all()


def test_chance_is_the_commonest_class():
    some = records.Data(DIGITS.x[:10], np.repeat([1, 2], (7, 3)), "uneven")
    assert Split(some, some).chance == 0.7


def test_grids_take_numpy_and_are_the_same_as_of_plain_numbers():
    mixed = Grid(
        depths=np.arange(1, 3), sigma_w=np.linspace(1, 2, 3), clips=[1], seeds=np.int64(2), width=np.int32(8),
        evaluate=np.array([0, 3]), learning_rates=jnp.array([0.5]), steps=np.array(6),
    )  # fmt: skip
    plain = Grid(
        depths=(1, 2), sigma_w=(1.0, 1.5, 2.0), clips=(1.0,), seeds=2, width=8, evaluate=(0, 3), learning_rates=(0.5,),
        steps=6,
    )  # fmt: skip
    assert mixed == plain and mixed.to_json() == plain.to_json() and hash(mixed) == hash(plain)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sigma_w": 1.0}, "sigma_w must be numbers along one axis, got 1.0"),
        ({"sigma_w": np.ones((2, 2))}, "sigma_w must be numbers along one axis"),
        ({"sigma_w": ("1",)}, "sigma_w must be one real number, got '1'"),
        ({"width": (8, 9)}, r"width must be one real number, got \(8, 9\)"),
        ({"steps": 2.5}, "steps must be an integer >= 1, got 2.5"),
    ],
)
def test_values_that_are_no_numbers_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(GRID, **change)


@pytest.mark.parametrize(("seeds", "size"), [(10**9, 8), (1, 10**9), (10**30, 1)])
def test_more_rows_than_a_store_can_list_are_refused_before_they_are_made(seeds, size):
    with pytest.raises(
        ValueError, match=f"networks in groups of {size} fill .* rows, at most 10000000"
    ):
        cut(Grid(seeds=seeds), size)


def test_rows_of_a_store_say_where_they_stand_to_any_reader(tmp_path):
    grid = dataclasses.replace(GRID, steps=3, evaluate=(0,))
    plan = cut(grid, 5)
    fields = {
        name: store.Field(
            one.shape, one.dtype.name, records.dimensions(records.Training, name, len(one.shape))
        )
        for name, one in fields_of(grid).items()
    }
    known = coordinates(grid, plan)
    groups = opening.open_groups(
        tmp_path / "a.zarr", {}, fields, len(plan.groups), plan.size, known
    )
    groups.write(1, {n: np.ones((5, *one.shape), one.dtype) for n, one in fields_of(grid).items()})
    # without a warning, which would be an error here
    found = xr.open_zarr(tmp_path / "a.zarr").load()
    assert set(found.coords) == {*AXES, "cell", "step", "evaluation", "layer"}
    there = found.isel(row=np.flatnonzero(found.cell >= 0))
    assert there.sizes["row"] == grid.count and there.depth.attrs["units"] == "layers"
    for name, values in grid.axes.items():
        assert set(there[name].values.tolist()) == set(np.array(values, there[name].dtype).tolist())
    mean = there.loss.isel(step=-1).where(there.done).groupby(["variant", "depth"]).mean()
    assert mean.dims == ("variant", "depth") and float(mean.sel(variant="plain", depth=6)) == 1.0
    xr.testing.assert_identical(
        store.load_groups(tmp_path / "a.zarr").drop_attrs(), found.drop_attrs()
    )
