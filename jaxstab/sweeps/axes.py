"""Axes of a grid: the values that a setting may take, and named variants of a network."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jaxstab.activations import get
from jaxstab.checks import check_ascending, check_count, plain_axis
from jaxstab.sweeps.settings import SETTINGS, STATIC, WHOLE, label

# settings of `networks.MLP` that a variant sets
_OF_NETWORK = ("activation", "weights", "norm", "norm_after", "skip")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Named combination of network settings, a value of the axis "variant".

    Attributes:
        name: label of the variant.
        activation: name, or `Activation`.
        weights: one of `networks.WEIGHTS`.
        norm: None or one of `networks.NORMS`.
        norm_after: True for a norm after phi, False for a norm before phi.
        skip: None or one of `networks.SKIPS`.
    """

    name: str
    activation: Any = "tanh"
    weights: str = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by name."""
        own = {name: getattr(self, name) for name in _OF_NETWORK}
        return own | {"activation": get(self.activation)}


def with_variant(settings: dict[str, Any]) -> dict[str, Any]:
    """Apply the settings of a variant.

    Args:
        settings: settings by name, with or without a "variant".

    Returns:
        The settings; those of the variant replace others.
    """
    if "variant" not in settings:
        return settings
    return settings | settings["variant"].settings


def kind_of(name: str) -> str:
    """Classify a setting by the cost of a change.

    Args:
        name: name of the setting.

    Returns:
        STATIC, TRACED or WHOLE; STATIC for settings of a user's own network.
    """
    if name in SETTINGS:
        return SETTINGS[name].kind
    return STATIC


def along(name: str, values: Any) -> Sequence[Any]:
    """Check the values along an axis.

    Args:
        name: name of the setting.
        values: one or more values; numbers ascend.

    Returns:
        The values; a range of seeds stays a range.

    Raises:
        ValueError: if values is empty, two values are equal, or a value is invalid.
    """
    if name == "variant":
        return _variants(values)
    if name not in SETTINGS:
        return _some(name, values)
    setting = SETTINGS[name]
    if setting.kind == WHOLE:
        raise ValueError(f"{name} must be one value of the whole grid, got an axis")
    # a range is not listed: there may be more seeds than memory holds
    if name == "seed" and isinstance(values, range) and len(values) > 0 and values.step > 0:
        check_count(name, values[0], 0)
        return values
    if not setting.number:
        checked = tuple(setting.check(name, value) for value in _some(name, values))
        if len({label(value) for value in checked}) < len(checked):
            raise ValueError(
                f"{name} must be of different values, got {[label(v) for v in checked]}"
            )
        return checked
    plain = plain_axis(name, values, integer=True)
    checked = tuple(setting.check(name, value) for value in plain)
    check_ascending(name, checked)
    return checked


def _some(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    several = () if isinstance(values, str) else tuple(values)
    if not several:
        raise ValueError(f"{name} must be one or more values, got {values!r}")
    return several


def _variants(values: Iterable[Any]) -> tuple[Variant, ...]:
    variants = tuple(values)
    names = [getattr(variant, "name", None) for variant in variants]
    if (
        not variants
        or len(set(names)) < len(names)
        or not all(isinstance(v, Variant) for v in variants)
    ):
        raise ValueError(f"variant must be one or more Variants of different names, got {names}")
    return variants


def for_json(values: Sequence[Any], several: bool) -> Any:
    """Convert the values of a setting for JSON.

    Args:
        values: values of the setting.
        several: True for a list of values, as along an axis.

    Returns:
        A list of values, or the only value.
    """

    def one(value: Any) -> Any:
        if isinstance(value, Variant):
            return dataclasses.asdict(value) | {"activation": label(get(value.activation))}
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        if value is None:
            return value
        return label(value)

    written = [one(value) for value in values]
    if several:
        return written
    return written[0]
