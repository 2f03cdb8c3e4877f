"""Gradient of a loss by a reverse sweep to a depth that may be traced.

JAX's reverse mode cannot differentiate a loop of traced length. A chain avoids it with two loops:
one upwards that stores the states, one downwards with the cotangent. One program serves all depths,
and each depth costs only its own layers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxstab import networks
from jaxstab.networks import MLP, Chain, Here, Params, chains, views
from jaxstab.networks.binding import statistics
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import chain_of
from jaxstab.networks.folds import States, layer_at
from jaxstab.networks.layers import Layer, as_layer, is_layer
from jaxstab.norms import norm
from jaxstab.norms.logarithms import Product


class Gradient(NamedTuple):
    """Loss, gradient and statistics of one pass through a network.

    Attributes:
        loss: value of the loss.
        y: output of the network.
        params: gradient, in the structure of the parameters before `bind`; zero for blocks beyond
            the depth.
        stats: running statistics of BatchNorm after this batch, for `Chain.bind`.
        log_norms: ln |dL/dtheta_l| of embed and blocks, 0..depth; NaN beyond.
        log_norm_readout: ln |dL/dtheta| of the readout.
        finite: True if the loss and every entry of the gradient are finite.
        states: input states of the blocks, one stack per segment; beyond the depth zero, or the
            values of `over`.
    """

    loss: Float[Array, ""]
    y: Float[Array, "*batch d_out"]
    params: Params
    stats: PyTree
    log_norms: Float[Array, " layer"]
    log_norm_readout: Float[Array, ""]
    finite: Bool[Array, ""]
    states: tuple[PyTree, ...]


@with_network
def value_and_grad(
    network: MLP | Chain,
    params: Params,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    depth: Int[Array, ""] | int | None = None,
    over: Gradient | None = None,
) -> Gradient:
    """Compute loss and gradient of the first `depth` blocks with the readout, in training mode.

    The upward sweep stores every h_l. The downward sweep computes (dL/dtheta_l, dL/dh_{l-1}) as the
    pullback of block l at h_{l-1}. The time is that of `depth` blocks, the memory that of all L.
    Differentiate the result in forward mode only.

    Args:
        network: an MLP or a chain of depth L. If its blocks depend on the depth, as for an MLP with
            skip "scaled" or "dense", `depth` must be None.
        params: bound parameters, from `Chain.bind`.
        x: one input, or a batch.
        loss: scalar function of the output.
        depth: number of blocks to use, in [0, L]; may be traced where states have one shape; None
            for all.
        over: earlier gradient at the same depth, whose memory is reused; None to clear new memory,
            which costs as much as an update.

    Returns:
        Record of `loss`, the output `y`, the gradient `params`, running statistics `stats`,
        `log_norms` of layers 0..depth, `log_norm_readout`, `finite`, and `states` below the blocks.

    Raises:
        ValueError: if params are not bound, have another depth, or lack the running statistics of a
            network with BatchNorm; if a depth is given to a network whose blocks depend on it, is
            not in [0, L], or is traced where states have several shapes.

    Example:
        >>> net = networks.mlp(depth=64, width=8)
        >>> params = net.bind(net.init(jax.random.key(0), jnp.ones(5)))
        >>> found = jax.jit(lambda depth: value_and_grad(net, params, jnp.ones(5), jnp.sum, depth))(3)
        >>> int(jnp.isfinite(found.log_norms).sum())
        4
    """
    chain = _checked(network, params, depth)
    deepest = _deepest(depth, params.depth)
    stacks = [as_layer(stack) for stack in params.stacks]
    if over is None:
        kept = _room_for_states(chain, params, x, deepest)
        d_blocks = tuple(jax.tree.map(jnp.zeros_like, stack.params) for stack in stacks[1:-1])
    else:
        kept = over.states
        d_blocks = tuple(over.params.stacks[1:-1])
    bottom = layer_at(chain, params, 0, x)
    block_stats = tuple(stack.batch_stats for stack in stacks[1:-1])
    start = bottom.out, kept, block_stats
    keep = _keep(chain.update, params)
    (h, kept, block_stats), _ = networks.upwards(
        chain, params, None, keep, start, first=1, last=deepest
    )

    top = layer_at(chain, params, params.depth + 1, h)
    value, d_y = jax.value_and_grad(loss)(top.out)
    d_readout, d_h = top.pull_both(d_y)
    d_readout = _full(d_readout)
    last, last_finite = _length(d_readout)

    norms = jnp.full(params.depth + 1, jnp.nan, last.dtype)
    states = States(x, kept, h)
    carry = d_h, d_blocks, norms, jnp.bool_(True)
    carry, _ = networks.downwards(chain, params, states, _collect, carry, first=1, last=deepest)
    d_h, d_blocks, norms, finite = carry

    d_embed = _full(bottom.pull_both(d_h)[0])
    first, first_finite = _length(d_embed)
    return Gradient(
        value,
        top.out,
        params.restacked([d_embed, *d_blocks, d_readout]),
        _new_stats(chain, params, x, block_stats, h),
        norms.at[0].set(first.astype(norms.dtype)),
        last,
        jnp.isfinite(value) & finite & first_finite & last_finite,
        kept,
    )


def _checked(network: MLP | Chain, params: Params, depth: Array | int | None) -> Chain:
    """Check that parameters and depth fit the network, and return its chain."""
    chain = chain_of(network)
    if depth is not None and not chain.prefixes:
        raise ValueError(
            "depth must be None for a network whose blocks depend on its depth, such as skip scaled"
        )
    if not all(map(is_layer, params.stacks[1:-1])):
        raise ValueError("params must come from chain.bind(params)")
    if isinstance(network, MLP) and params.depth != network.depth:
        raise ValueError(
            f"params must have {network.depth} blocks, as the network, got {params.depth}"
        )
    return chain


def _room_for_states(
    chain: Chain, params: Params, x: PyTree, deepest: Array | int
) -> tuple[PyTree, ...]:
    """Allocate zeros for the input states of the blocks of each segment."""
    shapes = views.state_shapes(chain, params, x)
    if isinstance(deepest, jax.core.Tracer) and any(shape != shapes[0] for shape in shapes):
        raise ValueError("a traced depth needs states of one shape, got a network with several")
    kept = []
    first = 0
    for stack in params.stacks[1:-1]:
        many = chains.layers_of(stack)
        kept.append(
            jax.tree.map(
                lambda leaf, many=many: jnp.zeros((many, *leaf.shape), leaf.dtype), shapes[first]
            )
        )
        first += many
    return tuple(kept)


def _keep(update: Chain | None, params: Params) -> Callable:
    """Make the upward step, which stores states and running statistics of each segment."""
    updates = []
    if update is not None:
        updates = [block for block, _ in chains.segments(update, params)]

    def step(
        carry: tuple[PyTree, tuple, tuple], here: Here
    ) -> tuple[tuple[PyTree, tuple, tuple], None]:
        h, kept, stats = carry
        here = here.meeting(h)
        kept = _put(kept, h, here)
        if updates:
            stats = _put(stats, updates[here.segment or 0](here.bound, h), here)
        return (here.out, kept, stats), None

    return step


def _collect(carry: tuple, here: Here) -> tuple[tuple, None]:
    """Downward step: store a block's gradient and norm, and check that the gradient is finite."""
    d_h, d_blocks, norms, finite = carry
    d_theta, d_h = here.pull_both(d_h)
    d_theta = _full(d_theta)
    length, all_finite = _length(d_theta)
    norms = jax.lax.dynamic_update_index_in_dim(norms, length.astype(norms.dtype), here.layer, 0)
    return (d_h, _put(d_blocks, d_theta, here), norms, finite & all_finite), None


