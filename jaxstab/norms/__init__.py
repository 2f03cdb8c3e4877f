"""Euclidean norms: right for any magnitude a float can hold, with a gradient at zero that is not NaN."""

from jaxstab.norms.groups import Norm, group_norms, norm
from jaxstab.norms.logarithms import log_norm

__all__ = [
    "Norm",
    "group_norms",
    "log_norm",
    "norm",
]
