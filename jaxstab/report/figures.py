"""The figures of a survey: functions of the dataset that return a matplotlib figure, for papers and notebooks too."""

import json

import numpy as np
import xarray as xr
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxstab.report.panels import (
    COLUMNS,
    INK,
    MUTED,
    Shown,
    colour_bar,
    edges,
    gain_legend,
    label_axes,
    panels,
    power_of_ten,
    shown_gains,
)

VANISH, CRITICAL, EXPLODE, UNDEFINED = "#2f6db3", "#6f7782", "#cf5a2c", "#c9ced6"
COLOURS = {"vanish": VANISH, "critical": CRITICAL, "explode": EXPLODE, "undefined": UNDEFINED}
_DIVERGING = LinearSegmentedColormap.from_list("gradient", ["#174a84", VANISH, "#f4f3f0", EXPLODE, "#8c2f0f"])
N_XI = 6


def _symmetric(values: np.ndarray, least: float) -> TwoSlopeNorm:
    finite = np.abs(values[np.isfinite(values)])
    reach = max(least, float(np.quantile(finite, 0.98)) if len(finite) else least)
    return TwoSlopeNorm(0.0, -reach, reach)


def _shown_gains(dataset: xr.Dataset, name: str, count: int = 5) -> list[Shown]:
    """Gains spread over the grid, the one nearest to the measured critical gain among them."""
    return shown_gains(dataset.sigma_w.values, float(dataset.measured_critical.sel(activation=name)), count)


