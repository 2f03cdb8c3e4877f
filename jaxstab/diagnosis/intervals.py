"""Numbers of a diagnosis with the ranges that hold them."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Interval(NamedTuple):
    """A number with the range that holds it in about 95 of 100 cases.

    Attributes:
        value: the number.
        low: lower end; NaN where nothing tells.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Three digits, and the range where it is known."""
        if math.isnan(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def slope(
    logs: Float[np.ndarray, " block"], samples: Float[np.ndarray, "block sample"]
) -> Interval:
    """Least-squares slope; its interval from the residuals and from the slopes of samples.

    Args:
        logs: of each block.
        samples: likewise, of single examples; NaN where unknown.

    Returns:
        The slope and two standard errors to either side; NaN for fewer than three blocks, or one
        not finite.
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
    """A share of a count with the interval of Wilson 1927 at two standard errors.

    Args:
        share: in [0, 1].
        count: of what it is a share.

    Returns:
        The share and its interval.
    """
    z = 2.0
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def certain(value: float) -> Interval:
    """A number that is counted, not estimated.

    Args:
        value: the number.

    Returns:
        It, with an interval that is not known.
    """
    return Interval(value, math.nan, math.nan)
