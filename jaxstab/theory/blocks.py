"""Blocks for root finding, described by one length x.

x is q, the length of h. With BatchNorm x is v = q (1 - c), the variance within a batch, which alone
determines the head.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation, Mixture
from jaxstab.theory import host
from jaxstab.theory.batches import Sphere, spheres
from jaxstab.theory.features import Features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.laws import Law
from jaxstab.theory.moments import inside
from jaxstab.theory.roots import LOG_LENGTHS

# longer lengths are outside the grid of BatchNorm's spheres
_LONGEST_BATCH = 700.0


class Block(NamedTuple):
    """A law with the features of its activation.

    Attributes:
        law: law of the block.
        phi: activation of the block.
        about: features of the activation.
        table: moments on spheres, for BatchNorm over a finite batch; else None.
    """

    law: Law
    phi: Activation
    about: Features
    table: Sphere | None


class Form(NamedTuple):
    """Static part of a law, and the names of the numbers that its fixed points depend on.

    Attributes:
        law: law with all numbers at their defaults.
        names: names of the numbers that count.
    """

    law: Law
    names: tuple[str, ...]


def parted(law: Law) -> tuple[Form, tuple[AnyArray, ...]]:
    """Split a law into its static form and the numbers that its fixed points depend on.

    Args:
        law: law of a block.

    Returns:
        The form, and the numbers in the order of the form's names.
    """
    names = []
    if host.is_traced(law.keep) or np.any(np.asarray(law.keep) != 1.0):
        names.append("keep")
    if law.norm is not None:
        names.append("epsilon")
    if law.skip == "rezero":
        names.append("alpha")
    return Form(law.form, tuple(names)), tuple(getattr(law, name) for name in names)


def block_of(form: Form, phi: Activation, about: Features, numbers: tuple[AnyArray, ...]) -> Block:
    """Build the block of a form, the inverse of `parted`.

    Args:
        form: form of the block's law.
        phi: activation of the block.
        about: features of the activation.
        numbers: values of the form's names.

    Returns:
        The block.
    """
    law = dataclasses.replace(form.law, **dict(zip(form.names, numbers, strict=True)))
    return Block(law, phi, about, spheres(law, phi, about, jnp.dtype(jnp.float64)))


def is_at_once(law: Law) -> bool:
    """Check that a block's moments follow from those of phi, and so need no compiled program.

    Args:
        law: law of the block.

    Returns:
        True where NumPy computes the moments of concrete numbers.
    """
    return law.norm is None or law.norm == "rms" or (law.norm == "layer" and not law.norm_after)


def grid_of(block: Block) -> Float[np.ndarray, " n"]:
    """Choose the lengths between which roots are bracketed.

    Args:
        block: the block.

    Returns:
        ln x, ascending.
    """
    if block.law.norm == "batch":
        return LOG_LENGTHS[np.abs(LOG_LENGTHS) <= _LONGEST_BATCH]
    return LOG_LENGTHS


def vanishes(block: Block) -> AnyArray:
    """Check that a block without biases maps length 0 to length 0.

    Args:
        block: the block.

    Returns:
        Boolean, traced where the block is.
    """
    law = block.law
    centred = law.norm == "batch" or (law.norm == "layer" and law.norm_after)
    still = True if centred else _zero_at_zero(block.phi)
    if law.norm is not None:
        return still & (law.epsilon > 0)
    return still


def _zero_at_zero(phi: Activation) -> AnyArray:
    """Check that phi(0) = 0."""
    if isinstance(phi, Mixture):
        return _zero_at_zero(phi.first) & _zero_at_zero(phi.second)
    if host.is_traced(phi):
        return phi(jnp.zeros(1))[0] == 0
    return host.value_and_slope(phi)(np.zeros(1))[0][0] == 0


def far(block: Block) -> float:
    """Choose the finite length that stands for q = inf of a residual block.

    Args:
        block: the block.

    Returns:
        ln x.
    """
    return float(grid_of(block)[-1])


def clipped(block: Block, log_x: AnyArray) -> AnyArray:
    """Replace lengths 0 and inf by finite ones.

    Args:
        block: the block.
        log_x: ln x.

    Returns:
        Finite ln x.
    """
    xp = host.namespace(log_x)
    if block.law.residual:
        return xp.where(xp.isfinite(log_x), log_x, xp.where(log_x > 0, far(block), inside(log_x)))
    return xp.where(xp.isfinite(log_x), log_x, inside(log_x))
