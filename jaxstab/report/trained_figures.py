"""Figures of trainings, for pages and papers: functions of their summary."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxstab.report.panels import (
    COLUMNS,
    CURVE_COLOURS,
    ON_MAP,
    PAPER,
    UNDER_MAP,
    Curve,
    colour_bar,
    curve_legend,
    curves,
    edges,
    label_axes,
    panels,
    power_of_ten,
    shown_gains,
    title,
)

# most panels of one figure
MOST = 12
_ACCURACY = LinearSegmentedColormap.from_list(
    "accuracy", ["#20242b", "#2f4f7f", "#4f8fc0", "#f0b060", "#fdf3d8"]
)
_NOTHING = "#e9eaec"
_LINES = {"xi_c": ("-", r"\xi_c"), "xi_grad": ("--", r"\xi_\nabla")}


def _looks(summary: xr.Dataset) -> list[int]:
    """Choose the evaluations to draw: those with a threshold for one kind, the last of several."""
    known = np.flatnonzero(np.isfinite(summary.threshold.values)).tolist() or [
        summary.sizes["evaluation"] - 1
    ]
    if summary.sizes["kind"] == 1:
        return known
    return known[-1:]


def _shown_gains(summary: xr.Dataset, kind: int) -> list[Curve]:
    """Choose gains spread over the grid, with the best gain of the deepest trained network."""
    best = summary.best_sigma_w.isel(kind=kind).values
    return shown_gains(summary.sigma_w.values, next(iter(best[np.isfinite(best)][::-1]), np.nan))


def _short(value: xr.DataArray) -> str:
    if float(value) < 99.5:
        return f"{float(value):.2g}"
    return f"{float(value):.0f}"


def _depth_ticks(depths: np.ndarray) -> np.ndarray:
    """Choose up to seven depths, evenly in the logarithm, with both ends."""
    wanted = np.linspace(np.log(depths[0]), np.log(depths[-1]), min(7, len(depths)))
    return depths[np.unique([np.abs(np.log(depths) - log_depth).argmin() for log_depth in wanted])]


def accuracy_heat_map(summary: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw training accuracy over depth and gain, the boundary of trainability, and lines L = n xi.

    Args:
        summary: summary of trainings.
        columns: panels in a row.

    Returns:
        The figure, with a panel per evaluation for one kind of network, else a panel per kind.
    """
    pairs = [(kind, look) for kind in range(summary.sizes["kind"]) for look in _looks(summary)]
    shown = pairs[:MOST]
    titles = [str(summary.kind.values[kind]) for kind, _ in shown]
    if summary.sizes["kind"] == 1:
        steps = [summary.evaluation.values[look] for _, look in shown]
        titles = [f"{title}, {n} steps" for title, n in zip(titles, steps, strict=True)]
    figure, axes = panels(titles, 3.6, columns=columns)
    depths = summary.depth.values
    gains = summary.sigma_w.values
    for (_, axis), (kind, look) in zip(axes, shown, strict=True):
        of = summary.isel(kind=kind, evaluation=look)
        axis.set_facecolor(_NOTHING)
        mesh = axis.pcolormesh(
            edges(gains), np.exp(edges(np.log(depths))), of.train_accuracy.values,
            cmap=_ACCURACY, vmin=float(summary.chance), vmax=1.0, rasterized=True,
        )  # fmt: skip
        _boundary(axis, of)
        axis.set_yscale("log")
        axis.set_ylim(*np.exp(edges(np.log(depths)))[[0, -1]])
        axis.set_xlim(*edges(gains)[[0, -1]])
        axis.set_yticks(_depth_ticks(depths), [str(d) for d in _depth_ticks(depths)])
        axis.yaxis.set_minor_locator(NullLocator())
        if axis.get_legend_handles_labels()[0]:
            below = (0.5, -0.08)
            axis.legend(
                fontsize=7.5, frameon=True, framealpha=1, facecolor=UNDER_MAP, edgecolor="none", labelcolor=ON_MAP,
                handlelength=1.6, loc="upper center", bbox_to_anchor=below,
            )  # fmt: skip
    label_axes(figure, r"weight gain $\sigma_w$", "depth $L$")
    colour_bar(figure, axes, mesh, "training accuracy, mean over seeds", extend="neither")
    return figure


def _boundary(axis: Axes, of: xr.Dataset) -> None:
    """Draw the measured boundary at uncensored gains, and the fits of both sides together."""
    gains = of.sigma_w.values
    fine = of.fine_sigma_w.values
    known = of.boundary_low.values == of.boundary_high.values
    if known.any():
        points = of.boundary_low.values[known]
        axis.plot(
            gains[known],
            points,
            "o",
            ms=3.6,
            mfc=UNDER_MAP,
            mec=ON_MAP,
            mew=0.9,
            zorder=4,
            label="deepest that trains",
        )
    for scale, (style, symbol) in _LINES.items():
        fit = of.sel(scale=scale, side="both")
        xi = of[f"fine_{scale}"].values
        if np.isfinite(fit.fit_n):
            line = float(fit.fit_n) * np.where(np.isfinite(xi) & (xi > 0), xi, np.nan)
            if np.isfinite(fit.fit_low):
                interval = f" [{_short(fit.fit_low)}, {_short(fit.fit_high)}]"
            else:
                interval = ""
            axis.plot(fine, line, style, color=UNDER_MAP, lw=3.0, alpha=0.85, zorder=2)
            label = rf"$n\,{symbol}$, $n$ = {_short(fit.fit_n)}{interval}"
            axis.plot(fine, line, style, color=ON_MAP, lw=1.4, zorder=3, label=label)


