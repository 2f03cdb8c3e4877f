"""Training of one network under any optax transformation, and its gradient and sharpness."""

from jaxstab.training.examples import Examples, cross_entropy
from jaxstab.training.gradient import value_and_grad
from jaxstab.training.run import train
from jaxstab.training.sharpness import sharpness

__all__ = [
    "Examples",
    "cross_entropy",
    "sharpness",
    "train",
    "value_and_grad",
]
