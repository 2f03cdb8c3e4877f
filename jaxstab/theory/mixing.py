"""Moments of mixtures of units: means over both activations (Lesser & Chowdhury 2026)."""

from jaxstab.activations import Mixture
from jaxstab.theory import host
from jaxstab.theory.host import AnyArray
from jaxstab.theory.quadrature import Pair


def mixed_columns(phi: Mixture, first: list[AnyArray], second: list[AnyArray]) -> list[AnyArray]:
    """Average the moments of one Gaussian over the activations of a mixture.

    Args:
        phi: mixture.
        first: columns of phi_1, as in a table.
        second: columns of phi_2.

    Returns:
        Columns of the mixture.
    """
    one = _Shares(phi, first)
    other = _Shares(phi, second)
    xp = host.namespace(*first, *second)
    growth = _mean(phi, one.growth, other.growth)
    slope = _mean(phi, one.slope, other.slope)
    power = _mean(phi, one.growth * one.length_power, other.growth * other.length_power) / growth
    size = _mean(phi, one.growth * one.power_size, other.growth * other.power_size) / growth
    finite = xp.isfinite(slope)
    steepening = _mean(phi, one.slope * one.slope_power, other.slope * other.slope_power)
    return [
        _mean(phi, one.mean, other.mean),
        _mean(phi, one.mean_slope, other.mean_slope),
        xp.log(growth),
        power,
        size,
        xp.log(slope),
        xp.where(finite, steepening / xp.where(finite, slope, 1.0), 0.0),
    ]


def mixed_pair(phi: Mixture, first: Pair, second: Pair) -> Pair:
    """Average the moments of two Gaussians over the activations of a mixture.

    Args:
        phi: mixture.
        first: moments of phi_1.
        second: moments of phi_2.

    Returns:
        Moments of the mixture.
    """
    return Pair(_mean(phi, first.gap, second.gap), _mean(phi, first.slope, second.slope))


class _Shares:
    """Columns of one activation, with V/q and M instead of their logarithms."""

    def __init__(self, phi: Mixture, columns: list[AnyArray]) -> None:
        xp = host.namespace(*columns)
        (
            self.mean,
            self.mean_slope,
            log_growth,
            self.length_power,
            self.power_size,
            log_slope,
            self.slope_power,
        ) = columns
        self.growth = xp.exp(log_growth)
        self.slope = xp.exp(log_slope)


def _mean(phi: Mixture, first: AnyArray, second: AnyArray) -> AnyArray:
    return (1.0 - phi.share) * first + phi.share * second
