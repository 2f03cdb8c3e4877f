"""Deepest trainable depth of each gain, and its ratio to theory's depth scale.

The deepest trainable depth is the last depth at which the accuracy, interpolated linearly in
ln depth, falls through a threshold half-way between chance and the best accuracy of the grid. Where
all depths train, or none, the gain is censored: only a bound is known, and enters the fit as such.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy import special

from jaxstab.analysis import censored
from jaxstab.checks import check_count

# accuracies this close are equal: sums of float32 differ in their last digits
_TIE = 1e-6


class Boundary(NamedTuple):
    """Bounds of the deepest trainable depth of every gain.

    Attributes:
        low: lower bound; 0 where no depth trains, NaN where nothing is known.
        high: upper bound; inf where all depths train, NaN where nothing is known.
    """

    low: Float[np.ndarray, " gain"]
    high: Float[np.ndarray, " gain"]

    @property
    def depth(self) -> Float[np.ndarray, " gain"]:
        """Deepest trainable depth; NaN where censored."""
        return np.where(self.low == self.high, self.low, np.nan)


class DepthFit(NamedTuple):
    """Fit of depth = n xi, with a confidence interval.

    The standard error of ln n has two parts. The part over gains comes from the residuals, which
    are mostly theory's own error; neighbouring residuals correlate like a first-order process. The
    part over seeds is a jackknife, for errors that all gains of a seed share, such as its weights
    and minibatches; a single seed has no such part. The interval is Student's, with Satterthwaite's
    degrees of freedom.

    Attributes:
        n: depth in units of xi; NaN where no gain is known.
        low: lower end of the interval; NaN for fewer than two gains.
        high: upper end of the interval; NaN for fewer than two gains.
        error_gains: standard error of ln n over gains.
        error_seeds: standard error of ln n over seeds; NaN for a single seed.
        scatter: standard deviation of ln (depth / (n xi)) over gains.
        r_squared: share of the variance of ln depth over uncensored gains that n xi explains; can
            be negative.
        gains: number of uncensored gains.
        censored: number of gains with a bound.
        exponent: exponent of the free power law depth ~ xi^exponent, with censored gains as bounds;
            1 if theory is right.
        exponent_error: standard error of the exponent over gains and seeds; NaN for fewer than
            three gains.
    """

    n: float
    low: float
    high: float
    error_gains: float
    error_seeds: float
    scatter: float
    r_squared: float
    gains: int
    censored: int
    exponent: float
    exponent_error: float


def halfway(accuracy: Float[np.ndarray, "..."], chance: float) -> float:
    """Compute the threshold half-way between chance and the best accuracy.

    Args:
        accuracy: mean accuracies over seeds; NaN where unknown.
        chance: accuracy of guessing, one over the number of classes.

    Returns:
        Threshold in [0, 1]; NaN where no accuracy is known, or the best one lies less than a tenth
        of the way from chance to 1.

    Example:
        >>> round(halfway(np.array([0.1, 0.5, 0.9]), 0.1), 3), halfway(np.array([0.1, 0.15]), 0.1)
        (0.5, nan)
    """
    best = float(np.max(accuracy, initial=0.0, where=np.isfinite(accuracy)))
    if best - chance >= 0.1 * (1 - chance):
        return (best + chance) / 2
    return float("nan")


def deepest_trainable(
    accuracy: Float[np.ndarray, "depth gain"], depths: Int[np.ndarray, " depth"], threshold: float
) -> Boundary:
    """Find the deepest trainable depth of every gain.

    The depth lies between the last grid depth whose accuracy reaches the threshold and the next
    one, and is interpolated linearly in ln depth.

    Args:
        accuracy: mean accuracies over seeds; NaN for an unknown depth, which is left out.
        depths: depths of the grid, ascending, > 0.
        threshold: least accuracy of a trained network; NaN makes every bound NaN.

    Returns:
        Bounds of each depth, equal where the depth is known.

    Example:
        >>> accuracy = np.array([[0.9, 0.9, 0.2], [0.7, 0.9, 0.1], [0.1, 0.8, 0.1]])
        >>> found = deepest_trainable(accuracy, np.array([4, 8, 16]), 0.4)
        >>> found.depth.round(1).tolist(), found.low.round(1).tolist(), found.high.round(1).tolist()
        ([11.3, nan, nan], [11.3, 16.0, 0.0], [11.3, inf, 4.0])
    """
    bounds = np.full((2, accuracy.shape[1]), np.nan)
    for gain, column in enumerate(accuracy.astype(float).T):
        known = np.isfinite(column - threshold)
        log_depth = np.log(depths[known])
        value = column[known] - threshold
        trained = np.flatnonzero(value >= -_TIE)
        if len(value) == 0:
            continue
        if len(trained) == 0:
            bounds[:, gain] = 0.0, np.exp(log_depth[0])
        elif (i := trained[-1]) == len(value) - 1:
            bounds[:, gain] = np.exp(log_depth[-1]), np.inf
        else:
            share = max(value[i], 0.0) / (max(value[i], 0.0) - value[i + 1])
            bounds[:, gain] = np.exp(log_depth[i] + share * (log_depth[i + 1] - log_depth[i]))
    return Boundary(*bounds)


def fit_depth_scale(
    accuracy: Float[np.ndarray, "depth gain seed"],
    depths: Int[np.ndarray, " depth"],
    xi: Float[np.ndarray, " gain"],
    threshold: float,
    confidence: float = 0.95,
) -> DepthFit:
    """Fit n in depth = n xi to the deepest trainable depths of the mean accuracy over seeds.

    The model is ln depth = ln n + ln xi + normal residuals, fitted by maximum likelihood. The
    likelihood of a censored gain is the probability of its bound (Tobin 1958). Gains without a
    finite xi > 0, such as the critical one, are left out.

    Args:
        accuracy: accuracy of every run, with gains in ascending order; NaN where unknown.
        depths: depths of the grid, ascending, > 0.
        xi: theory's depth scale, in layers.
        threshold: least accuracy of a trained network.
        confidence: confidence level of the interval, in (0, 1).

    Returns:
        The fit.

    Raises:
        ValueError: if confidence is not in (0, 1).

    Example:
        >>> xi = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
        >>> depths = np.array([2, 4, 8, 16, 32])
        >>> accuracy = 1 / (1 + (depths[:, None] / (3 * xi[None])) ** 8)
        >>> fit = fit_depth_scale(accuracy[..., None], depths, xi, 0.5)
        >>> round(fit.n), fit.gains, fit.censored
        (3, 4, 1)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    usable = np.isfinite(xi) & (xi > 0)
    accuracy = accuracy[:, usable]
    log_xi = np.log(xi[usable])
    boundary = deepest_trainable(_mean(accuracy), depths, threshold)
    known = np.isfinite(boundary.depth)
    bounds = ~np.isnan(boundary.low) & (boundary.low != boundary.high)
    proportional, power = (_censored(boundary, log_xi, free) for free in (False, True))
    centre = float(proportional.coefficients[0])
    error_gains = float(proportional.errors[0])
    seeds = accuracy.shape[2]
    kept = []
    if seeds > 1:
        rest = [np.delete(accuracy, s, 2) for s in range(seeds)]
        kept = [deepest_trainable(_mean(one), depths, threshold) for one in rest]
    error_seeds, power_seeds = (_jackknifed(kept, log_xi, free) for free in (False, True))
    errors = np.array([error_gains, error_seeds])
    degrees = np.array([proportional.freedom, seeds - 1.0])
    told = np.append(True, np.isfinite(error_seeds))
    reach = _student(errors[told], degrees[told], confidence)
    log_depth = np.log(boundary.depth[known])
    return DepthFit(
        n=float(np.exp(centre)),
        low=float(np.exp(centre - reach)),
        high=float(np.exp(centre + reach)),
        error_gains=error_gains,
        error_seeds=error_seeds,
        scatter=proportional.scatter,
        r_squared=_explained(log_depth, log_xi[known] + centre),
        gains=int(known.sum()),
        censored=int(bounds.sum()),
        exponent=float(power.coefficients[0]),
        exponent_error=float(np.hypot(power.errors[0], np.nan_to_num(power_seeds))),
    )


