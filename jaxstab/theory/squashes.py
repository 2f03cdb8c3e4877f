"""Norms that are elementwise functions: scale f(alpha h) + bias is part of the activation that theory sees.

DyT has f = tanh (Zhu et al. 2025, arXiv:2503.10622), Derf has f = erf. Before phi a block's head is
phi(f(alpha h)), after it f(alpha phi(h)). All of theory for plain blocks holds for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, Float

from jaxstab.activations import Activation, Mixture
from jaxstab.theory.features import Features
from jaxstab.theory.panels import density, flat, gaussian_panels, legendre

SQUASHES = {"dyt": jnp.tanh, "derf": jax.scipy.special.erf}
# alpha of a fresh network; scale is 1 and bias 0 there
_ALPHA = 0.5


@dataclasses.dataclass(frozen=True)
class _Squashed:
    """phi(f(alpha h)) or f(alpha phi(h)) as a function of h and of phi's parameters."""

    function: Callable[..., Array]
    squash: str
    after: bool
    name: str
    kinks: tuple[float, ...]

    def __call__(self, h: Array, **parameters: Any) -> Array:
        f = SQUASHES[self.squash]
        if self.after:
            return f(_ALPHA * self.function(h, **parameters))
        return self.function(f(_ALPHA * h), **parameters)


def _inverse(squash: str, value: float) -> float:
    # of scipy what is used is imported, at its first use
    return float(np.arctanh(value) if squash == "dyt" else scipy.special.erfinv(value))


def squashed(phi: Activation, squash: str, after: bool) -> Activation:
    """The head of a block with such a norm, as an activation.

    Args:
        phi: the block's activation.
        squash: one of SQUASHES.
        after: whether it follows phi.

    Returns:
        The activation.
    """
    if isinstance(phi, Mixture):
        first = squashed(phi.first, squash, after)
        return Mixture(first, squashed(phi.second, squash, after), phi.share)
    kinks = list(phi.kinks)
    if not after:
        kinks = [_inverse(squash, kink) / _ALPHA for kink in kinks if abs(kink) < 1]
    function = _Squashed(phi.static_fn, squash, after, phi.name, phi.kinks)
    return Activation(f"{squash}_{phi.name}", function, kinks, parameters=phi.parameters)


def is_squashed(phi: Activation) -> bool:
    """Whether an activation is the head of a block with such a norm.

    Args:
        phi: the activation.

    Returns:
        Whether.
    """
    one = phi.first if isinstance(phi, Mixture) else phi
    return isinstance(one.static_fn, _Squashed)


def unsquashed(phi: Activation) -> Activation:
    """The block's own activation.

    Args:
        phi: any activation.

    Returns:
        That before `squashed`, or the same where it is no squashed one.
    """
    if not is_squashed(phi):
        return phi
    if isinstance(phi, Mixture):
        return Mixture(unsquashed(phi.first), unsquashed(phi.second), phi.share)
    head = phi.static_fn
    assert isinstance(head, _Squashed)
    return Activation(head.name, head.function, head.kinks, parameters=phi.parameters)


def own_square(phi: Activation, about: Features, q: Float[Array, ""]) -> Float[Array, ""]:
    """Squared gradient of scale, bias and alpha, over that with respect to the head.

    Args:
        phi: a squashed activation.
        about: its features.
        q: length of h.

    Returns:
        The ratio; scale and bias have one entry per unit, alpha one for all.
    """
    if isinstance(phi, Mixture):
        first, second = about.parts
        share = jnp.asarray(phi.share, q.dtype)
        one = own_square(phi.first, first, q)
        return (1 - share) * one + share * own_square(phi.second, second, q)
    head = phi.static_fn
    assert isinstance(head, _Squashed)
    inner = unsquashed(phi)
    root = jnp.sqrt(q)
    panels = gaussian_panels(about, jnp.zeros_like(q), root, None)
    u, weights = flat(panels, legendre(about.nodes.single, about.power))
    weights = weights * density(u)
    h = root * u
    # the norm's argument, and the derivative of the head by the norm's output
    z = inner(h) if head.after else h
    f, slope = jax.jvp(SQUASHES[head.squash], (_ALPHA * z,), (jnp.ones_like(z),))
    outer = jnp.ones_like(z) if head.after else inner.derivative(f)
    return jnp.sum(weights * outer**2 * (1 + f**2 + (slope * z) ** 2)) / jnp.sum(weights)
