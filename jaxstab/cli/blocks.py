"""Law of a block, files of figures and JSON, for `jaxstab theory` and `jaxstab phase`."""

import math
from pathlib import Path
from typing import Any

from jaxstab import activations, theory
from jaxstab.cli.faults import UserError, users_fault
from jaxstab.cli.own import imported
from jaxstab.cli.settings import Block

# suffixes of a figure's file
_FORMATS = (".pdf", ".png", ".svg")


def law_of(settings: Block) -> theory.Law:
    """Make the law of the block that the flags describe.

    Args:
        settings: the flags.

    Returns:
        The law.

    Raises:
        UserError: if a name is unknown or a number is out of range.
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
    """Return an activation by name, or import it as module:function, also from the current folder."""
    module, colon, function = word.partition(":")
    if not colon:
        return activations.get(word)
    if not (module and function):
        raise UserError(f"--activation must be a name or module:function, got {word!r}")
    return activations.get(imported(f"--activation {word}", module, function))


def check_figure(flag: str, path: Path) -> None:
    """Check that a figure's file can be written, before anything is computed.

    Args:
        flag: flag of the file, for the message.
        path: the file.

    Raises:
        UserError: if the format is unknown or the folder is missing.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{flag} must end in {', '.join(_FORMATS)}, got {path}")
    # jaxstab.store imports xarray and pandas, which are slow to import
    from jaxstab.store.files import check_file

    with users_fault():
        check_file(path)


def strict(value: Any) -> Any:
    """Convert a value for strict JSON: infinity becomes the string "inf", NaN becomes null.

    Args:
        value: numbers in lists and dicts.

    Returns:
        The converted value.
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
