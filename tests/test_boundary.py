"""How deep networks train: boundaries, fits of n against synthetic grids of known n, steps, and reading stores back."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from scipy import special

from jaxstab.analysis import deepest_trainable, fit_depth_scale, steps_to, tuned
from jaxstab.sweeps import Grid, Variant

DEPTHS = np.unique(np.geomspace(4, 100, 12).round().astype(int))
N = 5.0


def _synthetic(rng, xi, seeds=1, gains_sd=0.0, seeds_sd=0.0, both_sd=0.0, neighbours=0.0):
    """Accuracies that fall through 0.5 at depth N xi, off by noise of gains, of seeds, and of both."""
    gain = rng.normal(size=len(xi))
    for i in range(1, len(xi)):
        gain[i] = neighbours * gain[i - 1] + (1 - neighbours**2) ** 0.5 * gain[i]
    noise = (
        gains_sd * gain[:, None]
        + seeds_sd * rng.normal(size=seeds)
        + both_sd * rng.normal(size=(len(xi), seeds))
    )
    falls = np.log(DEPTHS)[:, None, None] - (np.log(N * xi)[:, None] + noise)[None]
    return 0.1 + 0.8 / (1 + np.exp(6 * falls))


def _coverage(sets, xi, **noise):
    rng = np.random.default_rng(0)
    fits = [fit_depth_scale(_synthetic(rng, xi, **noise), DEPTHS, xi, 0.5) for _ in range(sets)]
    inside = np.mean([fit.low <= N <= fit.high for fit in fits])
    error = np.log([fit.n / N for fit in fits])
    return inside, error.mean() / (error.std() / sets**0.5), np.mean([fit.gains for fit in fits])


INSIDE, CENSORED = np.geomspace(2, 15, 12), np.geomspace(0.5, 60, 12)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("xi", "noise"),
    [
        (INSIDE, {"gains_sd": 0.2}),
        (INSIDE, {"gains_sd": 0.1, "seeds": 4, "seeds_sd": 0.2}),
        (INSIDE[:4], {"gains_sd": 0.2}),
        (CENSORED, {"gains_sd": 0.2}),
        (CENSORED, {"gains_sd": 0.15, "seeds": 2, "seeds_sd": 0.15, "both_sd": 0.1}),
    ],
    ids=["gains", "gains and seeds", "few gains", "censored", "censored, two seeds"],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(xi, noise):
    sets = 300
    inside, bias, gains = _coverage(sets, xi, **noise)
    assert (gains < len(xi) - 3) == (xi is CENSORED)
    # 0.95 within four standard errors of the share, and one per cent for the normal theory of a censored mean
    assert abs(inside - 0.95) <= 4 * (0.95 * 0.05 / sets) ** 0.5 + 0.01
    assert abs(bias) <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "xi", [INSIDE, CENSORED, INSIDE[:4]], ids=["all known", "censored", "few gains"]
)
def test_the_exponent_is_not_flattened_by_what_is_censored_and_its_error_is_right(xi):
    # through the uncensored gains alone, by least squares, it would be 0.8 where a third is censored
    sets, rng = 300, np.random.default_rng(0)
    fits = [
        fit_depth_scale(_synthetic(rng, xi, gains_sd=0.4), DEPTHS, xi, 0.5) for _ in range(sets)
    ]
    found, error, gains = np.array(
        [(fit.exponent, fit.exponent_error, fit.gains) for fit in fits]
    ).T
    assert abs(found.mean() - 1) <= 4 * found.std() / sets**0.5
    inside = np.mean(np.abs(found - 1) <= special.stdtrit(np.maximum(gains - 2, 1), 0.975) * error)
    # two per cent for the normal theory of a censored slope, which is on the safe side
    assert abs(inside - 0.95) <= 4 * (0.95 * 0.05 / sets) ** 0.5 + 0.02


@pytest.mark.slow
def test_noise_that_seeds_and_gains_share_out_makes_the_interval_too_wide_not_too_narrow():
    # noise of single runs shows among the gains and among the seeds, and is counted twice
    inside, _, _ = _coverage(100, INSIDE, seeds=4, both_sd=0.2)
    assert inside >= 0.95


@pytest.mark.slow
def test_gains_whose_neighbours_miss_alike_are_fewer():
    # a correlation of 0.6 between neighbours: uncorrected, the interval holds the truth in 62 of 100
    inside, _, _ = _coverage(300, np.geomspace(2, 15, 20), gains_sd=0.2, neighbours=0.6)
    assert 0.83 <= inside <= 0.97


def test_without_noise_n_is_exact_and_theory_explains_all():
    fine = np.unique(np.geomspace(4, 100, 60).round().astype(int))
    xi = np.append(CENSORED, [np.inf, np.nan, -1.0])
    falls = np.log(fine)[:, None] - np.log(N * np.where(xi > 0, xi, 1.0))[None]
    fit = fit_depth_scale((0.1 + 0.8 / (1 + np.exp(20 * falls)))[..., None], fine, xi, 0.5)
    # interpolated between depths up to 9 % apart
    assert abs(fit.n - N) < 0.02 * N and fit.low < fit.n < fit.high
    assert (
        fit.r_squared > 0.999
        and abs(fit.exponent - 1) < 0.02
        and fit.exponent_error < 0.01
        and fit.scatter < 0.02
    )
    assert fit.gains + fit.censored == len(CENSORED) and fit.censored > 3
    assert math.isnan(fit.error_seeds)


def test_censored_gains_are_bounds_not_data():
    xi = np.array([1.0, 2.0, 4.0, 8.0, 50.0, 100.0])
    accuracy = 0.1 + 0.8 / (1 + (DEPTHS[:, None] / (N * xi[None])) ** 6.0)
    fit = fit_depth_scale(accuracy[..., None], DEPTHS, xi, 0.5)
    assert (fit.gains, fit.censored) == (4, 2)
    # were the last two data, at the deepest depth, n would come out a third lower
    assert abs(fit.n - N) < 0.05 * N
    # a bound that contradicts pulls: no depth trains where n says that all would
    accuracy[:, -1] = 0.1
    pulled = fit_depth_scale(accuracy[..., None], DEPTHS, xi, 0.5)
    assert pulled.n < 0.8 * fit.n and pulled.high > fit.high


@pytest.mark.parametrize(
    ("column", "low", "high"),
    [
        ([0.9, 0.9, 0.9], 16.0, np.inf),
        ([0.1, 0.1, 0.1], 0.0, 4.0),
        ([0.9, 0.5, 0.1], 8.0, 8.0),
        ([0.5, 0.1, 0.1], 4.0, 4.0),
        ([0.1, 0.9, 0.5], 16.0, np.inf),
        ([0.1, 0.9, 0.1], 32**0.5 * 2, 32**0.5 * 2),
        ([0.9, np.nan, 0.1], 8.0, 8.0),
        ([np.nan, 0.9, 0.9], 16.0, np.inf),
        ([np.nan] * 3, np.nan, np.nan),
    ],
    ids=[
        "all",
        "none",
        "tie",
        "tie at the first",
        "tie at the last",
        "shallow ones fail",
        "hole",
        "start",
        "nothing",
    ],
)
def test_boundary_of_one_gain(column, low, high):
    found = deepest_trainable(np.array(column)[:, None], np.array([4, 8, 16]), 0.5)
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high], rtol=1e-12)
    assert np.isnan(found.depth[0]) == (low != high or math.isnan(low))


def test_fits_of_little_or_nothing_say_so():
    xi = np.array([1.0, 2.0, 3.0])
    nothing = fit_depth_scale(np.full((12, 3, 2), np.nan), DEPTHS, xi, 0.5)
    assert math.isnan(nothing.n) and (nothing.gains, nothing.censored) == (0, 0)
    rng = np.random.default_rng(0)
    one = fit_depth_scale(_synthetic(rng, xi[2:], seeds=2), DEPTHS, xi[2:], 0.5)
    assert abs(one.n - N) < 0.1 * N and math.isnan(one.low) and one.gains == 1
    alike = fit_depth_scale(
        np.repeat(_synthetic(rng, xi[2:]), 3, 1), DEPTHS, np.repeat(xi[2:], 3), 0.5
    )
    assert alike.scatter == 0 and math.isnan(alike.exponent) and math.isnan(alike.r_squared)
    with pytest.raises(ValueError, match="confidence must be in"):
        fit_depth_scale(np.zeros((12, 3, 1)), DEPTHS, xi, 0.5, confidence=1.0)


def test_whatever_the_accuracies_a_fit_lies_within_its_interval_or_is_nan():
    rng = np.random.default_rng(1)
    for _ in range(200):
        depths = np.sort(rng.choice(np.arange(1, 200), rng.integers(1, 9), replace=False))
        xi = np.exp(rng.normal(2, 2, rng.integers(1, 20)))
        xi[rng.random(len(xi)) < 0.1] = rng.choice([np.inf, np.nan, -3.0])
        accuracy = rng.random((len(depths), len(xi), rng.integers(1, 4)))
        accuracy = np.sort(accuracy, 0)[::-1] if rng.random() < 0.5 else accuracy.round()
        accuracy[rng.random(accuracy.shape) < rng.choice([0.0, 0.2, 0.9])] = np.nan
        fit = fit_depth_scale(accuracy, depths, xi, float(rng.choice([0.0, 0.3, 0.5, 1.0])))
        assert math.isnan(fit.low) or fit.low <= fit.n <= fit.high, fit
        assert math.isnan(fit.low) == (fit.gains < 2), fit
        assert fit.gains > 2 or math.isnan(fit.exponent_error), fit


def test_steps_to_a_threshold():
    rising = np.array([0.0, 0.5, 0.9, 0.9, 0.9, 1.0], np.float32)
    runs = np.stack(
        [rising, rising[::-1], np.full(6, 0.9, np.float32), np.append(rising[:3], [np.nan] * 3)]
    )
    # 0.9 as float32 lies below 0.9: still a tie
    assert steps_to(runs, 0.9, window=3)[[0, 1, 2]].tolist() == [5, 3, 3]
    assert np.isnan(steps_to(runs, 0.9, window=3)[3])
    assert np.isnan(steps_to(runs, 0.1, window=7)).all()
    with pytest.raises(ValueError, match="window must be"):
        steps_to(runs, 0.9, window=0)


def test_the_best_learning_rate_of_every_cell():
    values = np.array(
        [[[0.5, 0.7], [0.2, 0.2]], [[0.9, 0.1], [np.nan, 0.2]], [[np.nan] * 2, [0.1, 0.4]]]
    )
    accuracy = xr.DataArray(values, dims=("learning_rate", "depth", "seed"))
    assert tuned(accuracy).values.tolist() == [0, 2]


VARIANTS = Variant("a", "selu", "he_normal"), Variant("b", "tanh", norm="batch", skip="sum")
AXES = {
    "variant": VARIANTS, "depth": (1, 7), "sigma_w": (0.1, 1 / 3), "sigma_b": (0.0, 0.05**0.5), "width": (4, 8),
    "learning_rate": (1e-3, 0.1), "clip": (0.1, math.inf), "dropout": (0.0, 0.3), "seed": range(3),
}  # fmt: skip
EVERYTHING = Grid(AXES, optimiser="adamw", weight_decay=0.1, dtype="float64")


def test_a_grid_is_read_back_exactly():
    assert Grid.from_json(EVERYTHING.to_json()) == EVERYTHING
    assert Grid.from_json(Grid({}).to_json()) == Grid({})


@pytest.mark.parametrize(
    "change",
    [{"widht": 3}, {"width": "wide"}, {"depth": []}, {"variant": [{"name": "a", "activation": "mine"}]},
     {"variant": None}, {"clip": ["huge"]}, {"optimiser": "sdg"}, {"clip": None}],
)  # fmt: skip
def test_what_is_no_grid_is_told(change):
    with pytest.raises(ValueError, match="not a grid of a sweep: "):
        Grid.from_json(json.dumps(json.loads(EVERYTHING.to_json()) | change))
    with pytest.raises(ValueError, match="not a grid of a sweep: "):
        Grid.from_json("[1")
