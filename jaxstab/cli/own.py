"""Import and call of the user's own code, named as module:function."""

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from jaxstab.cli import interrupts
from jaxstab.cli.faults import UserError

# the user's top packages that `imported` has imported
_packages: set[str] = set()
# packages on every traceback, which a user may name as well
_NOT_OWN = ("jax", "jaxstab")


def imported(label: str, module: str, name: str) -> Any:
    """Import an object from a module of the user's, also from the current folder.

    Args:
        label: name of the object in an error message.
        module: dotted path of the module.
        name: name of the object in the module.

    Returns:
        The object.

    Raises:
        UserError: if the module is named as a file, cannot be imported, or has no such name.
    """
    if module.endswith(".py") or module.startswith(".") or "/" in module:
        stem = Path(module).stem.lstrip(".") or "module"
        raise UserError(
            f"{label}: must name a module as Python imports it, such as {stem}:{name} or "
            f"package.{stem}:{name}, not a file"
        )
    _packages.add(module.partition(".")[0])
    with users_code(label):
        return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def users_code(label: str) -> Iterator[None]:
    """Run user code, which may import modules of the current folder and raise any error.

    Args:
        label: name of the code in an error message.

    Yields:
        Nothing.

    Raises:
        UserError: in place of any error, with a message of one line.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    except BaseException as error:
        if _is_signal(error):
            raise
        raise UserError(f"{label}: {type(error).__name__}: {error}") from error
    finally:
        # the user's code may have changed the path
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


@contextlib.contextmanager
def blamed() -> Iterator[None]:
    """Convert errors of the user's functions, wherever they are called, to a `UserError`.

    Yields:
        Nothing.

    Raises:
        UserError: in place of any exception of the user's code, SystemExit included; names the
            function and its line.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if _is_signal(error):
            raise
        frames = traceback.walk_tb(error.__traceback__)
        own = [(frame, line) for frame, line in frames if _is_users(frame)]
        if not own:
            raise
        frame, line = own[-1]
        place = f"{os.path.basename(frame.f_code.co_filename)}, line {line}"
        raise UserError(
            f"{frame.f_code.co_qualname} ({place}): {type(error).__name__}: {error}"
        ) from error


def _is_signal(error: BaseException) -> bool:
    """Check whether an error is the interruption of a signal, and not raised by code."""
    return isinstance(error, KeyboardInterrupt) and interrupts.signalled()


def _is_users(frame: FrameType) -> bool:
    """Check whether a frame is of a module that was imported as the user's."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in _packages and package not in _NOT_OWN
