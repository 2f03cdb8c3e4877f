"""Signal, correlation and gradient at the sites of an unmodified model, along its axis of rows.

A probe runs the model in the model's own dtypes. A gradient that underflows there is lost to the
measurement, unless the loss is scaled up.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab.activations import get
from jaxstab.networks import Probe, Site
from jaxstab.networks.interception import inputs_of
from jaxstab.norms import log_norm
from jaxstab.norms.logarithms import floating, unit
from jaxstab.records import (
    SATURATED,
    CorrelationProfile,
    SiteProfile,
)

Loss = Callable[[PyTree], Float[Array, ""]]


def forward(probe: Probe, params: PyTree, x: PyTree) -> SiteProfile:
    """Compute the signal of one batch at every site.

    Args:
        probe: probe of the model.
        params: parameters of the model.
        x: the model's input, or a tuple of inputs.

    Returns:
        Profile over `probe.rows`; saturation and dead units are NaN at sites without a known
        activation.
    """
    return probe.over_rows(site_statistics, probe.read(params, *inputs_of(x)).sites)


def correlation(
    probe: Probe, params: PyTree, x1: PyTree, x2: PyTree, other: PyTree = None
) -> CorrelationProfile:
    """Compute the correlation of the signals of two inputs at every site.

    A batch counts as one long input.

    c = h . h' / (|h| |h'|) is computed as 1 - |u - u'|^2 / 2 from the unit vectors u, u'.

    Args:
        probe: probe of the model.
        params: parameters of the model.
        x1: first input, or a tuple of inputs.
        x2: second input, likewise.
        other: parameters for x2; None for params.

    Returns:
        Profile over `probe.rows`; NaN where a signal is zero or not finite.
    """
    of_second = params
    if other is not None:
        of_second = other
    h1 = probe.read(params, *inputs_of(x1)).sites
    h2 = probe.read(of_second, *inputs_of(x2)).sites
    return CorrelationProfile(probe.over_rows(site_correlation, h1, h2))


class SiteGradients(NamedTuple):
    """Gradient of a loss at every site and by the parameters.

    Attributes:
        log_grad_h: ln |dL/dh|, Euclidean norm, at each of the probe's rows; NaN where a site is not
            floating.
        log_grad_theta: ln |dL/dtheta|, with theta the parameters of the row's submodule; NaN where
            it has none.
        nonfinite: share of the gradient at each row that is not finite.
        theta: gradient by the trained parameters.
        sites: gradient by floating sites.
        loss: value of the loss.
    """

    log_grad_h: Float[Array, " row"]
    log_grad_theta: Float[Array, " row"]
    nonfinite: Float[Array, " row"]
    theta: PyTree
    sites: Mapping[str, Array]
    loss: Float[Array, ""]


def backward(probe: Probe, params: PyTree, x: PyTree, loss: Loss) -> SiteGradients:
    """Compute gradient norms of a loss at every site, and by the parameters of its submodule.

    Args:
        probe: probe of the model.
        params: parameters of the model.
        x: the model's input, or a tuple of inputs.
        loss: scalar function of the output.

    Returns:
        Norms and gradients. The parameter gradient of a submodule called twice sums both calls.
    """
    value, d_theta, d_sites = gradients_at_sites(probe, params, *inputs_of(x), loss=loss)
    known = dict(d_sites)
    for site in probe.sites:
        # a site that is not floating has no gradient
        known.setdefault(site.name, jnp.full(site.shape, jnp.nan))

    def of_site(site: Site, gradient: Array) -> tuple[Array, Array]:
        numbers = floating(gradient)
        return unit(numbers)[1], jnp.mean(~jnp.isfinite(numbers), dtype=numbers.dtype)

    log_h, nonfinite = probe.over_rows(of_site, known)
    of_parameters = {site.name: _of_parameters(probe, d_theta, site) for site in probe.sites}
    log_theta = probe.over_rows(lambda site, log: log, of_parameters)
    return SiteGradients(log_h, log_theta, nonfinite, d_theta, d_sites, value)


def gradients_at_sites(
    probe: Probe,
    params: PyTree,
    *inputs: PyTree,
    loss: Loss,
    scale: ArrayLike = 1.0,
    shifts: Mapping[str, Array] | None = None,
) -> tuple[Float[Array, ""], PyTree, Mapping[str, Array]]:
    """Compute the gradient of a loss by parameters and by floating sites.

    Args:
        probe: probe of the model.
        params: parameters of the model.
        inputs: inputs of the model.
        loss: scalar function of the output.
        scale: factor of the gradients.
        shifts: arrays to add to the values of sites, by name; None for no shift.

    Returns:
        The loss, the gradient by parameters and the gradient by sites, both times the scale.
    """
    theta, rest = probe.model.split(params)

    def objective(theta: PyTree, shifts: Mapping[str, Array]) -> Float[Array, ""]:
        return loss(
            probe.read(probe.model.join(theta, rest), *inputs, shifts=shifts, sites=()).output
        )

    value, pull = jax.vjp(objective, theta, probe.zeros() | dict(shifts or {}))
    d_theta, d_sites = pull(jnp.asarray(scale, value.dtype))
    return value, d_theta, d_sites


def site_statistics(site: Site, value: Array) -> SiteProfile:
    """Compute the statistics of a site, at one step of a scan.

    Args:
        site: the site.
        value: value of the site.

    Returns:
        Record of the statistics.
    """
    h = floating(value)
    saturation = jnp.full((), jnp.nan, h.dtype)
    dead = saturation
    if site.activation is not None and h.ndim:
        activation = get(site.activation)
        slope = jnp.abs(activation.derivative(h)).reshape(-1, h.shape[-1])
        saturation = jnp.mean(slope <= SATURATED * activation.steepest(h.dtype), dtype=h.dtype)
        dead = jnp.mean(jnp.all(slope == 0, axis=0), dtype=h.dtype)
    log_q = 2 * unit(h)[1] - math.log(h.size)
    return SiteProfile(
        log_q, saturation, dead, jnp.mean(h), jnp.mean(~jnp.isfinite(h), dtype=h.dtype)
    )


def site_correlation(site: Site, h1: Array, h2: Array) -> Float[Array, ""]:
    """Compute the correlation of two values of a site.

    Args:
        site: the site.
        h1: first value.
        h2: second value.

    Returns:
        c in [-1, 1]; NaN where a value is zero or not finite.
    """
    u1, log_1 = unit(floating(h1))
    u2, log_2 = unit(floating(h2))
    defined = jnp.isfinite(log_1) & jnp.isfinite(log_2)
    return jnp.where(defined, 1 - jnp.sum((u1 - u2) ** 2) / 2, jnp.nan)


def _of_parameters(probe: Probe, d_theta: PyTree, site: Site) -> Array:
    """Compute ln of the gradient norm by the parameters of a submodule, per step of its scans."""
    leaves = [
        (leaf, sliced)
        for leaf, sliced in probe.parameters(d_theta, site.path)
        if leaf.dtype != jax.dtypes.float0
    ]
    lengths = [loop.length for loop in site.loops]
    if not leaves:
        return jnp.full(lengths, jnp.nan)
    shared = [leaf for leaf, sliced in leaves if not (sliced and lengths)]
    stacked = [leaf for leaf, sliced in leaves if sliced and lengths]
    log_shared = log_norm([floating(leaf) for leaf in shared])
    if not stacked:
        return jnp.broadcast_to(log_shared, lengths)
    log_stacked = jax.vmap(log_norm)([floating(leaf) for leaf in stacked])
    both = jnp.logaddexp(2 * log_stacked, 2 * log_shared.astype(log_stacked.dtype)) / 2
    return jnp.broadcast_to(both.reshape(-1, *(1 for _ in lengths[1:])), lengths)