def steps_to(
    accuracy: Float[np.ndarray, "*run step"], threshold: float, window: int = 10
) -> Float[np.ndarray, "*run"]:
    """Count the steps until the mean accuracy of the last minibatches reaches a threshold.

    Args:
        accuracy: accuracy of each step's minibatch; NaN once a run is not finite.
        threshold: least accuracy to reach.
        window: minibatches per mean, >= 1.

    Returns:
        First step, counted from 1, at the end of such a window; NaN for a run without one.

    Raises:
        ValueError: if window < 1.

    Example:
        >>> steps_to(np.array([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]), 0.75, window=2).tolist()
        [3.0, nan]
    """
    check_count("window", window, 1)
    if accuracy.shape[-1] < window:
        return np.full(accuracy.shape[:-1], np.nan)
    means = np.lib.stride_tricks.sliding_window_view(accuracy, window, -1).mean(-1, dtype=float)
    reached = means >= threshold - _TIE
    return np.where(reached.any(-1), reached.argmax(-1) + float(window), np.nan)


def tuned(accuracy: xr.DataArray) -> xr.DataArray:
    """Find the learning rate of the highest mean accuracy over seeds in every cell.

    Ties go to the lowest learning rate. A learning rate without a known seed is never the best. The
    best of several means is a little above its own expectation: compare on other data, or where the
    standard error is small beside the differences.

    Args:
        accuracy: training accuracy over (..., learning_rate, ..., seed).

    Returns:
        Index along learning_rate over the other dimensions, for `isel`; 0 where nothing is known.

    Example:
        >>> values = [[0.2, 0.4], [0.7, 0.5], [np.nan, 0.1]]
        >>> int(tuned(xr.DataArray(values, dims=("learning_rate", "seed"))))
        1
    """
    return accuracy.mean("seed").fillna(-np.inf).argmax("learning_rate")


