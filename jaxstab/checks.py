"""What Python can know before anything is traced: gains, depths, counts and dtypes that make sense, or a ValueError."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike


def check_gains(sigma_w: ArrayLike, sigma_b: ArrayLike) -> None:
    """Refuse gains that are no standard deviations; traced ones have no value to check and pass.

    Args:
        sigma_w: weight gain.
        sigma_b: bias standard deviation.

    Raises:
        ValueError: if one is negative or not finite.
    """
    for name, gain in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        if not isinstance(gain, jax.core.Tracer) and not np.all(np.isfinite(gain) & (np.asarray(gain) >= 0)):
            raise ValueError(f"{name} must be finite and >= 0, got {gain}")


def check_depths(depths: Sequence[int], deepest: int) -> None:
    """Refuse depths that a chain does not have.

    Args:
        depths: depths wanted.
        deepest: the chain's depth.

    Raises:
        ValueError: if depths is empty, not ascending, or one is not an integer in [0, deepest].
    """
    fits = len(depths) > 0 and all(isinstance(d, int) and 0 <= d <= deepest for d in depths)
    if not fits or list(depths) != sorted(set(depths)):
        raise ValueError(f"depths must be ascending integers in [0, {deepest}], at least one, got {list(depths)}")


def check_floating(name: str, dtype: DTypeLike) -> None:
    """Refuse integers where a derivative is asked for.

    Args:
        name: of the argument.
        dtype: its dtype.

    Raises:
        ValueError: if the dtype is not floating.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be floating, got dtype {dtype}; convert it first (digits: divide by 255.0)")


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is no count.

    Args:
        name: of the argument.
        value: the count; it is static.
        least: value allowed.

    Raises:
        ValueError: if it is not an integer >= least.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
