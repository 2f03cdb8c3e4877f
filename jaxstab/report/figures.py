"""Figures of a survey, for pages, papers and notebooks: functions of the dataset."""

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
    plain_frame,
    power_of_ten,
    shown_gains,
    title,
)

VANISH, CRITICAL, EXPLODE, UNDEFINED = "#2f6db3", "#6f7782", "#cf5a2c", "#c9ced6"
COLOURS = {"vanish": VANISH, "critical": CRITICAL, "explode": EXPLODE, "undefined": UNDEFINED}
_VERDICT_MARKERS = {"vanish": "v", "critical": "o", "explode": "^", "undefined": "s"}
DIVERGING = LinearSegmentedColormap.from_list(
    "gradient", ["#174a84", VANISH, "#f4f3f0", EXPLODE, "#8c2f0f"]
)
N_XI = 6
# half of the central 90 % of a normal law, in standard deviations
NINE_OF_TEN = 1.645


def symmetric(values: np.ndarray, least: float) -> TwoSlopeNorm:
    """Make a colour norm symmetric about 0, in which the largest fiftieth of the values saturates.

    Args:
        values: values to colour.
        least: smallest end of the colour range.

    Returns:
        Norm of the colours.
    """
    finite = np.abs(values[np.isfinite(values)])
    reach = least
    if len(finite):
        reach = max(least, float(np.quantile(finite, 0.98)))
    return TwoSlopeNorm(0.0, -reach, reach)


def _shown_gains(dataset: xr.Dataset, name: str, count: int = 5) -> list[Curve]:
    """Choose gains spread over the grid, with the one nearest to the measured critical gain."""
    return shown_gains(
        dataset.sigma_w.values, float(dataset.measured_critical.sel(activation=name)), count
    )


def phase_diagram(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw ln chi_1 over (sigma_w, sigma_b), the critical line, and verdicts at the grid's sigma_b.

    Args:
        dataset: a survey.
        columns: panels in a row.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.7, share="all", columns=columns)
    log_chi = np.log(dataset.phase_chi_1)
    norm = symmetric(log_chi.values, 1.0)
    sigma_b = json.loads(dataset.attrs["grid"])["sigma_b"]
    for name, axis in axes:
        chi = log_chi.sel(activation=name)
        mesh = axis.pcolormesh(
            chi.phase_sigma_w,
            chi.phase_sigma_b,
            chi,
            cmap=DIVERGING,
            norm=norm,
            shading="nearest",
            rasterized=True,
        )
        line = dataset.critical_sigma_w.sel(activation=name)
        axis.plot(line, line.phase_sigma_b, color=ON_MAP, lw=1.8)
        verdicts = dataset.verdict.sel(activation=name)
        for verdict, marker in _VERDICT_MARKERS.items():
            swept = verdicts.sigma_w.values[verdicts.values == verdict]
            axis.scatter(
                swept, [sigma_b] * len(swept), s=20, c=COLOURS[verdict], marker=marker,
                edgecolors=UNDER_MAP, linewidths=0.7, zorder=3, clip_on=False,
            )  # fmt: skip
        axis.set_xlim(float(chi.phase_sigma_w.min()), float(chi.phase_sigma_w.max()))
        axis.set_ylim(0, float(chi.phase_sigma_b.max()))
    label_axes(figure, r"weight gain $\sigma_w$", r"bias $\sigma_b$")
    colour_bar(figure, axes, mesh, r"predicted $\ln\chi_1$")
    return figure


