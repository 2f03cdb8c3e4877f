"""Numbers outside their range become NaN: a traced one has no value that could be refused."""

import functools
import operator

import numpy as np

from jaxstab.checks import CORRELATION_ROUNDING
from jaxstab.theory import host
from jaxstab.theory.host import AnyArray


def in_range(value: AnyArray, *numbers: AnyArray) -> AnyArray:
    """What is computed from gains and lengths.

    Args:
        value: what is computed.
        numbers: gains and lengths.

    Returns:
        The value; NaN where one of them is negative or NaN.
    """
    xp = host.namespace(value, *numbers)
    negative = [~(xp.asarray(number) >= 0) for number in numbers]
    return xp.where(functools.reduce(operator.or_, negative), np.nan, value)


def as_correlation(c: AnyArray) -> AnyArray:
    """A correlation.

    Args:
        c: the number.

    Returns:
        It; NaN outside [-1, 1], but for what rounding in float32 may add.
    """
    xp = host.namespace(c)
    return xp.where(xp.abs(c) <= 1 + CORRELATION_ROUNDING, c, np.nan)
