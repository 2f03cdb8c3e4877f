"""Networks as chains: embed, one block per layer, readout. The only room where Flax lives.

The state h is the pre-activation: h_0 = W x + b, then a block: its branch is W a + b with a = phi(h), normalised,
thinned by dropout, and joined with h by a skip connection; readout y = W a + b. Weights are drawn at unit gain and
scaled, so that gains can be traced and all gains of one key share one draw.
"""

from jaxstab.networks.blocks import UNIT_WEIGHTS, WEIGHTS
from jaxstab.networks.chains import (
    Chain,
    Dropout,
    Layer,
    Params,
    Segments,
    Updates,
    with_network,
)
from jaxstab.networks.family import (
    bind,
    branch,
    chain,
    init,
    initial_stats,
    rescale,
    statistics,
    unbind,
    variables,
)
from jaxstab.networks.folds import States, downwards, layer_at, state, states, upwards
from jaxstab.networks.gains import Kernels, scale_kernels
from jaxstab.networks.here import Here
from jaxstab.networks.mlp import MLP
from jaxstab.networks.normalization import NORMS
from jaxstab.networks.own import from_functions, from_linen, from_nnx, from_params
from jaxstab.networks.probes import Probe, Reading, probe
from jaxstab.networks.pullbacks import pullback
from jaxstab.networks.sites import Missed, Row, Site
from jaxstab.networks.skips import SKIPS
from jaxstab.networks.tagged import tag
from jaxstab.networks.views import (
    at_one_input,
    flatten,
    of_rows,
    output_shape,
    over_batch,
    pair,
    state_shapes,
    vector_states,
)

__all__ = [
    "MLP",
    "NORMS",
    "SKIPS",
    "UNIT_WEIGHTS",
    "WEIGHTS",
    "Chain",
    "Dropout",
    "Here",
    "Kernels",
    "Layer",
    "Missed",
    "Params",
    "Probe",
    "Reading",
    "Row",
    "Segments",
    "Site",
    "States",
    "Updates",
    "at_one_input",
    "bind",
    "branch",
    "chain",
    "downwards",
    "flatten",
    "from_functions",
    "from_linen",
    "from_nnx",
    "from_params",
    "init",
    "initial_stats",
    "layer_at",
    "of_rows",
    "output_shape",
    "over_batch",
    "pair",
    "probe",
    "pullback",
    "rescale",
    "scale_kernels",
    "state",
    "state_shapes",
    "states",
    "statistics",
    "tag",
    "unbind",
    "upwards",
    "variables",
    "vector_states",
    "with_network",
]
