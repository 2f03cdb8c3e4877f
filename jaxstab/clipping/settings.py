"""Settings of clippers: numbers, traced arrays or schedules."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from jaxstab.checks import check_count

# a number, an array of shape [] (which may be traced), or a schedule from the number of earlier
# updates to a number
Setting = ArrayLike | Callable[[Array], ArrayLike]


def check_setting(
    name: str, value: Setting, low: float = 0.0, high: float = math.inf, below: bool = False
) -> None:
    """Check that a setting lies in its range; traced arrays and schedules pass.

    Args:
        name: name of the argument.
        value: the setting.
        low: smallest value allowed.
        high: largest value allowed.
        below: True to exclude `high`.

    Raises:
        ValueError: if the value is no scalar, NaN or out of range.
    """
    if callable(value):
        return
    if np.ndim(value) > 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {np.shape(value)}; use jax.vmap for several"
        )
    if isinstance(value, jax.core.Tracer):
        return
    number = float(np.asarray(value))
    if below:
        within = low <= number < high
        interval = f"in [{low:g}, {high:g})"
    else:
        within = low <= number <= high
        interval = f"in [{low:g}, {high:g}]"
    if high == math.inf:
        interval = f">= {low:g}"
    if not within:
        raise ValueError(f"{name} must be {interval}, got {value}")


def check_integer(name: str, value: ArrayLike, least: int) -> None:
    """Check that a setting is an integer count; traced settings pass.

    Args:
        name: name of the argument.
        value: the setting.
        least: smallest value allowed.

    Raises:
        ValueError: if the value is not an integer >= least.
    """
    if not isinstance(value, jax.core.Tracer):
        check_count(name, np.asarray(value).item(), least)


def static_integer(name: str, value: ArrayLike) -> int:
    """Return the value of a setting that determines array shapes.

    Args:
        name: name of the argument.
        value: the setting.

    Returns:
        A Python integer.

    Raises:
        ValueError: if the value is traced.
    """
    if isinstance(value, jax.core.Tracer):
        raise ValueError(
            f"{name} must be known before tracing, got a traced value; "
            f"give static_args={name!r} to optax.inject_hyperparams"
        )
    return int(np.asarray(value).item())


def setting_at(value: Setting, calls: Array, dtype: DTypeLike) -> Float[Array, ""]:
    """Return the value of a setting at one update.

    Args:
        value: number, array or schedule.
        calls: number of earlier updates, for schedules.
        dtype: dtype of the result.

    Returns:
        The value as a scalar.

    Example:
        >>> float(setting_at(lambda calls: 10.0 / (1 + calls), jnp.asarray(4), jnp.float32))
        2.0
    """
    if callable(value):
        value = value(calls)
    return jnp.asarray(value).astype(dtype)


def setting_like(value: Setting, calls: Array, like: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the value of a setting at one update, broadcast to the shape of an array.

    Args:
        value: number, array or schedule.
        calls: number of earlier updates, for schedules.
        like: array with the shape, dtype and sharding of the result.

    Returns:
        An array filled with the value.
    """
    return jnp.zeros_like(like) + setting_at(value, calls, like.dtype)
