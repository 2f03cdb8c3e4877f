"""Euclidean norms: right for any magnitude a float can hold, with a gradient at zero that is not NaN."""

from jaxstab.norms.groups import (
    Norm,
    accumulator,
    group_norms,
    map_groups,
    norm,
    quick_norm,
    safe_scale,
    zero_norms,
)
from jaxstab.norms.logarithms import Product, log_norm, unit
from jaxstab.norms.meshes import varying_like
from jaxstab.norms.paths import Grouping, Per, Stacked, check_grouping, named_leaves, stacked_leaves

__all__ = [
    "Grouping",
    "Norm",
    "Per",
    "Product",
    "Stacked",
    "accumulator",
    "check_grouping",
    "group_norms",
    "log_norm",
    "map_groups",
    "named_leaves",
    "norm",
    "quick_norm",
    "safe_scale",
    "stacked_leaves",
    "unit",
    "varying_like",
    "zero_norms",
]
