"""Signal propagation in deep networks: predictions, measurements and trainings on the same axes.

A network is a chain of layers, h_0 = embed(x), h_l = block_l(h_{l-1}), y = readout(h_L). Every
quantity is a fold over the chain (`networks.upwards`, `networks.downwards`):

- `networks`: chains of our own family (`networks.mlp`) and of your own layers
  (`networks.from_linen`, ...).
- `theory` predicts; `propagation` and `spectra` measure; `training` trains. Theory and measurement
  return the same `records`.
- `activations`, `initializers`, `clipping` and `regularizers` are cures.
- `jaxstab.sweeps` measures and trains whole grids; `jaxstab.analysis` predicts the same grids and
  judges the results; `jaxstab.store`, `jaxstab.report` and `jaxstab.datasets` read and write files.
  These need the `run` extra.

Packages are imported at their first use.

Conventions, since papers differ:

- W_ij ~ N(0, sigma_w^2 / fan_in), or orthogonal and scaled so that each output has variance
  sigma_w^2 for inputs of mean square 1, also where fan_in < fan_out; b_i ~ N(0, sigma_b^2).
  `sigma_w` and `sigma_b` are standard deviations.
- Layer 0 obeys the same law with fan_in = d_in. Inputs compared with theory have mean square
  q_0 = 1 unless stated otherwise.
- The state h is the pre-activation, q its variance per unit; chi_1 = sigma_w^2 E phi'(sqrt(q*)
  z)^2; xi_q and xi_c are those of Schoenholz et al. 2017; xi_grad = 1 / |ln chi_1|, all in layers.
- Depth L counts blocks, without embedding (layer 0) and readout (layer L + 1). A Jacobian states
  its two layers.
- Singular values descend. A zero singular value is -inf in logs.
- A rate is in nats per layer. The fitted rate of ln ||dL/dh_l|| and its standard error decide
  between a vanishing and an exploding gradient.
- Functions take one network and one input (or one batch, where blocks mix examples); the caller
  vmaps. Keys are arguments.
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
    """Import a package or read the version at its first use, since importing JAX takes a second."""
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = importlib.import_module(f"jaxstab.{name}")
    else:
        raise AttributeError(f"module 'jaxstab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names that are imported, and those that can be."""
    return sorted({*globals(), *__all__})


def _version() -> str:
    """Read the version from the installed package's metadata."""
    from importlib import metadata

    try:
        return metadata.version("jaxstab")
    except metadata.PackageNotFoundError:
        # a source tree on the path, not installed
        return "unknown"
