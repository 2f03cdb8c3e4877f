"""Transformations of activations for deep networks, DKS and TAT.

Deep kernel shaping (Martens et al. 2021, arXiv:2110.01765) and tailored activation transformation
(Zhang et al. 2022, arXiv:2203.08120) replace phi by

    phi_hat(x) = gamma (phi(alpha x + beta) + delta),

with sigma_w = 1 and sigma_b = 0. The four numbers solve conditions on the maps of one layer at
q = 1: the length map Q(q) = E phi_hat(sqrt(q) u)^2 and the correlation map C(c).

    DKS:          Q(1) = 1, Q'(1) = 1, C(0) = 0, C'(1) = s
    TAT, smooth:  Q(1) = 1, Q'(1) = 1, C'(1) = 1, C''(1) = t
    TAT, leaky:   Q(1) = 1, Q'(1) = 1, C'(1) = 1, by the slope below 0

s, t and the slope below 0 are set by a condition on the whole network: the largest C_f'(1) over all
subnetworks f is zeta (DKS), the largest C_f''(1) is tau, or the largest C_f(0) is eta (TAT).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from jaxstab.activations import Activation, Mixture, get, leaky_relu
from jaxstab.checks import check_choice, plain_number
from jaxstab.theory import host
from jaxstab.theory.features import features
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.shaping_conditions import Conditions, Solution, solution
from jaxstab.theory.subnetworks import Layers, checked_layers, solved

METHODS = ("dks", "tat")
# default targets of a network
_DEFAULTS = {"zeta": 1.5, "tau": 0.3, "eta": 0.9}
_RANGES = {"zeta": (1.0, math.inf), "tau": (0.0, math.inf), "eta": (0.0, 1.0)}


class Shaped(NamedTuple):
    """A transformed activation phi_hat(x) = gamma (phi(alpha x + beta) + delta).

    Attributes:
        activation: phi_hat, for sigma_w = 1 and sigma_b = 0.
        base: phi; for a leaky relu, with the chosen slope.
        alpha: input scale.
        beta: input shift.
        gamma: output scale.
        delta: output shift.
        length_slope: Q'(1); 1 except for relu and similar, which have one free number fewer.
        slope: C'(1) of one layer.
        curvature: C''(1) of one layer; infinite where phi' jumps.
    """

    activation: Activation
    base: Activation
    alpha: float
    beta: float
    gamma: float
    delta: float
    length_slope: float
    slope: float
    curvature: float


@dataclass(frozen=True)
class _Transformed:
    """Phi_hat as a function of its input and the four numbers; instances compare equal by phi."""

    phi: Activation

    def __call__(self, z: Array, alpha: Array, beta: Array, gamma: Array, delta: Array) -> Array:
        return gamma * (self.phi.fn(alpha * z + beta) + delta)


def shaped(
    activation: AnyActivation,
    layers: Layers,
    method: str = "dks",
    zeta: float | None = None,
    tau: float | None = None,
    eta: float | None = None,
) -> Shaped:
    """Transform an activation for a network by DKS or TAT.

    Of several solutions the one with the smallest alpha^2 gamma is taken, as |phi_hat''| is
    proportional to it: phi_hat bends gently at all inputs, not sharply at rare ones. Of two mirror
    solutions the one with beta > 0 is taken. relu and similar activations depend on alpha / beta
    only, and meet all conditions of DKS except Q'(1) = 1.

    Args:
        activation: name, `Activation` or elementwise callable, without traced parameters. The slope
            of a leaky relu is chosen here; TAT has a separate method for leaky relu.
        layers: number of nonlinear layers of a plain chain, a `ResidualStages`, or a function
            (x, layer) that applies `layer` at each layer and returns the largest value over
            subnetworks.
        method: "dks" or "tat".
        zeta: for DKS, the largest C_f'(1) over subnetworks f; > 1, default 1.5.
        tau: for TAT with a smooth activation, the largest C_f''(1); > 0, default 0.3.
        eta: for TAT with a leaky relu, the largest C_f(0); in (0, 1), default 0.9.

    Returns:
        The transformed activation and its four numbers.

    Raises:
        ValueError: if a target is out of range or not of this method, or no transformation of the
            activation meets it.

    Example:
        >>> found = shaped("tanh", 50)
        >>> print(f"{found.length_slope:.6f} {found.slope**50:.6f}")
        1.000000 1.500000
        >>> print(f"{shaped('leaky_relu', 50, 'tat').base.parameters['slope']:.4f}")
        0.4305
    """
    phi = get(activation)
    if isinstance(phi, Mixture) or host.is_traced(phi):
        raise ValueError(f"activation must be one without traced parameters, got {phi!r}")
    check_choice("method", method, METHODS)
    layers = checked_layers(layers)
    leaky = phi.static_fn == leaky_relu().static_fn
    if method == "dks":
        wanted = "zeta"
    elif leaky:
        wanted = "eta"
    else:
        wanted = "tau"
    target = _target(f"{method} of {phi.name}", wanted, {"zeta": zeta, "tau": tau, "eta": eta})
    with np.errstate(all="ignore"):
        if wanted == "eta":
            return _leaky_by_correlation(layers, target)
        if wanted == "tau":
            rise = solved(layers, target, 0.0, lambda rise, x: x + rise, (0.0, target))
        else:
            rise = solved(layers, target, 1.0, lambda rise, x: x + x * rise, (0.0, target - 1.0))
        if leaky:
            return _leaky_by_slope(rise)
        solution_of_phi = solution(Conditions(phi, features(phi), wanted == "tau", rise))
        return _record(phi, solution_of_phi)


def _target(what: str, wanted: str, given: dict[str, float | None]) -> float:
    """Check that no target of another method is given, and return the method's own."""
    others = [name for name, value in given.items() if value is not None and name != wanted]
    if others:
        raise ValueError(f"{what} has the target {wanted}, got {', '.join(others)}")
    value = given[wanted]
    if value is None:
        target = _DEFAULTS[wanted]
    else:
        target = plain_number(wanted, value)
    low, high = _RANGES[wanted]
    if not low < target < high:
        raise ValueError(f"{wanted} must lie in ({low:g}, {high:g}), got {target:g}")
    return target


