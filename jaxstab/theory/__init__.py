"""Mean-field theory of infinitely wide networks, and its corrections at finite width."""

from jaxstab.theory.critical import critical_points, critical_sigma_w
from jaxstab.theory.designs import Design, design
from jaxstab.theory.doubly_critical import DoublyCritical, doubly_critical
from jaxstab.theory.finite_width import (
    Comparison,
    LogGrowth,
    compare,
    log_growth,
    lyapunov_exponents,
    typical_shift,
)
from jaxstab.theory.fisher import PredictedSharpness, sharpness
from jaxstab.theory.fixed_points import fixed_point, fixed_points
from jaxstab.theory.free_products import (
    JacobianLaw,
    JacobianMoments,
    jacobian_law,
    jacobian_moments,
    product_law,
    squared_slopes,
)
from jaxstab.theory.hermite import KernelMap, hermite_coefficients, kernel_map
from jaxstab.theory.kernels import Kernels, kernels
from jaxstab.theory.laws import Law, law
from jaxstab.theory.maps import (
    correlation_map,
    correlation_slope,
    derivative_moment,
    length_map,
    saturation,
    second_moment,
    second_moment_slope,
)
from jaxstab.theory.prediction import predict
from jaxstab.theory.reasons import missing
from jaxstab.theory.shaping import Shaped, shaped
from jaxstab.theory.subnetworks import ResidualStages

__all__ = [
    "Comparison",
    "Design",
    "DoublyCritical",
    "JacobianLaw",
    "JacobianMoments",
    "KernelMap",
    "Kernels",
    "Law",
    "LogGrowth",
    "PredictedSharpness",
    "ResidualStages",
    "Shaped",
    "compare",
    "correlation_map",
    "correlation_slope",
    "critical_points",
    "critical_sigma_w",
    "derivative_moment",
    "design",
    "doubly_critical",
    "fixed_point",
    "fixed_points",
    "hermite_coefficients",
    "jacobian_law",
    "jacobian_moments",
    "kernel_map",
    "kernels",
    "law",
    "length_map",
    "log_growth",
    "lyapunov_exponents",
    "missing",
    "predict",
    "product_law",
    "saturation",
    "second_moment",
    "second_moment_slope",
    "shaped",
    "sharpness",
    "squared_slopes",
    "typical_shift",
]
