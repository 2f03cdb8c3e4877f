"""Range checks for traced numbers, which give NaN, as a traced number cannot raise an error."""

import functools
import operator

import numpy as np

from jaxstab.checks import CORRELATION_ROUNDING
from jaxstab.theory import host
from jaxstab.theory.host import AnyArray


def in_range(value: AnyArray, *numbers: AnyArray) -> AnyArray:
    """Replace a value by NaN where a gain or length is out of range.

    Args:
        value: result computed from the numbers.
        numbers: gains and lengths.

    Returns:
        The value; NaN where a number is negative or NaN.
    """
    xp = host.namespace(value, *numbers)
    negative = [~(xp.asarray(number) >= 0) for number in numbers]
    return xp.where(functools.reduce(operator.or_, negative), np.nan, value)


def as_correlation(c: AnyArray) -> AnyArray:
    """Replace a correlation outside [-1, 1] by NaN.

    Args:
        c: correlation.

    Returns:
        The correlation; NaN where |c| exceeds 1 by more than float32 rounding.
    """
    xp = host.namespace(c)
    return xp.where(xp.abs(c) <= 1 + CORRELATION_ROUNDING, c, np.nan)
