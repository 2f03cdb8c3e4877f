"""Inputs of one layer besides its state: parameters, running statistics, dropout masks, a gain."""

from typing import NamedTuple

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


def with_trained(bound: PyTree, theta: PyTree) -> PyTree:
    """Replace the trained parameters of a layer.

    Args:
        bound: parameters, or a `Layer`.
        theta: other parameters.

    Returns:
        These, in a `Layer` where `bound` is one.
    """
    if isinstance(bound, Layer):
        return bound._replace(params=theta)
    return theta


def trained(params: PyTree) -> PyTree:
    """Extract the trained parameters from those that `Chain.bind` has bound.

    Args:
        params: any pytree.

    Returns:
        The pytree with a layer's parameters in the place of each bound layer.
    """

    def own(node: PyTree) -> PyTree:
        if isinstance(node, Layer):
            return node.params
        return node

    return jax.tree.map(own, params, is_leaf=is_layer)


def is_layer(node: PyTree) -> bool:
    """Tell a bound layer from parameters, for `jax.tree.map`.

    Args:
        node: of a pytree.

    Returns:
        Whether it is a `Layer`.
    """
    return isinstance(node, Layer)
