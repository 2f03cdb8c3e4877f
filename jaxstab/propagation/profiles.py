"""Signal and correlation of a chain at every layer."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from jaxstab import networks
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.skips import present
from jaxstab.networks.views import pair
from jaxstab.norms.logarithms import unit
from jaxstab.records import SATURATED, CorrelationProfile, ForwardProfile


@with_network
def forward(chain: Chain, params: Params, x: PyTree) -> ForwardProfile:
    """Compute length, saturation and dead units at every layer 0..L.

    With "dense" skips a layer has its own units and the units of all layers below.

    Args:
        chain: the network.
        params: parameters of the network, of depth L.
        x: one input [d_in], or a batch [batch, d_in] to average over.

    Returns:
        Profile over layers; saturation and dead units are NaN for a chain without an activation.
    """

    def statistics(h: PyTree) -> ForwardProfile:
        flat = ravel_pytree(h)[0]
        exists = jnp.ones(flat.shape, bool)
        mlp = chain.family
        if mlp is not None and mlp.sources > 1:
            # "dense" skips: units of layers still to come do not exist
            exists = present(flat, flat.size // mlp.width)
        log_q = 2 * unit(flat)[1] - jnp.log(jnp.sum(exists, dtype=flat.dtype))
        if chain.activation is None:
            unknown = jnp.full((), jnp.nan, flat.dtype)
            return ForwardProfile(log_q, unknown, unknown)
        slope = jnp.abs(chain.activation.derivative(h)).reshape(-1, h.shape[-1])
        exists = exists.reshape(slope.shape)
        saturated = slope <= SATURATED * chain.activation.steepest(h.dtype)
        dead = jnp.all(slope == 0, axis=0)
        return ForwardProfile(
            log_q=log_q,
            saturation=jnp.mean(saturated, dtype=h.dtype, where=exists),
            dead=jnp.mean(dead, dtype=h.dtype, where=jnp.any(exists, axis=0)),
        )

    def step(carry: None, here: Here) -> tuple[None, ForwardProfile]:
        return carry, statistics(here.out)

    return networks.upwards(chain, params, x, step, None)[1]


@with_network
def correlation(
    chain: Chain,
    params: Params,
    x1: PyTree,
    x2: PyTree,
    other: Params | None = None,
) -> CorrelationProfile:
    """Compute the correlation c_l of the signals of two inputs at every layer 0..L.

    c_l = h_l . h'_l / (|h_l| |h'_l|) is computed as 1 - |u - u'|^2 / 2 from the unit vectors u, u',
    which keeps the relative precision of 1 - c where c approaches 1.

    Args:
        chain: the network.
        params: parameters of the network, of depth L.
        x1: first input, or a batch taken as one long input.
        x2: second input, of the same shape.
        other: parameters for x2, such as the same weights with other masks of dropout; None for
            params.

    Returns:
        Profile over layers; NaN from the first layer where a signal is zero or not finite.
    """

    def cosine(carry: None, here: Here) -> tuple[None, CorrelationProfile]:
        (u1, log_1), (u2, log_2) = (unit(ravel_pytree(h)[0]) for h in here.out)
        defined = jnp.isfinite(log_1) & jnp.isfinite(log_2)
        return carry, CorrelationProfile(
            jnp.where(defined, 1 - jnp.sum((u1 - u2) ** 2) / 2, jnp.nan)
        )

    both, weights = pair(chain, params, other or params)
    return networks.upwards(both, weights, (x1, x2), cosine, None)[1]
