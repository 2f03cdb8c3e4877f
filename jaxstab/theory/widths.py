"""Widths that change from layer to layer: ratios, moments of the Jacobian, and its top atom.

`rectangular` has the equations.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxstab.checks import check_count


class Widths(NamedTuple):
    """Widths of layers 0..L relative to layer 0, and the law of the weights.

    Attributes:
        ratios: r_0 = 1, r_1, ..., r_L.
        gaussian: True for Gaussian weights, False for orthogonal ones.
    """

    ratios: tuple[float, ...]
    gaussian: bool

    @property
    def distinct(self) -> tuple[float, ...]:
        """Distinct ratios of layers 0..L-1, ascending."""
        return tuple(sorted(set(self.ratios[:-1])))

    @property
    def counts(self) -> tuple[int, ...]:
        """Numbers of layers among 0..L-1 with each ratio of `distinct`."""
        return tuple(self.ratios[:-1].count(ratio) for ratio in self.distinct)

    @property
    def powers(self) -> dict[float, int]:
        """Exponents of 1 + tau / r in lambda, by r."""
        powers: dict[float, int] = {}
        for below, above in zip(self.ratios[:-1], self.ratios[1:], strict=True):
            if self.gaussian or above < below:
                powers[above] = powers.get(above, 0) + 1
            if not self.gaussian and above < below:
                powers[below] = powers.get(below, 0) - 1
        for ratio in self.ratios[1:-1]:
            powers[ratio] = powers.get(ratio, 0) - 1
        return {ratio: power for ratio, power in powers.items() if power}

    @property
    def log_scale(self) -> float:
        """Constant term of ln lambda as a function of tau."""
        return math.log(self.ratios[-1]) - sum(math.log(ratio) for ratio in self.ratios[1:-1])

    @property
    def values(self) -> float:
        """Number of singular values of J over n_0, min(n_0, n_L) / n_0."""
        return min(1.0, self.ratios[-1])


def checked_widths(widths: Sequence[int], weights: str) -> Widths:
    """Check the widths of layers 0..L.

    Args:
        widths: n_0, ..., n_L.
        weights: "gaussian" or "orthogonal".

    Returns:
        Ratios of the widths, with the law of the weights.

    Raises:
        ValueError: if there are fewer than two widths, or a width is not an integer >= 1.
    """
    counts = [check_count("widths", width, 1) for width in widths]
    if len(counts) < 2:
        raise ValueError(f"widths must be those of layers 0 to L, at least two, got {widths!r}")
    return Widths(tuple(count / counts[0] for count in counts), weights == "gaussian")


class Spread(NamedTuple):
    """First two moments of the squared slopes d.

    Attributes:
        mean: E d.
        relative: Var d / (E d)^2.
    """

    mean: Float[Array, ""]
    relative: Float[Array, ""]


def spread_of(d: Array, share: Array) -> Spread:
    """Compute mean and relative variance of the squared slopes.

    Args:
        d: values of sigma_w^2 phi'^2.
        share: share of the units with each value.

    Returns:
        E d and Var d / (E d)^2.
    """
    mean = jnp.sum(share * d)
    return Spread(mean, jnp.sum(share * (d - mean) ** 2) / mean**2)


def moments(d: Array, share: Array, widths: Widths) -> tuple[Array, Array]:
    """Compute the first two moments of the min(n_0, n_L) squared singular values.

    For the n_0 eigenvalues of J^T J, Var / mean^2 is minus the slope of ln S at tau = 0, and the
    S-transforms of layers multiply.

    Args:
        d: values of sigma_w^2 phi'^2.
        share: share of the units with each value.
        widths: widths of the layers.

    Returns:
        ln of the mean, and the variance over the squared mean.
    """
    mean, relative = spread_of(d, share)
    ratios = widths.ratios
    among_all = relative * sum(1 / ratio for ratio in ratios[:-1])
    for below, above in itertools.pairwise(ratios):
        if widths.gaussian:
            among_all += 1 / above
        elif above < below:
            among_all += 1 / above - 1 / below
    log_mean = (len(ratios) - 1) * jnp.log(mean) + math.log(ratios[-1] / widths.values)
    return log_mean, widths.values * (1 + among_all) - 1


def top_atom(d: Array, share: Array, widths: Widths) -> tuple[Array, Array]:
    """Compute the atom at the top of the law, which orthogonal layers keep of the largest d.

    Args:
        d: values of sigma_w^2 phi'^2.
        share: share of the units with each value.
        widths: widths of the layers.

    Returns:
        Mass of the atom, 0 where there is none, and ln lambda of the atom.
    """
    largest = jnp.max(d)
    heaviest = jnp.sum(jnp.where(d >= largest, share, 0))
    pairs = list(itertools.pairwise(widths.ratios))
    kernels = sum(max(0.0, below - above) for below, above in pairs)
    lost = (1 - heaviest) * sum(widths.ratios[:-1]) + kernels
    mass = jnp.maximum(1 - lost, 0) / widths.values
    grown = sum(math.log(max(1.0, above / below)) for below, above in pairs)
    return jnp.where(widths.gaussian, 0.0, mass), len(pairs) * jnp.log(largest) + grown
