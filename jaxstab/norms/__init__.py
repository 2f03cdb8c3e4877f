"""Euclidean norms of any magnitude that a float can hold, with a finite gradient at zero."""

from jaxstab.norms.groups import Norm, group_norms, norm
from jaxstab.norms.logarithms import log_norm

__all__ = [
    "Norm",
    "group_norms",
    "log_norm",
    "norm",
]
