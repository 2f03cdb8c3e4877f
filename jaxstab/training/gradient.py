"""The gradient of a loss, by a reverse sweep to a depth that may be traced.

Reverse mode cannot go through a loop whose length is not known when it is compiled. A chain needs none: two loops, up
with the states kept, down with the cotangent, and one program serves all depths at the cost of each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxstab import networks
from jaxstab.networks import MLP, Chain, Here, Layer, Params
from jaxstab.norms import Product, norm


class Gradient(NamedTuple):
    """A loss, its gradient, and what else a pass through the network tells.

    Attributes:
        loss: its value.
        y: the network's output.
        params: gradient, as the parameters before `bind`; zero for blocks beyond the depth.
        stats: BatchNorm's running statistics after this batch, as `networks.initial_stats` has them.
        log_norms: ln |dL/dtheta_l| of embed and blocks, 0..depth; NaN beyond.
        log_norm_readout: that of the readout.
        finite: whether the loss and every entry of the gradient are.
        states: h_0 .. h_depth; zero beyond the depth, or what `over` had there.
    """

    loss: Float[Array, ""]
    y: Float[Array, "*batch d_out"]
    params: Params
    stats: PyTree
    log_norms: Float[Array, " layer"]
    log_norm_readout: Float[Array, ""]
    finite: Bool[Array, ""]
    states: Float[Array, "layer *batch width"]


def value_and_grad(
    mlp: MLP,
    params: Params,
    x: Float[Array, "*batch d_in"],
    loss: Callable[[Float[Array, "*batch d_out"]], Float[Array, ""]],
    depth: Int[Array, ""] | int | None = None,
    over: Gradient | None = None,
) -> Gradient:
    """Loss and gradient of the network of the first `depth` blocks with the readout, in training mode.

    h_l is kept on the way up; on the way down (dL/dtheta_l, dL/dh_{l-1}) is the pullback of block l at h_{l-1}. Time
    is that of `depth` blocks, memory that of the deepest. Not to be differentiated again.

    Args:
        mlp: the network, its depth the deepest; with skip "scaled" or "dense", which depend on it, depth must be None.
        params: its parameters, as `networks.bind` gives them.
        x: one input, or a batch.
        loss: scalar function of the output.
        depth: blocks that take part, in [0, mlp.depth]; may be traced; None for all.
        over: an earlier gradient at the same depth, whose memory is written over; None to clear memory for it, which
            costs as much as an update.

    Returns:
        The gradient.

    Raises:
        ValueError: if params are not bound, are of another depth, or lack the running statistics of a network with
            BatchNorm; if a depth is given to a network whose blocks depend on it, or is not in [0, mlp.depth].

    Example:
        >>> mlp = MLP(depth=64, width=8)
        >>> params = networks.bind(mlp, networks.init(mlp, jax.random.key(0), jnp.ones(5)))
        >>> found = jax.jit(lambda depth: value_and_grad(mlp, params, jnp.ones(5), jnp.sum, depth))(3)
        >>> int(jnp.isfinite(found.log_norms).sum())
        4
    """
    if depth is not None and mlp.of_one_depth:
        raise ValueError(
            f"blocks with skip {mlp.skip!r} depend on the depth: it must be that of the network, not given"
        )
    if not isinstance(params.blocks, Layer):
        raise ValueError("params must be as networks.bind(mlp, params) gives them")
    if params.depth != mlp.depth:
        raise ValueError(f"params must be of the network's {mlp.depth} blocks, got {params.depth}")
    deepest = _deepest(depth, mlp.depth)
    chain = networks.chain(mlp)
    block_stats, readout_stats = networks.statistics(mlp)
    blocks: Layer = params.blocks

    bottom = networks.layer_at(chain, params, 0, x)
    h_0 = bottom.out
    kept = jnp.zeros((mlp.depth + 1, *h_0.shape), h_0.dtype) if over is None else over.states

    start = _put(kept, h_0, 0), blocks.batch_stats or {}
    (kept, stats), _ = networks.upwards(chain, params, h_0, _keep(block_stats), start, first=1, last=deepest)

    h = jax.lax.dynamic_index_in_dim(kept, deepest, keepdims=False)
    top = networks.layer_at(chain, params, mlp.depth + 1, h)
    value, d_y = jax.value_and_grad(loss)(top.out)
    d_readout, d_h = top.pull_both(d_y)

    cleared = jax.tree.map(jnp.zeros_like, blocks.params) if over is None else over.params.blocks
    norms = jnp.full(len(kept), jnp.nan, kept.dtype)
    states = networks.States(x, (kept,), h)
    carry = d_h, cleared, norms, jnp.bool_(True)
    carry, _ = networks.downwards(chain, params, states, _collect, carry, first=1, last=deepest)
    d_h, d_blocks, norms, finite = carry

    d_embed = _full(bottom.pull_both(d_h)[0])
    d_readout = _full(d_readout)
    first, first_finite = _length(d_embed)
    last, last_finite = _length(d_readout)
    return Gradient(
        value,
        top.out,
        Params(d_embed, d_blocks, d_readout),
        {"blocks": stats, "readout": readout_stats(params.readout, h)} if stats else {},
        norms.at[0].set(first),
        last,
        jnp.isfinite(value) & finite & first_finite & last_finite,
        kept,
    )


def _keep(statistics: Callable[[Layer, Array], PyTree]) -> Callable:
    """The step upwards: states, and BatchNorm's statistics, are written where they are kept."""

    def step(carry: tuple[Array, PyTree], here: Here) -> tuple[tuple[Array, PyTree], None]:
        kept, stats = carry
        kept = _put(kept, here.out, here.layer)
        return (kept, _put(stats, statistics(here.bound, here.h), here.layer - 1)), None

    return step


