"""Numbers of a diagnosis with their intervals."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Interval(NamedTuple):
    """Number with its interval of about 95 %.

    Attributes:
        value: the number.
        low: lower end; NaN where unknown.
        high: upper end; NaN where unknown.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format with three digits, and the interval where it is known."""
        if math.isnan(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def slope(
    logs: Float[np.ndarray, " block"], samples: Float[np.ndarray, "block sample"]
) -> Interval:
    """Fit a least-squares slope, with an interval from its residuals and the slopes of samples.

    Args:
        logs: logarithm at each block.
        samples: logarithm at each block for single examples; NaN where unknown.

    Returns:
        The slope with two standard errors to either side; NaN for fewer than three blocks or an
        entry of `logs` that is not finite.
    """
    count = len(logs)
    if count < 3 or not np.all(np.isfinite(logs)):
        return Interval(math.nan, math.nan, math.nan)
    places = np.arange(count) - (count - 1) / 2
    square = np.sum(places**2)
    slope = float(np.sum(places * logs) / square)
    residuals = logs - np.mean(logs) - slope * places
    variance = float(np.sum(residuals**2)) / (count - 2) / square
    known = samples[:, np.all(np.isfinite(samples), axis=0)]
    if known.shape[1] >= 2:
        slopes = places @ known / square
        variance += float(np.var(slopes, ddof=1)) / known.shape[1]
    error = math.sqrt(variance)
    return Interval(slope, slope - 2 * error, slope + 2 * error)


def share(share: float, count: int) -> Interval:
    """Compute the interval of a share by Wilson 1927 at two standard errors.

    Args:
        share: share in [0, 1].
        count: number of cases that the share is of.

    Returns:
        The share and its interval.
    """
    z = 2.0
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def certain(value: float) -> Interval:
    """Wrap a number that is counted, not estimated.

    Args:
        value: the number.

    Returns:
        The number without an interval: both ends are NaN.
    """
    return Interval(value, math.nan, math.nan)
