"""Elementwise norms scale f(alpha h) + bias, which theory composes with the activation.

DyT has f = tanh (Zhu et al. 2025, arXiv:2503.10622), Derf has f = erf. A norm before phi gives the
head phi(f(alpha h)), a norm after phi f(alpha phi(h)). Theory of plain blocks applies to the head.
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
# alpha at initialisation, where scale is 1 and bias 0
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
        """Evaluate the head at h."""
        f = SQUASHES[self.squash]
        if self.after:
            return f(ALPHA * self.function(h, **parameters))
        return self.function(f(ALPHA * h), **parameters)


def _inverse(squash: str, value: float) -> float:
    # scipy imports its modules lazily
    return float(np.arctanh(value) if squash == "dyt" else scipy.special.erfinv(value))


def squashed(phi: Activation, squash: str, after: bool) -> Activation:
    """Compose an activation with an elementwise norm.

    Args:
        phi: activation of the block.
        squash: name of the norm, one of SQUASHES.
        after: whether the norm follows phi.

    Returns:
        The head as an activation.
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
    """Check that an activation is a result of `squashed`.

    Args:
        phi: activation.

    Returns:
        True for a result of `squashed`.
    """
    one = phi.first if isinstance(phi, Mixture) else phi
    return isinstance(one.static_fn, Squashed)


def unsquashed(phi: Activation) -> Activation:
    """Undo `squashed`.

    Args:
        phi: any activation.

    Returns:
        Activation without the norm; phi itself where it is not a result of `squashed`.
    """
    if not is_squashed(phi):
        return phi
    if isinstance(phi, Mixture):
        return Mixture(unsquashed(phi.first), unsquashed(phi.second), phi.share)
    head = phi.static_fn
    assert isinstance(head, Squashed)
    return Activation(head.name, head.function, head.kinks, parameters=phi.parameters)


def squashes_to_even_slope(phi: Activation) -> bool:
    """Check that an activation is a result of `squashed` with an even derivative.

    Every f is odd. A norm before phi needs an even phi', a norm after phi an odd phi.

    Args:
        phi: any activation.

    Returns:
        True where the derivative is known to be even.
    """
    head = phi.static_fn
    if not isinstance(head, Squashed):
        return False
    inner = unsquashed(phi)
    if inner.name not in names() or get(inner.name).static_fn != inner.static_fn:
        return False
    return inner.name in _ODD or (not head.after and inner.name == "sigmoid")
