"""Verdicts on profiles (vanish, critical, explode), rates with standard errors, critical gains.

The rate is the fitted slope of ln |dL/dh_l| against l at the deepest depth. For a positive rate the
gradient shrinks towards the input and vanishes. For a negative rate it explodes. Standard errors
are over seeds, with one network per seed.
"""

import numpy as np

from jaxstab import theory
from jaxstab.extras import extra

with extra("run"):
    import xarray as xr

VERDICTS = ("vanish", "critical", "explode", "undefined")
AGREEMENTS = ("agrees", "finite width", "disagrees", "unknown")
# largest distance of a measurement from its prediction, in standard errors
LIMIT = 4.0


def rate(log_grad_h: xr.DataArray) -> xr.DataArray:
    """Fit the least-squares slope of ln |dL/dh_l| against l, for networks of the deepest depth.

    Args:
        log_grad_h: ln |dL/dh_l| over (..., depth, layer).

    Returns:
        d ln |dL/dh_l| / dl over the other dimensions; NaN where a norm is not finite.

    Example:
        >>> line = xr.DataArray([[0.0, 0.5, 1.0]], dims=("depth", "layer"), coords={"depth": [2], "layer": [0, 1, 2]})
        >>> float(rate(line))
        0.5
    """
    deepest = int(log_grad_h.depth.max())
    profile = log_grad_h.sel(depth=deepest, layer=slice(0, deepest)).astype(np.float64)
    centred = profile.layer - profile.layer.mean()
    slope = (profile.where(np.isfinite(profile)) * centred).sum("layer", skipna=False) / (
        centred**2
    ).sum()
    return slope.drop_vars("depth")


def crossing(rates: xr.DataArray) -> xr.DataArray:
    """Interpolate the gain at which a rate first turns from positive to negative.

    Args:
        rates: rates over (..., sigma_w), sigma_w ascending.

    Returns:
        Gain over the other dimensions; NaN where the rate does not turn within the range.

    Example:
        >>> float(crossing(xr.DataArray([0.3, 0.1, -0.1], dims="sigma_w", coords={"sigma_w": [1.0, 2.0, 3.0]})))
        2.5
    """
    gains = rates.sigma_w.values
    if len(gains) < 2:
        return rates.isel(sigma_w=0, drop=True) * np.nan

    def first(values: np.ndarray) -> float:
        turns = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
        if len(turns) == 0:
            return np.nan
        i = turns[0]
        return gains[i] + (gains[i + 1] - gains[i]) * values[i] / (values[i] - values[i + 1])

    return xr.apply_ufunc(first, rates, input_core_dims=[["sigma_w"]], vectorize=True)


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def gradient_ratio(log_grad_h: xr.DataArray) -> xr.DataArray:
    """Compute ln |dL/dh_0| - ln |dL/dh_D|, the change of the gradient over every depth D.

    Args:
        log_grad_h: ln |dL/dh_l| over (..., depth, layer).

    Returns:
        Logarithm of the ratio over (..., depth); NaN where a norm is not finite.
    """
    last = log_grad_h.sel(layer=log_grad_h.depth).drop_vars("layer")
    return (log_grad_h.sel(layer=0, drop=True) - last).where(np.isfinite(last))


def gradient_profile(log_grad_h: xr.DataArray) -> xr.DataArray:
    """Compute ln |dL/dh_l| - ln |dL/dh_L| at every layer l of the deepest network.

    Args:
        log_grad_h: ln |dL/dh_l| over (..., depth, layer).

    Returns:
        Profile over (..., layer), 0 at the last layer L; NaN where a norm is not finite.
    """
    deepest = int(log_grad_h.depth.max())
    profile = log_grad_h.sel(depth=deepest, drop=True)
    last = profile.sel(layer=deepest, drop=True)
    return (profile - last).where(np.isfinite(last) & np.isfinite(profile))


def spectrum_quantiles(log_s: xr.DataArray) -> xr.Dataset:
    """Compute quantiles of the singular values of each cell, pooled over seeds.

    Args:
        log_s: ln of the singular values over (..., seed, index); -inf for exact zeros.

    Returns:
        `log_s_quantile` (..., quantile) of the nonzero values, and `zero_share` (...).
    """
    pooled = log_s.stack(value=("seed", "index"))
    finite = pooled.where(np.isfinite(pooled))
    quantiles = finite.quantile(list(QUANTILES), "value").transpose(..., "quantile")
    return xr.Dataset(
        {"log_s_quantile": quantiles, "zero_share": (pooled == -np.inf).mean("value")}
    )


