"""Bind layers of the user's own to running statistics and keys."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key, PyTree

from jaxstab.networks.chains import Params, layers_of
from jaxstab.networks.layers import Dropout, Layer, as_layer


def trained(params: Params) -> Params:
    """Return the trained parameters alone.

    Args:
        params: parameters, bound or not.

    Returns:
        The parameters alone.
    """
    return params.restacked([as_layer(stack).params for stack in params.stacks])


def unbind(params: Params, x: PyTree = None) -> tuple[Params, dict[str, PyTree]]:
    """Separate the trained parameters from the collections that are not trained.

    Args:
        params: parameters of the user's own layers.
        x: not read.

    Returns:
        What is trained, and the collections by "embed", "blocks" and "readout"; empty where no
        layer has any.
    """
    collections = [as_layer(stack).batch_stats for stack in params.stacks]
    if not jax.tree.leaves(collections):
        return trained(params), {}
    return trained(params), params.restacked(collections)._asdict()


def bind(
    params: Params,
    *,
    stats: dict[str, PyTree] | None = None,
    key: Key[Array, ""] | None = None,
    rate: ArrayLike = 0.0,
) -> Params:
    """Bind layers of the user's own to their collections and keys.

    Args:
        params: what is trained, with its collections or without.
        stats: collections, as `unbind` gives them; None for those in `params`.
        key: PRNG key; layer l draws by the l-th of its L + 2 splits. None for none.
        rate: of dropout: 0, for layers of the user's own have their rates.

    Returns:
        Parameters for the chain.

    Raises:
        ValueError: if a rate is given.
    """
    if not (isinstance(rate, int | float) and rate == 0):
        raise ValueError(
            "rate is for dropout of a networks.MLP; layers of your own have their own rates, got "
            f"{rate}"
        )
    layers = [as_layer(stack) for stack in params.stacks]
    if stats:
        collections = Params(stats["embed"], stats["blocks"], stats["readout"]).stacks
        layers = [
            layer._replace(batch_stats=rest)
            for layer, rest in zip(layers, collections, strict=True)
        ]
    if key is not None:
        layers = _with_keys(params, layers, jax.random.split(key, params.depth + 2))
    return params.restacked(layers)


def _with_keys(params: Params, layers: list[Layer], keys: Array) -> list[Layer]:
    """Give the embedding, each block and the readout a key."""
    embed, *parts, readout = layers
    layers_with_keys = [embed._replace(dropout=Dropout(keys[0]))]
    first = 1
    for part in parts:
        many = layers_of(part)
        layers_with_keys.append(part._replace(dropout=Dropout(keys[first : first + many])))
        first += many
    return [*layers_with_keys, readout._replace(dropout=Dropout(keys[-1]))]


def stacked(bounds: list[PyTree]) -> Any:
    """Stack equal layers.

    Args:
        bounds: parameters of each.

    Returns:
        The same tree, its leaves with a leading layer axis.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *bounds)
