"""Optional dependencies, whose absence is reported with the command that installs them."""

import contextlib
from collections.abc import Iterator

# for the other packages of jaxstab only
__all__ = ()


class MissingExtraError(ModuleNotFoundError):
    """Error for a missing package of an optional extra, with a message of one line."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard imports that need an optional extra.

    Args:
        name: name of the extra in pyproject.toml.

    Yields:
        Nothing.

    Raises:
        MissingExtraError: if another package than jaxstab is missing.
        ModuleNotFoundError: if a module of jaxstab is missing.

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
