"""Summaries of trainings whose outcome is known, their page, and `jaxstab report` on finished and partial stores."""

import base64
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from trained_cells import cells, dataset_of, store_of

from jaxstab import cli, report, store, theory
from jaxstab.analysis import summarise
from jaxstab.store import opening
from jaxstab.sweeps import Grid, Train, Variant

N = 4.0
GAINS = (0.8, 0.95, 1.1, 1.3, 1.7, 2.0)
AXES = {
    "variant": (Variant("tanh"), Variant("tanh & <norm>", norm="layer")), "depth": (4, 8, 12, 18, 27, 40),
    "sigma_w": GAINS, "learning_rate": (0.001, 0.01), "seed": range(2),
}  # fmt: skip
GRID = Grid(AXES, sigma_b=0.2, width=8)
TRAIN = Train(steps=60, evaluate=(0, 30))
RATES = (0.001, 0.01)
BEST_RATE = 1


def _made_up(grid, measure, done=None):
    """Trainings as they would be if depth N xi_c were all."""
    rng = np.random.default_rng(0)
    at = cells(grid)
    nothing = dataset_of(grid, measure, {}, done=False)
    xi = summarise(nothing, 0.1).xi_c.values[0]
    gain = np.searchsorted(grid.values("sigma_w"), at["sigma_w"])
    rate = np.searchsorted(grid.values("learning_rate"), at["learning_rate"])
    depth, seed = at["depth"], at["seed"]
    # the normed kind trains everywhere
    plain = (at["variant"] == 0) & (len(grid.values("variant")) > 1)
    falls = np.where(plain, np.log(depth / (N * xi[gain])), -9.0) + 0.1 * rng.normal(
        size=depth.shape
    )
    end = 0.1 + (0.8 - 0.2 * (rate != BEST_RATE)) / (1 + np.exp(8 * falls))
    looks = np.array(measure.evaluations)
    learned = 0.1 + (end - 0.1)[..., None] * np.minimum(1, looks / looks.max() * 1.2)
    layer = np.arange(grid.deepest + 1)
    deep = depth[..., None]
    gradient = np.where(layer <= deep, -(deep - layer) * 0.1, np.nan)
    values = {
        "accuracy": np.where(np.arange(measure.steps) < deep, 0.1, end[..., None]),
        "train_accuracy": learned, "test_accuracy": learned - 0.05 + 0.02 * (seed == 0)[..., None],
        "log_grad_theta": gradient[..., None, :],
        # the first seed of every deepest network stops, at two gains and one rate at once
        "first_nonfinite": np.where((depth == 40) & (seed == 0), np.where((rate == 0) & (gain < 2), 0, 7), -1),
    }  # fmt: skip
    return dataset_of(grid, measure, values, done)


@pytest.fixture(scope="module")
def whole():
    return _made_up(GRID, TRAIN)


@pytest.fixture(scope="module")
def summary(whole):
    return summarise(whole, 0.1)


@pytest.mark.slow
def test_fits_find_the_n_that_is_there_and_only_where_theory_knows_the_network(summary):
    for look in (30, 60):
        plain = summary.sel(kind="tanh", evaluation=look, scale="xi_c", side="both")
        assert plain.fit_low < N < plain.fit_high and abs(plain.fit_n / N - 1) < 0.2
        assert plain.fit_gains + plain.fit_censored == len(GAINS) and plain.fit_gains >= 3
        assert plain.fit_r_squared > 0.9 and np.isfinite(plain.fit_error_seeds)
    each = summary.sel(kind="tanh", evaluation=60, scale="xi_c").fit_gains
    assert each.sel(side="ordered") + each.sel(side="chaotic") == each.sel(side="both")
    assert summary.fit_n.sel(evaluation=0).isnull().all() and math.isnan(summary.threshold[0])
    normed = summary.sel(kind="tanh & <norm>")
    assert (
        normed.xi_c.isnull().all() and normed.fit_n.isnull().all() and (normed.fit_gains == 0).all()
    )
    assert (normed.boundary_low.isel(evaluation=-1) == 40).all() and np.isinf(
        normed.boundary_high[:, -1]
    ).all()


