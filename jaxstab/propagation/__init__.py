"""Measurement of the signal forwards and the gradient backwards, as folds over the chain.

Functions take one network and one input (or one batch, where a block mixes examples). The caller
vmaps over inputs, seeds and gains. Folds carry unit vectors with natural logarithms of their norms,
so that no number leaves the range of floats.
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
