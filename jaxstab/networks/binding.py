"""Binding of the layers of a chain to running statistics, keys of dropout and a common gain.

Bound layers hold all arguments of a pass. `statistics` reads running statistics off bound layers by
field of `Params`, as training carries them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key, PyTree

from jaxstab.checks import check_gains
from jaxstab.networks.chains import Chain, Params, layers_of, with_network
from jaxstab.networks.layers import Dropout, Layer, as_layer
from jaxstab.networks.perceptron import MLP


@with_network
def bind(
    chain: Chain,
    params: Params,
    *,
    stats: dict[str, PyTree] | None = None,
    key: Key[Array, ""] | None = None,
    rate: ArrayLike = 0.0,
    sigma_w: ArrayLike | None = None,
) -> Params:
    """Bind parameters: `Chain.bind`.

    Args:
        chain: the network.
        params: trained parameters.
        stats: running statistics, by field of `Params`.
        key: PRNG key of all masks.
        rate: share of features dropped.
        sigma_w: factor of the weights.

    Returns:
        Parameters for the chain, with a `Layer` for each layer.
    """
    mlp = chain.family
    layers = [as_layer(stack) for stack in params.stacks]
    if stats:
        collections = _stacks(params, stats)
        layers = [
            layer._replace(batch_stats=rest)
            for layer, rest in zip(layers, collections, strict=True)
        ]
    if mlp is None:
        _check_own(rate, sigma_w)
        if key is not None:
            layers = _with_keys(params, layers, key)
        return params.restacked(layers)
    if key is not None and mlp.dropout:
        layers = _with_masks(mlp, layers, key, rate)
    if sigma_w is not None:
        layers = _with_gains(mlp, layers, sigma_w)
    return params.restacked(layers)


def statistics(params: Params) -> dict[str, PyTree]:
    """Read the running statistics off bound layers.

    Args:
        params: parameters, bound or not.

    Returns:
        Statistics by field of `Params`, for `bind`, without fields that have none.
    """
    collections = [as_layer(stack).batch_stats for stack in params.stacks]
    by_field = params.restacked(collections)._asdict()
    return {field: tree for field, tree in by_field.items() if jax.tree.leaves(tree)}


@with_network
def initial_statistics(network: MLP | Chain, params: Params, x: PyTree) -> dict[str, PyTree]:
    """Make the running statistics before training: mean 0 and variance 1 for BatchNorm of an MLP.

    Args:
        network: an MLP or a chain.
        params: its parameters; statistics that they hold stay.
        x: inputs, for their size and dtype.

    Returns:
        The statistics, as `bind` takes them; empty where there are none.
    """
    held = statistics(params)
    mlp = network if isinstance(network, MLP) else network.family
    if held or mlp is None or not mlp.mixes_examples:
        return held
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), x)["batch_stats"]
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype), shapes
    )


def _stacks(params: Params, stats: dict[str, PyTree]) -> list[PyTree]:
    """Arrange statistics as the stacks of parameters are; None for fields without any."""
    none = params.restacked([None] * len(params.stacks))
    return none._replace(**stats).stacks


def _check_own(rate: ArrayLike, sigma_w: ArrayLike | None) -> None:
    """Check that layers of the user's own are given neither a rate nor a gain."""
    if not (isinstance(rate, int | float) and rate == 0):
        raise ValueError(
            f"rate must be 0 for layers of your own, which have their own rates, got {rate}"
        )
    if sigma_w is not None:
        raise ValueError(
            f"sigma_w must be None for layers of your own, got {sigma_w}; use networks.rescale"
        )


def _with_keys(params: Params, layers: list[Layer], key: Array) -> list[Layer]:
    """Give the embedding, each block and the readout a key."""
    keys = jax.random.split(key, params.depth + 2)
    embed, *parts, readout = layers
    layers_with_keys = [embed._replace(dropout=Dropout(keys[0]))]
    first = 1
    for part in parts:
        many = layers_of(part)
        layers_with_keys.append(part._replace(dropout=Dropout(keys[first : first + many])))
        first += many
    return [*layers_with_keys, readout._replace(dropout=Dropout(keys[-1]))]


def _with_masks(mlp: MLP, layers: list[Layer], key: Array, rate: ArrayLike) -> list[Layer]:
    """Give blocks and readout of an MLP a key and a rate."""
    if not isinstance(rate, jax.core.Tracer) and not np.all(
        (np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)
    ):
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    embed, blocks, readout = layers
    keys = jax.random.split(key, mlp.depth + 1)
    rates = jnp.broadcast_to(jnp.asarray(rate, float), mlp.depth + 1)
    # the first is the readout's, so that networks of all depths share their masks
    return [
        embed,
        blocks._replace(dropout=Dropout(keys[1:], rates[:-1])),
        readout._replace(dropout=Dropout(keys[0], rates[-1])),
    ]


def _with_gains(mlp: MLP, layers: list[Layer], sigma_w: ArrayLike) -> list[Layer]:
    """Give each layer of an MLP its factor of the weights."""
    check_gains(sigma_w, 0.0)
    if jnp.shape(sigma_w) not in ((), (mlp.depth + 2,)):
        raise ValueError(
            f"sigma_w must be one number, or one per layer, [{mlp.depth + 2}], got shape "
            f"{jnp.shape(sigma_w)}"
        )
    embed, blocks, readout = layers
    dtype = embed.params["dense"]["kernel"].dtype
    factors = jnp.broadcast_to(jnp.asarray(sigma_w, dtype), mlp.depth + 2)
    return [
        embed._replace(sigma_w=factors[0]),
        blocks._replace(sigma_w=factors[1:-1]),
        readout._replace(sigma_w=factors[-1]),
    ]
