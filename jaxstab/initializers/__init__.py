"""Initialisers that keep signal and gradient alive at depth, and weight gains with their sources.

Initialisers of one matrix follow jax.nn.initializers, for `MLP(weights=...)` or any Flax layer:
`critical` here, and by name in `networks.WEIGHTS` those of Glorot, He and LeCun and Haar-orthogonal
ones. Initialisers of a whole network draw or change its parameters: `looks_linear`, `lsuv`,
`auto_init`, `fixup`, `skip_init`.
"""

from jaxstab.initializers.layerwise import auto_init, lsuv
from jaxstab.initializers.residual import fixup, skip_init
from jaxstab.initializers.weights import critical, looks_linear
from jaxstab.theory.gains import Gain, gain

__all__ = [
    "Gain",
    "auto_init",
    "critical",
    "fixup",
    "gain",
    "looks_linear",
    "lsuv",
    "skip_init",
]
