"""Will signal and gradient survive the depth of a network? Predict, measure and train, on the same axes.

The science is imported here; the orchestration (`jaxstab.sweeps`, `jaxstab.survey`) and the outside world
(`jaxstab.datasets`, `jaxstab.store`, `jaxstab.report`) need the `run` extra and are imported by name.
"""

from jaxstab import (
    activations,
    clipping,
    initializers,
    networks,
    propagation,
    records,
    regularizers,
    spectra,
    theory,
)

__all__ = [
    "activations",
    "clipping",
    "initializers",
    "networks",
    "propagation",
    "records",
    "regularizers",
    "spectra",
    "theory",
]
