"""Measure: signal forwards and gradient backwards, at every layer, as folds over the chain.

One network and one input (or one batch, where a block mixes examples); the caller vmaps over inputs, seeds and
gains. Norms travel as natural logarithms next to vectors of unit length, so that no float range is left.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxstab import networks
from jaxstab.checks import check_count, check_depths, check_floating
from jaxstab.networks import Chain, Params
from jaxstab.norms import log_norm, unit
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile

# share of all layers swept that one group of depths may sweep for nothing, so as to compile as one
EARLY = 1 / 12


def states(chain: Chain, params: Params, x: Float[Array, "*batch d_in"]) -> Float[Array, "layer *batch width"]:
    """The signal itself, h_0 .. h_L, as one scan.

    Args:
        chain: the network.
        params: its parameters, depth L.
        x: one input [d_in], or a batch [batch, d_in] where blocks mix examples.

    Returns:
        The pre-activations of layers 0..L, stacked; `forward` gives their statistics, free of overflow.
    """

    def layer(h: Array, block: object) -> tuple[Array, Array]:
        new = chain.block(block, h)
        return new, new

    h_0 = chain.embed(params, x)
    return jnp.concatenate([h_0[None], jax.lax.scan(layer, h_0, params.blocks)[1]])


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

    return jax.vmap(statistics)(states(chain, params, x))


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

    def cosine(h1: Array, h2: Array) -> Array:
        (u1, l1), (u2, l2) = unit(h1), unit(h2)
        defined = jnp.isfinite(l1) & jnp.isfinite(l2)
        return jnp.where(defined, 1 - jnp.sum((u1 - u2) ** 2) / 2, jnp.nan)

    return CorrelationProfile(jax.vmap(cosine)(states(chain, params, x1), states(chain, other or params, x2)))


def backward(
    chain: Chain,
    params: Params,
    x: Float[Array, "*batch d_in"],
    loss: Callable[[Float[Array, "*batch d_out"]], Float[Array, ""]],
    depths: Sequence[int] | None = None,
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
    check_depths(depths, params.depth)
    check_floating("x", jnp.result_type(x))
    deepest = depths[-1]
    blocks = jax.tree.map(lambda leaf: leaf[:deepest], params.blocks)
    hidden = states(chain, params._replace(blocks=blocks), x)
    start = lambda h: _Cotangent(*unit(jax.grad(lambda h: loss(chain.readout(params, h)))(h)))
    joining = jax.vmap(start)(hidden[jnp.asarray(depths)])
    layers = (jnp.arange(1, deepest + 1), blocks, hidden[:-1])
    carried, segments = _part(joining, 0, 0), []
    for first, last in _groups(depths):
        carried = jax.tree.map(lambda *parts: jnp.concatenate(parts), _part(joining, first, last), carried)
        late = _Late(jnp.asarray(depths[first : last - 1], int), _part(joining, first, last - 1))
        span = depths[first - 1] if first else 0, depths[last - 1]

        def layer(carried: _Cotangent, at: tuple, late: _Late = late) -> tuple[_Cotangent, BackwardProfile]:
            index, theta, h = at
            return _pulled(chain.block, theta, h, late.joined(index, carried))

        carried, profile = jax.lax.scan(layer, carried, _part(layers, *span), reverse=True)
        segments.append(profile)
    embed = lambda theta, x: chain.embed(params._replace(embed=theta), x)
    _, bottom = _pulled(embed, params.embed, x, late.joined(0, carried))
    return _assembled([*segments, jax.tree.map(lambda row: row[None], bottom)], depths, params.depth)


def backward_memory(params: PyTree, size: int, depths: Sequence[int], inputs: int = 1) -> int:
    """Bytes that one network of many under `vmap` takes of `backward`, its parameters included, on a CPU.

    With W parameters, units n of the state, depth L and i inputs per network 2 W + 3 i L n: a scan wants the layers
    first, which copies them; 3 W + 3 i L n where depths set out in several groups, whose layers are copied once more.
    Within 25 % of what XLA says.

    Args:
        params: parameters of one network, or their shapes.
        size: units n of the state, times examples in a batch taken as one input.
        depths: depths wanted.
        inputs: inputs at which each network is measured.

    Returns:
        The bytes.

    Raises:
        ValueError: if size or inputs < 1.
    """
    check_count("size", size, 1)
    check_count("inputs", inputs, 1)
    leaves = jax.tree.leaves(params)
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    copies = 2 if len(_groups(depths)) == 1 else 3
    return copies * weights + 3 * inputs * (depths[-1] + 1) * size * leaves[0].dtype.itemsize


class _Cotangent(NamedTuple):
    """A gradient with respect to a state, in two parts."""

    direction: Array
    log_norm: Array


def _part(tree: PyTree, start: int, stop: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[start:stop], tree)


def _groups(depths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of depths whose cotangents set out together, deepest first: few sweeps to compile, few early rows."""
    groups, last, early = [], len(depths), 0
    for first in range(len(depths) - 1, 0, -1):
        # the row that waits from the group's deepest layer until its own, if it joined this group
        early += depths[last - 1] - depths[first - 1]
        if early > EARLY * sum(depths):
            groups.append((first, last))
            last, early = first, 0
    return [*groups, (0, last)]


def _pulled(f: Callable, theta: PyTree, h: Array, above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
    """Cotangents of f(theta, h) to those of h, and the norms of the gradients at f's output and parameters."""
    pull = networks.pullback(f, theta, h)

    def one(above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
        d_theta, d_h = pull(above.direction)
        direction, grown = unit(d_h)
        norms = BackwardProfile(above.log_norm, above.log_norm + log_norm(d_theta))
        return _Cotangent(direction, above.log_norm + grown), norms

    return jax.vmap(one)(above)


class _Late(NamedTuple):
    """Depths of the first rows of a sweep that join it on the way, each at its own layer."""

    depths: Array
    cotangents: _Cotangent

    def joined(self, index: Array | int, carried: _Cotangent) -> _Cotangent:
        def join(new: Array, old: Array) -> Array:
            here = (self.depths == index).reshape(-1, *(1,) * (new.ndim - 1))
            return jnp.concatenate([jnp.where(here, new, old[: len(new)]), old[len(new) :]])

        return jax.tree.map(join, self.cotangents, carried) if len(self.depths) else carried


def _assembled(segments: list[BackwardProfile], depths: Sequence[int], depth: int) -> BackwardProfile:
    """Norms [layer, depths that are there] of segments from the top down, as one profile."""

    def whole(*rows: Array) -> Array:
        there = [jnp.pad(row, ((0, 0), (len(depths) - row.shape[1], 0))) for row in rows[::-1]]
        above = jnp.zeros((depth - depths[-1], len(depths)), rows[0].dtype)
        inside = jnp.arange(depth + 1)[:, None] <= jnp.asarray(depths)[None]
        return jnp.where(inside, jnp.concatenate([*there, above]), jnp.nan).T

    return jax.tree.map(whole, *segments)
