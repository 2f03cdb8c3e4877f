"""`jaxstab theory`: print what mean-field theory says of one block at one point."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxstab import theory
from jaxstab.checks import check_gains
from jaxstab.cli.blocks import Block, check_figure, law_of, strict
from jaxstab.cli.faults import UserError, users_fault

# layers of a figure, unless --depth says how many
_LAYERS = 50


@dataclasses.dataclass(frozen=True)
class Theory(Block):
    """Print what mean-field theory says of one block, plain or with cures, at one point (sigma_w, sigma_b)."""

    sigma_w: float = 1.0
    """Weight gain."""
    sigma_b: float = 0.0
    """Standard deviation of the biases."""
    q0: float = 1.0
    """Mean square of the input; matters where there are several fixed points, or none."""
    json: bool = False
    """Print JSON (infinity as the string "inf", an undefined number as null)."""
    plot: Path | None = None
    """Draw length, correlation and gradient at every layer into this file (.png, .svg or .pdf)."""


def print_theory(settings: Theory) -> None:
    """Run `jaxstab theory`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the activation is unknown, a gain out of range, or a file cannot be written.
    """
    if not (math.isfinite(settings.q0) and settings.q0 > 0):
        raise UserError(f"q0 must be finite and > 0, got {settings.q0}")
    with users_fault():
        check_gains(settings.sigma_w, settings.sigma_b)
    law = law_of(settings)
    if settings.plot is not None:
        check_figure("--plot", settings.plot)
    answer = _answer(settings, law)
    if settings.plot is not None:
        _draw(settings, law, settings.plot)
    if settings.json:
        print(json.dumps(strict(answer), indent=2))
        return
    lists = ("fixed_points", "critical_points")
    for key, value in answer.items():
        if key not in lists:
            print(f"{key:17} {value:.8g}" if isinstance(value, float) else f"{key:17} {value}")
    for key in lists:
        rows = (
            ", ".join(
                f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            )
            for row in answer[key]
        )
        print(f"{key:17} {'; '.join(rows) or 'none'}")


def _answer(settings: Theory, law: theory.Law) -> dict[str, Any]:
    """All that is said of a block; of a plain one numbers are computed at once, and no program is compiled."""
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
    reasons = {
        "no_fixed_point": theory.missing_fixed_point(law),
        "no_critical_point": theory.missing_critical_points(law),
    }
    return {
        "activation": settings.activation,
        **changed,
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
    # neither size counts for what is drawn
    forward, correlation, backward, _ = theory.predict(
        law, *gains, [depth], width=64, d_in=64, q0=settings.q0
    )
    name = f"{settings.activation}, sigma_w = {settings.sigma_w:g}, sigma_b = {settings.sigma_b:g}"
    with users_fault():
        save(law_profiles(name, forward, correlation, backward), file)


def _stability(xi_q: float, stable: bool) -> str:
    if math.isnan(xi_q):
        return "undefined"
    if stable:
        return "stable"
    return "marginal" if math.isinf(xi_q) else "unstable"
