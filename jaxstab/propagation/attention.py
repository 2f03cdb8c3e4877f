"""Largest logit and entropy of the softmaxes of an unmodified model."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxstab.arguments import explained
from jaxstab.networks import Probe, Site
from jaxstab.networks.interception import inputs_of
from jaxstab.norms.logarithms import floating
from jaxstab.records import AttentionProfile

# only masks produce logits below this: float16 ends at -65504
_MASKED = -4e4


@explained
def attention(probe: Probe, params: PyTree, x: PyTree) -> AttentionProfile:
    """Compute the largest logit and the entropy of each head of attention.

    An entropy near zero means that heads look at one position each, and goes with unstable training
    (Zhai et al. 2023, arXiv 2303.06296). The heads of a softmax are the axis before its last two;
    a softmax without that axis has one head.

    Args:
        probe: probe of the model, made with kind="softmax" or "attention".
        params: parameters of the model.
        x: the model's input, or a tuple of inputs.

    Returns:
        Profile [row, head] over `probe.rows`; NaN at sites that are no softmax, and beyond the
        heads of a softmax with fewer.

    Raises:
        ValueError: if no site is a softmax.

    Example:
        >>> import math
        >>> from jaxstab import networks
        >>> def model(w, x):
        ...     return jax.nn.softmax(x @ w @ x.T) @ x
        >>> w, x = jnp.zeros((3, 3)), jnp.ones((4, 3))
        >>> probe = networks.probe(model, w, x, kind="softmax")
        >>> bool(jnp.allclose(attention(probe, w, x).entropy, math.log(4)))
        True
    """
    softmaxes = [site for site in probe.sites if site.softmax]
    if not softmaxes:
        raise ValueError(
            'no site of the probe is a softmax; make it with networks.probe(..., kind="softmax")'
        )
    most = max(_heads(site) for site in softmaxes)

    def of_site(site: Site, value: Array) -> AttentionProfile:
        if not site.softmax:
            nothing = jnp.full(most, jnp.nan, floating(value).dtype)
            return AttentionProfile(nothing, nothing, nothing)
        heads = _by_head(site, value)
        numbers = AttentionProfile(
            jnp.max(heads.logits, axis=(1, 2)),
            jnp.mean(heads.entropy, axis=1),
            jnp.mean(heads.uniform, axis=1),
        )
        padding = (0, most - len(heads.entropy))
        return jax.tree.map(lambda row: jnp.pad(row, padding, constant_values=jnp.nan), numbers)

    return probe.over_rows(of_site, probe.read(params, *inputs_of(x)).sites)


class Attention(NamedTuple):
    """Statistics of one softmax over all of its heads.

    Attributes:
        max_logit: largest logit.
        entropy: entropy of the weights, as a share of the entropy of equal weights; NaN where a
            mask leaves at most one position.
        error: standard error of that share over heads; NaN for one head.
    """

    max_logit: Float[Array, ""]
    entropy: Float[Array, ""]
    error: Float[Array, ""]


def site_attention(site: Site, value: Array) -> Attention:
    """Compute the statistics of one softmax, at one step of a scan.

    Args:
        site: the site.
        value: logits at the site.

    Returns:
        Largest logit and entropy; NaN where the site is no softmax.
    """
    if not site.softmax:
        nothing = jnp.full((), jnp.nan, floating(value).dtype)
        return Attention(nothing, nothing, nothing)
    heads = _by_head(site, value)
    uniform = jnp.sum(heads.uniform, axis=1)
    shares = jnp.sum(heads.entropy, axis=1) / jnp.where(uniform > 0, uniform, jnp.nan)
    if len(shares) > 1:
        error = jnp.std(shares, ddof=1) / len(shares) ** 0.5
    else:
        error = shares[0] * jnp.nan
    return Attention(jnp.max(heads.logits), jnp.mean(shares), error)


class _Heads(NamedTuple):
    """Logits [head, query, key]; entropies of their weights and of equal weights [head, query]."""

    logits: Array
    entropy: Array
    uniform: Array


def _by_head(site: Site, value: Array) -> _Heads:
    z = floating(value)
    if z.ndim > 2:
        z = jnp.moveaxis(z, -3, 0)
    z = z.reshape(_heads(site), -1, z.shape[-1])
    log_p = jax.nn.log_softmax(z)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(jnp.where(p > 0, p * log_p, 0.0), axis=-1)
    seen = jnp.sum(z > _MASKED, axis=-1, dtype=z.dtype)
    return _Heads(z, entropy, jnp.log(jnp.maximum(seen, 1.0)))


def _heads(site: Site) -> int:
    """Number of heads of a softmax."""
    own = site.shape[len(site.loops) :]
    if len(own) > 2:
        return own[-3]
    return 1
