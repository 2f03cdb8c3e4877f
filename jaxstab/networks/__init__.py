"""Networks as chains: embed, one block per layer, readout. The only room where Flax lives.

The state h is the pre-activation: h_0 = W x + b, then a block: its branch is W a + b with a = phi(h), normalised,
thinned by dropout, and joined with h by a skip connection; readout y = W a + b. Weights are drawn at unit gain and
scaled, so that gains can be traced and all gains of one key share one draw.
"""

from jaxstab.networks.blocks import NORMS, SKIPS, UNIT_WEIGHTS, WEIGHTS
from jaxstab.networks.chains import (
    Chain,
    Dropout,
    Layer,
    Params,
    at_one_input,
    bind,
    branch,
    chain,
    flatten,
    init,
    initial_stats,
    rescale,
    statistics,
    unbind,
    variables,
    with_network,
)
from jaxstab.networks.mlp import MLP
from jaxstab.networks.pullbacks import pullback

__all__ = [
    "MLP",
    "NORMS",
    "SKIPS",
    "UNIT_WEIGHTS",
    "WEIGHTS",
    "Chain",
    "Dropout",
    "Layer",
    "Params",
    "at_one_input",
    "bind",
    "branch",
    "chain",
    "flatten",
    "init",
    "initial_stats",
    "pullback",
    "rescale",
    "statistics",
    "unbind",
    "variables",
    "with_network",
]
