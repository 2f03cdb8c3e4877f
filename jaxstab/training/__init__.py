"""Train one network under any optax transformation, to a depth that may be traced."""

from jaxstab.training.gradient import value_and_grad
from jaxstab.training.run import Examples, cross_entropy, train

__all__ = [
    "Examples",
    "cross_entropy",
    "train",
    "value_and_grad",
]