def _leaky_by_correlation(layers: Layers, eta: float) -> Shaped:
    """Apply TAT to a leaky relu: choose the slope with C_f(0) = eta."""

    def layer(slope: float, c: float) -> float:
        bend = (1.0 - slope) ** 2 / (math.pi * (1.0 + slope**2))
        return c + bend * (math.sqrt(1.0 - c**2) - c * math.acos(c))

    # rounding may put c above 1
    slope = solved(layers, eta, 0.0, lambda slope, c: layer(slope, min(c, 1.0)), (0.0, 1.0))
    return _leaky(slope, 0.0)


def _leaky_by_slope(rise: float) -> Shaped:
    """Apply DKS to a leaky relu: 1 - 1/C'(1) = (E phi)^2 / E phi^2 = (1 - a)^2 / (pi (1 + a^2))."""
    share = math.pi * rise / (1.0 + rise)
    if share > 1.0:
        raise ValueError(
            f"dks of leaky_relu needs C'(1) <= pi / (pi - 1) per layer, got {1 + rise:.6g}; use "
            "more layers or a lower zeta"
        )
    # the root in [0, 1] of (1 - share) a^2 - 2 a + 1 - share = 0
    slope = (1.0 - share) / (1.0 + math.sqrt(share * (2.0 - share)))
    return _leaky(slope, -(1.0 - slope) / math.sqrt(2.0 * math.pi))


def _leaky(slope: float, delta: float) -> Shaped:
    power = (1.0 + slope**2) / 2.0
    gamma = 1.0 / math.sqrt(power - delta**2)
    solved = Solution(1.0, 0.0, gamma, delta, 1.0, gamma**2 * power, math.inf)
    return _record(leaky_relu(slope), solved)


def _record(phi: Activation, solved: Solution) -> Shaped:
    kinks = [(kink - solved.beta) / solved.alpha for kink in phi.kinks]
    parameters = {name: getattr(solved, name) for name in ("alpha", "beta", "gamma", "delta")}
    activation = Activation(f"shaped_{phi.name}", _Transformed(phi), kinks, parameters=parameters)
    return Shaped(activation, phi, *solved)
