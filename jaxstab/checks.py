"""Checks of arguments before anything is traced; each raises a ValueError."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

# for the other packages of jaxstab only
__all__ = ()

# counts and depths may also be NumPy's integers and arrays
Count = int | np.integer
Depths = Sequence[Count] | np.ndarray | jax.Array

# largest rounding error of a correlation in float32
CORRELATION_ROUNDING = 1e-5


def integer(value: Any) -> int | None:
    """Convert a value to a Python integer if it is an integer.

    Args:
        value: any value.

    Returns:
        The integer; None for other values, booleans and traced values included.
    """
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


# fields of frozen dataclasses: `plain_axis` and `plain_number` convert NumPy's arrays and numbers
if TYPE_CHECKING:
    Integer = int
    Integers = tuple[int, ...]
    Real = float
    Reals = tuple[float, ...]
else:
    Integer = Integers = Real = Reals = Any


def check_gains(sigma_w: ArrayLike, sigma_b: ArrayLike) -> None:
    """Check that gains are standard deviations; traced gains have no value and pass.

    Args:
        sigma_w: weight gain.
        sigma_b: bias standard deviation.

    Raises:
        ValueError: if a gain is negative or not finite.
    """
    for name, gain in (("sigma_w", sigma_w), ("sigma_b", sigma_b)):
        if isinstance(gain, jax.core.Tracer):
            continue
        kind = np.asarray(gain).dtype.kind
        # bfloat16 is no kind of NumPy's own
        if kind not in "buifV" or not np.all(np.isfinite(gain) & (np.asarray(gain) >= 0)):
            raise ValueError(f"{name} must be finite and >= 0, got {gain}")


def check_one_point(**numbers: ArrayLike) -> None:
    """Check that each argument of a point of theory is a single real number.

    Args:
        numbers: values by name, which may be traced.

    Raises:
        ValueError: if a value is an array, complex, or no number.
    """
    for name, value in numbers.items():
        array = value if isinstance(value, jax.Array) else np.asarray(value)
        if array.shape:
            raise ValueError(
                f"{name} must be one number, got shape {array.shape}; use jax.vmap for several"
            )
        real = (jnp.floating, jnp.integer, jnp.bool_)
        if not any(jnp.issubdtype(array.dtype, kind) for kind in real):
            raise ValueError(f"{name} must be one real number, got {value!r}")


def check_inputs(q0: ArrayLike, c0: ArrayLike = 0.0) -> None:
    """Check the length and the correlation of inputs; traced numbers have no value and pass.

    Args:
        q0: mean square.
        c0: correlation, to the rounding of float32.

    Raises:
        ValueError: if q0 is negative or NaN, or c0 is not in [-1, 1].
    """
    check_one_point(q0=q0, c0=c0)
    if not isinstance(q0, jax.core.Tracer) and not np.all(np.asarray(q0) >= 0):
        raise ValueError(f"q0 must be >= 0, got {q0}")
    if not isinstance(c0, jax.core.Tracer) and not np.all(np.abs(c0) <= 1 + CORRELATION_ROUNDING):
        raise ValueError(f"c0 must be in [-1, 1], got {c0}")


def check_flag(name: str, value: Any, hint: str = "") -> bool:
    """Check that a setting is True or False.

    Args:
        name: name of the setting.
        value: value of the setting, static.
        hint: end of the message, such as an alternative.

    Returns:
        The setting as a Python boolean.

    Raises:
        ValueError: if the value is no boolean, such as a rate.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}{hint}")


def check_depths(depths: Depths, deepest: int) -> tuple[int, ...]:
    """Check that depths are ascending integers that a chain has.

    Args:
        depths: wanted depths.
        deepest: depth of the chain.

    Returns:
        The depths as Python integers.

    Raises:
        ValueError: if depths is empty, not ascending, or a depth is not an integer in [0, deepest].
    """
    listed = isinstance(depths, Iterable) and getattr(depths, "ndim", 1) == 1
    if not listed or isinstance(depths, str | Mapping):
        raise ValueError(f"depths must be ascending integers in [0, {deepest}], got {depths!r}")
    known = [integer(depth) for depth in depths]
    whole = [depth for depth in known if depth is not None and 0 <= depth <= deepest]
    if not known or len(whole) < len(known) or whole != sorted(set(whole)):
        raise ValueError(
            f"depths must be ascending integers in [0, {deepest}], at least one, got {list(depths)}"
        )
    return tuple(whole)


