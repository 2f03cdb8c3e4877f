"""Spans of layers in which a reverse sweep carries the cotangents of the same depths.

A network of depth D has no gradient above layer D. Carrying all wanted depths through all layers
wastes computation, and a program per depth takes long to compile. Spans are the compromise: few
enough to compile quickly, with few depths that are carried above their own layer.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from jaxstab.networks import Here

# largest share of the swept layers in which a span may carry depths above their own layer
EARLY = 1 / 12


class Spans(NamedTuple):
    """Spans of layers, lowest first.

    Attributes:
        firsts: index of the shallowest depth in each span; a span carries all deeper ones too.
        lengths: number of layers in each span.
    """

    firsts: list[int]
    lengths: list[int]


def spans(depths: Sequence[int]) -> Spans:
    """Divide the layers below the deepest network into spans.

    Args:
        depths: wanted depths, ascending.

    Returns:
        Spans, lowest first.

    Example:
        >>> spans([8, 9, 64])
        Spans(firsts=[0, 2], lengths=[9, 55])
    """
    firsts: list[int] = []
    # index of the shallowest depth of the span above, and layers wasted on early depths so far
    top = len(depths)
    early = 0
    for first in range(len(depths) - 1, 0, -1):
        early += depths[top - 1] - depths[first - 1]
        if early > EARLY * sum(depths):
            firsts.insert(0, first)
            top = first
            early = 0
    firsts.insert(0, 0)
    edges = [0, *(depths[first - 1] for first in firsts[1:]), depths[-1]]
    return Spans(firsts, [above - below for below, above in itertools.pairwise(edges)])


def by_span(
    depths: Sequence[int], through: Callable[[Callable, PyTree], tuple[PyTree, PyTree]]
) -> Callable:
    """Make the step of a downward fold that carries each depth from its own layer on.

    Args:
        depths: wanted depths, ascending.
        through: function of (pullback of a layer, carry) that returns (carry, readings), all with a
            leading depth axis.

    Returns:
        Step of the fold. Above its own layer a depth keeps its carry, and its readings have no
        meaning.
    """
    firsts, lengths = spans(depths)
    wanted = jnp.asarray(depths)
    span_of_layer = jnp.asarray(np.repeat(np.arange(len(firsts)), lengths), jnp.int32)

    def step(carry: PyTree, here: Here) -> tuple[PyTree, PyTree]:
        # one pullback for all spans, so that the layer's forward pass compiles once
        pull = here.pull_both

        def from_depth(first: int) -> Callable[[PyTree], tuple[PyTree, PyTree]]:
            def carried(carry: PyTree) -> tuple[PyTree, PyTree]:
                old = jax.tree.map(lambda row: row[first:], carry)
                new, read = through(pull, old)
                below = here.layer <= wanted[first:]
                joined = jax.tree.map(lambda new, old: _where(below, new, old), new, old)
                whole = jax.tree.map(
                    lambda row, part: jnp.concatenate([row[:first], part]), carry, joined
                )
                return whole, jax.tree.map(lambda row: jnp.pad(row, (first, 0)), read)

            return carried

        if len(depths) == 1 or (isinstance(here.layer, int) and here.layer == 0):
            return through(pull, carry)
        return jax.lax.switch(
            span_of_layer[here.layer - 1], [from_depth(first) for first in firsts], carry
        )

    return step


def _where(rows: Bool[Array, " depth"], new: Array, old: Array) -> Array:
    return jnp.where(rows.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
