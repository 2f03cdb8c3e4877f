"""Singular values of Jacobians: whole spectra, or extremes and moments from products."""

from jaxstab.spectra.exact import (
    log_singular_values,
    product_log_singular_values,
    singular_values,
)
from jaxstab.spectra.local import (
    alignment,
    local_log_singular_values,
    log_apjn,
)
from jaxstab.spectra.lyapunov import lyapunov_exponents
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
    "log_singular_values",
    "lyapunov_exponents",
    "moments",
    "precision_report",
    "product_log_singular_values",
    "singular_values",
]