def test_means_errors_and_the_tuned_learning_rate(summary, whole):
    seeds = whole.train_accuracy.sel(
        variant="tanh", depth=8, sigma_w=1.1, learning_rate=0.01, evaluation=60
    ).values
    cell = summary.sel(kind="tanh", depth=8, sigma_w=1.1, evaluation=60)
    assert cell.learning_rate == RATES[BEST_RATE]
    np.testing.assert_allclose(cell.train_accuracy, seeds.mean(), rtol=1e-6)
    np.testing.assert_allclose(cell.train_accuracy_se, seeds.std(ddof=1) / 2**0.5, rtol=1e-4)
    tested = seeds + np.array([-0.03, -0.05])
    np.testing.assert_allclose(cell.test_accuracy, tested.mean(), rtol=1e-5)
    np.testing.assert_allclose(cell.test_accuracy_se, tested.std(ddof=1) / 2**0.5, rtol=1e-4)
    best = summary.sel(kind="tanh", depth=27)
    accuracies = summary.train_accuracy.sel(kind="tanh", depth=27, evaluation=60)
    assert best.best_train_accuracy == accuracies.max()
    assert best.best_sigma_w == GAINS[int(accuracies.values.argmax())]


@pytest.mark.slow
@pytest.mark.long
def test_a_gradient_that_vanished_for_one_seed_is_not_left_out(whole, tmp_path):
    whole = whole.copy(deep=True)
    gone = {"seed": 0, "depth": 8, "evaluation": 0, "layer": 3, "variant": "tanh"}
    whole.log_grad_theta.loc[gone] = -np.inf
    said = summarise(whole, 0.1)
    assert report.write(said, tmp_path / "page.html").exists()
    found = said.sel(kind="tanh", depth=8)
    assert (found.log_grad_theta.sel(layer=3) == -np.inf).all() and found.log_grad_theta_se.sel(
        layer=3
    ).isnull().all()
    np.testing.assert_allclose(found.log_grad_theta.sel(layer=4), -0.4, rtol=1e-6)


def test_learning_curves_are_those_of_the_best_gain(whole):
    whole = whole.copy(deep=True)
    rng = np.random.default_rng(1)
    whole["loss"] = whole.loss.copy(data=rng.normal(size=whole.loss.shape))
    whole.loss.loc[{"variant": "tanh", "depth": 40, "seed": 0, "step": slice(7, None)}] = np.inf
    said = summarise(whole, 0.1).sel(kind="tanh")
    best = said.sel(depth=12)
    cell = whole.loss.sel(
        variant="tanh", depth=12, sigma_w=float(best.best_sigma_w), learning_rate=0.01
    ).squeeze()
    np.testing.assert_allclose(best.learning_curve, cell.mean("seed"), rtol=1e-6)
    np.testing.assert_allclose(best.learning_curve_se, cell.std("seed", ddof=1) / 2**0.5, rtol=1e-6)
    # beyond float32's largest or NaN, a seed ends the curve
    assert np.isfinite(said.learning_curve.sel(depth=40)).values.tolist() == [True] * 7 + [
        False
    ] * (TRAIN.steps - 7)


def test_steps_and_outcomes(summary):
    shallow = summary.sel(kind="tanh & <norm>", depth=8)
    # a window of ten, half of whose accuracies and a little more are those of the end
    assert ((shallow.steps > 8) & (shallow.steps <= 18) & (shallow.steps_reached == 1)).all()
    assert summary.steps.sel(kind="tanh", depth=40, sigma_w=0.8).isnull()
    runs = summary.runs.sel(kind="tanh & <norm>").to_series()
    each = GRID.count // 2
    assert runs.sum() == each and runs["missing"] == 0
    assert runs["not finite from the start"] == 2 and runs["not finite later"] == 2 * len(GAINS) - 2
    # at the worse rate all that train come to 0.7, over the threshold of half-way to 0.9
    assert runs["trained"] == each - 2 * len(GAINS) and runs["below the threshold"] == 0


def test_theory_is_that_of_each_gain_and_bias_and_of_no_other_network():
    axes = AXES | {"sigma_b": (0.05, 0.4), "dropout": (0.0, 0.2), "seed": range(1)}
    grid = Grid(axes, width=8)
    said = summarise(dataset_of(grid, Train(2, ()), {}, done=False), 0.1)
    for bias, name in ((0.05, "0.05"), (0.4, "0.4")):
        kind = said.sel(kind=f"tanh, sigma_b {name}, dropout 0")
        for i, gain in enumerate(GAINS):
            point = theory.fixed_point("tanh", gain, bias)
            found = [float(kind[field][i]) for field in ("xi_c", "xi_grad", "chi_1")]
            # where a depth scale is long, it is the inverse of a small difference
            np.testing.assert_allclose(found, [point.xi_c, point.xi_grad, point.chi_1], rtol=1e-4)
        assert said.xi_c.sel(kind=f"tanh, sigma_b {name}, dropout 0.2").isnull().all()


