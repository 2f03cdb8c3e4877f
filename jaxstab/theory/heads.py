"""Moments of a block's head, a = dropout(phi(norm(h))) or dropout(norm(phi(h))).

With V = E phi^2 and M = E phi'^2 at a length, z = q / (q + epsilon) and keep rate rho, at large
width:

    norm             E a^2                           E (da/dh)^2
    None             V(q) / rho                      M(q) / rho
    layer, rms       V(z) / rho                      M(z) / (q + epsilon) / rho
    rms, after       V / (V + epsilon) / rho         M / (V + epsilon) / rho
    layer, after     Var / (Var + epsilon) / rho     M / (Var + epsilon) / rho,   Var = V - (E phi)^2

`batches` and `batches_behind` have BatchNorm. Dropout divides E a a' of two inputs by rho where the
masks are shared, and leaves E a a' as it is where the masks differ.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.activations import Activation, Mixture
from jaxstab.theory.batches import Sphere, finite_head, limit_head
from jaxstab.theory.batches_behind import limit_head_after
from jaxstab.theory.features import Features
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import distance_map, log_sum
from jaxstab.theory.moments import inside, log_moments, variance
from jaxstab.theory.panels import density, flat, gaussian_panels, legendre
from jaxstab.theory.signals import Head, Signal, log
from jaxstab.theory.squashes import ALPHA, SQUASHES, Squashed, is_squashed, unsquashed


def head(law: Law, phi: Activation, about: Features, table: Sphere | None, signal: Signal) -> Head:
    """Compute the moments of a block's head.

    Args:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        table: moments on spheres, for BatchNorm over a finite batch; else None.
        signal: pre-activations that enter the block.

    Returns:
        Moments of the head.
    """
    log_epsilon = log(law.epsilon)
    if table is not None:
        dry = finite_head(law, table, signal, log_epsilon)
    elif law.norm == "batch" and law.norm_after:
        dry = limit_head_after(law, phi, about, signal, log_epsilon)
    elif law.norm == "batch":
        dry = limit_head(law, phi, about, signal, log_epsilon)
    elif law.norm is None:
        dry = _activated(phi, about, signal.log_q, signal)
    elif law.norm_after:
        dry = _normed_after(law, phi, about, signal, log_epsilon)
    else:
        dry = _normed_before(law, phi, about, signal, log_epsilon)
    return _dropped(law, dry)


def _activated(phi: Activation, about: Features, log_q: Array, signal: Signal) -> Head:
    """Compute the head phi(z) at a length of z."""
    moments = log_moments(phi, about, log_q)
    one = jnp.ones_like(log_q)
    gap = distance_map(phi, about, log_q, one, signal.distance).distance
    if is_squashed(phi):
        log_own = log(_own_square(phi, about, jnp.exp(inside(log_q))))
    else:
        # E u^2 phi'^2 = M (1 + 2 dlnM/dlnq), z = sqrt(q) u
        log_stretch = log(jnp.maximum(1.0 + 2.0 * moments.slope_power, 0.0))
        log_own = moments.log_slope + log_q + log_stretch
    return Head(
        log_power=moments.log_length,
        log_gain=moments.log_growth,
        log_unit=moments.log_growth - moments.near_growth,
        gap=gap,
        within=gap,
        log_slope=moments.log_slope,
        log_isotropic=moments.log_slope,
        log_own=log_own,
    )


def _own_square(phi: Activation, about: Features, q: Array) -> Array:
    """Compute the squared gradient of scale, bias and alpha over that with respect to the head.

    Args:
        phi: squashed activation.
        about: features of the activation.
        q: length of h.

    Returns:
        Ratio of squared gradients; scale and bias have one entry per unit, alpha one in all.
    """
    if isinstance(phi, Mixture):
        first, second = about.parts
        share = jnp.asarray(phi.share, q.dtype)
        one = _own_square(phi.first, first, q)
        return (1 - share) * one + share * _own_square(phi.second, second, q)
    head = phi.static_fn
    assert isinstance(head, Squashed)
    inner = unsquashed(phi)
    root = jnp.sqrt(q)
    panels = gaussian_panels(about, jnp.zeros_like(q), root, None)
    u, weights = flat(panels, legendre(about.nodes.single, about.power))
    weights = weights * density(u)
    h = root * u
    # z is the norm's argument, outer the derivative of the head by the norm's output
    z = inner(h) if head.after else h
    f, slope = jax.jvp(SQUASHES[head.squash], (ALPHA * z,), (jnp.ones_like(z),))
    outer = jnp.ones_like(z) if head.after else inner.derivative(f)
    return jnp.sum(weights * outer**2 * (1 + f**2 + (slope * z) ** 2)) / jnp.sum(weights)


def _scaled(dry: Head, log_factor: Array) -> Head:
    """Multiply the moments that are per q, and the slopes, by the norm's factor."""
    return dry._replace(
        log_gain=dry.log_gain + log_factor,
        log_unit=dry.log_unit + log_factor,
        log_slope=dry.log_slope + log_factor,
        log_isotropic=dry.log_isotropic + log_factor,
    )


def _normed_before(
    law: Law, phi: Activation, about: Features, signal: Signal, log_epsilon: Array
) -> Head:
    log_factor = -log_sum(signal.log_q, log_epsilon)
    dry = _activated(phi, about, signal.log_q + log_factor, signal)
    # RMSNorm has no bias
    if law.norm == "layer":
        bias = dry.log_slope
    else:
        bias = jnp.full_like(dry.log_slope, -jnp.inf)
    return _scaled(dry._replace(log_own=log_sum(dry.log_own, bias)), log_factor)


def _normed_after(
    law: Law, phi: Activation, about: Features, signal: Signal, log_epsilon: Array
) -> Head:
    dry = _activated(phi, about, signal.log_q, signal)
    bias = jnp.full_like(dry.log_slope, -jnp.inf)
    if law.norm == "layer":
        log_gain = dry.log_unit + log(variance(phi, about, signal.log_q, about.nodes))
        dry = dry._replace(log_gain=log_gain, log_power=dry.log_power + (log_gain - dry.log_gain))
        bias = jnp.zeros_like(bias)
    log_factor = -log_sum(dry.log_power, log_epsilon)
    normed = _scaled(dry, log_factor)
    log_power = dry.log_power + log_factor
    return normed._replace(log_power=log_power, log_own=log_sum(log_power, bias))


def _dropped(law: Law, dry: Head) -> Head:
    """Apply dropout to a head; a batch's examples have independent masks."""
    log_keep = jnp.log(law.keep)
    lost = (1.0 / law.keep - 1.0) * jnp.exp(dry.log_gain - dry.log_unit)
    gap = dry.gap / law.keep if law.shared_masks else dry.gap + lost
    if law.norm == "batch" and law.shared_masks:
        # shared masks correlate two batches example by example, which no moment here carries
        gap = jnp.where(law.keep < 1.0, jnp.nan, gap)
    wet = dry._replace(
        log_power=dry.log_power - log_keep,
        log_gain=dry.log_gain - log_keep,
        gap=gap,
        within=dry.within + lost,
    )
    if law.norm == "batch":
        # slopes of a BatchNorm head already include dropout
        return wet
    return wet._replace(
        log_slope=dry.log_slope - log_keep,
        log_isotropic=dry.log_isotropic - log_keep,
        log_own=dry.log_own - log_keep,
    )
