r"""Folds over the layers of a chain, upwards and downwards.

These are the only loops over layers in jaxstab.

Layer 0 is the embedding, layers 1..L are the blocks, layer L + 1 is the readout. With h_{-1} = x,

    h_l = f_l(theta_l, h_{l-1}),    l = 0..L + 1,

and a step of a fold gets one layer at its input state, as a `Here`. Equal blocks are scanned, so
that compile time does not grow with depth. For a traced last layer the scan becomes a loop that
ends at this layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxstab.networks.chains import Chain, Params, layers_of, segments, with_network
from jaxstab.networks.here import Here, Index

# (carry, one layer) -> (carry, record of the layer)
Step = Callable[[Any, Here], tuple[Any, PyTree]]


class States(NamedTuple):
    """States of a forward pass, as input states of the layers.

    Attributes:
        x: input of the embedding.
        below: stacked input states of the blocks, for each segment of equal blocks.
        last: state of the last block.
    """

    x: PyTree
    below: tuple[PyTree, ...]
    last: PyTree

    @property
    def stacked(self) -> PyTree:
        """States h_0 .. h_L with a leading layer axis; a tuple of states where shapes change."""
        parts = [*self.below, _with_layer_axis(self.last)]
        if all(_shapes(part) == _shapes(parts[0]) for part in parts):
            return _joined(parts)
        return tuple(_at(part, i) for part in parts for i in range(layers_of(part)))

    def at(self, layer: int) -> PyTree:
        """Return the state of one layer.

        Args:
            layer: l in [0, L].

        Returns:
            h_l.
        """
        for part in self.below:
            if layer < layers_of(part):
                return _at(part, layer)
            layer -= layers_of(part)
        return self.last


_UNKNOWN = States(None, (), None)


@with_network
def upwards(
    chain: Chain,
    params: Params,
    start: PyTree | States,
    step: Step,
    carry: Any,
    *,
    first: int = 0,
    last: Index | None = None,
    readout: bool = False,
) -> tuple[Any, PyTree]:
    """Fold over layers from the input to the output.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        start: input state of layer `first`, x for the embedding; or the `States` of a pass to layer
            `last`, so that no state is computed again; or None if the carry holds the state, with
            `Here.h` None.
        step: (carry, Here) -> (carry, record of the layer).
        carry: initial carry. Its shapes may change at the embedding, at the readout and between
            segments.
        first: lowest layer, in [0, L + 1].
        last: highest layer besides the readout; None for L. It may be traced, without records.
        readout: whether to include the readout.

    Returns:
        The carry, and the records with a leading layer axis.
    """
    if start is not None and not isinstance(start, States):

        def onward(pair: tuple[PyTree, Any], here: Here) -> tuple[tuple[PyTree, Any], PyTree]:
            h, carry = pair
            here = here.meeting(h)
            carry, read = step(carry, here)
            return (here.out, carry), read

        pair = (start, carry)
        (_, carry), reads = upwards(
            chain, params, None, onward, pair, first=first, last=last, readout=readout
        )
        return carry, reads
    states = start
    if states is None:
        states = _UNKNOWN
    reads = []
    if first == 0:
        carry, read = step(carry, layer_at(chain, params, 0, states.x))
        reads.append(_with_layer_axis(read))
    for span in _spans(chain, params, first, last, states):
        carry, read = span.fold(step, carry)
        reads.append(read)
    if readout:
        carry, read = step(carry, layer_at(chain, params, params.depth + 1, states.last))
        reads.append(_with_layer_axis(read))
    return carry, _joined(reads)


@with_network
def downwards(
    chain: Chain,
    params: Params,
    states: States,
    step: Step,
    carry: Any,
    *,
    first: int = 0,
    last: Index | None = None,
    readout: bool = False,
) -> tuple[Any, PyTree]:
    """Fold over layers from the output to the input, at the states of a forward pass.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        states: states of a pass to layer `last`.
        step: (carry, Here) -> (carry, record of the layer).
        carry: initial carry, such as a cotangent.
        first: lowest layer, in [0, L + 1].
        last: highest layer besides the readout; None for L. It may be traced, without records.
        readout: whether to begin with the readout.

    Returns:
        The carry, and the records with a leading layer axis, the lowest layer first.
    """
    reads = []
    if readout:
        carry, read = step(carry, layer_at(chain, params, params.depth + 1, states.last))
        reads.append(_with_layer_axis(read))
    for span in reversed(_spans(chain, params, first, last, states)):
        carry, read = span.fold(step, carry, reverse=True)
        reads.append(read)
    if first == 0:
        carry, read = step(carry, layer_at(chain, params, 0, states.x))
        reads.append(_with_layer_axis(read))
    return carry, _joined(reads[::-1])


@with_network
def layer_at(chain: Chain, params: Params, layer: int, h: PyTree) -> Here:
    """Return one layer at a state.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        layer: l in [0, L + 1].
        h: input state of the layer.

    Returns:
        The layer at this state.
    """
    if layer == 0:
        return Here(
            0, lambda embed, x: chain.embed(params._replace(embed=embed), x), params.embed, h
        )
    if layer == params.depth + 1:
        return Here(
            layer, lambda end, h: chain.readout(params._replace(readout=end), h), params.readout, h
        )
    span = _spans(chain, params, layer, layer, _UNKNOWN)[0]
    return span.here(span.start).meeting(h)


@with_network
def states(chain: Chain, params: Params, x: PyTree, depth: int | None = None) -> States:
    """Compute the states h_0 .. h_depth of a forward pass.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        x: one input, or a batch where blocks mix examples.
        depth: number of blocks, in [0, L]; None for all.

    Returns:
        The states: `stacked` holds all states, `last` the last, and `at(layer)` returns one.
    """

    def block(h: PyTree, here: Here) -> tuple[PyTree, PyTree]:
        return here.meeting(h).out, h

    h = chain.embed(params, x)
    below = []
    for span in _spans(chain, params, 1, depth, _UNKNOWN):
        h, met = span.fold(block, h)
        below.append(met)
    return States(x, tuple(below), h)


@with_network
def state(chain: Chain, params: Params, x: PyTree, depth: Index | None = None) -> PyTree:
    """Compute the state h_depth of a forward pass.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        x: one input, or a batch where blocks mix examples.
        depth: number of blocks, in [0, L]; may be traced; None for all.

    Returns:
        The state h_depth.
    """

    def block(h: PyTree, here: Here) -> tuple[PyTree, None]:
        return here.meeting(h).out, None

    return upwards(chain, params, None, block, chain.embed(params, x), first=1, last=depth)[0]


class _Span(NamedTuple):
    """Consecutive blocks of one segment, with their input states if known."""

    segment: int
    block: Callable[[PyTree, PyTree], PyTree]
    params: PyTree
    below: PyTree
    # number of the layer before the segment
    offset: int
    # range of blocks within the segment
    start: Index
    stop: Index

    def here(self, index: Index) -> Here:
        """Return one block."""
        met = _at(self.below, index)
        return self._layer(index, _at(self.params, index), met)

    def _layer(self, index: Index, bound: PyTree, met: PyTree) -> Here:
        return Here(self.offset + index + 1, self.block, bound, met, self.segment, index)

    def fold(self, step: Step, carry: Any, reverse: bool = False) -> tuple[Any, PyTree]:
        """Fold over the blocks: a loop for traced bounds, a call for one block, else a scan."""
        if isinstance(self.start, jax.core.Tracer) or isinstance(self.stop, jax.core.Tracer):

            def one(count: Array, carry: Any) -> Any:
                if reverse:
                    index = self.stop - 1 - count
                else:
                    index = self.start + count
                return step(carry, self.here(index))[0]

            return jax.lax.fori_loop(0, self.stop - self.start, one, carry), None
        if self.stop - self.start == 1:
            carry, read = step(carry, self.here(self.start))
            return carry, _with_layer_axis(read)

        def scanned(carry: Any, layer: tuple) -> tuple[Any, PyTree]:
            index, bound, met = layer
            return step(carry, self._layer(index, bound, met))

        def indexed(carry: Any, index: Array) -> tuple[Any, PyTree]:
            return step(carry, self.here(index))

        indices = jnp.arange(self.start, self.stop)
        if self._whole:
            # parameters must be scanned over, so that a derivative sums their gradients by layer
            return jax.lax.scan(scanned, carry, (indices, self.params, self.below), reverse=reverse)
        # a slice of the stack would copy its weights
        return jax.lax.scan(indexed, carry, indices, reverse=reverse)

    @property
    def _whole(self) -> bool:
        size = layers_of(self.params)
        if self.below is not None and layers_of(self.below) != size:
            return False
        return bool(self.start == 0 and self.stop == size)


def _spans(
    chain: Chain, params: Params, first: int, last: Index | None, states: States
) -> list[_Span]:
    """List the blocks of layers first..last, segment by segment."""
    if last is None:
        last = params.depth
    traced = isinstance(last, jax.core.Tracer)
    spans = []
    offset = 0
    for i, (block, stack) in enumerate(segments(chain, params)):
        size = layers_of(stack)
        start = max(first - 1 - offset, 0)
        if traced:
            stop: Index = jnp.clip(last - offset, start, size)
        else:
            stop = min(int(last) - offset, size)
        # a scan over an empty stack still returns records of the right shape
        if (size == 0 and not traced) or (start < size and (traced or start < stop)):
            below = states.below[i] if states.below else None
            spans.append(_Span(i, block, stack, below, offset, start, stop))
        offset += size
    return spans


def _at(tree: PyTree, index: Index) -> PyTree:
    def one(leaf: Array) -> Array:
        if isinstance(index, int):
            return jax.lax.index_in_dim(leaf, index, keepdims=False)
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    return jax.tree.map(one, tree)


def _with_layer_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _joined(parts: list[PyTree]) -> PyTree:
    """Concatenate stacks; None if a part has no records."""
    if len(parts) == 1:
        return parts[0]
    if not parts or any(part is None for part in parts):
        return None
    shapes = sorted({str(_shapes(part)) for part in parts})
    if len(shapes) > 1:
        raise ValueError(f"records of layers must have one shape, got {' and '.join(shapes)}")
    return jax.tree.map(lambda *stacks: jnp.concatenate(stacks), *parts)


def _shapes(stack: PyTree) -> list[tuple[int, ...]]:
    """Return the shapes of the leaves of one layer."""
    return [leaf.shape[1:] for leaf in jax.tree.leaves(stack)]
