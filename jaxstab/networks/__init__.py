"""Networks as chains: embed, one block per layer, readout. The only room where Flax lives.

The state h is the pre-activation: h_0 = W x + b, then a block: its branch is W a + b with a =
phi(h), normalised, thinned by dropout, and joined with h by a skip connection; readout y = W a + b.
Weights are drawn at unit gain and scaled, so that gains can be traced and all gains of one key
share one draw. What is imported here and not in `__all__` is for the other rooms.
"""

from jaxstab.networks.blocks import WEIGHTS
from jaxstab.networks.chains import Chain, Params
from jaxstab.networks.family import chain, mlp
from jaxstab.networks.folds import downwards, state, states, upwards
from jaxstab.networks.gains import Kernels as Kernels
from jaxstab.networks.gains import rescale
from jaxstab.networks.here import Here
from jaxstab.networks.normalization import NORMS
from jaxstab.networks.own import from_functions, from_linen, from_nnx, from_params
from jaxstab.networks.perceptron import MLP
from jaxstab.networks.probes import Probe, probe
from jaxstab.networks.sites import Site
from jaxstab.networks.skips import SKIPS
from jaxstab.networks.tagged import tag
from jaxstab.networks.views import flatten, over_batch

__all__ = [
    "MLP",
    "NORMS",
    "SKIPS",
    "WEIGHTS",
    "Chain",
    "Here",
    "Params",
    "Probe",
    "Site",
    "chain",
    "downwards",
    "flatten",
    "from_functions",
    "from_linen",
    "from_nnx",
    "from_params",
    "mlp",
    "over_batch",
    "probe",
    "rescale",
    "state",
    "states",
    "tag",
    "upwards",
]
