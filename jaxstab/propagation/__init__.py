"""Measure the signal forwards and the gradient backwards at every layer, as folds over the chain.

One network and one input (or one batch, where a block mixes examples); the caller vmaps over
inputs, seeds and gains. Norms travel as natural logarithms next to vectors of unit length, so that
no float range is left.
"""

from jaxstab.propagation.attention import attention_at_sites
from jaxstab.propagation.gradients import backward
from jaxstab.propagation.profiles import correlation, forward, states
from jaxstab.propagation.sites import backward_at_sites, correlation_at_sites, forward_at_sites

__all__ = [
    "attention_at_sites",
    "backward",
    "backward_at_sites",
    "correlation",
    "correlation_at_sites",
    "forward",
    "forward_at_sites",
    "states",
]
