"""Initialisers that keep signal and gradient alive at depth, and gains with their reasons.

Two kinds. What acts on one matrix is an initialiser as jax.nn.initializers has them, for
`MLP(weights=...)` or any Flax layer: `critical` here, and by name in `networks.WEIGHTS` those of
Glorot, He and LeCun, and Haar-orthogonal ones. What must see the network draws or changes its
parameters: `looks_linear`, `lsuv`, `auto_init`, `fixup`, `skip_init`.
"""

from jaxstab.initializers.layerwise import auto_init, lsuv
from jaxstab.initializers.residual import fixup, skip_init
from jaxstab.initializers.weights import critical, looks_linear
from jaxstab.theory.gains import Gain, gain, length_gain

__all__ = [
    "Gain",
    "auto_init",
    "critical",
    "fixup",
    "gain",
    "length_gain",
    "looks_linear",
    "lsuv",
    "skip_init",
]
