"""Skip connections of a block, as a table.

A new skip is one entry of SKIPS: grids and commands take it from there.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array

if TYPE_CHECKING:
    from jaxstab.networks.blocks import Block

Join = Callable[["Block", Array, Array, Array], Array]


class Skip(NamedTuple):
    """Skip connection of a block.

    Attributes:
        join: (block, h, branch, a) -> output of the block, where branch = W a + b.
            `block.param(...)` and `block.linear(...)` make parameters.
        of_one_depth: True if a block depends on the depth of the network, so that the first blocks
            are no shallower network.
        every_source: True if h holds the features of every layer so far.
    """

    join: Join
    of_one_depth: bool = False
    every_source: bool = False


def present(h: Array, sources: int) -> Array:
    """Find the entries of a "dense" state that exist; others are exactly zero.

    Args:
        h: state [..., sources * features].
        sources: number of layers whose features it holds.

    Returns:
        Booleans of the same shape.
    """
    known = jnp.any(h.reshape(*h.shape[:-1], sources, -1) != 0, axis=-1)
    return jnp.repeat(known, h.shape[-1] // sources, axis=-1)


def _sum(block: "Block", h: Array, branch: Array, a: Array) -> Array:
    return h + branch


def _scaled(block: "Block", h: Array, branch: Array, a: Array) -> Array:
    return h + block.depth**-0.5 * branch


def _rezero(block: "Block", h: Array, branch: Array, a: Array) -> Array:
    return h + block.param("alpha", initializers.zeros, (), h.dtype) * branch


def _highway(block: "Block", h: Array, branch: Array, a: Array) -> Array:
    gate = jax.nn.sigmoid(block.linear("gate", initializers.constant(block.gate_bias), h.dtype)(a))
    return gate * branch + (1 - gate) * h


def _concatenated(block: "Block", h: Array, branch: Array, a: Array) -> Array:
    # no derivative passes through units of layers still to come
    below = jnp.where(present(h, block.sources), h, 0)
    return jnp.concatenate([branch, below[..., : -block.features]], axis=-1)


SKIPS = {
    # He et al. 2016
    "sum": Skip(_sum),
    "scaled": Skip(_scaled, of_one_depth=True),
    # Bachlechner et al. 2021
    "rezero": Skip(_rezero),
    # Srivastava et al. 2015
    "highway": Skip(_highway),
    # Huang et al. 2017. States are padded to one shape, so that blocks are scanned: as segments of
    # growing width, 32 of them compile `propagation.backward` in 38 s in place of 5 s
    "dense": Skip(_concatenated, of_one_depth=True, every_source=True),
}
