"""Measure singular values of Jacobians: all of them, or extremes and moments from products."""

from jaxstab.spectra.exact import (
    log_singular_values,
    log_spectrum,
    product_log_singular_values,
    singular_values,
    spectrum,
)
from jaxstab.spectra.local import (
    alignment,
    local_log_singular_values,
    log_apjn,
    log_apjn_estimate,
    partial_jacobian,
)
from jaxstab.spectra.lyapunov import lyapunov_exponents, lyapunov_limit
from jaxstab.spectra.matrix_free import Density, density, extremes, moments
from jaxstab.spectra.operators import Operator
from jaxstab.spectra.precision import precision_report
from jaxstab.spectra.sites import jacobian

__all__ = [
    "Density",
    "Operator",
    "alignment",
    "density",
    "extremes",
    "jacobian",
    "local_log_singular_values",
    "log_apjn",
    "log_apjn_estimate",
    "log_singular_values",
    "log_spectrum",
    "lyapunov_exponents",
    "lyapunov_limit",
    "moments",
    "partial_jacobian",
    "precision_report",
    "product_log_singular_values",
    "singular_values",
    "spectrum",
]
