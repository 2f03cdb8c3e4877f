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
from jaxstab.curvature.objectives import Objective, objective
from jaxstab.curvature.parameter_operator import parameter_jacobian
from jaxstab.curvature.products import empirical_fisher, gauss_newton, hessian, hessian_by_gradient
from jaxstab.curvature.symmetric import EigenvalueDensity, Extremes, cdf, density, extremes, trace
from jaxstab.curvature.vectors import ravel

__all__ = [
    "LOSSES",
    "EigenvalueDensity",
    "Extremes",
    "Objective",
    "TangentKernel",
    "cdf",
    "density",
    "empirical_fisher",
    "extremes",
    "gauss_newton",
    "gauss_newton_eigenvalues",
    "gauss_newton_gram",
    "hessian",
    "hessian_by_gradient",
    "kernel_eigenvalues",
    "objective",
    "parameter_jacobian",
    "ravel",
    "tangent_kernel",
    "tangent_kernel_by_layer",
    "tangent_kernel_memory",
    "trace",
]
