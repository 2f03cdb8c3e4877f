"""Train: one run under any optax transformation, as a scan; the depth that is alive may be traced."""

from jaxstab.training.gradient import value_and_grad
from jaxstab.training.run import Examples, cross_entropy, train

__all__ = [
    "Examples",
    "cross_entropy",
    "train",
    "value_and_grad",
]
