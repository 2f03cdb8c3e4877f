"""Will signal and gradient survive the depth of a network? Predict, measure and train, on the same axes.

A network is a chain of layers, h_0 = embed(x), h_l = block_l(h_{l-1}), y = readout(h_L), and every
quantity is a fold over it (`networks.upwards`, `networks.downwards`):

- `networks`: chains of our own family (`networks.mlp`) and of your own layers
  (`networks.from_linen`, ...).
- `theory` predicts; `propagation` and `spectra` measure; `training` trains. Theory and measurement
  return the same `records`.
- `activations`, `initializers`, `clipping` and `regularizers` are the cures.
- `jaxstab.sweeps` measures and trains whole grids; `jaxstab.analysis` predicts the same and states
  what comes of it; `jaxstab.store`, `jaxstab.report` and `jaxstab.datasets` are the outside world.
  These need the `run` extra.

Rooms are imported when they are first used.

Conventions, as papers differ:

- W_ij ~ N(0, sigma_w^2 / fan_in), or orthogonal and scaled so that each output has variance
  sigma_w^2 for inputs of mean square 1, also where fan_in < fan_out; b_i ~ N(0, sigma_b^2).
  `sigma_w` and `sigma_b` are standard deviations.
- Layer 0 obeys the same law with fan_in = d_in. Inputs compared with theory have mean square q_0 =
  1, or it is stated.
- The state h is the pre-activation, q its variance per unit; chi_1 = sigma_w^2 E phi'(sqrt(q*)
  z)^2; xi_q and xi_c are those of Schoenholz et al. 2017; xi_grad = 1 / |ln chi_1|, all in layers.
- Depth L counts blocks, without embedding (layer 0) and readout (layer L + 1). A Jacobian states
  its two layers.
- Singular values descend. A direction that relu has killed is 0, and -inf in logs.
- A rate is in nats per layer. A gradient vanishes or explodes by the fitted rate of ln ||dL/dh_l||
  with its error.
- One network and one input (or one batch, where blocks mix examples): the caller vmaps. Keys are
  arguments.
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
