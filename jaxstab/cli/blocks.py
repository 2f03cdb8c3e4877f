"""What the commands of theory take of a block, and figures that they write."""

import math
from pathlib import Path
from typing import Any

from jaxstab import activations, theory
from jaxstab.cli.faults import UserError, users_fault
from jaxstab.cli.own import imported
from jaxstab.cli.settings import Block

# of a figure's file
_FORMATS = (".pdf", ".png", ".svg")


def law_of(settings: Block) -> theory.Law:
    """The law that the flags describe.

    Args:
        settings: the flags.

    Returns:
        The law.

    Raises:
        UserError: if a name is unknown or a number out of range.
    """
    if not (math.isfinite(settings.dropout) and 0 <= settings.dropout < 1):
        raise UserError(f"--dropout must be in [0, 1), got {settings.dropout:g}")
    with users_fault():
        phi = _activation(settings.activation)
        return theory.law(
            phi,
            norm=settings.norm,
            norm_after=settings.norm_after,
            skip=settings.skip,
            keep=1.0 - settings.dropout,
            weights=settings.weights,
            depth=settings.depth,
            batch=settings.batch,
            shared_masks=False,
        )


def _activation(word: str) -> activations.Activation:
    """An activation by name, or a function of a module of the user's, found from the current folder too."""
    module, colon, function = word.partition(":")
    if not colon:
        return activations.get(word)
    if not (module and function):
        raise UserError(f"--activation must be a name or module:function, got {word!r}")
    return activations.get(imported(f"--activation {word}", module, function))


def check_figure(flag: str, path: Path) -> None:
    """Refuse a figure's file that cannot be written, before anything is computed.

    Args:
        flag: that names it.
        path: the file.

    Raises:
        UserError: if its format is unknown or its folder missing.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{flag} must end in {', '.join(_FORMATS)}, got {path}")
    # xarray and pandas come with the room of stores, and are slow to import
    from jaxstab.store.files import check_file

    with users_fault():
        check_file(path)


def strict(value: Any) -> Any:
    """A value for JSON, which has no infinity and no NaN: the string "inf" and null stand for them.

    Args:
        value: numbers in lists and dicts.

    Returns:
        The same.
    """
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [strict(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return None
    # "inf" or "-inf"
    return str(value)