def _collect(carry: tuple, here: Here) -> tuple[tuple, None]:
    """The step downwards: a block's gradient, its norm, and whether all is finite."""
    d_h, gradient, norms, finite = carry
    d_theta, d_h = here.pull_both(d_h)
    d_theta = _full(d_theta)
    length, all_finite = _length(d_theta)
    gradient = _put(gradient, d_theta, here.layer - 1)
    return (d_h, gradient, _put(norms, length, here.layer), finite & all_finite), None


def output(
    chain: Chain, params: Params, x: Float[Array, "*batch d_in"], depth: Int[Array, ""] | int | None = None
) -> Float[Array, "*batch d_out"]:
    """What the network of the first `depth` blocks with the readout gives.

    Args:
        chain: the network.
        params: its parameters, as `networks.bind` gives them.
        x: one input, or a batch.
        depth: blocks that take part; may be traced; None for all.

    Returns:
        y.

    Raises:
        ValueError: if a concrete depth is not one that the parameters have.

    Example:
        >>> deep, short = MLP(depth=64, width=8), MLP(depth=3, width=8)
        >>> draw = lambda mlp: networks.bind(mlp, networks.init(mlp, jax.random.key(0), jnp.ones(5)))
        >>> three = output(networks.chain(deep), draw(deep), jnp.ones(5), depth=3)
        >>> bool(jnp.allclose(three, output(networks.chain(short), draw(short), jnp.ones(5)), atol=1e-6))
        True
    """
    return chain.readout(params, networks.state(chain, params, x, _deepest(depth, params.depth)))


def _deepest(depth: Array | int | None, most: int) -> Array | int:
    if depth is None:
        return most
    if not isinstance(depth, jax.core.Tracer) and not 0 <= int(depth) <= most:
        raise ValueError(f"depth must be in [0, {most}], the blocks that the network has, got {depth}")
    return depth


def _put(tree: PyTree, one: PyTree, index: Array | int) -> PyTree:
    return jax.tree.map(lambda leaf, one: jax.lax.dynamic_update_index_in_dim(leaf, one, index, 0), tree, one)


def _full(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: leaf.full if isinstance(leaf, Product) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Product),
    )


def _length(gradient: PyTree) -> tuple[Array, Array]:
    """The logarithm of its norm, NaN where an entry is not finite, and whether all are."""
    found = norm(gradient)
    finite = found.nonfinite == 0
    return jnp.where(finite, found.log, jnp.nan), finite
