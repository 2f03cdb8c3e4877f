"""Sharpness along the trainings of a grid: its records, and its place beside the edge of stability."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trained_cells import cells, dataset_of

from jaxstab import datasets, networks, report, sweeps, training
from jaxstab.analysis import summarise
from jaxstab.analysis.edges import stable_product
from jaxstab.records import Data
from jaxstab.sweeps import Grid, Split, Train

AXES = {"depth": (1, 2), "learning_rate": (0.1, 1e30), "seed": range(2)}
GRID = Grid(AXES, width=6, activation="relu", sigma_w=2**0.5)
TRAIN = Train(steps=5, curvature_every=2)


def some_digits():
    digits = datasets.load("digits")
    part = Data(digits.x[:40], digits.y[:40], "some digits")
    return Split(part, part)


@pytest.fixture(scope="module")
def swept():
    return sweeps.run(GRID, TRAIN, some_digits())


def test_a_record_is_that_of_the_run_alone(swept):
    assert sweeps.plan(GRID, TRAIN, some_digits()).programs == 1
    assert swept.sharpness.dims == ("depth", "learning_rate", "seed", "record")
    assert swept.record.values.tolist() == [0, 2, 4]
    mlp = GRID.mlp(GRID.kinds[0], 2, 10)
    part = some_digits().train
    data = training.Examples(jnp.asarray(part.normalised().x), jnp.asarray(part.y))

    @jax.jit
    def alone():
        drawn, key = jax.random.split(jax.random.key(1))
        params = networks.chain(mlp).init(drawn, data.x[:2], 2**0.5)
        seen, _ = training.train(
            mlp, params, optax.sgd(0.1), data, key=key, steps=5, curvature_every=2
        )
        return seen.sharpness, seen.sharpness_error

    cell = swept.sel(depth=2, learning_rate=0.1, seed=1)
    # float32, a few updates
    for wanted, found in zip(alone(), (cell.sharpness, cell.sharpness_error), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-4 * cell.sharpness.max())


def test_a_run_that_diverges_has_no_sharpness_from_then_on(swept):
    wild = swept.sel(learning_rate=1e30)
    first = wild.first_nonfinite
    # of one network all units are dead after the first update, and its loss stays finite
    assert (first == 1).sum() == 3
    gone = (first >= 0) & (wild.record >= first)
    assert wild.sharpness.where(gone).isnull().all()
    assert np.isfinite(wild.sharpness.sel(record=0)).all()
    assert np.isfinite(swept.sharpness.sel(learning_rate=0.1)).all()


@pytest.mark.parametrize(
    ("settings", "product"),
    [
        ({"optimiser": "sgd", "momentum": None}, 2.0),
        ({"optimiser": "sgd", "momentum": 0.5}, 3.0),
        ({"optimiser": "momentum", "momentum": None}, 3.8),
        ({"optimiser": "nesterov", "momentum": 0.5}, 1.5),
        ({"optimiser": "adam", "momentum": None}, np.nan),
        ({"optimiser": optax.sgd, "momentum": None}, np.nan),
    ],
)
def test_stable_products(settings, product):
    np.testing.assert_allclose(stable_product(settings), product, rtol=1e-12)


@pytest.fixture(scope="module")
def summary():
    axes = {
        "optimiser": ("sgd", "momentum", "adam"),
        "depth": (2, 4),
        "sigma_w": (1.0, 2.0),
        "learning_rate": (0.1, 0.2),
        "seed": range(2),
    }
    grid = Grid(axes, width=8)
    measure = Train(steps=6, curvature_every=3)
    at = cells(grid)
    # the second gain trains best at the second rate, the first at the first
    best = (at["sigma_w"] == 2) & (at["learning_rate"] == 0.2)
    sharp = at["depth"] + at["seed"] + 10 * at["sigma_w"]
    values = {
        "train_accuracy": (0.5 + 0.4 * best)[..., None],
        "sharpness": sharp[..., None] * [1, 2],
        "first_nonfinite": -1,
    }
    dataset = dataset_of(grid, measure, values).assign_coords(record=[0, 3])
    dataset.sharpness.loc[{"depth": 4, "seed": 0, "record": 3}] = np.nan
    return summarise(dataset, 0.1)


def test_a_summary_has_the_best_gains_sharpness_over_its_edge(summary):
    of = summary.sharpness_over_edge
    # mean over seeds of (depth + seed + 20) times 0.2 over 2
    np.testing.assert_allclose(of.sel(kind="sgd", depth=2), [2.25, 4.5], rtol=1e-6)
    np.testing.assert_allclose(of.sel(kind="momentum", depth=2), [4.5 / 3.8, 9 / 3.8], rtol=1e-6)
    assert of.sel(kind="adam").isnull().all()
    error = summary.sharpness_over_edge_se.sel(kind="sgd", depth=2)
    # half the difference of two seeds, 0.1
    np.testing.assert_allclose(error, [0.05, 0.1], rtol=1e-6)
    # a seed without one ends the curve
    assert of.sel(kind="sgd", depth=4).isnull().values.tolist() == [False, True]


def test_the_page_draws_it(summary, tmp_path):
    page = report.write(summary, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Sharpness relative to the edge" in page and "sharpness.csv" in page
    assert "At the last record, by depth: sgd: 4.5, nan" in page


def test_wrong_intervals_are_refused():
    with pytest.raises(ValueError, match="curvature_every must be an integer >= 1, got 0"):
        Train(steps=5, curvature_every=0)
