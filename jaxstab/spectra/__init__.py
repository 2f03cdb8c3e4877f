"""Measure: the singular values of Jacobians, all of them or what products with vectors tell of them."""

from jaxstab.spectra.exact import (
    SWEEPS,
    log_singular_values,
    product_log_singular_values,
    singular_values,
    spectrum,
)
from jaxstab.spectra.matrix_free import (
    Density,
    Estimate,
    Extremes,
    Moments,
    cdf,
    density,
    extremes,
    moments,
    quantiles,
)
from jaxstab.spectra.operators import Operator, jacobian

__all__ = [
    "SWEEPS",
    "Density",
    "Estimate",
    "Extremes",
    "Moments",
    "Operator",
    "cdf",
    "density",
    "extremes",
    "jacobian",
    "log_singular_values",
    "moments",
    "product_log_singular_values",
    "quantiles",
    "singular_values",
    "spectrum",
]
