"""Measure: the singular values of Jacobians."""

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

__all__ = [
    "SWEEPS",
    "Alignment",
    "LogEstimate",
    "LyapunovLimit",
    "PartialJacobian",
    "alignment",
    "local_log_singular_values",
    "log_apjn",
    "log_apjn_estimate",
    "log_singular_values",
    "lyapunov_exponents",
    "lyapunov_limit",
    "partial_jacobian",
    "product_log_singular_values",
    "singular_values",
    "spectrum",
]
