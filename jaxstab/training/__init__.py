"""Train: one run under any optax transformation, as a scan; the depth that is alive may be traced."""

from jaxstab.training.gradient import Gradient, output, value_and_grad
from jaxstab.training.run import Examples, State, cross_entropy, start, train

__all__ = [
    "Examples",
    "Gradient",
    "State",
    "cross_entropy",
    "output",
    "start",
    "train",
    "value_and_grad",
]
