"""Curvature with respect to parameters: tangent kernels, and curvature matrices as products.

`hessian`, `gauss_newton` and `empirical_fisher` make an operator from a loss. `extremes`, `trace`
and `density` compute its eigenvalues. `largest_stable_rate` converts the largest eigenvalue to the
largest stable learning rate.
"""

from jaxstab.curvature.kernels import (
    TangentKernel,
    gauss_newton_eigenvalues,
    tangent_kernel,
)
from jaxstab.curvature.monitors import SharpnessState, monitor_sharpness
from jaxstab.curvature.objectives import objective
from jaxstab.curvature.parameter_operator import parameter_jacobian
from jaxstab.curvature.products import empirical_fisher, gauss_newton, hessian, hessian_by_gradient
from jaxstab.curvature.stability import (
    CriticalSharpness,
    adam_preconditioner,
    critical_sharpness,
    directional_sharpness,
    largest_stable_rate,
    preconditioned,
)
from jaxstab.curvature.symmetric import (
    EigenvalueDensity,
    Extremes,
    Largest,
    density,
    extremes,
    largest,
    trace,
)
from jaxstab.curvature.vectors import ravel

__all__ = [
    "CriticalSharpness",
    "EigenvalueDensity",
    "Extremes",
    "Largest",
    "SharpnessState",
    "TangentKernel",
    "adam_preconditioner",
    "critical_sharpness",
    "density",
    "directional_sharpness",
    "empirical_fisher",
    "extremes",
    "gauss_newton",
    "gauss_newton_eigenvalues",
    "hessian",
    "hessian_by_gradient",
    "largest",
    "largest_stable_rate",
    "monitor_sharpness",
    "objective",
    "parameter_jacobian",
    "preconditioned",
    "ravel",
    "tangent_kernel",
    "trace",
]
