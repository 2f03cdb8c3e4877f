"""Predict: mean-field theory of infinitely wide networks."""

from jaxstab.theory.critical import critical_points, critical_sigma_w
from jaxstab.theory.fixed_points import fixed_point, fixed_points
from jaxstab.theory.free_products import (
    JacobianLaw,
    JacobianMoments,
    jacobian_cdf,
    jacobian_law,
    jacobian_moments,
    product_law,
    squared_slopes,
)
from jaxstab.theory.laws import (
    NORMS,
    SKIPS,
    SMALLEST_BATCH,
    WEIGHT_VARIANCES,
    Law,
    law,
    missing,
    missing_critical_points,
    missing_fixed_point,
    unsolvable,
)
from jaxstab.theory.maps import (
    MomentError,
    correlation_map,
    correlation_slope,
    derivative_moment,
    length_map,
    moment_error,
    saturation,
    second_moment,
    second_moment_slope,
)
from jaxstab.theory.prediction import predict

__all__ = [
    "NORMS",
    "SKIPS",
    "SMALLEST_BATCH",
    "WEIGHT_VARIANCES",
    "JacobianLaw",
    "JacobianMoments",
    "Law",
    "MomentError",
    "correlation_map",
    "correlation_slope",
    "critical_points",
    "critical_sigma_w",
    "derivative_moment",
    "fixed_point",
    "fixed_points",
    "jacobian_cdf",
    "jacobian_law",
    "jacobian_moments",
    "law",
    "length_map",
    "missing",
    "missing_critical_points",
    "missing_fixed_point",
    "moment_error",
    "predict",
    "product_law",
    "saturation",
    "second_moment",
    "second_moment_slope",
    "squared_slopes",
    "unsolvable",
]
