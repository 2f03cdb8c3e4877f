"""Other forms of a chain: over a batch, a batch as one input, states as vectors, two as one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.networks.arguments import takes_network
from jaxstab.networks.chains import (
    Chain,
    Params,
    Segments,
    met,
    state_shapes,
    with_blocks,
    with_network,
)
from jaxstab.networks.layers import Dropout, Layer
from jaxstab.networks.perceptron import MLP

# fields that a chain for measurements only does not have
_MEASURED_ONLY: dict[str, Any] = dict.fromkeys(("init", "update", "in_inference"))


@explained
def flatten(whole: Chain, batch: int) -> Chain:
    """Make a chain of one long input from a chain of a batch, so that its Jacobian is a matrix.

    Args:
        whole: chain whose state is a batch, as with BatchNorm.
        batch: number of examples in the batch.

    Returns:
        The chain from x [batch * d_in] over h [batch * width] to y [batch * d_out], for `spectra`.

    Raises:
        ValueError: if batch is not an integer >= 1.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=4, width=8, norm="batch")
        >>> params = net.init(jax.random.key(1), jnp.ones((6, 5)))
        >>> flatten(net, 6).embed(params, jnp.ones(30)).shape
        (48,)
    """
    batch = check_count("batch", batch, 1)

    def rows(h: Array) -> Array:
        return h.reshape(batch, -1)

    def flat(block: Callable[[PyTree, Array], Array]) -> Callable[[PyTree, Array], Array]:
        return lambda layer, h: block(layer, rows(h)).ravel()

    return whole._replace(
        embed=lambda params, x: whole.embed(params, rows(x)).ravel(),
        block=with_blocks(whole, flat),
        readout=lambda params, h: whole.readout(params, rows(h)).ravel(),
        init=None,
        update=None,
        in_inference=whole.in_inference and flatten(whole.in_inference, batch),
    )


@with_network
def output_shape(chain: Chain, params: Params, x: PyTree) -> PyTree:
    """Find the shape of the output without computing it.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        x: one input, or a batch where blocks mix examples.

    Returns:
        Shape of y.

    Raises:
        ValueError: if a layer of the user's own fails on its input state.
    """
    h = state_shapes(chain, params, x)[-1]
    with met(params.depth + 1, h, isinstance(chain.block, tuple)):
        return jax.eval_shape(chain.readout, params, h)


@with_network
def vector_states(chain: Chain, params: Params, x: PyTree) -> Chain:
    """Make a chain with vectors as states from layers of the user's own.

    Args:
        chain: the network.
        params: parameters of the network.
        x: one input, for its shape.

    Returns:
        The chain from x over h [n] to y.
    """
    shapes = state_shapes(chain, params, x)
    states = [
        ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), h))[1]
        for h in shapes
    ]

    def flat(block: Callable, state: Callable) -> Callable:
        return lambda layer, h: ravel_pytree(block(layer, state(h)))[0]

    blocks = chain.block
    if not isinstance(blocks, tuple):
        blocks = (blocks,) * params.depth
    return chain._replace(
        embed=lambda params, x: ravel_pytree(chain.embed(params, x))[0],
        block=tuple(flat(block, state) for block, state in zip(blocks, states[:-1], strict=True)),
        readout=lambda params, h: chain.readout(params, states[-1](h)),
        activation=None,
        **_MEASURED_ONLY,
    )


def as_vectors(chain: Chain, params: Params, x: PyTree) -> tuple[Chain, Array]:
    """Make a chain with vectors as input, states and output from layers of the user's own.

    Args:
        chain: the network.
        params: parameters of the network.
        x: one input. An input that is not floating, such as tokens, cannot be differentiated by:
            it becomes a constant, and the vector has no entries.

    Returns:
        The chain from x [d_in] over h [n] to y [d_out], and x as a vector.
    """
    inner = vector_states(chain, params, x)
    leaves = jax.tree.leaves(x)
    if all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        vector, given = ravel_pytree(x)
    else:
        vector = jnp.zeros(0)

        def given(nothing: Array) -> PyTree:
            return x

    vectors = inner._replace(
        embed=lambda params, x: inner.embed(params, given(x)),
        readout=lambda params, h: ravel_pytree(inner.readout(params, h))[0],
    )
    return vectors, vector


@with_network
def of_rows(chain: Chain, params: Params, x: Array) -> Chain:
    """Make a chain of rows, with vectors as states and output, from layers of the user's own.

    Args:
        chain: the network, of one input.
        params: parameters of the network.
        x: a batch of inputs [batch, ...], also of tokens, for their shape.

    Returns:
        The chain from a row of x.reshape(batch, -1) over h [n] to y [d_out]; a `networks.mlp`
        unchanged.

    Raises:
        ValueError: if x is not one array with an axis of examples, or a layer fails on its input
            state.
    """
    if not isinstance(chain.block, tuple):
        return chain
    if not hasattr(x, "shape") or len(x.shape) < 1 or x.shape[0] == 0:
        raise ValueError(f"x must be one array with an axis of examples, got {type(x).__name__}")
    one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    inner = vector_states(chain, params, one)
    return inner._replace(
        embed=lambda params, row: inner.embed(params, row.reshape(one.shape)),
        readout=lambda params, h: ravel_pytree(inner.readout(params, h))[0],
    )


@with_network
def over_batch(chain: Chain) -> Chain:
    """Make a chain of a batch from a chain of one input.

    Bound masks of dropout differ from example to example; running statistics stay unchanged.

    Args:
        chain: the network.

    Returns:
        The chain from x [batch, d_in] over h [batch, width] to y [batch, d_out].
    """
    init = chain.init

    def first(key: Array, x: PyTree) -> Params:
        assert init is not None
        return init(key, jax.tree.map(lambda leaf: leaf[0], x))

    if isinstance(chain.block, tuple):
        embed = _of_field(chain.embed, "embed")
        blocks = with_blocks(chain, _by_example)
        readout = _of_field(chain.readout, "readout")
    else:
        embed = jax.vmap(chain.embed, (None, 0))
        blocks = jax.vmap(chain.block, (None, 0))
        readout = jax.vmap(chain.readout, (None, 0))
    return chain._replace(
        embed=embed,
        block=blocks,
        readout=readout,
        init=init and first,
        update=None,
        in_inference=chain.in_inference and over_batch(chain.in_inference),
    )


def _by_example(layer: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """Map a layer of the user's own over a batch, each example with a key of its own."""

    def batched(bound: PyTree, h: PyTree) -> PyTree:
        if not isinstance(bound, Layer) or bound.dropout is None:
            return jax.vmap(layer, (None, 0))(bound, h)
        keys = jax.random.split(bound.dropout.key, len(jax.tree.leaves(h)[0]))

        def one(key: Array, h: PyTree) -> PyTree:
            return layer(bound._replace(dropout=Dropout(key)), h)

        return jax.vmap(one)(keys, h)

    return batched


