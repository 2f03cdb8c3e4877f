"""Settings of a cell: allowed values, default, and whether a change needs another program.

A new setting of a network or of an optimiser is one entry in this file. Any entry can be an axis.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax
from jaxtyping import ArrayLike

from jaxstab.activations import Activation, get
from jaxstab.checks import check_choice, check_count, plain_number
from jaxstab.precision import FULL, check_precision

# a change of a static setting needs another program
STATIC = "static"
# a traced setting is an argument of the program
TRACED = "traced"
# a setting with one value for the whole grid
WHOLE = "whole"

# seeds are 32-bit integers
LARGEST_SEED = 2**31 - 1

Optimiser = Callable[..., optax.GradientTransformation]


def _momentum(learning_rate: ArrayLike, momentum: ArrayLike = 0.9) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=momentum)


def _nesterov(learning_rate: ArrayLike, momentum: ArrayLike = 0.9) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=momentum, nesterov=True)


OPTIMISERS: dict[str, Optimiser] = {
    "sgd": optax.sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
}


class Setting(NamedTuple):
    """Description of a setting.

    Attributes:
        kind: STATIC, TRACED or WHOLE.
        default: value in a grid that does not set it.
        check: (name, value) -> plain value; raises ValueError for an invalid value.
        number: True for numbers, which ascend along an axis.
        trained: True if only trainings depend on the setting.
        passed: True if the optimiser takes the setting by name, unless its value is None.
    """

    kind: str
    default: Any
    check: Callable[[str, Any], Any]
    number: bool = True
    trained: bool = False
    passed: bool = False


def _activation(name: str, value: Any) -> Activation:
    return get(value)


def _optimiser(name: str, value: Any) -> Any:
    if callable(value):
        return value
    check_choice(name, value, tuple(OPTIMISERS))
    return value


def _any(name: str, value: Any) -> Any:
    """Accept any value; the network itself checks it."""
    return value


def _precision(name: str, value: Any) -> str | None:
    check_precision(name, value)
    return value


def _dtype(name: str, value: Any) -> str:
    check_choice(name, value, ("float32", "float64"))
    return value


def _count(name: str, value: Any) -> int:
    return check_count(name, plain_number(name, value, integer=True), 1)


def _count_or_none(name: str, value: Any) -> int | None:
    if value is None:
        return None
    return _count(name, value)


def _seed(name: str, value: Any) -> int:
    seed = check_count(name, plain_number(name, value, integer=True), 0)
    if seed > LARGEST_SEED:
        raise ValueError(f"{name} must be at most {LARGEST_SEED}, got {seed}")
    return seed


def _number(wanted: str, fits: Callable[[float], bool]) -> Callable[[str, Any], float]:
    """Make a check that a number lies in a range; `wanted` describes the range."""

    def check(name: str, value: Any) -> float:
        number = plain_number(name, value)
        if not fits(number):
            raise ValueError(f"{name} must be {wanted}, got {value}")
        return number

    return check


def _number_or_none(wanted: str, fits: Callable[[float], bool]) -> Callable[[str, Any], Any]:
    check_number = _number(wanted, fits)

    def check(name: str, value: Any) -> float | None:
        if value is None:
            return None
        return check_number(name, value)

    return check


_deviation = _number("finite and >= 0", lambda value: math.isfinite(value) and value >= 0)
_positive = _number("finite and > 0", lambda value: math.isfinite(value) and value > 0)
_share = _number("in [0, 1)", lambda value: 0 <= value < 1)
_threshold = _number("> 0", lambda value: value > 0)
_decay = _number_or_none("finite and >= 0", lambda value: math.isfinite(value) and value >= 0)
_momentum_share = _number_or_none("in [0, 1)", lambda value: 0 <= value < 1)

SETTINGS: dict[str, Setting] = {
    "activation": Setting(STATIC, get("tanh"), _activation, number=False),
    "weights": Setting(STATIC, "gaussian", _any, number=False),
    "norm": Setting(STATIC, None, _any, number=False),
    "norm_after": Setting(STATIC, False, _any, number=False),
    "skip": Setting(STATIC, None, _any, number=False),
    "precision": Setting(STATIC, FULL, _precision, number=False),
    "width": Setting(STATIC, 128, _count),
    "batch": Setting(STATIC, None, _count_or_none),
    "optimiser": Setting(STATIC, "sgd", _optimiser, number=False, trained=True),
    "depth": Setting(STATIC, 16, _count),
    "sigma_w": Setting(TRACED, 1.0, _deviation),
    "sigma_b": Setting(TRACED, 0.0, _deviation),
    "dropout": Setting(TRACED, 0.0, _share),
    "learning_rate": Setting(TRACED, 0.01, _positive, trained=True),
    "momentum": Setting(TRACED, None, _momentum_share, trained=True, passed=True),
    "weight_decay": Setting(TRACED, None, _decay, trained=True, passed=True),
    "clip": Setting(TRACED, math.inf, _threshold, trained=True),
    "seed": Setting(TRACED, 0, _seed),
    "inputs": Setting(WHOLE, 1, _count),
    "outputs": Setting(WHOLE, None, _count_or_none),
    "dtype": Setting(WHOLE, "float32", _dtype, number=False),
}


def traced() -> tuple[str, ...]:
    """List the traced settings.

    Returns:
        Names of the settings.
    """
    return tuple(name for name, setting in SETTINGS.items() if setting.kind == TRACED)


def hyperparameters() -> tuple[str, ...]:
    """List the settings that an optimiser may take besides its learning rate.

    Returns:
        Names of the settings.
    """
    return tuple(name for name, setting in SETTINGS.items() if setting.passed)


def check_hyperparameters(optimiser: str | Optimiser, given: tuple[str, ...]) -> None:
    """Check that an optimiser takes the hyperparameters that a grid sets.

    Args:
        optimiser: one of OPTIMISERS, or a function (learning_rate, ...) -> transformation.
        given: names of hyperparameters.

    Raises:
        ValueError: if the optimiser does not take a hyperparameter.
    """
    if isinstance(optimiser, str):
        factory = OPTIMISERS[optimiser]
    else:
        factory = optimiser
    known = inspect.signature(factory).parameters
    for name in given:
        if name not in known:
            takers = [
                one
                for one, made in OPTIMISERS.items()
                if name in inspect.signature(made).parameters
            ]
            raise ValueError(
                f"{name} must be left out: optimiser {label(optimiser)} takes none, "
                f"{', '.join(takers)} do"
            )


def label(value: Any) -> Any:
    """Return a value as a coordinate: a number unchanged, anything else by its name.

    Args:
        value: value of a setting.

    Returns:
        A number or a text.

    Example:
        >>> label(get("tanh")), label(None), label(0.5)
        ('tanh', 'none', 0.5)
    """
    if value is None:
        return "none"
    if isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "name", None) or getattr(value, "__qualname__", type(value).__qualname__)


def is_built_in(kinds: Sequence[Mapping[str, Any]]) -> bool:
    """Check whether names identify kinds of networks, which then contain no user's function.

    Args:
        kinds: static settings by name.

    Returns:
        True if every setting is built in.

    Example:
        >>> is_built_in([{"activation": get("tanh")}]), is_built_in([{"activation": get(lambda z: z**3)}])
        (True, False)
    """
    return all(_is_named(value) for kind in kinds for value in kind.values())


def _is_named(value: Any) -> bool:
    if not isinstance(value, Activation):
        return not callable(value)
    try:
        return get(value.name) == value
    except ValueError:
        return False
