"""The fold's view of a network, and its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxstab.activations import Activation
from jaxstab.networks.arguments import takes_network
from jaxstab.networks.mlp import MLP


class Segments(NamedTuple):
    """Parameters of blocks that are not all alike, by segments of equal blocks.

    Attributes:
        parts: for each segment, from the input on, a pytree whose leaves carry a leading layer axis.
    """

    parts: tuple[PyTree, ...]


class Params(NamedTuple):
    """Parameters of a chain: what is trained, and in `bind`'s hands what the layers need besides.

    Attributes:
        embed: pytree of the map from input to h_0.
        blocks: pytree whose leaves carry a leading layer axis [depth, ...]; `Segments` of such where blocks differ.
        readout: pytree of the map from h_L to the output.
    """

    embed: PyTree
    blocks: PyTree
    readout: PyTree

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        parts = self.blocks.parts if isinstance(self.blocks, Segments) else (self.blocks,)
        return sum(map(layers_of, parts))

    @property
    def stacked_fields(self) -> tuple[str, ...]:
        """Fields whose leaves carry a leading layer axis, for `jaxstab.norms.group_norms`."""
        return ("blocks",)


class Dropout(NamedTuple):
    """Which features dropout drops.

    Attributes:
        key: PRNG key of the masks.
        rate: share dropped, in [0, 1]; those kept grow by 1/(1 - rate).
    """

    key: Key[Array, "*layer"]
    rate: Float[Array, "*layer"]


class Layer(NamedTuple):
    """A block's parameters with what it reads besides them; of that, sigma_w alone has a gradient.

    Attributes:
        params: what is trained.
        batch_stats: running mean and variance of BatchNorm, for inference.
        dropout: masks, for training.
        sigma_w: factor of the weights W, taken into products with them: networks that differ in it alone share W.
    """

    params: PyTree
    batch_stats: PyTree = None
    dropout: Dropout | None = None
    sigma_w: Float[Array, "*layer"] | None = None

    def variables(self) -> dict[str, Any]:
        """The layer as Flax collections."""
        besides = {
            "batch_stats": jax.lax.stop_gradient(self.batch_stats),
            "dropout": self.dropout and self.dropout._asdict(),
            "gains": None if self.sigma_w is None else {"sigma_w": self.sigma_w},
        }
        return {"params": self.params} | {name: tree for name, tree in besides.items() if tree}


class Chain(NamedTuple):
    """A network as pure functions; every measurement is a fold over `block`.

    Attributes:
        embed: (params, x [d_in]) -> h_0 [width].
        block: (params.blocks at one layer, h [width]) -> h [width], pre-activation to pre-activation; a tuple of such,
            one for each block, where parameters are `Segments`.
        readout: (params, h [width]) -> y [d_out].
        activation: phi, the nonlinearity at the head of each block, for saturation and dead units; None where a block
            has no such thing.
        present: h [width] -> which of its units exist, or None where all do; "dense" skips fill the state by and by.
        init: (key, x) -> Params, of a chain of the user's own layers.
    """

    embed: Callable[[Params, Array], Array]
    block: Callable[[PyTree, Array], Array] | tuple[Callable[[PyTree, Array], Array], ...]
    readout: Callable[[Params, Array], Array]
    activation: Activation | None
    present: Callable[[Array], Bool[Array, "*batch width"]] | None = None
    init: Callable[[Array, PyTree], Params] | None = None


def layers_of(stack: PyTree) -> int:
    """Count the layers of a stack.

    Args:
        stack: pytree whose leaves carry a leading layer axis.

    Returns:
        Its length; 1 for a block without parameters.
    """
    leaves = jax.tree.leaves(stack)
    return leaves[0].shape[0] if leaves else 1


def segments(chain: Chain, params: Params) -> list[tuple[Callable[[PyTree, Array], Array], PyTree]]:
    """List the segments of equal blocks, from the input on.

    Args:
        chain: the network.
        params: its parameters.

    Returns:
        Pairs of a block and the stacked parameters of its segment.

    Raises:
        ValueError: if chain and parameters differ in their numbers of blocks.
    """
    if not isinstance(chain.block, tuple):
        return [(chain.block, params.blocks)]
    if not isinstance(params.blocks, Segments) or len(chain.block) != params.depth:
        raise ValueError(f"the chain has {len(chain.block)} blocks, its parameters have {params.depth}")
    found = []
    first = 0
    for part in params.blocks.parts:
        found.append((chain.block[first], part))
        first += layers_of(part)
    return found


# decorators of functions that take a chain or an MLP, at a batch or at one input only
with_network = takes_network(Chain, Params, MLP, one_input=False)
at_one_input = takes_network(Chain, Params, MLP, one_input=True, as_vectors=lambda *given: as_vectors(*given))


def flatten(whole: Chain, batch: int) -> Chain:
    """A network of a whole batch as a network of one long input, so that its Jacobian is a matrix.

    Args:
        whole: chain whose state is a batch, as with BatchNorm.
        batch: examples in it.

    Returns:
        The chain from x [batch * d_in] over h [batch * width] to y [batch * d_out], for `spectra`.

    Example:
        >>> from jaxstab import networks
        >>> mlp = networks.MLP(depth=4, width=8, norm="batch")
        >>> params = networks.init(mlp, jax.random.key(1), jnp.ones((6, 5)))
        >>> flatten(networks.chain(mlp), 6).embed(params, jnp.ones(30)).shape
        (48,)
    """
    there = whole.present

    def rows(h: Array) -> Array:
        return h.reshape(batch, -1)

    def flat(block: Callable[[PyTree, Array], Array]) -> Callable[[PyTree, Array], Array]:
        return lambda layer, h: block(layer, rows(h)).ravel()

    return whole._replace(
        embed=lambda params, x: whole.embed(params, rows(x)).ravel(),
        block=with_blocks(whole, flat),
        readout=lambda params, h: whole.readout(params, rows(h)).ravel(),
        present=there and (lambda h: there(rows(h)).ravel()),
    )


@with_network
def vector_states(chain: Chain, params: Params, x: PyTree) -> Chain:
    """A network of the user's own layers, its states as vectors.

    Args:
        chain: the network.
        params: its parameters.
        x: one input, for its shape.

    Returns:
        The chain from x over h [n] to y.
    """
    shapes = [jax.eval_shape(chain.embed, params, x)]
    for block, part in segments(chain, params):
        layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), part)
        shapes += [jax.eval_shape(block, layer, shapes[-1])] * layers_of(part)
    states = [ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), h))[1] for h in shapes]

    def flat(block: Callable, state: Callable) -> Callable:
        return lambda layer, h: ravel_pytree(block(layer, state(h)))[0]

    blocks = chain.block if isinstance(chain.block, tuple) else (chain.block,) * params.depth
    return chain._replace(
        embed=lambda params, x: ravel_pytree(chain.embed(params, x))[0],
        block=tuple(flat(block, state) for block, state in zip(blocks, states[:-1], strict=True)),
        readout=lambda params, h: chain.readout(params, states[-1](h)),
        activation=None,
    )


def as_vectors(chain: Chain, params: Params, x: PyTree) -> tuple[Chain, Array]:
    """A network of the user's own layers, input, states and output as vectors, so that its Jacobian is a matrix.

    Args:
        chain: the network.
        params: its parameters.
        x: one input. What is not floating, such as tokens, cannot be differentiated by: it stays where it is, and the
            vector has no entries.

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
def with_blocks(chain: Chain, change: Callable[[Callable], Callable]) -> Callable | tuple[Callable, ...]:
    """Change the block of a chain, in each of its segments.

    Args:
        chain: the network.
        change: a block -> another.

    Returns:
        The block, or the tuple of blocks, of another chain.
    """
    return tuple(map(change, chain.block)) if isinstance(chain.block, tuple) else change(chain.block)


@with_network
def over_batch(chain: Chain) -> Chain:
    """A chain of one input as a chain of a batch that it does not mix.

    Args:
        chain: the network.

    Returns:
        The chain from x [batch, d_in] over h [batch, width] to y [batch, d_out].
    """
    return chain._replace(
        embed=jax.vmap(chain.embed, (None, 0)),
        block=with_blocks(chain, lambda block: jax.vmap(block, (None, 0))),
        readout=jax.vmap(chain.readout, (None, 0)),
    )


@with_network
def pair(chain: Chain, params: Params, other: Params) -> tuple[Chain, Params]:
    """Two networks of one chain side by side, as one whose state is a pair of states.

    Args:
        chain: the network.
        params: its parameters for the first of two inputs.
        other: its parameters for the second.

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
    )
    return joined, Params((params.embed, other.embed), blocks, (params.readout, other.readout))
