"""Statistics of signal and gradient at one site, and along the rows of a whole model."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxstab.networks import Probe, Site
from jaxstab.norms.logarithms import floating, unit
from jaxstab.propagation.attention import site_attention
from jaxstab.propagation.sites import site_correlation, site_statistics
from jaxstab.records import SiteProfile


class Saliency(NamedTuple):
    """Similarity of the gradients of two nearby inputs, at one row or along the axis of rows.

    Attributes:
        cosine: cosine of dL/dh and dL/dh', mean over examples.
        error: standard error of that mean; NaN where the first axis is not the batch.
        signal_to_noise: |E g|^2 / E |g - E g|^2 from the two gradients, estimated like
            `signal_to_noise` of `propagation.saliency`.
    """

    cosine: Float[Array, ""]
    error: Float[Array, ""]
    signal_to_noise: Float[Array, ""]


class SignalAtSite(NamedTuple):
    """Statistics of the values of one site, or of all rows along the first axis.

    Attributes:
        profile: statistics of the values.
        alike: mean correlation of pairs of examples; NaN where the first axis is not the batch.
        tokens: mean correlation of pairs of positions within an example.
        nearby: correlation with the values of a nearby input.
        attention: largest logit and entropy of a softmax; NaN at other sites.
    """

    profile: SiteProfile
    alike: Any
    tokens: Any
    nearby: Any
    attention: Any


class GradientAtSite(NamedTuple):
    """Statistics of the gradient by one site, or by all rows along the first axis.

    Attributes:
        log_norm: ln |dL/dh|.
        by_example: ln |dL/dh| of each example; NaN where the first axis is not the batch.
        zero: share of entries that are exactly zero.
        nonfinite: share of entries that are not finite.
    """

    log_norm: Any
    by_example: Any
    zero: Any
    nonfinite: Any


def signal_of(site: Site, examples: int, h: Array, disturbed: Array) -> SignalAtSite:
    """Compute statistics of the values of a site.

    Args:
        site: the site.
        examples: size of the batch.
        h: values of the site.
        disturbed: values of the site at a nearby input.

    Returns:
        Record of statistics of the site's values.
    """
    nearby = site_correlation(site, h, disturbed)
    return SignalAtSite(
        profile=site_statistics(site, h),
        alike=_pairs(h, examples),
        tokens=_positions(h, examples),
        nearby=nearby,
        attention=site_attention(site, h),
    )


def gradient_of(site: Site, examples: int, gradient: Array) -> GradientAtSite:
    """Compute statistics of the gradient by a site.

    Args:
        site: the site.
        examples: size of the batch.
        gradient: gradient of the loss by the values of the site.

    Returns:
        Record of statistics of the gradient.
    """
    numbers = floating(gradient)
    return GradientAtSite(
        unit(numbers)[1],
        _by_example(gradient, examples),
        jnp.mean(numbers == 0, dtype=numbers.dtype),
        jnp.mean(~jnp.isfinite(numbers), dtype=numbers.dtype),
    )


def saliency_of(site: Site, examples: int, one: Array, other: Array) -> Saliency:
    """Compare the gradients of two nearby inputs at a site.

    Args:
        site: the site.
        examples: size of the batch.
        one: gradient at the first input.
        other: gradient at the second input.

    Returns:
        Record of cosine and signal to noise.
    """
    gradients = [floating(one), floating(other)]
    if not _is_batch(one, examples):
        gradients = [gradient[None] for gradient in gradients]

    def of_example(one: Array, other: Array) -> tuple[Array, Array]:
        cosine = site_correlation(site, one, other)
        log_ratio = unit(one)[1] - unit(other)[1]
        return cosine, cosine / (jnp.cosh(log_ratio) - cosine)

    cosines, ratios = jax.vmap(of_example)(*gradients)
    count = len(cosines)
    if count > 1:
        error = jnp.std(cosines, ddof=1) / count**0.5
    else:
        error = cosines[0] * jnp.nan
    # the ratio of two nearly equal gradients is nearly infinite, which would dominate a mean
    return Saliency(jnp.mean(cosines), error, jnp.median(ratios))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _at_site(function: Callable, site: Site, examples: int, *values: Array) -> PyTree:
    """Compute the numbers of a site, [step, ...]."""
    at_step = functools.partial(function, site, examples)
    for _ in site.loops:
        at_step = jax.vmap(at_step)
    loops = len(site.loops)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[loops:]), at_step(*values))


def at_rows(probe: Probe, function: Callable, examples: int, *values: Mapping[str, Array]) -> Any:
    """Compute numbers of all sites along the axis of rows; sites of one shape share a program.

    Args:
        probe: the model.
        function: function of (site, number of examples, arrays of the site) that returns numbers.
        examples: size of the batch.
        values: arrays by site, one mapping per array argument of `function`.

    Returns:
        Pytree of the numbers, each [row, ...].
    """
    parts = []
    for site in probe.sites:
        # drop the fields that differ between sites of one shape, so that they share a program
        kind = site.kind if site.softmax else ""
        alike = site._replace(name="", path="", kind=kind, call=0)
        parts.append(
            jax.device_get(
                _at_site(function, alike, examples, *(known[site.name] for known in values))
            )
        )
    places = probe.places()
    return jax.tree.map(lambda *stacks: np.concatenate(stacks)[places].astype(np.float64), *parts)


@jax.jit
def _leaf_norm(leaf: Array) -> Float[Array, ""]:
    return unit(floating(leaf))[1]


@jax.jit
def _step_norms(leaf: Array) -> Float[Array, " step"]:
    return jax.vmap(lambda part: unit(part)[1])(floating(leaf))


def log_norms_of_parameters(probe: Probe, d_theta: PyTree) -> Float[np.ndarray, " row"]:
    """Compute ln of the gradient's norm by the parameters of each row's submodule.

    Args:
        probe: the model.
        d_theta: gradient by the parameters of the model.

    Returns:
        Logarithm at each row; NaN for a submodule without parameters.
    """
    whole = []
    by_step: dict[int, np.ndarray] = {}
    for i, (leaf, sliced) in enumerate(probe.parameters(d_theta, "")):
        known = leaf.dtype != jax.dtypes.float0
        whole.append(float(_leaf_norm(leaf)) if known else -np.inf)
        if known and sliced:
            by_step[i] = np.asarray(_step_norms(leaf))
    own = {site.path: probe.owned(d_theta, site.path) for site in probe.sites}
    sites = {site.name: site for site in probe.sites}
    logs = []
    for row in probe.rows:
        numbers = own[sites[row.site].path]
        if not numbers:
            logs.append(np.nan)
            continue
        of_step = {}
        if row.steps:
            of_step = {i: by_step[i][row.steps[0]] for i in numbers if i in by_step}
        norms = np.array([of_step.get(i, whole[i]) for i in numbers], float)
        with np.errstate(invalid="ignore"):
            # -inf and NaN propagate with a warning
            logs.append(np.logaddexp.reduce(2 * norms) / 2)
    return np.asarray(logs)


def _is_batch(h: Array, examples: int) -> bool:
    return h.ndim >= 2 and examples >= 2 and h.shape[0] == examples


def _by_example(gradient: Array, examples: int) -> Float[Array, " example"]:
    if not _is_batch(gradient, examples):
        return jnp.full(max(examples, 1), jnp.nan)
    return jax.vmap(lambda row: unit(row)[1])(floating(gradient))


def _pairs(h: Array, examples: int) -> Float[Array, ""]:
    """Mean correlation of pairs of examples."""
    if not _is_batch(h, examples):
        return jnp.full((), jnp.nan)
    return _mean_correlation(floating(h).reshape(examples, -1))


def _positions(h: Array, examples: int) -> Float[Array, ""]:
    """Mean correlation of pairs of positions within an example."""
    if not _is_batch(h, examples) or h.ndim < 3 or h.shape[-2] < 2:
        return jnp.full((), jnp.nan)
    rows = floating(h).reshape(math.prod(h.shape[:-2]), h.shape[-2], -1)
    return jnp.mean(jax.vmap(_mean_correlation)(rows))


def _mean_correlation(rows: Float[Array, "n d"]) -> Float[Array, ""]:
    """(|sum of u_i|^2 - n) / (n (n - 1)) of the unit vectors u_i."""
    count = len(rows)
    units = jax.vmap(lambda row: unit(row)[0])(rows)
    return (jnp.sum(jnp.sum(units, axis=0) ** 2) - count) / (count * (count - 1))
