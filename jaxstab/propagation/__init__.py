"""Measurement of the signal forwards and the gradient backwards, as folds over the chain.

Functions take one network and one input (or one batch, where a block mixes examples). The caller
vmaps over inputs, seeds and gains. Folds carry unit vectors with natural logarithms of their norms,
so that no number leaves the range of floats.
"""

from jaxstab.propagation.attention import attention
from jaxstab.propagation.models import backward, correlation, forward
from jaxstab.propagation.sites import SiteGradients

__all__ = [
    "SiteGradients",
    "attention",
    "backward",
    "correlation",
    "forward",
]
