"""What one layer reads: its parameters, running statistics, masks of dropout, and a common gain."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Key, PyTree


class Dropout(NamedTuple):
    """Key and rate of a layer's dropout.

    Attributes:
        key: PRNG key of the masks.
        rate: share dropped, in [0, 1]; those kept grow by 1/(1 - rate). None where the layer has
            its own.
    """

    key: Key[Array, "*layer"]
    rate: Float[Array, "*layer"] | None = None


class Layer(NamedTuple):
    """A layer's parameters and what it reads besides; of the latter only sigma_w has a gradient.

    Attributes:
        params: what is trained.
        batch_stats: running mean and variance of BatchNorm, for inference; of the user's own layers
            all collections that are not trained.
        dropout: masks, for training.
        sigma_w: factor of the weights W, applied in products: networks that differ in it alone
            share W.
    """

    params: PyTree
    batch_stats: PyTree = None
    dropout: Dropout | None = None
    sigma_w: Float[Array, "*layer"] | None = None

    def variables(self) -> dict[str, Any]:
        """Return the layer as Flax collections."""
        collections = {"params": self.params}
        if self.batch_stats:
            collections["batch_stats"] = jax.lax.stop_gradient(self.batch_stats)
        if self.dropout:
            collections["dropout"] = self.dropout._asdict()
        if self.sigma_w is not None:
            collections["gains"] = {"sigma_w": self.sigma_w}
        return collections


def as_layer(bound: PyTree) -> Layer:
    """Wrap parameters as a `Layer`, unless they are one.

    Args:
        bound: parameters, or a `Layer`.

    Returns:
        The `Layer`.
    """
    if isinstance(bound, Layer):
        return bound
    return Layer(bound)


def with_trained(bound: PyTree, trained: PyTree) -> PyTree:
    """Replace the trained parameters of a layer.

    Args:
        bound: parameters, or a `Layer`.
        trained: other parameters.

    Returns:
        These, in a `Layer` where `bound` is one.
    """
    if isinstance(bound, Layer):
        return bound._replace(params=trained)
    return trained
