"""Measure: signal forwards and gradient backwards, at every layer, as folds over the chain.

One network and one input (or one batch, where a block mixes examples); the caller vmaps over inputs, seeds and
gains. Norms travel as natural logarithms next to vectors of unit length, so that no float range is left.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.checks import check_depths, check_floating
from jaxstab.networks import Chain, Params
from jaxstab.norms import log_norm, unit
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile


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
    hidden = states(chain, params, x)
    wanted = jnp.asarray(depths)
    start, start_norm = jax.vmap(lambda h: unit(jax.grad(lambda h: loss(chain.readout(params, h)))(h)))(hidden[wanted])
    rows = (slice(None),) + (None,) * (start.ndim - 1)

    def joined(layer: Array, cotangents: Array, norms: Array) -> tuple[Array, Array]:
        here = wanted == layer
        return jnp.where(here[rows], start, cotangents), jnp.where(here, start_norm, norms)

    def pulled(pullback: Callable, cotangents: Array, norms: Array) -> tuple[Array, Array, Array]:
        d_theta, d_input = jax.vmap(pullback)(cotangents)
        units, grown = jax.vmap(unit)(d_input)
        return units, norms + grown, norms + jax.vmap(log_norm)(d_theta)

    def layer(carry: tuple[Array, Array], at: tuple) -> tuple[tuple[Array, Array], BackwardProfile]:
        index, block, h = at
        cotangents, norms = joined(index, *carry)
        units, pulled_norms, theta = pulled(jax.vjp(chain.block, block, h)[1], cotangents, norms)
        return (units, pulled_norms), BackwardProfile(norms, theta)

    nothing = (jnp.zeros_like(start), jnp.full_like(start_norm, -jnp.inf))
    layers = jnp.arange(1, params.depth + 1)
    carry, profile = jax.lax.scan(layer, nothing, (layers, params.blocks, hidden[:-1]), reverse=True)
    cotangents, norms = joined(jnp.asarray(0), *carry)
    embed = lambda theta: chain.embed(params._replace(embed=theta), x)
    theta = norms + jax.vmap(lambda v: log_norm(jax.vjp(embed, params.embed)[1](v)))(cotangents)
    inside = jnp.arange(params.depth + 1)[:, None] <= wanted[None]
    return BackwardProfile(
        *(
            jnp.where(inside, jnp.concatenate([first[None], rest]), jnp.nan).T
            for first, rest in zip((norms, theta), profile, strict=True)
        )
    )
