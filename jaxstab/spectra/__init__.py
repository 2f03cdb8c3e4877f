"""Measure: the singular values of Jacobians, all of them or what products with vectors tell of them."""

from jaxstab.spectra.exact import (
    SWEEPS,
    log_singular_values,
    product_log_singular_values,
    singular_values,
    spectrum,
)
from jaxstab.spectra.local import (
    Alignment,
    LogEstimate,
    PartialJacobian,
    alignment,
    local_log_singular_values,
    log_apjn,
    log_apjn_estimate,
    partial_jacobian,
)
from jaxstab.spectra.lyapunov import LyapunovLimit, lyapunov_exponents, lyapunov_limit
from jaxstab.spectra.matrix_free import (
    Density,
    Extremes,
    Moments,
    cdf,
    density,
    extremes,
    matrix_free_memory,
    moments,
    quantiles,
)
from jaxstab.spectra.operators import Operator, jacobian
from jaxstab.spectra.parameter_operator import parameter_jacobian
from jaxstab.spectra.parameters import (
    LOSSES,
    TangentKernel,
    gauss_newton_eigenvalues,
    gauss_newton_gram,
    kernel_eigenvalues,
    tangent_kernel,
    tangent_kernel_by_layer,
    tangent_kernel_memory,
)
from jaxstab.spectra.precision import PrecisionError, PrecisionReport, precision_report

__all__ = [
    "LOSSES",
    "SWEEPS",
    "Alignment",
    "Density",
    "Extremes",
    "LogEstimate",
    "LyapunovLimit",
    "Moments",
    "Operator",
    "PartialJacobian",
    "PrecisionError",
    "PrecisionReport",
    "TangentKernel",
    "alignment",
    "cdf",
    "density",
    "extremes",
    "gauss_newton_eigenvalues",
    "gauss_newton_gram",
    "jacobian",
    "kernel_eigenvalues",
    "local_log_singular_values",
    "log_apjn",
    "log_apjn_estimate",
    "log_singular_values",
    "lyapunov_exponents",
    "lyapunov_limit",
    "matrix_free_memory",
    "moments",
    "parameter_jacobian",
    "partial_jacobian",
    "precision_report",
    "product_log_singular_values",
    "quantiles",
    "singular_values",
    "spectrum",
    "tangent_kernel",
    "tangent_kernel_by_layer",
    "tangent_kernel_memory",
]
