"""Measure: signal forwards and gradient backwards, at every layer, as folds over the chain.

One network and one input (or one batch, where a block mixes examples); the caller vmaps over inputs, seeds and
gains. Norms travel as natural logarithms next to vectors of unit length, so that no float range is left.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxstab import networks
from jaxstab.checks import Depths, check_count, check_depths, check_floating
from jaxstab.networks import Chain, Params
from jaxstab.norms import log_norm, unit
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile

# share of all layers swept that one group of depths may sweep for nothing, so as to compile as one
EARLY = 1 / 12


@networks.with_network
def states(chain: Chain, params: Params, x: Float[Array, "*batch d_in"]) -> Float[Array, "layer *batch width"]:
    """The signal itself, h_0 .. h_L, as one scan.

    Args:
        chain: the network.
        params: its parameters, depth L.
        x: one input [d_in], or a batch [batch, d_in] where blocks mix examples.

    Returns:
        The pre-activations of layers 0..L, stacked; `forward` gives their statistics, free of overflow.
    """
    return _fold(chain.block, chain.embed(params, x), params.blocks, lambda h: h)


def _fold(block: Callable, h_0: PyTree, blocks: PyTree, read: Callable) -> PyTree:
    """What is read off the states 0..L; inside the scan, so that they need not be kept."""
    last, below = jax.lax.scan(lambda h, layer: (block(layer, h), read(h)), h_0, blocks)
    return jax.tree.map(lambda rest, end: jnp.concatenate([rest, end[None]]), below, read(last))


@networks.with_network
def forward(chain: Chain, params: Params, x: Float[Array, "*batch d_in"]) -> ForwardProfile:
    """Length, saturation and dead units at every layer 0..L, of the units that are there ("dense" skips add them).

    Args:
        chain: the network.
        params: its parameters, depth L.
        x: one input [d_in], or a batch [batch, d_in] over which all is averaged.

    Returns:
        The profile.

    Example:
        >>> import jax
        >>> from jaxstab import networks
        >>> mlp = networks.MLP(depth=2, width=64, activation="identity", weights="orthogonal")
        >>> params = networks.init(mlp, jax.random.key(0), jnp.ones(64))
        >>> forward(networks.chain(mlp), params, jnp.ones(64)).q.round(4).tolist()
        [1.0, 1.0, 1.0]
    """
    steepest = chain.activation.steepest(x.dtype)

    def statistics(h: Array) -> ForwardProfile:
        slope = jnp.abs(chain.activation.derivative(h)).reshape(-1, h.shape[-1])
        there = chain.present(h).reshape(slope.shape) if chain.present else jnp.ones(slope.shape, bool)
        return ForwardProfile(
            log_q=2 * unit(h)[1] - jnp.log(jnp.sum(there, dtype=h.dtype)),
            saturation=jnp.mean(slope <= SATURATED * steepest, dtype=h.dtype, where=there),
            dead=jnp.mean(jnp.all(slope == 0, axis=0), dtype=h.dtype, where=jnp.any(there, axis=0)),
        )

    return _fold(chain.block, chain.embed(params, x), params.blocks, statistics)


@networks.with_network
def correlation(
    chain: Chain,
    params: Params,
    x1: Float[Array, "*batch d_in"],
    x2: Float[Array, "*batch d_in"],
    other: Params | None = None,
) -> CorrelationProfile:
    """Correlation c_l of the signals of two inputs at every layer 0..L.

    c_l = h_l . h'_l / (|h_l| |h'_l|), computed as 1 - |u - u'|^2 / 2 from the unit vectors u, u', which keeps
    1 - c to relative precision where c approaches 1.

    Args:
        chain: the network.
        params: its parameters, depth L.
        x1: one input, or a batch taken as one long input.
        x2: another.
        other: what x2 goes through, if not params: the same weights under other masks of dropout.

    Returns:
        The profile; NaN from the first layer where a signal is zero or not finite.
    """
    twin = other or params

    def cosine(pair: tuple[Array, Array]) -> CorrelationProfile:
        (u1, l1), (u2, l2) = map(unit, pair)
        defined = jnp.isfinite(l1) & jnp.isfinite(l2)
        return CorrelationProfile(jnp.where(defined, 1 - jnp.sum((u1 - u2) ** 2) / 2, jnp.nan))

    both = lambda layers, pair: tuple(chain.block(layer, h) for layer, h in zip(layers, pair, strict=True))
    return _fold(both, (chain.embed(params, x1), chain.embed(twin, x2)), (params.blocks, twin.blocks), cosine)


@networks.with_network
def backward(
    chain: Chain,
    params: Params,
    x: Float[Array, "*batch d_in"],
    loss: Callable[[Float[Array, "*batch d_out"]], Float[Array, ""]],
    depths: Depths | None = None,
) -> BackwardProfile:
    """Gradient norms of a loss at every layer 0..L, for networks of every wanted depth at once.

    The network of depth D is the first D blocks with the same readout. One reverse sweep carries the unit cotangents
    of all depths, each joining at its own layer: cot_{l-1} = (d block_l / dh)^T cot_l.

    Args:
        chain: the network.
        params: its parameters, depth L.
        x: one input [d_in], or a batch where blocks mix examples.
        loss: scalar function of the output.
        depths: depths wanted, each in [0, L]; None for depth L alone, without a depth axis.

    Returns:
        The profile, [depth, layer] (or [layer]); NaN beyond each depth.

    Raises:
        ValueError: if depths are not ascending integers in [0, L], or x is not floating.
    """
    if depths is None:
        whole = backward(chain, params, x, loss, [params.depth])
        return BackwardProfile(*(field[0] for field in whole))
    depths = check_depths(depths, params.depth)
    check_floating("x", jnp.result_type(x))
    blocks = jax.tree.map(lambda leaf: leaf[: depths[-1]], params.blocks)
    last, below = jax.lax.scan(lambda h, theta: (chain.block(theta, h), h), chain.embed(params, x), blocks)
    start = lambda h: _Cotangent(*unit(jax.grad(lambda h: loss(chain.readout(params, h)))(h)))
    starts = jax.vmap(start)(jnp.concatenate([below[jnp.asarray(depths[:-1], int)], last[None]]))
    wanted, (firsts, lengths) = jnp.asarray(depths), _groups(depths)

    def layer(carried: _Cotangent, at: tuple) -> tuple[_Cotangent, BackwardProfile]:
        index, group, theta, h = at

        def down(first: int) -> tuple[_Cotangent, BackwardProfile]:
            old = jax.tree.map(lambda row: row[first:], carried)
            new, norms = _pulled(chain.block, theta, h, old)
            joined = lambda new, old: jnp.where((index <= wanted[first:]).reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            whole = lambda row, *pair: jnp.concatenate([row[:first], joined(*pair)])
            return jax.tree.map(whole, carried, new, old), jax.tree.map(lambda row: jnp.pad(row, (first, 0)), norms)

        return jax.lax.switch(group, [functools.partial(down, first) for first in firsts])

    groups = np.repeat(np.arange(len(firsts)), lengths)
    layers = jnp.arange(1, depths[-1] + 1), jnp.asarray(groups), blocks, below
    carried, above = jax.lax.scan(layer, starts, layers, reverse=True)
    embed = lambda theta, x: chain.embed(params._replace(embed=theta), x)
    _, bottom = _pulled(embed, params.embed, x, carried)
    inside = jnp.arange(params.depth + 1)[:, None] <= wanted[None]

    beyond = ((0, params.depth - depths[-1]), (0, 0))
    rows = (jnp.concatenate([first[None], rest]) for first, rest in zip(bottom, above, strict=True))
    return BackwardProfile(*(jnp.where(inside, jnp.pad(field, beyond), jnp.nan).T for field in rows))


def backward_memory(params: Params, size: int, depths: Depths, inputs: int = 1, examples: int | None = None) -> int:
    """Bytes that one network of many under `vmap` takes of `backward`, besides its parameters, on a CPU.

    With units n of the state, depth L, D depths and i inputs per network, i (L + 1) n for the states. Of inputs that
    are batches of b, i (L + 1) b n, and i D gradients of a block's weights. Parameters of each network by itself are
    there twice: a scan wants the layers first. Within 25 % of what XLA says.

    Args:
        params: parameters of one network, or their shapes.
        size: units n of the state.
        depths: depths wanted.
        inputs: inputs at which each network is measured.
        examples: b, where an input is a batch.

    Returns:
        The bytes.

    Raises:
        ValueError: if size, inputs or examples < 1.
    """
    for name, count in (("size", size), ("inputs", inputs), ("examples", 1 if examples is None else examples)):
        check_count(name, count, 1)
    leaves = jax.tree.leaves(params)
    states = (depths[-1] + 1) * size * (examples or 1) * leaves[0].dtype.itemsize
    block = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params.blocks)) // params.depth
    return inputs * (states + (len(depths) * block if examples else 0))


class _Cotangent(NamedTuple):
    """A gradient with respect to a state, in two parts."""

    direction: Array
    log_norm: Array


def _groups(depths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Spans of layers, lowest first: the first of the depths that each carries, and its length."""
    # each span is a program to compile: few of them, and little work on depths that join only further down
    firsts: list[int] = []
    top, early = len(depths), 0
    for first in range(len(depths) - 1, 0, -1):
        # the layers through which this depth is carried for nothing, if it shares the span of the deepest
        early += depths[top - 1] - depths[first - 1]
        if early > EARLY * sum(depths):
            firsts.insert(0, first)
            top, early = first, 0
    firsts.insert(0, 0)
    edges = [0, *(depths[first - 1] for first in firsts[1:]), depths[-1]]
    return firsts, [above - below for below, above in itertools.pairwise(edges)]


def _pulled(f: Callable, theta: PyTree, h: Array, above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
    """Cotangents of f(theta, h) to those of h, and the norms of the gradients at f's output and parameters."""
    pull = networks.pullback(f, theta, h)

    def one(above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
        d_theta, d_h = pull(above.direction)
        direction, grown = unit(d_h)
        norms = BackwardProfile(above.log_norm, above.log_norm + log_norm(d_theta))
        return _Cotangent(direction, above.log_norm + grown), norms

    return jax.vmap(one)(above)
