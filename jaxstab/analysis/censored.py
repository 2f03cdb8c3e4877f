"""Linear regression on values of which some are known only as bounds, by maximum likelihood (Tobin 1958)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

# residuals, or columns, that differ by less are equal: no grid of depths resolves it
RESOLUTION = 1e-6


class Regression(NamedTuple):
    """A fitted line, and how far to trust it.

    Attributes:
        coefficients: of the columns; NaN where the known values do not determine them.
        errors: their standard errors; NaN for as many known values as columns.
        scatter: standard deviation of the residuals; NaN likewise.
        freedom: degrees of freedom of both.
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
    """Fit y = design @ coefficients + normal residuals, y between low and high.

    Rows follow one another as the residuals do that are alike: the correlation between neighbours
    is counted as that of a first-order process. What is known must scatter: where it lies on a
    line, bounds are not looked at.

    Args:
        design: a column per coefficient.
        low: y is at least this; -inf for an upper bound alone, NaN for a row of which nothing is
            known.
        high: y is at most this; low itself where y is known, inf for a lower bound alone.

    Returns:
        The fit.

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
    # the likelihood takes the line for known: a degree of freedom less for each coefficient, as
    # without censoring
    unbiased = count / (count - columns)
    variance = np.diag(jacobian @ np.linalg.solve(-hessian, jacobian.T)) * unbiased
    # neighbours that miss alike: fewer of them are independent
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
    """Maximum likelihood from `at`, coefficients / sd and 1 / sd, in which it is concave (Olsen 1978); its Hessian."""
    # residuals, and distances to the bounds, in standard deviations: linear in what is sought
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