def steps_to_threshold(summary: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw minibatches to the threshold against depth, mean and standard error over seeds.

    Args:
        summary: summary of trainings.
        columns: panels in a row.

    Returns:
        The figure, with a panel per kind.
    """
    figure, axes = panels(summary.kind.values.tolist()[:MOST], 2.9, columns=columns)
    depths = summary.depth.values
    for kind, (_, axis) in enumerate(axes):
        of = summary.isel(kind=kind)
        for gain, colour, marker, label in _shown_gains(summary, kind):
            cell = of.isel(sigma_w=gain)
            axis.errorbar(
                depths, cell.steps, cell.steps_se.fillna(0.0), fmt=f"{marker}-", ms=3.6, lw=1.1, mfc=PAPER, mec=colour,
                color=colour, mew=1.1, elinewidth=1.0, label=label,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlim(depths[0] / 1.1, depths[-1] * 1.1)
        axis.set_xticks(_depth_ticks(depths), [str(d) for d in _depth_ticks(depths)])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0, None)
        curve_legend(axis)
    label_axes(figure, "depth $L$", "minibatches to the threshold")
    return figure


def first_gradients(summary: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw |dL/dtheta_l| against l at the first evaluation, for the deepest known networks.

    Args:
        summary: summary of trainings.
        columns: panels in a row.

    Returns:
        The figure, with a panel per kind.
    """
    figure, axes = panels(summary.kind.values.tolist()[:MOST], 2.9, columns=columns)
    for kind, (_, axis) in enumerate(axes):
        of = summary.isel(kind=kind)
        known = np.flatnonzero(of.log_grad_theta.notnull().any(("sigma_w", "layer")).values)
        deepest = -1
        if len(known):
            deepest = int(known[-1])
        of = of.isel(depth=deepest)
        every = max(1, int(of.depth) // 13)
        for gain, colour, marker, label in _shown_gains(summary, kind):
            cell = of.isel(sigma_w=gain)
            axis.plot(cell.layer, cell.log_grad_theta / np.log(10), color=colour, lw=1.0, zorder=1)
            points = cell.isel(layer=slice(None, None, every))
            axis.errorbar(
                points.layer, points.log_grad_theta / np.log(10), points.log_grad_theta_se.fillna(0.0) / np.log(10),
                fmt=marker, ms=3.6, mfc=PAPER, mec=colour, ecolor=colour, mew=1.1, elinewidth=1.0, zorder=2,
                label=label,
            )  # fmt: skip
        axis.set_xlim(-0.5, int(of.depth) + 0.5)
        title(axis, f"{of.kind.item()}, L = {int(of.depth)}")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        curve_legend(axis)
    label_axes(figure, "layer $l$", r"$|dL/d\theta_l|$")
    return figure


def learning_curves(summary: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw the training loss against the minibatch, at the best gain of some depths.

    Args:
        summary: summary of trainings.
        columns: panels in a row.

    Returns:
        The figure, with a panel per kind; curves are means over seeds, bands standard errors.
    """
    figure, axes = _along_the_run(
        summary, "learning_curve", summary.step.values + 1, summary.kind.values.tolist(), columns
    )
    for axis in axes:
        axis.set_ylim(0, None)
    label_axes(figure, "minibatch", "training loss")
    return figure


def sharpness(summary: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw the sharpness over its largest stable value against the minibatch.

    Args:
        summary: summary of trainings that recorded the sharpness.
        columns: panels in a row.

    Returns:
        The figure, with a panel per kind whose optimiser has a known edge of stability; all kinds
        where none has.
    """
    known = summary.sharpness_over_edge.notnull().any(("depth", "record"))
    if known.any():
        summary = summary.isel(kind=np.flatnonzero(known.values))
    figure, axes = _along_the_run(
        summary, "sharpness_over_edge", summary.record.values, summary.kind.values.tolist(), columns
    )
    for axis in axes:
        axis.axhline(1.0, color=ON_MAP, lw=0.8, ls=":")
        axis.set_ylim(0, None)
    label_axes(figure, "minibatch", "sharpness / largest stable")
    return figure


def _along_the_run(
    summary: xr.Dataset, name: str, steps: np.ndarray, titles: list[str], columns: int
) -> tuple[Figure, list[Axes]]:
    """Draw a variable over (kind, depth, ...), with a curve and an error band for some depths."""
    figure, axes = panels(titles[:MOST], 2.9, columns=columns)
    depths = summary.depth.values
    spread = np.unique(
        np.linspace(0, len(depths) - 1, min(len(CURVE_COLOURS), len(depths))).round().astype(int)
    )
    every = max(1, len(steps) // 8)
    for kind, (_, axis) in enumerate(axes):
        for index, colour, marker, label in curves({int(i): str(depths[i]) for i in spread}):
            cell = summary.isel(kind=kind, depth=index)
            mean = cell[name].values
            error = cell[f"{name}_se"].fillna(0.0).values
            axis.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
            axis.plot(
                steps,
                mean,
                marker=marker,
                markevery=every,
                ms=3.6,
                mfc=PAPER,
                color=colour,
                lw=1.1,
                label=label,
            )
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        curve_legend(axis, "$L$")
    return figure, [axis for _, axis in axes]
