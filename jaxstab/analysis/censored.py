"""Linear regression with censored values by maximum likelihood (Tobin 1958)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

# residuals or columns that differ by less are equal: no grid of depths resolves the difference
RESOLUTION = 1e-6


class Regression(NamedTuple):
    """Fitted line with its standard errors.

    Attributes:
        coefficients: coefficient of each column; NaN where the known values do not determine it.
        errors: standard errors of the coefficients; NaN for as many known values as columns.
        scatter: standard deviation of the residuals; NaN for as many known values as columns.
        freedom: degrees of freedom of `errors` and `scatter`.
    """

    coefficients: Float[np.ndarray, " column"]
    errors: Float[np.ndarray, " column"]
    scatter: float
    freedom: float


def regression(
    design: Float[np.ndarray, "row column"],
    low: Float[np.ndarray, " row"],
    high: Float[np.ndarray, " row"],
) -> Regression:
    """Fit y = design @ coefficients + normal residuals, with y between low and high.

    Rows are ordered so that neighbouring residuals correlate. The standard errors account for this
    correlation as for a first-order process. Bounds are ignored where the known values lie exactly
    on a line, since their scatter is then zero.

    Args:
        design: one column per coefficient.
        low: lower bound of y; -inf for a row with an upper bound only, NaN for an unknown row.
        high: upper bound of y; equal to low where y is known, inf for a lower bound only.

    Returns:
        The fitted line.

    Example:
        >>> x, y = np.arange(5.0), np.array([0.1, 0.9, 2.1, 2.9, 3.0])
        >>> line = np.stack([np.ones(5), x], axis=1)
        >>> [round(float(regression(line, y, np.append(y[:4], end)).coefficients[1]), 2) for end in (3.0, np.inf)]
        [0.78, 0.96]
    """
    columns = design.shape[1]
    known = np.isfinite(low) & (low == high)
    x = design[known]
    y = low[known]
    count = int(known.sum())
    line, _, rank, _ = np.linalg.lstsq(x, y, rcond=RESOLUTION)
    residual = y - x @ line
    if rank < columns:
        nothing = np.full(columns, np.nan)
        return Regression(nothing, nothing, float("nan"), 0.0)
    if count == columns or np.ptp(residual) < RESOLUTION:
        scatter = 0.0 if count > columns else float("nan")
        return Regression(line, np.full(columns, scatter), scatter, float(count - columns))
    above = np.isinf(high) & np.isfinite(low)
    below = np.isinf(low) & np.isfinite(high)
    bound = np.append(low[above], high[below])
    sign = np.repeat([1.0, -1.0], [above.sum(), below.sum()])
    beyond = np.concatenate([design[above], design[below]])
    start = np.append(line, 1.0) / np.std(residual)
    (*location, precision), hessian = _climb(start, x, y, beyond, bound, sign)
    line = np.array(location) / precision
    jacobian = np.column_stack([np.eye(columns), -line]) / precision
    # maximum likelihood underestimates the variance by a degree of freedom per coefficient
    unbiased = count / (count - columns)
    variance = np.diag(jacobian @ np.linalg.solve(-hessian, jacobian.T)) * unbiased
    # correlated neighbours reduce the number of independent residuals
    residual = y - x @ line
    ordered = np.sum(residual[1:] * residual[:-1]) / np.sum(residual**2)
    alike = 1.0
    if ordered > 0:
        alike = (1 + ordered) / (1 - ordered)
    freedom = max(count / alike - columns, min(2.0, count - columns))
    return Regression(
        line, np.sqrt(variance * alike), float(unbiased**0.5 / precision), float(freedom)
    )


def _climb(
    place: Float[np.ndarray, " free"],
    x: Float[np.ndarray, "known column"],
    y: Float[np.ndarray, " known"],
    beyond: Float[np.ndarray, "bounds column"],
    bound: Float[np.ndarray, " bounds"],
    sign: Float[np.ndarray, " bounds"],
) -> tuple[Float[np.ndarray, " free"], Float[np.ndarray, "free free"]]:
    """Maximise the likelihood, concave in (coefficients / sd, 1 / sd) (Olsen 1978)."""
    # residuals and distances to the bounds in standard deviations, linear in the unknowns
    miss = np.column_stack([-x, y])
    reach = sign[:, None] * np.column_stack([beyond, -bound])

    def likelihood(at: np.ndarray) -> float:
        if at[-1] <= 0:
            return -np.inf
        return float(
            len(y) * np.log(at[-1])
            - np.sum((miss @ at) ** 2) / 2
            + np.sum(special.log_ndtr(reach @ at))
        )

    last = np.eye(len(place))[-1]
    for _ in range(100):
        a = reach @ place
        ratio = np.exp(-(a**2) / 2 - special.log_ndtr(a)) / np.sqrt(2 * np.pi)
        gradient = len(y) / place[-1] * last - miss.T @ (miss @ place) + reach.T @ ratio
        bend = -len(y) / place[-1] ** 2 * np.outer(last, last)
        hessian = bend - miss.T @ miss - reach.T @ ((ratio * (ratio + a))[:, None] * reach)
        step = np.linalg.solve(hessian, -gradient)
        here = likelihood(place)
        if gradient @ step < 1e-12:
            break
        size = 1.0
        while likelihood(place + size * step) < here and size > 1e-9:
            size /= 2
        place = place + size * step
    return place, hessian
