"""Measure: what parameters do to outputs and to the loss, by kernels and by products with vectors."""

from jaxstab.curvature.kernels import (
    LOSSES,
    TangentKernel,
    gauss_newton_eigenvalues,
    gauss_newton_gram,
    kernel_eigenvalues,
    tangent_kernel,
    tangent_kernel_by_layer,
    tangent_kernel_memory,
)
from jaxstab.curvature.parameter_operator import parameter_jacobian

__all__ = [
    "LOSSES",
    "TangentKernel",
    "gauss_newton_eigenvalues",
    "gauss_newton_gram",
    "kernel_eigenvalues",
    "parameter_jacobian",
    "tangent_kernel",
    "tangent_kernel_by_layer",
    "tangent_kernel_memory",
]
