"""Axes of a grid: the values that a setting may take, and named variants of a network."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jaxstab.activations import get
from jaxstab.checks import check_ascending, check_count, plain_axis
from jaxstab.sweeps.settings import SETTINGS, STATIC, WHOLE, label

# settings of our own networks that a variant sets
_OF_NETWORK = ("activation", "weights", "norm", "norm_after", "skip")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Named combination of network settings, a value of the axis "variant".

    Attributes:
        name: its label.
        activation: name, or `Activation`.
        weights: one of `networks.WEIGHTS`.
        norm: None or one of `networks.NORMS`.
        norm_after: whether the norm follows phi instead of preceding it.
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
        """The settings by name."""
        own = {name: getattr(self, name) for name in _OF_NETWORK}
        return own | {"activation": get(self.activation)}


def with_variant(settings: dict[str, Any]) -> dict[str, Any]:
    """Apply the settings of a variant.

    Args:
        settings: by name, with a "variant" or none.

    Returns:
        The settings; those of the variant take the place of others.
    """
    if "variant" not in settings:
        return settings
    return settings | settings["variant"].settings


def kind_of(name: str) -> str:
    """Classify a setting by what a change of it costs.

    Args:
        name: of the setting.

    Returns:
        STATIC, TRACED or WHOLE; settings that only a network of the caller's own knows are static.
    """
    if name in SETTINGS:
        return SETTINGS[name].kind
    return STATIC


def along(name: str, values: Any) -> Sequence[Any]:
    """Check the values along an axis.

    Args:
        name: of the setting.
        values: one or more; numbers ascend.

    Returns:
        The values; seeds given as a range stay one.

    Raises:
        ValueError: if there are none, two are equal, or one is not a value of the setting.
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
    """Write the values of a setting for JSON.

    Args:
        values: of the setting.
        several: whether they are a list there, as those along an axis are.

    Returns:
        A list of values, or the only one.
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