def _pictures(page):
    """The figures of a page as SVG, each wide and narrow."""
    assert not re.search(r"""(src|href|srcset)=['"](?!data:)""", page), (
        "nothing is fetched from elsewhere"
    )
    found = re.findall(r'src(?:set)?="data:image/svg\+xml;base64,([^"]+)"', page)
    for picture in found:
        ElementTree.fromstring(base64.b64decode(picture))
    return found


@pytest.mark.slow
def test_the_page_holds_everything_and_no_markup_of_names(summary, tmp_path):
    page = report.write(summary, tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(_pictures(page)) == 8 and "missing (" not in page and "Not finished" not in page
    for said in (
        "tanh &amp; &lt;norm&gt;", "the best in every cell", "R&sup2;", "not finite later", "at the start",
        "Learning curves", "learning_curves.csv",
    ):  # fmt: skip
        assert said in page, said
    assert "<norm>" not in page


@pytest.mark.slow
def test_report_of_a_store_half_way_says_how_much_is_missing(tmp_path, capsys):
    half = np.arange(12).reshape(2, 6, 1, 1, 1) % 2 == 0
    dataset = _made_up(GRID, TRAIN, half)
    store_of(tmp_path / "trained.zarr", dataset, size=2)
    assert cli.main(["report", str(tmp_path / "trained.zarr")]) == 0
    # named after the store: others may lie in the same folder
    assert capsys.readouterr().out == f"report: {tmp_path / 'trained.html'}\n"
    page = (tmp_path / "trained.html").read_text(encoding="utf-8")
    assert f"{GRID.count // 2} of {GRID.count} runs are missing" in page
    assert len(_pictures(page)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["nothing yet", "one cell"])
def test_report_of_next_to_nothing(done, tmp_path):
    grid = GRID.but(
        variant=GRID.values("variant")[1:],
        depth=(4,),
        sigma_w=(1.1,),
        seed=(0,),
        learning_rate=(0.01,),
    )
    url = f"memory://trained-{done}.zarr"
    store_of(url, _made_up(grid, Train(60, ()), done))
    assert cli.main(["report", url, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(_pictures(page)) == 8 and ("1 of 1 runs are missing" in page) == (not done)
    assert "--evaluate 0 includes it" in page


def test_a_store_of_something_else_is_one_line_and_exit_code_2(tmp_path, capsys):
    opening.open_groups(
        tmp_path / "a.zarr", {"width": 3}, {"x": store.Field((), "float32", ())}, 1, 1
    )
    assert cli.main(["report", str(tmp_path / "a.zarr")]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith(f"jaxstab: {tmp_path / 'a.zarr'}: not a store of a sweep")
        and err.count("\n") == 1
    )
    with pytest.raises(ValueError, match="needs their summary"):
        report.write(xr.Dataset({"train_accuracy": 1.0}), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_chance_is_a_share(whole):
    with pytest.raises(ValueError, match="chance must be in"):
        summarise(whole, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [None, 0, [], "x", {"classes": 0}, {"chance": 2.0}])
@pytest.mark.parametrize("name", ["grid", "data", "measure", None])
def test_settings_that_are_missing_or_null_are_one_line(tmp_path, capsys, name, bad):
    grid = Grid({"depth": (1,), "seed": (0,)})
    groups = store_of(tmp_path / "whole.zarr", dataset_of(grid, Train(1), {}, done=False))
    settings = {"nothing": 1} if name is None else groups.settings | {name: bad}
    opening.open_grid(tmp_path / "a.zarr", settings, groups.fields, groups.axes)
    for command in ("report", "status"):
        code = cli.main([command, str(tmp_path / "a.zarr")])
        said, complained = capsys.readouterr()
        # status needs no data, a page no measure
        needless = {"status": ("data",), "report": ()}[command]
        assert code == (0 if name in needless else 2), (command, said)
        assert complained.count("\n") == (code == 2), complained