def gradient_norms(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw |dL/dh_l| / |dL/dh_L| against l, measured (points) and predicted (lines).

    Args:
        dataset: a survey.
        columns: panels in a row.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.9, columns=columns)
    every = max(1, dataset.layer.size // 13)
    for name, axis in axes:
        of = dataset.sel(activation=name)
        for gain, colour, marker, label in _shown_gains(dataset, name):
            cell = of.isel(sigma_w=gain)
            axis.plot(
                cell.layer,
                cell.predicted_gradient_profile / np.log(10),
                color=colour,
                lw=1.3,
                zorder=1,
            )
            points = cell.isel(layer=slice(None, None, every))
            axis.errorbar(
                points.layer, points.gradient_profile / np.log(10), points.gradient_profile_se / np.log(10),
                fmt=marker, ms=3.6, mfc=PAPER, mec=colour, ecolor=colour, mew=1.1, elinewidth=1.0, zorder=2,
                label=label,
            )  # fmt: skip
        axis.axhline(0, color=MUTED, lw=0.6, zorder=0)
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        curve_legend(axis)
    label_axes(figure, "layer $l$", r"$|dL/dh_l|\;/\;|dL/dh_L|$")
    return figure


def forward_signal(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw length q_l and correlation c_l against l, measured (points) and predicted (lines).

    Args:
        dataset: a survey.
        columns: panels in a row.

    Returns:
        The figure.
    """
    names = dataset.activation.values.tolist()
    columns = min(columns, len(names))
    figure = Figure(
        figsize=(3.1 * columns + 0.8, 4.6 * -(-len(names) // columns)), layout="constrained"
    )
    axes = figure.subplots(2 * -(-len(names) // columns), columns, squeeze=False, sharex="all")
    for axis in axes.ravel():
        axis.set_visible(False)
    every = max(1, dataset.layer.size // 13)
    for i, name in enumerate(names):
        of = dataset.sel(activation=name)
        for row, (field, factor, symbol) in enumerate(
            (("log_q", np.log(10), "$q_l$"), ("c", 1.0, "$c_l$"))
        ):
            axis = axes[2 * (i // columns) + row, i % columns]
            axis.set_visible(True)
            for gain, colour, marker, label in _shown_gains(dataset, name):
                cell = of.isel(sigma_w=gain)
                axis.plot(
                    cell.layer, cell[f"predicted_{field}"] / factor, color=colour, lw=1.3, zorder=1
                )
                points = (
                    cell[field].mean(("seed", "input")).isel(layer=slice(None, None, every))
                    / factor
                )
                axis.plot(
                    points.layer,
                    points,
                    marker,
                    ms=3.6,
                    mfc=PAPER,
                    mec=colour,
                    mew=1.1,
                    label=label,
                )
            if field == "log_q":
                title(axis, name)
                axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
                axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
                curve_legend(axis)
            else:
                axis.set_ylim(-0.05, 1.05)
            if i % columns == 0:
                axis.set_ylabel(symbol, fontsize=10, color=INK)
            plain_frame(axis)
    figure.supxlabel("layer $l$", fontsize=9.5, color=INK)
    return figure


def gradient_heat_map(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw measured ln |dL/dh_0| - ln |dL/dh_L| over gain and depth, with lines L = n xi.

    xi is xi_c or xi_grad, and n is `N_XI`.

    Args:
        dataset: a survey.
        columns: panels in a row.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.9, share="all", columns=columns)
    norm = symmetric(dataset.gradient_ratio.values, 3.0)
    depths = np.log2(dataset.depth.values)
    gains = dataset.sigma_w.values
    for name, axis in axes:
        of = dataset.sel(activation=name)
        ratio = of.gradient_ratio.transpose("depth", "sigma_w").values
        mesh = axis.pcolormesh(
            edges(gains), edges(depths), ratio, cmap=DIVERGING, norm=norm, rasterized=True
        )
        for field, style, label in (("xi_c", "--", r"\xi_c"), ("xi_grad", "-", r"\xi_\nabla")):
            scale = of[f"fine_{field}"].values
            fine = of.fine_sigma_w.values
            with np.errstate(divide="ignore"):
                line = np.log2(N_XI * np.where(np.isfinite(scale) & (scale > 0), scale, np.nan))
            axis.plot(fine, line, style, color=ON_MAP, lw=1.5, label=f"${N_XI}{label}$")
        axis.set_ylim(edges(depths)[0], edges(depths)[-1])
        axis.set_xlim(edges(gains)[0], edges(gains)[-1])
        axis.set_yticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_minor_locator(NullLocator())
    axes[0][1].legend(
        fontsize=8, frameon=True, framealpha=0.85, facecolor=UNDER_MAP, edgecolor="none", labelcolor=ON_MAP,
        loc="lower right",
    )  # fmt: skip
    label_axes(figure, r"weight gain $\sigma_w$", "depth $L$")
    colour_bar(figure, axes, mesh, r"$\ln\,|dL/dh_0|\,/\,|dL/dh_L|$")
    return figure


def sharpness(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw the sharpness of the loss against the gain, measured and predicted, for some depths.

    The band about a prediction holds nine of ten networks of this width.

    Args:
        dataset: a survey with sharpness.
        columns: panels in a row.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 2.9, columns=columns)
    depths = dataset.depth.values
    shown = np.unique(np.linspace(0, len(depths) - 1, min(5, len(depths))).round().astype(int))
    for name, axis in axes:
        of = dataset.sel(activation=name)
        for curve in curves({int(i): f"{depths[i]:d}" for i in shown}):
            cell = of.isel(depth=curve.position)
            predicted = cell.predicted_log_gauss_newton / np.log(10)
            axis.plot(cell.sigma_w, predicted, color=curve.colour, lw=1.3, zorder=1)
            if "predicted_log_gauss_newton_sd" in cell:
                band = NINE_OF_TEN * cell.predicted_log_gauss_newton_sd / np.log(10)
                axis.fill_between(
                    cell.sigma_w, predicted - band, predicted + band,
                    color=curve.colour, alpha=0.12, lw=0, zorder=0,
                )  # fmt: skip
            axis.plot(
                cell.sigma_w, cell.mean_log_gauss_newton / np.log(10), "x", ms=3.4,
                color=curve.colour, mew=0.9, zorder=2,
            )  # fmt: skip
            axis.errorbar(
                cell.sigma_w, cell.mean_log_sharpness / np.log(10), cell.mean_log_sharpness_se / np.log(10),
                fmt=curve.marker, ms=3.6, mfc=PAPER, mec=curve.colour, ecolor=curve.colour, mew=1.1,
                elinewidth=1.0, zorder=3, label=curve.label,
            )  # fmt: skip
        axis.axvline(float(of.critical_here), color=MUTED, lw=0.6, zorder=0)
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        curve_legend(axis, "$L$")
    label_axes(figure, r"weight gain $\sigma_w$", "largest eigenvalue of the loss's Hessian")
    return figure


def singular_values(dataset: xr.Dataset, columns: int = COLUMNS) -> Figure:
    """Draw quantiles of the input-output Jacobian's singular values against depth, at three gains.

    Args:
        dataset: a survey.
        columns: panels in a row.

    Returns:
        The figure.
    """
    figure, axes = panels(dataset.activation.values.tolist(), 3.0, columns=columns)
    depths = np.log2(dataset.depth.values)
    for name, axis in axes:
        shown = _shown_gains(dataset, name, 3)
        offsets = np.zeros(1)
        if len(shown) > 1:
            offsets = np.linspace(-0.24, 0.24, len(shown))
        for offset, (gain, colour, marker, label) in zip(offsets, shown, strict=True):
            cell = dataset.sel(activation=name).isel(sigma_w=gain)
            low, lower, middle, upper, high, top = (cell.log_s_quantile.values / np.log(10)).T
            places = depths + offset
            axis.vlines(places, low, high, color=colour, lw=1.2)
            axis.vlines(places, lower, upper, color=colour, lw=5.0, alpha=0.45)
            axis.plot(places, middle, marker, ms=3.6, mfc=PAPER, mec=colour, mew=1.1, label=label)
            axis.plot(places, top, "_", ms=6, color=colour, mew=1.4)
            axis.plot(
                places,
                cell.predicted_log_mean_square / 2 / np.log(10),
                ":",
                color=colour,
                lw=1.4,
                zorder=0,
            )
        axis.axhline(0, color=MUTED, lw=0.6, zorder=0)
        axis.set_xticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(power_of_ten))
        curve_legend(axis)
    label_axes(figure, "depth $L$", r"singular values of $dh_L/dx$")
    return figure
