"""Code of the user's own, named as module:function."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxstab.cli.faults import UserError


def imported(what: str, module: str, name: str) -> Any:
    """Import an object from a module of the user's, which is found from the current folder too.

    Args:
        what: names it in a complaint.
        module: dotted path of the module.
        name: of the object in it.

    Returns:
        The object.

    Raises:
        UserError: if the module is named as a file, cannot be imported, or has no such name.
    """
    if module.endswith(".py") or module.startswith(".") or "/" in module:
        stem = Path(module).stem.lstrip(".") or "module"
        raise UserError(
            f"{what}: must name a module as Python imports it, such as {stem}:{name} or "
            f"package.{stem}:{name}, not a file"
        )
    with users_code(what):
        return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def users_code(what: str) -> Iterator[None]:
    """Run code of the user's, which may import modules of the current folder and raise anything.

    Args:
        what: names it in a complaint.

    Yields:
        Nothing.

    Raises:
        UserError: in place of whatever is raised, in one line.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        # the user's code may have put other folders before this one, or have removed it
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