def judge(dataset: xr.Dataset) -> xr.Dataset:
    """Compute the rates, critical gains and verdicts of a survey.

    A cell is critical if its rate lies within two standard errors of zero, or changes the gradient
    by less than a factor e over the whole depth. Otherwise the gradient vanishes (rate > 0) or
    explodes (rate < 0).

    Args:
        dataset: dataset with `log_grad_h` (activation, seed, sigma_w, input, depth, layer) and
            `predicted_log_grad_h`.

    Returns:
        `rate`, `rate_se`, `predicted_rate`, `agreement` and `verdict` over (activation, sigma_w);
        `measured_critical`, `measured_critical_se`, `measured_critical_seeds`, `predicted_critical`
        over (activation). The standard error of fewer than two seeds is NaN. Figures use
        `gradient_ratio`, `gradient_profile` with its standard error, their predictions, and the
        quantiles of the spectra. A dataset with sharpness adds the variables of `over_seeds`.
    """
    by_seed = rate(dataset.log_grad_h).mean("input")
    profiles = gradient_profile(dataset.log_grad_h).mean("input")
    mean = by_seed.mean("seed")
    error = standard_error(by_seed)
    predicted = rate(dataset.predicted_log_grad_h)
    if "finite_width_rate" in dataset:
        shift = dataset.finite_width_rate
    else:
        shift = xr.zeros_like(predicted)
    over_depth = np.abs(mean) * int(dataset.depth.max())
    critical = (over_depth <= 1) | (np.abs(mean) <= 2 * error)
    verdict = xr.where(critical, "critical", xr.where(mean > 0, "vanish", "explode"))
    gains = crossing(by_seed)
    verdicts = xr.Dataset(
        {
            "rate": mean,
            "rate_se": error,
            "predicted_rate": predicted,
            "agreement": agreement(mean, predicted, error, shift),
            "verdict": xr.where(np.isfinite(mean), verdict, "undefined"),
            "measured_critical": gains.mean("seed"),
            "measured_critical_se": standard_error(gains),
            "measured_critical_seeds": gains.count("seed"),
            "predicted_critical": crossing(predicted),
            "gradient_ratio": gradient_ratio(dataset.log_grad_h).mean(("seed", "input")),
            "predicted_gradient_ratio": gradient_ratio(dataset.predicted_log_grad_h),
            "gradient_profile": profiles.mean("seed"),
            "gradient_profile_se": standard_error(profiles),
            "predicted_gradient_profile": gradient_profile(dataset.predicted_log_grad_h),
        }
    ).merge(spectrum_quantiles(dataset.log_s))
    if "log_sharpness" in dataset:
        return verdicts.merge(over_seeds(dataset))
    return verdicts


def over_seeds(dataset: xr.Dataset) -> xr.Dataset:
    """Average the sharpness over seeds, with standard errors.

    Args:
        dataset: dataset with `log_sharpness` and `log_gauss_newton` over (activation, seed,
            sigma_w, depth).

    Returns:
        `mean_log_sharpness`, `mean_log_gauss_newton` and their `_se` over (activation, sigma_w,
        depth); NaN where no seed has a finite value.
    """
    variables = {}
    for name in ("log_sharpness", "log_gauss_newton"):
        known = dataset[name].where(np.isfinite(dataset[name]))
        variables[f"mean_{name}"] = known.mean("seed")
        variables[f"mean_{name}_se"] = standard_error(known)
    return xr.Dataset(variables)


def agreement(
    measured: xr.DataArray, predicted: xr.DataArray, error: xr.DataArray, shift: xr.DataArray
) -> xr.DataArray:
    """Compare measured rates with theory at infinite and at finite width.

    A rate agrees within four standard errors of the prediction at infinite width. At finite width
    typical gradients are smaller, and their rate exceeds the prediction by `shift`, to the order
    1/width. A rate within `shift` plus four standard errors of this sum counts as finite width.

    Args:
        measured: mean rates.
        predicted: rates at infinite width.
        error: standard errors of the measured rates.
        shift: excess of the rates at this width over those at infinite width, >= 0.

    Returns:
        One of AGREEMENTS for each rate; "unknown" where a rate or its error is not finite.
    """
    plain = theory.compare(
        measured.values, predicted.values, error.values, depth=1.0, width=1.0, size=0.0
    )
    typical = (predicted + shift).transpose(*measured.dims)
    sizes = shift.transpose(*measured.dims).values
    banded = theory.compare(
        measured.values, typical.values, error.values, depth=1.0, width=1.0, size=sizes
    )
    known = np.isfinite(np.asarray(plain.z))
    told = np.where(np.abs(banded.beyond) <= LIMIT, AGREEMENTS[1], AGREEMENTS[2])
    told = np.where(np.abs(plain.z) <= LIMIT, AGREEMENTS[0], told)
    return measured.copy(data=np.where(known, told, AGREEMENTS[3]))


def standard_error(values: xr.DataArray, dim: str = "seed") -> xr.DataArray:
    """Compute the standard error of the mean over a dimension, ignoring NaN.

    Args:
        values: values, independent along `dim`.
        dim: name of the dimension.

    Returns:
        Standard deviation (n - 1) over the square root of n; NaN for fewer than two values.
    """
    count = values.count(dim)
    variance = ((values - values.mean(dim)) ** 2).sum(dim) / (count - 1).where(count > 1)
    return (variance / count) ** 0.5


def regions(verdicts: xr.DataArray) -> list[tuple[str, float, float, int]]:
    """Join neighbouring gains of one verdict.

    Args:
        verdicts: verdicts over (sigma_w).

    Returns:
        List of (verdict, lowest gain, highest gain, number of gains), ascending in gain.

    Example:
        >>> regions(xr.DataArray(["vanish", "vanish", "explode"], dims="sigma_w", coords={"sigma_w": [1.0, 2.0, 3.0]}))
        [('vanish', 1.0, 2.0, 2), ('explode', 3.0, 3.0, 1)]
    """
    joined: list[tuple[str, float, float, int]] = []
    for gain, verdict in zip(
        verdicts.sigma_w.values.tolist(), verdicts.values.tolist(), strict=True
    ):
        start = gain
        count = 0
        if joined and joined[-1][0] == verdict:
            _, start, _, count = joined.pop()
        joined.append((verdict, start, gain, count + 1))
    return joined