def _new_stats(
    chain: Chain, params: Params, x: PyTree, blocks: tuple, h: PyTree
) -> dict[str, PyTree]:
    """Return the running statistics after the batch; empty where the chain has none."""
    if chain.update is None:
        return {}
    new = [chain.update.embed(params, x), *blocks, chain.update.readout(params, h)]
    return statistics(params.restacked([Layer(None, collections) for collections in new]))


def _deepest(depth: Array | int | None, most: int) -> Array | int:
    if depth is None:
        return most
    if not isinstance(depth, jax.core.Tracer) and not 0 <= int(depth) <= most:
        raise ValueError(f"depth must be in [0, {most}], the number of blocks, got {depth}")
    return depth


def _put(stacks: tuple[PyTree, ...], one: PyTree, here: Here) -> tuple[PyTree, ...]:
    """Write the values of one layer into the stack of its segment."""
    segment = here.segment or 0

    def write(stack: Array, one: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(stack, one, here.index, 0)

    return (*stacks[:segment], jax.tree.map(write, stacks[segment], one), *stacks[segment + 1 :])


def _full(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf.full if isinstance(leaf, Product) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Product),
    )


def _length(gradient: PyTree) -> tuple[Array, Array]:
    """Return ln of the norm, NaN where an entry is not finite, and True if all are finite."""
    both = norm(gradient)
    finite = both.nonfinite == 0
    return jnp.where(finite, both.log, jnp.nan), finite