def _mean(accuracy: Float[np.ndarray, "depth gain seed"]) -> Float[np.ndarray, "depth gain"]:
    """Mean over known seeds; NaN for none."""
    count = np.isfinite(accuracy).sum(-1)
    return np.where(count > 0, np.nansum(accuracy, -1) / np.maximum(count, 1), np.nan)


def _jackknifed(kept: list[Boundary], log_xi: Float[np.ndarray, " gain"], free: bool) -> float:
    """Standard error of the first coefficient by leaving out one seed each; NaN without fits."""
    if not kept:
        return float("nan")
    coefficients = [_censored(one, log_xi, free).coefficients[0] for one in kept]
    return float(np.sqrt((len(kept) - 1) * np.var(coefficients)))


def _censored(
    boundary: Boundary, log_xi: Float[np.ndarray, " gain"], free: bool = False
) -> censored.Regression:
    """Regress ln depth on ln xi with slope 1, or with a free slope."""
    with np.errstate(divide="ignore"):
        low = np.log(boundary.low)
        high = np.log(boundary.high)
    if not free:
        return censored.regression(np.ones((len(log_xi), 1)), low - log_xi, high - log_xi)
    known = np.isfinite(boundary.depth)
    if known.any():
        log_xi = log_xi - np.mean(log_xi[known])
    return censored.regression(np.column_stack([log_xi, np.ones(len(log_xi))]), low, high)


def _student(errors: np.ndarray, degrees: np.ndarray, confidence: float) -> float:
    """Half the width of the confidence interval for a sum of independent errors."""
    variance = np.sum(errors**2)
    if not np.isfinite(variance) or variance == 0:
        return float(variance)
    freedom = variance**2 / np.sum(errors**4 / degrees)
    return float(special.stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(variance))


def _explained(y: np.ndarray, fitted: np.ndarray) -> float:
    """Share of the variance of y that the fit explains."""
    if len(y) < 2 or np.ptp(y) < censored.RESOLUTION:
        return float("nan")
    return float(1 - np.sum((y - fitted) ** 2) / np.sum((y - np.mean(y)) ** 2))


def sides(chi_1: Float[np.ndarray, " gain"]) -> dict[str, Bool[np.ndarray, " gain"]]:
    """Split gains by the side of the critical point.

    Args:
        chi_1: theory's factor of the squared gradient per layer; NaN where unknown.

    Returns:
        Masks of gains by name: ordered (chi_1 < 1), chaotic (chi_1 > 1), both (chi_1 known).

    Example:
        >>> {side: mask.tolist() for side, mask in sides(np.array([0.5, 1.5])).items()}
        {'both': [True, True], 'ordered': [True, False], 'chaotic': [False, True]}
    """
    return {"both": ~np.isnan(chi_1), "ordered": chi_1 < 1, "chaotic": chi_1 > 1}
