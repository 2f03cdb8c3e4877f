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
from jaxtyping import Array

from jaxstab.activations import Activation, Mixture, get, names

SQUASHES = {"dyt": jnp.tanh, "derf": jax.scipy.special.erf}
# alpha of a fresh network; scale is 1 and bias 0 there
ALPHA = 0.5
# built-in activations with phi(-z) = -phi(z)
_ODD = ("identity", "tanh", "erf", "hard_tanh", "sin", "softsign")


@dataclasses.dataclass(frozen=True)
class Squashed:
    """phi(f(alpha h)) or f(alpha phi(h)) as a function of h and of phi's parameters."""

    function: Callable[..., Array]
    squash: str
    after: bool
    name: str
    kinks: tuple[float, ...]

    def __call__(self, h: Array, **parameters: Any) -> Array:
        """The head at h."""
        f = SQUASHES[self.squash]
        if self.after:
            return f(ALPHA * self.function(h, **parameters))
        return self.function(f(ALPHA * h), **parameters)


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
        kinks = [_inverse(squash, kink) / ALPHA for kink in kinks if abs(kink) < 1]
    function = Squashed(phi.static_fn, squash, after, phi.name, phi.kinks)
    return Activation(f"{squash}_{phi.name}", function, kinks, parameters=phi.parameters)


def is_squashed(phi: Activation) -> bool:
    """Whether an activation is the head of a block with such a norm.

    Args:
        phi: the activation.

    Returns:
        Whether.
    """
    one = phi.first if isinstance(phi, Mixture) else phi
    return isinstance(one.static_fn, Squashed)


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
    assert isinstance(head, Squashed)
    return Activation(head.name, head.function, head.kinks, parameters=phi.parameters)


def squashes_to_even_slope(phi: Activation) -> bool:
    """Whether an activation is a squashed one whose derivative is known to be even.

    Args:
        phi: any activation.

    Returns:
        Whether. Both squashes are odd: an even phi' suffices before phi, behind it phi must be odd.
    """
    head = phi.static_fn
    if not isinstance(head, Squashed):
        return False
    inner = unsquashed(phi)
    if inner.name not in names() or get(inner.name).static_fn != inner.static_fn:
        return False
    return inner.name in _ODD or (not head.after and inner.name == "sigmoid")
