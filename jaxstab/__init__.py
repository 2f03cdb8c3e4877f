"""Will signal and gradient survive the depth of a network? Predict, measure and train, on the same axes.

The rooms below are imported when they are first used. The orchestration (`jaxstab.sweeps`, `jaxstab.survey`,
`jaxstab.trainability`) and the outside world (`jaxstab.datasets`, `jaxstab.store`, `jaxstab.report`) need the `run`
extra and are imported by name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxstab import (
        activations,
        clipping,
        curvature,
        initializers,
        networks,
        propagation,
        records,
        regularizers,
        spectra,
        theory,
        training,
    )

    __version__: str

__all__ = [
    "__version__",
    "activations",
    "clipping",
    "curvature",
    "initializers",
    "networks",
    "propagation",
    "records",
    "regularizers",
    "spectra",
    "theory",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import a room, or look the version up, at its first use: importing JAX takes a second, metadata 30 ms."""
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = importlib.import_module(f"jaxstab.{name}")
    else:
        raise AttributeError(f"module 'jaxstab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List what has been imported and what can be."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    """Read the version from the installed package's metadata."""
    from importlib import metadata

    try:
        return metadata.version("jaxstab")
    except metadata.PackageNotFoundError:
        # a source tree on the path, not installed
        return "unknown"
