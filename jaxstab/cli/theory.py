"""`jaxstab theory`: print mean-field predictions for one block at one point."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab import theory
from jaxstab.checks import check_gains
from jaxstab.cli.blocks import check_figure, law_of, strict
from jaxstab.cli.faults import UserError, users_fault
from jaxstab.cli.settings import Block, Theory

# default layers of a figure
_LAYERS = 50
# printed name and field of a shaped activation
_SHAPED = {
    "alpha": "alpha",
    "beta": "beta",
    "gamma": "gamma",
    "delta": "delta",
    "length_slope": "length_slope",
    "correlation_slope": "slope",
    "correlation_curvature": "curvature",
}


def print_theory(settings: Theory) -> None:
    """Run `jaxstab theory`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the activation is unknown, a gain is out of range, or a file is not writable.
    """
    if not (math.isfinite(settings.q0) and settings.q0 > 0):
        raise UserError(f"--q0 must be finite and > 0, got {settings.q0}")
    with users_fault():
        check_gains(settings.sigma_w, settings.sigma_b)
    law = law_of(settings)
    if settings.plot is not None:
        check_figure("--plot", settings.plot)
    shaped = _shaped(settings, law)
    if shaped is not None:
        law = theory.law(shaped.activation, weights=settings.weights)
    answer = _answer(settings, law, shaped)
    if settings.plot is not None:
        _draw(settings, law, settings.plot)
    if settings.json:
        print(json.dumps(strict(answer), indent=2))
        return
    lists = ("fixed_points", "critical_points")
    # phi_hat(x) = gamma (phi(alpha x + beta) + delta)
    shown = answer.pop("shaped", {})
    for name, number in shown.items():
        print(f"{name:21} {number:.10g}")
    for key, value in answer.items():
        if key not in lists:
            print(f"{key:17} {_rounded(value, 8)}")
    for key in lists:
        rows = (
            ", ".join(f"{name} {_rounded(value, 6)}" for name, value in row.items())
            for row in answer[key]
        )
        print(f"{key:17} {'; '.join(rows) or 'none'}")


def _rounded(value: Any, digits: int) -> str:
    """Format a value, floats with the given number of digits."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value)


def _shaped(settings: Theory, law: theory.Law) -> theory.Shaped | None:
    """Shape the activation by the flags; None without --shape."""
    if settings.shape is None:
        if settings.shape_target is not None:
            raise UserError("--shape-target must be given together with --shape")
        return None
    if settings.norm or settings.skip or settings.dropout:
        raise UserError("--shape needs a plain network; leave out --norm, --skip and --dropout")
    if settings.depth is None:
        raise UserError("--shape needs --depth, the number of layers")
    target = "zeta"
    if settings.shape == "tat":
        target = "eta" if settings.activation == "leaky_relu" else "tau"
    with users_fault():
        return theory.shaped(
            law.activation, settings.depth, settings.shape, **{target: settings.shape_target}
        )


def _numbers(shaped: theory.Shaped) -> dict[str, float]:
    """Return the numbers of a shaped activation, and the slope of a leaky relu."""
    fields = {name: getattr(shaped, field) for name, field in _SHAPED.items()}
    return shaped.base.parameters | fields


def _answer(settings: Theory, law: theory.Law, shaped: theory.Shaped | None) -> dict[str, Any]:
    """Compute all predictions for a block; those of a plain block compile no program."""
    gains = (settings.sigma_w, settings.sigma_b)
    point = theory.fixed_point(law, *gains, settings.q0)
    lengths = theory.fixed_points(law, *gains, settings.q0)
    critical = theory.critical_points(law, settings.sigma_b)
    usable = np.asarray(critical.sigma_w)[np.asarray(critical.usable)]
    cures = ("norm", "norm_after", "skip", "dropout", "batch", "weights", "depth")
    changed = {
        name: getattr(settings, name)
        for name in cures
        if getattr(settings, name) != getattr(Block, name)
    }
    shape: dict[str, Any] = {}
    if shaped is not None:
        shape = {"shape": settings.shape, "shaped": _numbers(shaped)}
    reasons = {
        "no_fixed_point": theory.missing(law).get("fixed_point", ""),
        "no_critical_point": theory.missing(law).get("critical_points", ""),
    }
    return {
        "activation": settings.activation,
        **changed,
        **shape,
        "sigma_w": settings.sigma_w,
        "sigma_b": settings.sigma_b,
        **{field: float(value) for field, value in point._asdict().items() if field != "stable"},
        "stability": _stability(float(point.xi_q), bool(point.stable)),
        **{name: reason for name, reason in reasons.items() if reason},
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


def _draw(settings: Theory, law: theory.Law, file: Path) -> None:
    from jaxstab.report.theory_figures import (
        law_profiles,
        save,
    )  # nothing else of this command draws

    depth = settings.depth or _LAYERS
    gains = (settings.sigma_w, settings.sigma_b)
    # the figure depends on neither width nor d_in
    forward, correlation, backward, _ = theory.predict(
        law, *gains, [depth], width=64, d_in=64, q0=settings.q0
    )
    name = settings.activation
    if settings.shape:
        name += f" by {settings.shape}"
    name += f", sigma_w = {settings.sigma_w:g}, sigma_b = {settings.sigma_b:g}"
    with users_fault():
        save(law_profiles(name, forward, correlation, backward), file)


def _stability(xi_q: float, stable: bool) -> str:
    if math.isnan(xi_q):
        return "undefined"
    if stable:
        return "stable"
    if math.isinf(xi_q):
        return "marginal"
    return "unstable"