def _of_field(
    layer: Callable[[Params, PyTree], PyTree], field: str
) -> Callable[[Params, PyTree], PyTree]:
    """Map the embedding or the readout over a batch."""

    def batched(params: Params, h: PyTree) -> PyTree:
        def one(bound: PyTree, h: PyTree) -> PyTree:
            return layer(params._replace(**{field: bound}), h)

        return _by_example(one)(getattr(params, field), h)

    return batched


@with_network
def pair(chain: Chain, params: Params, other: Params) -> tuple[Chain, Params]:
    """Join two networks of one chain into one whose state is a pair of states.

    Args:
        chain: the network.
        params: parameters for the first of two inputs.
        other: parameters for the second input.

    Returns:
        The chain from (x, x') over (h, h') to (y, y'), and its parameters.
    """

    def both(layer: Callable, separate: Callable) -> Callable:
        return lambda params, states: tuple(map(layer, separate(params), states))

    def networks(both: Params) -> tuple[Params, Params]:
        first = params._replace(embed=both.embed[0], readout=both.readout[0])
        second = other._replace(embed=both.embed[1], readout=both.readout[1])
        return first, second

    if isinstance(params.blocks, Segments) and isinstance(other.blocks, Segments):
        blocks: PyTree = Segments(tuple(zip(params.blocks.parts, other.blocks.parts, strict=True)))
    else:
        blocks = (params.blocks, other.blocks)
    joined = chain._replace(
        embed=both(chain.embed, networks),
        block=with_blocks(chain, lambda block: both(block, tuple)),
        readout=both(chain.readout, networks),
        family=None,
        **_MEASURED_ONLY,
    )
    return joined, Params((params.embed, other.embed), blocks, (params.readout, other.readout))


# decorator of functions that take a chain at one input only
at_one_input = takes_network(Chain, Params, MLP, one_input=True, as_vectors=as_vectors)
