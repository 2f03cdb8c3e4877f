"""Weight gains that keep gradients or lengths, each with its source."""

import math
import warnings
from typing import NamedTuple

import numpy as np

from jaxstab.activations import Activation, get
from jaxstab.arguments import explained
from jaxstab.checks import check_choice, check_gains
from jaxstab.theory.critical import critical_points
from jaxstab.theory.maps import AnyActivation, derivative_moment, second_moment, second_moment_slope


class Gain(NamedTuple):
    """A weight gain with its source.

    Attributes:
        sigma_w: gain, the standard deviation of sqrt(fan_in) W_ij.
        q: length (mean square of the pre-activations) for which the gain is right; inf for every
            length.
        critical: whether chi_1 = 1, so that gradients keep their mean square; if not, only lengths
            are kept.
        source: reason, in words.
    """

    sigma_w: float
    q: float
    critical: bool
    source: str


_AT_EVERY_LENGTH = "E phi'(z)^2 is the same at every length"
_AT_ZERO = "sigma_w = 1/phi'(0): critical at the length fixed point q = 0 (Poole et al. 2016)"
# sigma_w, q and reason at sigma_b = 0, where a closed form is known
_KNOWN = {
    "identity": (1.0, math.inf, f"1: {_AT_EVERY_LENGTH}, 1"),
    "relu": (math.sqrt(2), math.inf, f"sqrt(2): {_AT_EVERY_LENGTH}, 1/2 (He et al. 2015, eq. 10)"),
    "tanh": (1.0, 0.0, _AT_ZERO),
    "erf": (math.sqrt(math.pi) / 2, 0.0, _AT_ZERO),
    "hard_tanh": (1.0, 0.0, _AT_ZERO),
    "sin": (1.0, 0.0, _AT_ZERO),
}


@explained
def gain(activation: AnyActivation, sigma_b: float = 0.0, keep: str = "gradient") -> Gain:
    """Choose the weight gain that keeps the gradient, or the length, for an activation.

    The critical gain has chi_1 = sigma_w^2 E phi'(sqrt(q*) u)^2 = 1 at the length fixed point q*
    (Schoenholz et al. 2017, eq. 5). Where no usable fixed point is critical (gelu, silu at sigma_b
    = 0), and for keep="length", the gain keeps the length q = 1, as published for most activations
    (the argument of He et al. 2015 for any phi): sigma_w^2 = (1 - sigma_b^2) / E phi(u)^2. A
    warning is issued where lengths then return to q = 1 and gradients explode nevertheless, chi_1 >
    1 (selu). The function returns Python numbers and cannot be traced.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation, >= 0; below 1 for a gain that keeps the length.
        keep: "gradient" or "length".

    Returns:
        The gain and its source, with chi_1 where the gain keeps the length.

    Raises:
        ValueError: if sigma_b is negative or not finite, keep is neither, or no gain keeps signal
            or gradient.

    Example:
        >>> gain("relu")
        Gain(sigma_w=1.4142135623730951, q=inf, critical=True, source="sqrt(2): E phi'(z)^2 is the same at every...")
        >>> found = gain("gelu", keep="length")
        >>> print(f"{found.sigma_w:.5f}: {found.source[-20:]}")
        1.53353: chi_1 = 1.0720 there
    """
    check_choice("keep", keep, ("gradient", "length"))
    phi = get(activation)
    check_gains(0.0, sigma_b)
    if keep == "length":
        return _length_gain(phi, sigma_b)
    if sigma_b == 0 and phi.name in _KNOWN and phi == get(phi.name):
        sigma_w, q, reason = _KNOWN[phi.name]
        return Gain(sigma_w, q, True, reason)
    points = critical_points(phi, sigma_b)
    usable = np.flatnonzero(points.usable)
    if len(usable):
        first = usable[np.argmin(np.asarray(points.sigma_w)[usable])]
        sigma_w = float(points.sigma_w[first])
        q = float(points.q[first])
        source = f"solved chi_1 = 1 at sigma_b = {sigma_b:g}: length fixed point q = {q:.6g}"
        return Gain(sigma_w, q, True, source + _warning_of_published(phi, sigma_b))
    return _length_gain(phi, sigma_b)


class _AtUnitLength(NamedTuple):
    """Gain that keeps q = 1, with chi_1 and the length map's slope at q = 1."""

    sigma_w: float
    chi_1: float
    slope: float

    @property
    def misleads(self) -> bool:
        """True where lengths return to q = 1 and gradients explode nevertheless."""
        return abs(self.slope) < 1 < self.chi_1 - 1e-9


def _at_unit_length(phi: Activation, sigma_b: float) -> _AtUnitLength | None:
    """Compute the gain that keeps q = 1; None where no gain does."""
    length = float(second_moment(phi, 1.0))
    if not (sigma_b < 1 and length > 0):
        return None
    sigma_w = math.sqrt((1 - sigma_b**2) / length)
    chi_1 = sigma_w**2 * float(derivative_moment(phi, 1.0))
    return _AtUnitLength(sigma_w, chi_1, sigma_w**2 * float(second_moment_slope(phi, 1.0)))


def _warning_of_published(phi: Activation, sigma_b: float) -> str:
    """Write a warning for activations whose published gain, which keeps q = 1, misleads."""
    at_one = _at_unit_length(phi, sigma_b)
    if at_one is None or not at_one.misleads:
        return ""
    return (
        f"; gain {at_one.sigma_w:.6g} would keep q = 1, where lengths contract (slope "
        f"{at_one.slope:.4f}) "
        f"but squared gradients grow by {at_one.chi_1:.4f} per layer"
    )


def _length_gain(phi: Activation, sigma_b: float) -> Gain:
    """Compute the gain that keeps q = 1, with a warning where gradients explode nevertheless."""
    at_unit = _at_unit_length(phi, sigma_b)
    if at_unit is None:
        raise ValueError(
            f"no gain of {phi.name} keeps signal or gradient at sigma_b = {sigma_b}; try a smaller "
            "sigma_b"
        )
    if at_unit.misleads:
        warnings.warn(
            f"gain of {phi.name}: squared gradients grow by chi_1 = {at_unit.chi_1:.4f} per layer "
            "although the length "
            f"map contracts (slope {at_unit.slope:.4f})",
            stacklevel=3,
        )
    known = "keeps the length q = 1, sigma_w^2 = (1 - sigma_b^2) / E phi(u)^2"
    critical_here = abs(at_unit.chi_1 - 1) < 1e-9
    reason = "" if critical_here else "; no critical gain"
    source = f"{known}{reason}; chi_1 = {at_unit.chi_1:.4f} there"
    return Gain(at_unit.sigma_w, 1.0, critical_here, source)
