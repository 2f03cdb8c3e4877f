"""Optional dependencies: a missing one is reported with the command that installs it."""

import contextlib
from collections.abc import Iterator

# all of it is for the other rooms
__all__ = ()


class MissingExtraError(ModuleNotFoundError):
    """A package of an optional extra is not installed; the message is one line and names the extra."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard imports that need an optional extra.

    Args:
        name: of the extra in pyproject.toml.

    Yields:
        Nothing.

    Raises:
        MissingExtraError: if a package that is not jaxstab's own is missing.
        ModuleNotFoundError: if a module of jaxstab's own is missing.

    Example:
        >>> with extra("run"):
        ...     import no_such_package
        Traceback (most recent call last):
        jaxstab.extras.MissingExtraError: no_such_package is not installed: pip install 'jaxstab[run]'
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0]
        if package == "jaxstab":
            raise
        message = f"{package} is not installed: pip install 'jaxstab[{name}]'"
        raise MissingExtraError(message, name=error.name) from error
