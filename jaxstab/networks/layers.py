"""Inputs of one layer besides its state: parameters, running statistics, dropout masks, a gain."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Key, PyTree


class Dropout(NamedTuple):
    """Key and rate of a layer's dropout.

    Attributes:
        key: PRNG key of the masks.
        rate: share of dropped features, in [0, 1]; kept features grow by 1/(1 - rate). None for a
            layer with a rate of its own.
    """

    key: Key[Array, "*layer"]
    rate: Float[Array, "*layer"] | None = None


class Layer(NamedTuple):
    """Parameters of a layer, with bound statistics, dropout and gain, of which only the gain has a gradient.

    Attributes:
        params: trained parameters.
        batch_stats: running mean and variance of BatchNorm, for inference; all collections that are
            not trained, for layers of the user's own.
        dropout: masks, for training.
        sigma_w: factor of the weights W, applied in products, so that networks that differ only in
            sigma_w share W.
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
        theta: new parameters.

    Returns:
        The new parameters, in a `Layer` if `bound` is one.
    """
    if isinstance(bound, Layer):
        return bound._replace(params=theta)
    return theta


def trained(params: PyTree) -> PyTree:
    """Extract the trained parameters from bound parameters.

    Args:
        params: any pytree.

    Returns:
        The pytree with each bound layer replaced by its parameters.
    """

    def own(node: PyTree) -> PyTree:
        if isinstance(node, Layer):
            return node.params
        return node

    return jax.tree.map(own, params, is_leaf=is_layer)


def is_layer(node: PyTree) -> bool:
    """Check whether a node is a bound layer, for `jax.tree.map`.

    Args:
        node: node of a pytree.

    Returns:
        True for a `Layer`.
    """
    return isinstance(node, Layer)
