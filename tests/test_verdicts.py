"""Verdicts from profiles made by hand."""

import numpy as np
import pytest
import xarray as xr

from jaxstab.analysis import verdicts

LAYERS = np.arange(5)


def _profiles(rates):
    """log_grad_h (seed, sigma_w, input=1, depth=(2, 4), layer) that grow by `rates` (seed, sigma_w) per layer."""
    line = np.asarray(rates)[:, :, None, None, None] * LAYERS
    line = np.repeat(line, 2, axis=3)
    line[..., 0, 3:] = np.nan
    dims = ("seed", "sigma_w", "input", "depth", "layer")
    gains = np.arange(1.0, 1 + np.shape(rates)[1])
    return xr.DataArray(
        line, dims=dims, coords={"sigma_w": gains, "depth": [2, 4], "layer": LAYERS}
    )


def _dataset(rates):
    measured = _profiles(rates).expand_dims(activation=["tanh"])
    predicted = (
        _profiles([np.mean(rates, axis=0)])
        .isel(seed=0, input=0, drop=True)
        .expand_dims(activation=["tanh"])
    )
    log_s = xr.DataArray(
        np.zeros((1, len(rates), len(rates[0]), 2, 3)),
        dims=("activation", "seed", "sigma_w", "depth", "index"),
        coords={"activation": ["tanh"], "depth": [2, 4]},
    )
    return xr.Dataset({"log_grad_h": measured, "predicted_log_grad_h": predicted, "log_s": log_s})


def test_rate_is_the_least_squares_slope():
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=5)
    profile = xr.DataArray(
        noisy[None], dims=("depth", "layer"), coords={"depth": [4], "layer": LAYERS}
    )
    assert float(verdicts.rate(profile)) == pytest.approx(
        np.polyfit(LAYERS, noisy, 1)[0], rel=1e-12
    )
    profile[0, 2] = -np.inf
    assert np.isnan(verdicts.rate(profile))


def test_verdicts_and_critical_gains():
    judged = verdicts.judge(_dataset([[1.0, 0.4, -0.4, -1.0], [1.1, 0.2, -0.6, -1.0]]))
    assert judged.verdict.values.tolist() == [["vanish", "vanish", "explode", "explode"]]
    np.testing.assert_allclose(judged.rate[0], [1.05, 0.3, -0.5, -1.0])
    np.testing.assert_allclose(judged.rate_se[0], [0.05, 0.1, 0.1, 0.0], atol=1e-12)
    # one seed crosses at 2.5, the other at 2.25
    assert judged.measured_critical.item() == pytest.approx(2.375)
    assert judged.measured_critical_se.item() == pytest.approx(0.125)
    assert judged.measured_critical_seeds.item() == 2
    assert judged.predicted_critical.item() == pytest.approx(2 + 0.3 / 0.8)


def test_a_rate_within_its_error_or_of_no_consequence_is_critical():
    noisy = verdicts.judge(_dataset([[1.0, 3.0], [1.0, -2.0]]))
    assert noisy.verdict.values.tolist() == [["vanish", "critical"]]
    flat = verdicts.judge(_dataset([[0.2, -0.2], [0.2, -0.2]]))
    assert flat.verdict.values.tolist() == [["critical", "critical"]], (
        "less than a factor e over four layers"
    )


def test_gradients_that_are_not_finite_are_undefined():
    dataset = _dataset([[np.nan, -1.0], [np.nan, -1.0]])
    judged = verdicts.judge(dataset)
    assert judged.verdict.values.tolist() == [["undefined", "explode"]]
    assert np.isnan(judged.measured_critical) and judged.measured_critical_seeds.item() == 0


def test_one_seed_has_no_standard_error():
    judged = verdicts.judge(_dataset([[1.0, -1.0]]))
    assert np.isnan(judged.rate_se).all() and np.isnan(judged.measured_critical_se)
    assert judged.measured_critical.item() == pytest.approx(1.5)


def test_ratio_and_profile():
    of = _profiles([[0.5]])
    ratio = verdicts.gradient_ratio(of)
    np.testing.assert_allclose(ratio.squeeze(), [-1.0, -2.0])
    np.testing.assert_allclose(verdicts.gradient_profile(of).squeeze(), 0.5 * (LAYERS - 4))


def test_quantiles_leave_out_exact_zeros():
    log_s = xr.DataArray([[0.0, 1.0, -np.inf], [2.0, 3.0, -np.inf]], dims=("seed", "index"))
    found = verdicts.spectrum_quantiles(log_s)
    assert float(found.zero_share) == pytest.approx(1 / 3)
    assert float(found.log_s_quantile.sel(quantile=0.5)) == pytest.approx(1.5)
    assert float(found.log_s_quantile.sel(quantile=1.0)) == pytest.approx(3.0)


def test_finite_width_is_told_from_disagreement():
    cells = lambda *values: xr.DataArray(np.array([values]), dims=("activation", "sigma_w"))
    measured, error = cells(0.01, 0.02, 0.05, -0.05, np.nan), cells(*[0.002] * 5)
    found = verdicts.agreement(measured, cells(*[0.005] * 5), error, cells(*[0.0125] * 5))
    assert found.values[0].tolist() == [
        "agrees",
        "finite width",
        "disagrees",
        "disagrees",
        "unknown",
    ]
