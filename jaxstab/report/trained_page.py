"""The report page of trainings. Draws what their summary holds; computes nothing."""

import html
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxstab.report import trained_figures
from jaxstab.report.document import document, section
from jaxstab.store import whole_file

_COLOURS = ("#2f6db3", "#8a94a1", "#e0823d", "#a23a14", "#e4e7eb;color:#5c6672")
_DEPTHS = 6


def write_trained(summary: xr.Dataset, path: str | Path) -> Path:
    """Write the report page of trainings, all figures inside.

    Args:
        summary: as `trainability.summarise` gives it.
        path: the HTML file; an existing one is replaced.

    Returns:
        The path.

    Raises:
        ValueError: if the dataset is no such summary.
        OSError: if the file cannot be written.
    """
    missing = {"train_accuracy", "fit_n", "runs", "best_sigma_w"} - set(summary)
    if missing or not {"grid", "done"} <= set(summary.attrs):
        raise ValueError(f"a page of trainings needs their summary; this dataset lacks {', '.join(sorted(missing))}")
    sections = "".join(section(title, caption, draw(summary)) for title, draw, caption in _sections(summary))
    body = _missing(summary) + _outcomes(summary) + _best(summary) + _fits(summary) + sections
    path = Path(path)
    page = document("Which of these networks train?", _settings(summary), body, summary.attrs)
    with whole_file(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _settings(summary: xr.Dataset) -> str:
    grid = json.loads(summary.attrs["grid"])
    rates = ", ".join(f"{rate:g}" for rate in grid["learning_rates"])
    data = json.loads(summary.attrs.get("data", "{}")).get("name", "data unknown")
    several = len(grid["learning_rates"]) > 1
    batch = f"batch {grid['batch']}" if grid["batch"] else "full batch"
    return (
        f"{html.escape(str(data))}, width {grid['width']}, depths {grid['depths'][0]} to {grid['depths'][-1]}, "
        f"{len(grid['sigma_w'])} gains in [{grid['sigma_w'][0]:g}, {grid['sigma_w'][-1]:g}], "
        f"{grid['steps']} steps of {grid['optimiser']}, {batch}, learning rate{'s' * several} {rates}"
        f"{', the best in every cell' * several}, {grid['seeds']} "
        f"seed{'s' * (grid['seeds'] > 1)}, {grid['dtype']}"
    )


def _missing(summary: xr.Dataset) -> str:
    done = summary.attrs["done"]
    if done == 1:
        return ""
    lacking = int(summary.runs.sel(outcome="missing").sum())
    return (
        f"<p class=warn><b>Not finished: {lacking} of {int(summary.runs.sum())} runs are missing "
        f"({100 * (1 - done):.3g} %).</b> They are grey in the figures and no part of any mean, fit or best; "
        "a seed that is missing widens errors, and a learning rate that is missing cannot be the best.</p>"
    )


def _sections(summary: xr.Dataset) -> tuple[tuple[str, Callable[[xr.Dataset], Figure], str], ...]:
    threshold, first = float(summary.threshold[-1]), int(summary.evaluation[0])
    hidden = summary.sizes["kind"] - trained_figures.MOST
    more = f" The first {trained_figures.MOST} kinds; {hidden} more are in the tables." if hidden > 0 else ""
    return (
        (
            "Accuracy over depth and gain",
            trained_figures.accuracy_heat_map,
            "Colour: training accuracy; grey: not known. Points: the deepest trainable depth, where the accuracy, "
            "interpolated in ln depth, last falls through half-way between chance and the best there is. Lines: n "
            "&xi;, n fitted through the points with its 95 % interval, solid for the depth scale of the correlation, "
            f"dashed for the gradient's; none where theory does not know the network.{more}",
        ),
        (
            "Steps against depth",
            trained_figures.steps_to_threshold,
            f"Minibatches until the mean accuracy of ten of them reaches {threshold:.3g}: mean and standard error over "
            f"seeds, left out where a seed never does.{more}",
        ),
        (
            "Gradient against layer " + ("at the start" if first == 0 else f"after {first} steps"),
            trained_figures.first_gradients,
            "Norm of the loss's gradient with respect to each layer's weights and biases, deepest network: mean and "
            "standard error of its logarithm over seeds."
            + (" The start was not looked at: give --evaluate 0 to see it." if first else "")
            + more,
        ),
    )


def _outcomes(summary: xr.Dataset) -> str:
    """How runs ended, a bar per kind."""
    threshold = float(summary.threshold[-1])
    outcomes = summary.outcome.values.tolist()
    rows = []
    for kind in summary.kind.values.tolist():
        counts = summary.runs.sel(kind=kind).values.tolist()
        bar = "".join(
            f"<span style='flex:{count};background:{colour}' title='{outcome}: {count}'>{count}</span>"
            for outcome, colour, count in zip(outcomes, _COLOURS, counts, strict=True)
            if count
        )
        rows.append(
            f"<tr><td><b>{html.escape(kind)}</b></td><td>{sum(counts)}</td><td><div class=bar>{bar}</div></td></tr>"
        )
    keys = "".join(
        f"<span class=key style='background:{colour}'></span>{outcome}"
        for outcome, colour in zip(outcomes, _COLOURS, strict=True)
    )
    said = f"an accuracy of {threshold:.3g}, half-way between chance and the best" if np.isfinite(threshold) else "none"
    return (
        f"<h2>How the runs ended</h2><p class=sub>All of them, at every learning rate. Threshold: {said}.</p>"
        f"<table><tr><th>kind</th><th>runs</th><th>{keys}</th></tr>{''.join(rows)}</table>"
    )


def _spread(values: np.ndarray) -> list[int]:
    return np.unique(np.linspace(0, len(values) - 1, min(_DEPTHS, len(values))).round().astype(int)).tolist()


def _plus_minus(value: float, error: float, digits: int = 3) -> str:
    if not np.isfinite(value):
        return "&ndash;"
    return f"{value:.{digits}f}" + (f" &plusmn; {error:.{digits}f}" if np.isfinite(error) else "")


def _best(summary: xr.Dataset) -> str:
    """Accuracy at the best gain of every depth."""
    shown = _spread(summary.depth.values)

    def cell(kind: int, depth: int) -> str:
        of = summary.isel(kind=kind, depth=depth)
        told = {name: float(of[f"best_{name}"]) for name in ("sigma_w", "learning_rate", "steps")}
        if not np.isfinite(told["sigma_w"]):
            return "<td>&ndash;</td>"
        test = _plus_minus(float(of.best_test_accuracy), float(of.best_test_accuracy_se))
        train = _plus_minus(float(of.best_train_accuracy), float(of.best_train_accuracy_se))
        steps = f", {told['steps']:.0f} steps" if np.isfinite(told["steps"]) else ""
        return (
            f"<td>{test}<br><span class=sub>train {train}<br>&sigma;<sub>w</sub> {told['sigma_w']:.3g}, "
            f"&eta; {told['learning_rate']:g}{steps}</span></td>"
        )

    heads = "".join(f"<th>L = {summary.depth.values[i]}</th>" for i in shown)
    rows = "".join(
        f"<tr><td><b>{html.escape(name)}</b></td>{''.join(cell(kind, depth) for depth in shown)}</tr>"
        for kind, name in enumerate(summary.kind.values.tolist())
    )
    return (
        "<h2>At the best gain</h2><p class=sub>Test accuracy, mean and standard error over seeds, at the gain and "
        "learning rate &eta; of the highest mean training accuracy; steps to the threshold.</p>"
        f"<table><tr><th>kind</th>{heads}</tr>{rows}</table>"
    )


def _fits(summary: xr.Dataset) -> str:
    """n of every kind, number of steps, depth scale and side."""
    rows = []
    for kind in range(summary.sizes["kind"]):
        for look in np.flatnonzero(np.isfinite(summary.threshold.values)).tolist():
            for scale, symbol in (("xi_c", "&xi;<sub>c</sub>"), ("xi_grad", "&xi;<sub>&nabla;</sub>")):
                of = summary.isel(kind=kind, evaluation=look).sel(scale=scale)
                both = of.sel(side="both")
                if int(both.fit_gains) + int(both.fit_censored) == 0:
                    continue
                cells = "".join(f"<td>{_interval(of.sel(side=side))}</td>" for side in ("both", "ordered", "chaotic"))
                rows.append(
                    f"<tr><td><b>{html.escape(of.kind.item())}</b></td><td>{int(of.evaluation)}</td><td>{symbol}</td>"
                    f"{cells}<td>{int(both.fit_gains)}, {int(both.fit_censored)}</td>"
                    f"<td>{_plus_minus(float(both.fit_scatter), np.nan, 2)}</td>"
                    f"<td>{_plus_minus(float(both.fit_r_squared), np.nan, 2)}</td>"
                    f"<td>{_plus_minus(float(both.fit_exponent), float(both.fit_exponent_error), 2)}</td></tr>"
                )
    if not rows:
        return ""
    return (
        "<h2>How many depth scales train</h2><p class=sub>Fit of L = n &xi; to the deepest trainable depths, with its "
        "95 % interval: residuals over gains, those of neighbours not taken for independent, and the jackknife over "
        "seeds where there are several. Gains at which all depths train, or none, enter as bounds. Scatter: standard "
        "deviation of ln L about the fit. R&sup2;: share of the variance of ln L that the fit explains; below 0, less "
        "than a constant does. Exponent: of the free power law L ~ &xi;<sup>p</sup>, 1 if theory is right, with its "
        "standard error.</p>"
        "<table><tr><th>kind</th><th>steps</th><th>scale</th><th>n, both sides</th><th>ordered</th><th>chaotic</th>"
        "<th>gains known,<br>bounds</th><th>scatter</th><th>R&sup2;</th><th>exponent</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _interval(fit: xr.Dataset) -> str:
    if not np.isfinite(fit.fit_n):
        return "&ndash;"
    ends = f" [{float(fit.fit_low):.3g}, {float(fit.fit_high):.3g}]" if np.isfinite(fit.fit_low) else ""
    return f"{float(fit.fit_n):.3g}{ends}"
