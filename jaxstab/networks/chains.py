"""Chains: networks as pure functions of their parameters, layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jaxtyping import Array, ArrayLike, Int, Key, PyTree

from jaxstab.activations import Activation
from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.networks.arguments import takes_network
from jaxstab.networks.perceptron import MLP
from jaxstab.precision import at_precision_of


class Segments(NamedTuple):
    """Parameters of blocks that differ, as segments of equal blocks.

    Attributes:
        parts: for each segment, from the input on, a pytree whose leaves carry a leading layer
            axis.
    """

    parts: tuple[PyTree, ...]


class Params(NamedTuple):
    """Parameters of a chain. After `Chain.bind` its entries are `networks.layers.Layer`s.

    Attributes:
        embed: pytree of the map from input to h_0.
        blocks: pytree whose leaves carry a leading layer axis [depth, ...]; `Segments` of such
            pytrees if blocks differ.
        readout: pytree of the map from h_L to the output.
    """

    embed: PyTree
    blocks: PyTree
    readout: PyTree

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return sum(map(layers_of, self.stacks[1:-1]))

    @property
    def stacks(self) -> list[PyTree]:
        """Parameters of the embedding, of each segment of equal blocks and of the readout."""
        if isinstance(self.blocks, Segments):
            return [self.embed, *self.blocks.parts, self.readout]
        return [self.embed, self.blocks, self.readout]

    def restacked(self, stacks: Sequence[PyTree]) -> "Params":
        """Arrange other trees like these parameters.

        Args:
            stacks: trees in the order of `stacks`.

        Returns:
            The trees as parameters.
        """
        embed, *parts, readout = stacks
        if isinstance(self.blocks, Segments):
            return Params(embed, Segments(tuple(parts)), readout)
        return Params(embed, parts[0], readout)

    @property
    def stacked_fields(self) -> tuple[str, ...]:
        """Fields whose leaves carry a leading layer axis, for `jaxstab.norms.group_norms`."""
        return ("blocks",)


class Chain(NamedTuple):
    """Network as pure functions; every measurement is a fold over `block`.

    Attributes:
        embed: (params, x [d_in]) -> h_0 [width].
        block: (params.blocks at one layer, h [width]) -> h [width], pre-activation to
            pre-activation; a tuple of such functions, one per block, if parameters are `Segments`.
        readout: (params, h [width]) -> y [d_out].
        activation: phi at the head of each block, for saturation and dead units; None if blocks
            have none.
        init: (key, x) -> Params; a `networks.mlp` also takes sigma_w and sigma_b. None if
            parameters came with the layers.
        update: chain whose bound layers return running statistics after a pass in training mode, in
            place of states; None without running statistics.
        in_inference: the chain in inference mode, for `inference`; None if it is the same chain.
        prefixes: True if the first blocks with the readout are a shallower network.
        family: settings of a `networks.mlp`, as its Flax module; None for layers of the user's own.
        law: keywords of `theory.law` that describe a block; None if not given. Keep rate and batch
            belong to a run and are given separately.
        precision: precision of matrix products, forward and in every derivative, as for
            `jax.default_matmul_precision`: "highest" is full float32 on every device, "default"
            TF32 on recent GPUs; None leaves JAX's setting. A layer with its own precision keeps it.
    """

    embed: Callable[[Params, Array], Array]
    block: Callable[[PyTree, Array], Array] | tuple[Callable[[PyTree, Array], Array], ...]
    readout: Callable[[Params, Array], Array]
    activation: Activation | None
    init: Callable[..., Params] | None = None
    # Chains, which a NamedTuple cannot name while it is made
    update: Any = None
    in_inference: Any = None
    prefixes: bool = True
    family: MLP | None = None
    law: Mapping[str, Any] | None = None
    precision: str | None = "highest"

    @property
    def inference(self) -> "Chain":
        """Chain in inference mode: BatchNorm uses running statistics, dropout drops nothing."""
        if self.in_inference is None:
            return self
        return self.in_inference._replace(precision=self.precision)

    @explained
    def apply(self, params: Params, x: PyTree, depth: Int[Array, ""] | int | None = None) -> PyTree:
        """Compute the output.

        Args:
            params: parameters, from `init` or `bind`.
            x: one input, or a batch where the layers take one.
            depth: number of blocks, in [0, L]; may be traced; None for all.

        Returns:
            Output y.

        Raises:
            ValueError: if a concrete depth is not an integer in [0, L].

        Example:
            >>> from jaxstab import networks
            >>> deep, short = networks.mlp(64, 8), networks.mlp(3, 8)
            >>> x, key = jnp.ones(5), jax.random.key(0)
            >>> three = deep.apply(deep.init(key, x), x, depth=3)
            >>> bool(jnp.allclose(three, short.apply(short.init(key, x), x), atol=1e-6))
            True
        """
        # folds import chains
        from jaxstab.networks.folds import state

        if depth is not None and not isinstance(depth, jax.core.Tracer):
            depth = check_count("depth", depth, 0)
            if depth > params.depth:
                raise ValueError(f"depth must be in [0, {params.depth}], got {depth}")
        with at_precision_of(self):
            return self.readout(params, state(self, params, x, depth))

    def bind(
        self,
        params: Params,
        *,
        stats: dict[str, PyTree] | None = None,
        key: Key[Array, ""] | None = None,
        rate: ArrayLike = 0.0,
        sigma_w: ArrayLike | None = None,
    ) -> Params:
        """Bind parameters to running statistics, keys of dropout, or a common gain.

        A key sets the draws of all masks, which all rates share. A batch gets a mask per example;
        under a vmap over examples the caller must vmap keys as well.

        With sigma_w a layer computes sigma_w W a + b without forming sigma_w W. A vmap over gains
        then has one copy of W, and one wide product in place of many. Values and derivatives of
        every order equal those of `networks.rescale(params, sigma_w, 1)`: derivatives by weights
        are those by sigma_w W (0 for sigma_w = 0), derivatives by sigma_w those at fixed W. Only
        derivatives by both depend on the order; for these, `rescale` by 1 multiplies the gain in.

        Args:
            params: trained parameters; for layers of the user's own, with or without collections.
            stats: running statistics of BatchNorm or of layers of the user's own, by field of
                `Params`: those of `training.run.State`, or `mlp.apply(...,
                mutable=["batch_stats"])[1]["batch_stats"]`. None for those in `params`.
            key: PRNG key of all masks; ignored if no layer draws.
            rate: share of features dropped by a `networks.mlp`, in [0, 1]: one, or one per block
                and one for the readout; may be traced. Layers of the user's own have their own
                rates.
            sigma_w: factor of the weights of a `networks.mlp`, >= 0: one, or one for the embedding,
                one per block and one for the readout; may be traced.

        Returns:
            Parameters for the chain, with a `Layer` for each layer.

        Raises:
            ValueError: if a concrete rate is outside [0, 1], a concrete sigma_w is negative or not
                finite, sigma_w has another shape, or a rate or sigma_w is given to layers of the
                user's own.

        Example:
            >>> from jaxstab import networks
            >>> net = networks.mlp(depth=4, width=8, dropout=True)
            >>> params = net.init(jax.random.key(0), jnp.ones(5))
            >>> wet = net.bind(params, key=jax.random.key(1), rate=0.1)
            >>> net.apply(wet, jnp.ones(5)).shape
            (10,)
        """
        # binding imports chains
        from jaxstab.networks.binding import bind

        return bind(self, params, stats=stats, key=key, rate=rate, sigma_w=sigma_w)


def layers_of(stack: PyTree) -> int:
    """Count the layers of a stack.

    Args:
        stack: pytree whose leaves carry a leading layer axis.

    Returns:
        Length of the leading axis; 1 for a block without parameters.
    """
    leaves = jax.tree.leaves(stack)
    if leaves:
        return leaves[0].shape[0]
    return 1


def segments(chain: Chain, params: Params) -> list[tuple[Callable[[PyTree, Array], Array], PyTree]]:
    """List the segments of equal blocks, from the input on.

    Args:
        chain: the network.
        params: parameters of the network.

    Returns:
        Pairs of a block and the stacked parameters of its segment.

    Raises:
        ValueError: if chain and parameters differ in their numbers of blocks.
    """
    if not isinstance(chain.block, tuple):
        return [(chain.block, params.blocks)]
    if not isinstance(params.blocks, Segments) or len(chain.block) != params.depth:
        raise ValueError(
            f"params must have {len(chain.block)} blocks, as the chain, got {params.depth}"
        )
    pairs = []
    first = 0
    for part in params.blocks.parts:
        pairs.append((chain.block[first], part))
        first += layers_of(part)
    return pairs


def _walk(chain: Chain, params: Params, x: PyTree) -> None:
    state_shapes(chain, params, x)


# decorator of functions that take a chain or an MLP
with_network = takes_network(Chain, Params, MLP, one_input=False, walk=_walk)


@with_network
def with_blocks(
    chain: Chain, change: Callable[[Callable], Callable]
) -> Callable | tuple[Callable, ...]:
    """Change the block of a chain, in each of its segments.

    Args:
        chain: the network.
        change: function from a block to the new block.

    Returns:
        The new block, or the tuple of new blocks.
    """
    if isinstance(chain.block, tuple):
        return tuple(map(change, chain.block))
    return change(chain.block)


@with_network
def state_shapes(chain: Chain, params: Params, x: PyTree) -> list[PyTree]:
    """Find the shapes of the states without computing them.

    Args:
        chain: the network.
        params: parameters of the network, depth L.
        x: one input, or a batch where blocks mix examples.

    Returns:
        Shapes of h_0 .. h_L.

    Raises:
        ValueError: if a layer of the user's own fails on its input state.
    """
    own = isinstance(chain.block, tuple)
    with met(0, x, own):
        shapes = [jax.eval_shape(chain.embed, params, x)]
    for block, part in segments(chain, params):
        layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), part)
        with met(len(shapes), shapes[-1], own):
            above = jax.eval_shape(block, layer, shapes[-1])
        shapes += [above] * layers_of(part)
    return shapes


@contextmanager
def met(layer: int, h: PyTree, own: bool) -> Iterator[None]:
    """Turn an error of a layer of the user's own into one line that names the layer.

    Args:
        layer: number of the layer.
        h: input state of the layer.
        own: True for a layer of the user's own; errors of other layers pass.

    Yields:
        Once.

    Raises:
        ValueError: in place of an error of a layer of the user's own.
        TypeError: the original error of any other layer.
        FlaxError: the original error of any other layer.
    """
    try:
        yield
    except (TypeError, ValueError, FlaxError) as error:
        if not own:
            raise
        shapes = ", ".join(
            f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in jax.tree.leaves(h)
        )
        reason = str(error).strip().splitlines()[0].split(" (https:")[0]
        raise ValueError(
            f"layer {layer} fails with these parameters on an input {shapes}: {reason}"
        ) from error
