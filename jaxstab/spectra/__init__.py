"""Measure: the singular values of Jacobians, all of them or what products with vectors tell of them."""

from jaxstab.spectra.exact import (
    LogSpectrum,
    log_singular_values,
    log_spectrum,
    log_spectrum_memory,
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
from jaxstab.spectra.precision import PrecisionError, PrecisionReport, precision_report
from jaxstab.spectra.sites import jacobian_at_sites

__all__ = [
    "Alignment",
    "Density",
    "Extremes",
    "LogEstimate",
    "LogSpectrum",
    "LyapunovLimit",
    "Moments",
    "Operator",
    "PartialJacobian",
    "PrecisionError",
    "PrecisionReport",
    "alignment",
    "cdf",
    "density",
    "extremes",
    "jacobian",
    "jacobian_at_sites",
    "local_log_singular_values",
    "log_apjn",
    "log_apjn_estimate",
    "log_singular_values",
    "log_spectrum",
    "log_spectrum_memory",
    "lyapunov_exponents",
    "lyapunov_limit",
    "matrix_free_memory",
    "moments",
    "partial_jacobian",
    "precision_report",
    "product_log_singular_values",
    "quantiles",
    "singular_values",
    "spectrum",
]
