"""Gradient norms of a loss at every layer, for networks of all wanted depths at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxstab import networks
from jaxstab.checks import Depths, check_depths, check_floating
from jaxstab.networks import Chain, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.views import vector_states
from jaxstab.norms import log_norm
from jaxstab.norms.logarithms import unit
from jaxstab.propagation.spans import by_span
from jaxstab.records import BackwardProfile


@with_network
def backward(
    chain: Chain,
    params: Params,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    depths: Depths | None = None,
) -> BackwardProfile:
    """Compute gradient norms of a loss at every layer 0..L, for all wanted depths at once.

    The network of depth D is the first D blocks with the same readout. One reverse sweep carries
    the unit cotangents of all depths, and each depth joins at its own layer:
    cot_{l-1} = (d block_l / dh)^T cot_l.

    Args:
        chain: the network.
        params: parameters of the network, of depth L.
        x: one input [d_in], or a batch where blocks mix examples.
        loss: scalar function of the output.
        depths: wanted depths, each in [0, L]; None for depth L alone, without a depth axis.

    Returns:
        Profile [depth, layer], or [layer] for depths=None; NaN beyond each depth.

    Raises:
        ValueError: if depths are not ascending integers in [0, L], states of the wanted depths have
            several shapes, or x of a chain of `networks.mlp` is not floating.
    """
    if depths is None:
        whole = backward(chain, params, x, loss, [params.depth])
        return BackwardProfile(*(field[0] for field in whole))
    depths = check_depths(depths, params.depth)
    if isinstance(chain.block, tuple):
        chain = vector_states(chain, params, x)
    else:
        check_floating("x", jnp.result_type(x))
    states = networks.states(chain, params, x, depths[-1])

    def start(h: Array) -> _Cotangent:
        return _Cotangent(*unit(jax.grad(lambda h: loss(chain.readout(params, h)))(h)))

    ends = [states.at(depth) for depth in depths]
    sizes = sorted({h.shape for h in ends})
    if len(sizes) > 1:
        raise ValueError(
            f"several depths need states of one shape for their shared readout, got {sizes}"
        )
    starts = jax.vmap(start)(jnp.stack(ends))
    _, rows = networks.downwards(
        chain, params, states, by_span(depths, _through), starts, last=depths[-1]
    )
    inside = jnp.arange(params.depth + 1)[:, None] <= jnp.asarray(depths)[None]
    beyond = ((0, params.depth - depths[-1]), (0, 0))
    return BackwardProfile(
        *(jnp.where(inside, jnp.pad(field, beyond), jnp.nan).T for field in rows)
    )


class _Cotangent(NamedTuple):
    """Gradient with respect to a state, as a unit vector and the logarithm of its norm."""

    direction: Array
    log_norm: Array


def _through(pull: Callable, above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
    """Pull cotangents back through a layer; read off gradient norms by output and parameters."""

    def one(above: _Cotangent) -> tuple[_Cotangent, BackwardProfile]:
        d_theta, d_h = pull(above.direction)
        norms = BackwardProfile(above.log_norm, above.log_norm + log_norm(d_theta))
        if getattr(d_h, "dtype", None) == jax.dtypes.float0:
            # an embedding of tokens has no gradient by its input
            return above, norms
        direction, grown = unit(d_h)
        return _Cotangent(direction, above.log_norm + grown), norms

    return jax.vmap(one)(above)
