r"""BatchNorm after phi, in the limit of many examples.

The pre-activations of a unit, sqrt(q c) u + sqrt(q (1 - c)) v, have a common u over the batch. So
each unit has its own variance over the batch,

    sigma^2(u) = Var(phi | u),    E a^2 = E sigma^2 / (sigma^2 + epsilon),    E a a' = 0.

The squared gradient grows by sigma_w^2 E[E(phi'^2 | u) / (sigma^2 + epsilon)] per layer. `batches`
has BatchNorm before phi.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from jaxstab.activations import Activation
from jaxstab.theory.features import Features
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_sum
from jaxstab.theory.moments import inside
from jaxstab.theory.panels import density, flat, gaussian_panels, legendre
from jaxstab.theory.signals import Head, Signal, log

# smallest correlation within a batch that differs from 0
_LEAST = 1e-10


def limit_head_after(
    law: Law, phi: Activation, about: Features, signal: Signal, log_epsilon: Array
) -> Head:
    """Compute the head of a block with BatchNorm after phi, in the limit of many examples.

    Args:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        signal: pre-activations that enter the block.
        log_epsilon: ln epsilon.

    Returns:
        Moments of the head. Slopes and `log_own` include dropout, lengths and gaps do not. NaN at
        lengths above the range of quadrature.
    """
    near = inside(signal.log_q)
    differ = signal.within > 0
    units = _units(phi, about, jnp.exp(near), jnp.where(differ, signal.within, 1.0))
    log_variance = jnp.where(differ, units.log_variance + (signal.log_q - near), -jnp.inf)
    log_power = logsumexp(units.log_weight + jax.nn.log_sigmoid(log_variance - log_epsilon))
    log_power = jnp.where(signal.log_q > near, jnp.nan, log_power)
    log_inverse = -jnp.logaddexp(log_variance, log_epsilon)
    log_slope = logsumexp(units.log_weight + units.log_slope + log_inverse) - jnp.log(law.keep)
    one = jnp.ones_like(log_power)
    return Head(
        log_power=log_power,
        log_gain=log_power - signal.log_q,
        log_unit=log_power - signal.log_q,
        gap=one,
        within=one,
        log_slope=log_slope,
        log_isotropic=log_slope,
        log_own=log_sum(log_power, jnp.zeros_like(log_power)) - jnp.log(law.keep),
    )


class _Units(NamedTuple):
    """Moments of units at quadrature nodes of u, in logarithms.

    Attributes:
        log_weight: ln of the weight of the node.
        log_variance: ln Var(phi | u).
        log_slope: ln E(phi'^2 | u).
    """

    log_weight: Float[Array, " u"]
    log_variance: Float[Array, " u"]
    log_slope: Float[Array, " u"]


def _units(phi: Activation, about: Features, q: Array, within: Array) -> _Units:
    # sqrt(c) has no derivative at c = 0; a shift by _LEAST moves no moment by more than _LEAST
    c = 1.0 - within
    shared = q * (c + stop_gradient(jnp.maximum(c, _LEAST) - c))
    spread = jnp.sqrt(q * within)
    rule = legendre(about.nodes.single, about.power)
    u, weight = flat(gaussian_panels(about, jnp.zeros_like(q), jnp.sqrt(shared), spread), rule)
    log_weight = log(weight * density(u))

    def unit(centre: Array) -> tuple[Array, Array]:
        v, weight = flat(gaussian_panels(about, centre, spread, None), rule)
        weight = weight * density(v)
        weight = weight / jnp.sum(weight)
        z = centre + spread * v
        value, slope = jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))
        mean = jnp.sum(weight * value)
        return log(jnp.sum(weight * (value - mean) ** 2)), log(jnp.sum(weight * slope**2))

    log_variance, log_slope = jax.lax.map(unit, jnp.sqrt(shared) * u, batch_size=8)
    return _Units(log_weight - logsumexp(log_weight), log_variance, log_slope)
