"""`jaxstab theory`: print what mean-field theory says of one activation at one point."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from jaxstab import activations, theory
from jaxstab.checks import check_gains
from jaxstab.cli.faults import UserError, users_fault


@dataclasses.dataclass(frozen=True)
class Theory:
    """Print what mean-field theory says of one activation at one point (sigma_w, sigma_b)."""

    activation: str = "tanh"
    """Name of the activation."""
    sigma_w: float = 1.0
    """Weight gain."""
    sigma_b: float = 0.0
    """Standard deviation of the biases."""
    q0: float = 1.0
    """Mean square of the input; matters where there are several fixed points, or none."""
    json: bool = False
    """Print JSON (infinity as the string "inf", an undefined number as null)."""


def print_theory(settings: Theory) -> None:
    """Run `jaxstab theory`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the activation is unknown or a gain out of range.
    """
    if not (math.isfinite(settings.q0) and settings.q0 > 0):
        raise UserError(f"q0 must be finite and > 0, got {settings.q0}")
    with users_fault():
        check_gains(settings.sigma_w, settings.sigma_b)
        phi = activations.get(settings.activation)
    # numbers are computed at once: nothing is compiled but the activation
    gains = (settings.sigma_w, settings.sigma_b)
    point = theory.fixed_point(phi, *gains, settings.q0)
    lengths = theory.fixed_points(phi, *gains, settings.q0)
    critical = theory.critical_points(phi, settings.sigma_b)
    usable = np.asarray(critical.sigma_w)[np.asarray(critical.usable)]
    answer: dict[str, Any] = {
        "activation": settings.activation,
        "sigma_w": settings.sigma_w,
        "sigma_b": settings.sigma_b,
        **{field: float(value) for field, value in point._asdict().items() if field != "stable"},
        "stability": _stability(float(point.xi_q), bool(point.stable)),
        "critical_sigma_w": min(map(float, usable), default=math.nan),
        "fixed_points": [
            {"q": float(q), "stability": _stability(float(xi), bool(stable))}
            for q, xi, stable in zip(lengths.q, lengths.xi_q, lengths.stable, strict=True)
            if not np.isnan(q)
        ],
        "critical_points": [
            {"sigma_w": float(w), "q": float(q), "usable": bool(use)}
            for w, q, use in zip(critical.sigma_w, critical.q, critical.usable, strict=True)
            if not np.isnan(q)
        ],
    }
    if settings.json:
        print(json.dumps(_strict(answer), indent=2))
        return
    lists = ("fixed_points", "critical_points")
    for key, value in answer.items():
        if key not in lists:
            print(f"{key:17} {value:.8g}" if isinstance(value, float) else f"{key:17} {value}")
    for key in lists:
        rows = (
            ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            for row in answer[key]
        )
        print(f"{key:17} {'; '.join(rows) or 'none'}")


def _stability(xi_q: float, stable: bool) -> str:
    return "stable" if stable else "marginal" if math.isinf(xi_q) else "unstable"


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN: the string "inf" and null stand for them."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