def phase_diagram(dataset: xr.Dataset) -> Figure:
    """ln chi_1 over (sigma_w, sigma_b), the critical line, and the measured verdicts at the sweep's sigma_b.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.7, share="all")
    log_chi = np.log(dataset.phase_chi_1)
    norm = _symmetric(log_chi.values, 1.0)
    sigma_b = json.loads(dataset.attrs["grid"])["sigma_b"]
    for name, axis in axes:
        chi = log_chi.sel(activation=name)
        mesh = axis.pcolormesh(
            chi.phase_sigma_w, chi.phase_sigma_b, chi, cmap=_DIVERGING, norm=norm, shading="nearest", rasterized=True
        )
        line = dataset.critical_sigma_w.sel(activation=name)
        axis.plot(line, line.phase_sigma_b, color=INK, lw=1.8)
        verdicts = dataset.verdict.sel(activation=name)
        axis.scatter(
            verdicts.sigma_w, [sigma_b] * verdicts.size, s=17, c=[COLOURS[v] for v in verdicts.values],
            edgecolors="white", linewidths=0.7, zorder=3, clip_on=False,
        )  # fmt: skip
        axis.set_xlim(float(chi.phase_sigma_w.min()), float(chi.phase_sigma_w.max()))
        axis.set_ylim(0, float(chi.phase_sigma_b.max()))
    label_axes(figure, r"weight gain $\sigma_w$", r"bias $\sigma_b$")
    colour_bar(figure, axes, mesh, r"predicted $\ln\chi_1$")
    return figure


def gradient_norms(dataset: xr.Dataset) -> Figure:
    """|dL/dh_l| relative to the last layer against l, measured (points, standard errors) over predicted (lines).

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.9)
    every = max(1, dataset.layer.size // 13)
    for name, axis in axes:
        of = dataset.sel(activation=name)
        for gain, colour, label in _shown_gains(dataset, name):
            cell = of.isel(sigma_w=gain)
            axis.plot(cell.layer, cell.predicted_gradient_profile / np.log(10), color=colour, lw=1.3, zorder=1)
            points = cell.isel(layer=slice(None, None, every))
            axis.errorbar(
                points.layer, points.gradient_profile / np.log(10), points.gradient_profile_se / np.log(10),
                fmt="o", ms=3.2, mfc="white", mec=colour, ecolor=colour, mew=1.1, elinewidth=1.0, zorder=2,
                label=label,
            )  # fmt: skip
        axis.axhline(0, color=MUTED, lw=0.6, zorder=0)
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        gain_legend(axis)
    label_axes(figure, "layer $l$", r"$|dL/dh_l|\;/\;|dL/dh_L|$")
    return figure


def forward_signal(dataset: xr.Dataset) -> Figure:
    """Length q_l and correlation c_l against l, measured (points) over predicted (lines).

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    names = dataset.activation.values.tolist()
    columns = min(COLUMNS, len(names))
    figure = Figure(figsize=(3.1 * columns + 0.8, 4.6 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(2 * -(-len(names) // columns), columns, squeeze=False, sharex="all")
    for axis in axes.ravel():
        axis.set_visible(False)
    every = max(1, dataset.layer.size // 13)
    for i, name in enumerate(names):
        of = dataset.sel(activation=name)
        for row, (field, factor, symbol) in enumerate((("log_q", np.log(10), "$q_l$"), ("c", 1.0, "$c_l$"))):
            axis = axes[2 * (i // columns) + row, i % columns]
            axis.set_visible(True)
            for gain, colour, label in _shown_gains(dataset, name):
                cell = of.isel(sigma_w=gain)
                axis.plot(cell.layer, cell[f"predicted_{field}"] / factor, color=colour, lw=1.3, zorder=1)
                points = cell[field].mean(("seed", "input")).isel(layer=slice(None, None, every)) / factor
                axis.plot(points.layer, points, "o", ms=3.2, mfc="white", mec=colour, mew=1.1, label=label)
            if field == "log_q":
                axis.set_title(name, loc="left", fontsize=10.5, color=INK, fontweight="bold")
                axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
                axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
                gain_legend(axis)
            else:
                axis.set_ylim(-0.05, 1.05)
            if i % columns == 0:
                axis.set_ylabel(symbol, fontsize=10, color=INK)
            axis.tick_params(labelsize=8, colors=MUTED)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    figure.supxlabel("layer $l$", fontsize=9.5, color=INK)
    return figure


def gradient_heat_map(dataset: xr.Dataset) -> Figure:
    """ln |dL/dh_0| - ln |dL/dh_L| over gain and depth, measured, with the lines L = n xi_c and L = n xi_grad.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.9, share="all")
    norm = _symmetric(dataset.gradient_ratio.values, 3.0)
    depths, gains = np.log2(dataset.depth.values), dataset.sigma_w.values
    for name, axis in axes:
        of = dataset.sel(activation=name)
        ratio = of.gradient_ratio.transpose("depth", "sigma_w").values
        mesh = axis.pcolormesh(edges(gains), edges(depths), ratio, cmap=_DIVERGING, norm=norm, rasterized=True)
        for field, style, label in (("xi_c", "--", r"\xi_c"), ("xi_grad", "-", r"\xi_\nabla")):
            scale = of[f"fixed_point_{field}"].values
            with np.errstate(divide="ignore"):
                line = np.log2(N_XI * np.where(np.isfinite(scale) & (scale > 0), scale, np.nan))
            axis.plot(gains, line, style, color=INK, lw=1.5, label=f"${N_XI}{label}$")
        axis.set_ylim(edges(depths)[0], edges(depths)[-1])
        axis.set_xlim(edges(gains)[0], edges(gains)[-1])
        axis.set_yticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_minor_locator(NullLocator())
    axes[0][1].legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="lower right")
    label_axes(figure, r"weight gain $\sigma_w$", "depth $L$")
    colour_bar(figure, axes, mesh, r"$\ln\,|dL/dh_0|\,/\,|dL/dh_L|$")
    return figure


def singular_values(dataset: xr.Dataset) -> Figure:
    """Distribution of the input-output Jacobian's singular values against depth, near the critical gain and off it.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 3.0)
    depths = np.log2(dataset.depth.values)
    for name, axis in axes:
        shown = _shown_gains(dataset, name, 3)
        offsets = np.linspace(-0.24, 0.24, len(shown)) if len(shown) > 1 else [0.0]
        for offset, (gain, colour, label) in zip(offsets, shown, strict=True):
            cell = dataset.sel(activation=name).isel(sigma_w=gain)
            low, lower, middle, upper, high, top = (cell.log_s_quantile.values / np.log(10)).T
            at = depths + offset
            axis.vlines(at, low, high, color=colour, lw=1.2)
            axis.vlines(at, lower, upper, color=colour, lw=5.0, alpha=0.45)
            axis.plot(at, middle, "o", ms=3.4, mfc="white", mec=colour, mew=1.1, label=label)
            axis.plot(at, top, "_", ms=6, color=colour, mew=1.4)
            axis.plot(at, cell.predicted_log_mean_square / 2 / np.log(10), ":", color=colour, lw=1.4, zorder=0)
        axis.axhline(0, color=MUTED, lw=0.6, zorder=0)
        axis.set_xticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        gain_legend(axis)
    label_axes(figure, "depth $L$", r"singular values of $dh_L/dx$")
    return figure
