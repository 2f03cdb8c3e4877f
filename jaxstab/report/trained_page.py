"""Report page of trainings, drawn from their summary without new computation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxstab.report import trained_figures
from jaxstab.report.document import Picture, page, picture
from jaxstab.store.files import whole_file

_OUTCOME_COLOURS = ("#2f6db3", "#6f7782", "#b4561d", "#8a2f10", "#565d66")
_DEPTHS = 6
_NEEDED = ("train_accuracy", "fit_n", "runs", "best_sigma_w", "learning_curve", "fine_xi_c")
_DRAWN: dict[str, tuple[Callable[[xr.Dataset, int], Figure], tuple[str, ...]]] = {
    "accuracy_heat_map": (
        trained_figures.accuracy_heat_map,
        (
            "train_accuracy",
            "train_accuracy_se",
            "test_accuracy",
            "test_accuracy_se",
            "learning_rate",
            "xi_c",
            "xi_grad",
        ),
    ),
    "learning_curves": (
        trained_figures.learning_curves,
        ("learning_curve", "learning_curve_se", "best_sigma_w"),
    ),
    "sharpness": (
        trained_figures.sharpness,
        ("sharpness_over_edge", "sharpness_over_edge_se", "best_learning_rate"),
    ),
    "steps_to_threshold": (
        trained_figures.steps_to_threshold,
        ("steps", "steps_se", "steps_reached"),
    ),
    "first_gradients": (trained_figures.first_gradients, ("log_grad_theta", "log_grad_theta_se")),
}


def write(summary: xr.Dataset, path: str | Path) -> Path:
    """Write the report page of trainings, with all figures and their data inside.

    Args:
        summary: summary of trainings, from `analysis.summarise`.
        path: path of the HTML file; an existing file is replaced once the new one is complete.

    Returns:
        Path of the file.

    Raises:
        ValueError: if the dataset is no summary of trainings.
        OSError: if the file cannot be written.
    """
    missing = set(_NEEDED) - set(summary)
    if missing or not {"grid", "done"} <= set(summary.attrs):
        raise ValueError(
            "a page of trainings needs their summary; this dataset lacks "
            f"{', '.join(sorted(missing))}"
        )
    level = float(summary.threshold[-1])
    if np.isfinite(level):
        threshold = f"an accuracy of {level:.3g}, half-way between chance and the best"
    else:
        threshold = "none"
    hidden = summary.sizes["kind"] - trained_figures.MOST
    more = ""
    if hidden > 0:
        more = f" The first {trained_figures.MOST} kinds; {hidden} more are in the tables."
    shown = _spread(summary.depth.values)
    alts = _alts(summary)
    content = {
        "missing": int(summary.runs.sel(outcome="missing").sum()),
        "missing_share": f"{100 * (1 - summary.attrs['done']):.3g}",
        "runs": int(summary.runs.sum()),
        "threshold": threshold,
        "level": f"{level:.3g}",
        "colours": list(zip(summary.outcome.values.tolist(), _OUTCOME_COLOURS, strict=True)),
        "outcomes": _outcomes(summary),
        "depths": summary.depth.values[shown].tolist(),
        "best": _best(summary, shown),
        "fits": _fits(summary),
        "first": int(summary.evaluation[0]),
        "more": more,
        "figures": {
            name: _picture(summary, name, alts[name])
            for name, (_, variables) in _DRAWN.items()
            if set(variables) <= set(summary)
        },
    }
    text = page(
        "trained.html",
        "Which of these networks train?",
        _settings(summary),
        summary.attrs,
        content,
    )
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(path)


def _settings(summary: xr.Dataset) -> str:
    """Describe the trainings in one sentence."""
    grid = json.loads(summary.attrs["grid"])

    def values(name: str) -> list[Any]:
        if isinstance(grid[name], list):
            return grid[name]
        return [grid[name]]

    def listed(name: str) -> str:
        return ", ".join(f"{value}" for value in values(name))

    rates = ", ".join(f"{rate:g}" for rate in values("learning_rate"))
    several = len(values("learning_rate")) > 1
    seeds = len(values("seed"))
    if values("batch") == [None]:
        batch = "full batch"
    else:
        batch = f"batch {listed('batch')}"
    depths = values("depth")
    gains = values("sigma_w")
    if "measure" in summary.attrs:
        steps = json.loads(summary.attrs["measure"])["steps"]
    else:
        steps = "some"
    return (
        f"{summary.attrs.get('data', 'data unknown')}, width {listed('width')}, depths {depths[0]} "
        f"to {depths[-1]}, "
        f"{len(gains)} gains in [{gains[0]:g}, {gains[-1]:g}], "
        f"{steps} steps of {listed('optimiser')}, {batch}, learning rate{'s' * several} {rates}"
        f"{', the best in every cell' * several}, {seeds} seed{'s' * (seeds > 1)}, {grid['dtype']}"
    )


def _picture(summary: xr.Dataset, name: str, alt: str) -> Picture:
    """Draw one figure with the data behind it, one line per point."""
    draw, variables = _DRAWN[name]
    table = summary[list(variables)].to_dataframe().dropna(how="all").reset_index()
    return picture(lambda columns: draw(summary, columns), name, alt, table)


def _alts(summary: xr.Dataset) -> dict[str, str]:
    """Describe every figure in words."""
    gains = summary.sigma_w.values
    depths = summary.depth.values
    names = summary.kind.values.tolist()[: trained_figures.MOST]

    def each(describe: Callable[[xr.Dataset], str]) -> str:
        return "; ".join(
            f"{name}: {describe(summary.isel(kind=i))}" for i, name in enumerate(names)
        )

    def best(of: xr.Dataset) -> str:
        values = of.train_accuracy.isel(evaluation=-1)
        if not values.notnull().any():
            return "unknown"
        index = values.fillna(-np.inf).argmax(("depth", "sigma_w"))
        cell = values.isel(index)
        return f"best {float(cell):.3g} at depth {int(cell.depth)}, gain {float(cell.sigma_w):.3g}"

    def last(of: xr.Dataset) -> str:
        shown = of.learning_curve.isel(depth=[0, -1], step=-1).values
        return f"{shown[0]:.3g} at depth {depths[0]}, {shown[1]:.3g} at depth {depths[-1]}"

    def edge(of: xr.Dataset) -> str:
        if "sharpness_over_edge" not in of:
            return "not measured"
        ends = of.sharpness_over_edge.isel(record=-1).values
        return ", ".join(f"{end:.2g}" for end in ends)

    def reached(of: xr.Dataset) -> str:
        return f"{int(of.steps.notnull().sum())} of {of.steps.size} cells reach it"

    span = f"depths {depths[0]} to {depths[-1]} and weight gains {gains[0]:g} to {gains[-1]:g}"
    return {
        "accuracy_heat_map": f"Training accuracy over {span}. {each(best)}.",
        "learning_curves": f"Training loss against the minibatch, a curve per depth. Last loss: {each(last)}.",
        "sharpness": "Sharpness over the largest stable sharpness against the minibatch, a curve per depth. At the "
        f"last record, by depth: {each(edge)}.",
        "steps_to_threshold": f"Minibatches to the threshold against depth, a curve per gain. {each(reached)}.",
        "first_gradients": "Norm of the loss's gradient with respect to each layer's parameters, a curve per gain.",
    }


def _outcomes(summary: xr.Dataset) -> list[dict[str, Any]]:
    """Count the runs of every kind by outcome."""
    outcomes = summary.outcome.values.tolist()
    rows = []
    for name in summary.kind.values.tolist():
        counts = [int(count) for count in summary.runs.sel(kind=name).values]
        parts = [
            {"outcome": outcome, "colour": colour, "count": count}
            for outcome, colour, count in zip(outcomes, _OUTCOME_COLOURS, counts, strict=True)
            if count
        ]
        rows.append({"name": name, "total": sum(counts), "parts": parts})
    return rows


def _spread(values: np.ndarray) -> list[int]:
    return np.unique(
        np.linspace(0, len(values) - 1, min(_DEPTHS, len(values))).round().astype(int)
    ).tolist()


def _plus_minus(value: float, error: float, digits: int = 3) -> str:
    if not np.isfinite(value):
        return "\N{EN DASH}"
    if not np.isfinite(error):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} \N{PLUS-MINUS SIGN} {error:.{digits}f}"


def _best(summary: xr.Dataset, shown: list[int]) -> list[dict[str, Any]]:
    """Format the results at the best gain of some depths; None where nothing is known."""

    def cell(kind: int, depth: int) -> dict[str, str] | None:
        of = summary.isel(kind=kind, depth=depth)
        if not np.isfinite(of.best_sigma_w):
            return None
        steps = ""
        if np.isfinite(float(of.best_steps)):
            steps = f", {float(of.best_steps):.0f} steps"
        return {
            "test": _plus_minus(float(of.best_test_accuracy), float(of.best_test_accuracy_se)),
            "train": _plus_minus(float(of.best_train_accuracy), float(of.best_train_accuracy_se)),
            "gain": f"{float(of.best_sigma_w):.3g}",
            "rate": f"{float(of.best_learning_rate):g}",
            "steps": steps,
        }

    return [
        {"name": name, "cells": [cell(kind, depth) for depth in shown]}
        for kind, name in enumerate(summary.kind.values.tolist())
    ]


def _fits(summary: xr.Dataset) -> list[dict[str, Any]]:
    """Format the fit of n of every kind, evaluation and depth scale."""
    rows = []
    for kind in range(summary.sizes["kind"]):
        for look in np.flatnonzero(np.isfinite(summary.threshold.values)).tolist():
            for scale in ("xi_c", "xi_grad"):
                of = summary.isel(kind=kind, evaluation=look).sel(scale=scale)
                both = of.sel(side="both")
                if int(both.fit_gains) + int(both.fit_censored) == 0:
                    continue
                intervals = {
                    side: _interval(of.sel(side=side)) for side in ("both", "ordered", "chaotic")
                }
                row = {
                    "name": of.kind.item(),
                    "steps": int(of.evaluation),
                    "scale": scale,
                    "known": int(both.fit_gains),
                    "bounds": int(both.fit_censored),
                    "scatter": _plus_minus(float(both.fit_scatter), np.nan, 2),
                    "r_squared": _plus_minus(float(both.fit_r_squared), np.nan, 2),
                    "exponent": _plus_minus(
                        float(both.fit_exponent), float(both.fit_exponent_error), 2
                    ),
                }
                rows.append(row | intervals)
    return rows


def _interval(fit: xr.Dataset) -> str:
    if not np.isfinite(fit.fit_n):
        return "\N{EN DASH}"
    if np.isfinite(fit.fit_low):
        ends = f" [{float(fit.fit_low):.3g}, {float(fit.fit_high):.3g}]"
    else:
        ends = ""
    return f"{float(fit.fit_n):.3g}{ends}"
