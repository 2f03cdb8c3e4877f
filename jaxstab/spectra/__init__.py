"""Measure: the singular values of Jacobians."""

from jaxstab.spectra.exact import (
    SWEEPS,
    log_singular_values,
    product_log_singular_values,
    singular_values,
    spectrum,
)

__all__ = ["SWEEPS", "log_singular_values", "product_log_singular_values", "singular_values", "spectrum"]