def check_floating(name: str, dtype: DTypeLike) -> None:
    """Check that a dtype is floating, as derivatives need.

    Args:
        name: name of the argument.
        dtype: dtype of the argument.

    Raises:
        ValueError: if the dtype is not floating.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return
    hint = ""
    if jnp.issubdtype(dtype, jnp.integer):
        hint = "; convert it first (digits: divide by 255.0)"
    if jnp.issubdtype(dtype, jnp.complexfloating):
        hint = "; real and imaginary parts can be two inputs"
    raise ValueError(f"{name} must be floating, got dtype {dtype}{hint}")


def check_count(name: str, value: Any, least: int) -> int:
    """Check that a value is an integer count.

    Args:
        name: name of the argument.
        value: the count, static.
        least: smallest value allowed.

    Returns:
        The count as a Python integer.

    Raises:
        ValueError: if the value is not an integer >= least.
    """
    count = integer(value)
    if count is None or count < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
    return count


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the known names.

    Args:
        name: name of the argument.
        value: the chosen name.
        choices: known names.

    Raises:
        ValueError: if value is not among the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_ascending(name: str, values: Sequence[float]) -> None:
    """Check that an axis is not empty and ascends.

    Args:
        name: name of the axis.
        values: values along the axis.

    Raises:
        ValueError: if values is empty or not ascending.
    """
    if len(values) == 0 or list(values) != sorted(set(values)):
        raise ValueError(f"{name} must be ascending values, at least one, got {list(values)}")


def check_batch(batch: int | None, examples: int) -> None:
    """Check that there are enough examples for a minibatch.

    Args:
        batch: examples per update; None for all.
        examples: number of examples.

    Raises:
        ValueError: if batch is not an integer in [1, examples].
    """
    if batch is None:
        return
    check_count("batch", batch, 1)
    if batch > examples:
        raise ValueError(f"batch must be at most the number of examples, {examples}, got {batch}")


def check_labels(y: ArrayLike, classes: int) -> None:
    """Check that labels are classes; traced labels have no value and pass.

    Args:
        y: labels.
        classes: number of classes.

    Raises:
        ValueError: if a label is not an integer in [0, classes).
    """
    if isinstance(y, jax.core.Tracer):
        return
    labels = np.asarray(y)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes}), got {labels.min()}..{labels.max()}")


def check_looks(evaluate: Sequence[int], steps: int) -> None:
    """Check that evaluations are at updates of the run.

    Args:
        evaluate: numbers of updates before each evaluation.
        steps: number of updates of the run.

    Raises:
        ValueError: if a number is not an integer in [0, steps].
    """
    known = [integer(look) for look in evaluate]
    if not all(look is not None and 0 <= look <= steps for look in known):
        raise ValueError(f"evaluate must be integers in [0, {steps}], got {list(evaluate)}")


def check_dtype(dtype: str) -> None:
    """Check that JAX has float64 enabled if it is asked for.

    Args:
        dtype: "float32" or "float64".

    Raises:
        ValueError: if dtype is "float64" without JAX's x64 mode.
    """
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError('dtype "float64" needs JAX\'s x64 mode: switch jax_enable_x64 on first')


def plain_number(name: str, value: Any, integer: bool = False) -> Any:
    """Convert any kind of number to a Python number.

    Args:
        name: name of the argument.
        value: a Python or NumPy number, or an array of one.
        integer: True to keep integers; other numbers become floats.

    Returns:
        The value as an int or a float.

    Raises:
        ValueError: if the value is no single real number.

    Example:
        >>> plain_number("width", np.int64(4), integer=True), plain_number("sigma_b", np.float32(0.5))
        (4, 0.5)
    """
    if integer and type(value) is int:
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be one real number, got {value!r}")
    number = array.item()
    if integer and array.dtype.kind != "f":
        return number
    return float(number)


def plain_axis(name: str, values: Any, integer: bool = False) -> tuple[Any, ...]:
    """Convert values along an axis to a tuple of Python numbers.

    Args:
        name: name of the axis.
        values: a sequence or an array of numbers.
        integer: True to keep integers; other numbers become floats.

    Returns:
        Values as ints or floats.

    Raises:
        ValueError: if values are no real numbers along one axis.

    Example:
        >>> plain_axis("depths", np.arange(1, 4), integer=True), plain_axis("sigma_w", [1, np.float64(1.5)])
        ((1, 2, 3), (1.0, 1.5))
    """
    if isinstance(values, str) or np.ndim(values) != 1:
        raise ValueError(f"{name} must be numbers along one axis, got {values!r}")
    return tuple(plain_number(name, value, integer) for value in values)
