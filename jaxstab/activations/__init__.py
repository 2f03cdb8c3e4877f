"""Activations, by name, with parameters, or from any elementwise callable.

Everything that jaxstab predicts about an activation phi is a Gaussian expectation of phi and phi'.
Quadrature splits its panels at the kinks. A closed-form kernel, where one exists, replaces
quadrature.
"""

from jaxstab.activations.activation import Activation
from jaxstab.activations.choice import one_of
from jaxstab.activations.mixtures import Mixture, mixture
from jaxstab.activations.named import celu, elu, get, leaky_relu, names, swish

__all__ = [
    "Activation",
    "Mixture",
    "celu",
    "elu",
    "get",
    "leaky_relu",
    "mixture",
    "names",
    "one_of",
    "swish",
]
