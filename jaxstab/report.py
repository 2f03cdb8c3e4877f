"""Figures and the report page: one self-contained HTML file. Draws what a survey holds; computes nothing.

Every figure is a function of the dataset that returns a matplotlib figure, for use in a paper or a notebook too.
"""

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxstab.verdicts import regions

VANISH, CRITICAL, EXPLODE, UNDEFINED = "#2f6db3", "#6f7782", "#cf5a2c", "#c9ced6"
COLOURS = {"vanish": VANISH, "critical": CRITICAL, "explode": EXPLODE, "undefined": UNDEFINED}
_DIVERGING = LinearSegmentedColormap.from_list("gradient", ["#174a84", VANISH, "#f4f3f0", EXPLODE, "#8c2f0f"])
_GAINS = LinearSegmentedColormap.from_list("gain", ["#2f6db3", "#7a5fa8", "#c2528b", "#e0823d"])
_INK, _MUTED = "#1f2630", "#5c6672"
_COLUMNS = 4
N_XI = 6


def _panels(dataset: xr.Dataset, height: float, **share: str) -> tuple[Figure, list[tuple[str, Axes]]]:
    """One panel per activation, up to four in a row."""
    names = dataset.activation.values.tolist()
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.8, height * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **share).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes[: len(names)], strict=True):
        axis.set_title(name, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
        axis.tick_params(labelsize=8, colors=_MUTED)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, list(zip(names, axes[: len(names)], strict=True))


def _label(figure: Figure, axes: Sequence[tuple[str, Axes]], x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=9.5, color=_INK)
    figure.supylabel(y, fontsize=9.5, color=_INK)


def _symmetric(values: np.ndarray, least: float) -> TwoSlopeNorm:
    finite = np.abs(values[np.isfinite(values)])
    reach = max(least, float(np.quantile(finite, 0.98)) if len(finite) else least)
    return TwoSlopeNorm(0.0, -reach, reach)


def _power_of_ten(value: float, _: int) -> str:
    return f"$10^{{{value:.0f}}}$"


def _shown_gains(dataset: xr.Dataset, name: str, count: int = 5) -> np.ndarray:
    """Gains spread over the grid, the one nearest to the measured critical gain among them."""
    gains = dataset.sigma_w.values
    spread = np.unique(np.linspace(0, len(gains) - 1, min(count, len(gains))).round().astype(int))
    critical = float(dataset.measured_critical.sel(activation=name))
    if np.isfinite(critical):
        nearest = int(np.abs(gains - critical).argmin())
        # the ends stay: they show what lies either side
        inner = spread[1:-1] if len(spread) > 2 else spread
        inner[np.abs(inner - nearest).argmin()] = nearest
    return gains[np.unique(spread)]


def _gain_legend(axis: Axes) -> None:
    """The gains of a panel's curves, in one row between its title and its frame."""
    axis.set_title(axis.get_title(loc="left"), loc="left", fontsize=10.5, color=_INK, fontweight="bold", pad=19)
    handles, labels = axis.get_legend_handles_labels()
    labels[0] = rf"$\sigma_w$ = {labels[0]}"
    axis.legend(
        handles, labels, ncols=len(labels), fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
        handletextpad=0.05, columnspacing=0.7, borderpad=0.1, handlelength=1.2,
    )  # fmt: skip


def phase_diagram(dataset: xr.Dataset) -> Figure:
    """ln chi_1 over (sigma_w, sigma_b), the critical line, and the measured verdicts at the sweep's sigma_b.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = _panels(dataset, 2.7, sharex="all", sharey="all")
    log_chi = np.log(dataset.phase_chi_1)
    norm = _symmetric(log_chi.values, 1.0)
    sigma_b = json.loads(dataset.attrs["grid"])["sigma_b"]
    for name, axis in axes:
        chi = log_chi.sel(activation=name)
        mesh = axis.pcolormesh(
            chi.phase_sigma_w, chi.phase_sigma_b, chi, cmap=_DIVERGING, norm=norm, shading="nearest", rasterized=True
        )
        line = dataset.critical_sigma_w.sel(activation=name)
        axis.plot(line, line.phase_sigma_b, color=_INK, lw=1.8)
        verdicts = dataset.verdict.sel(activation=name)
        axis.scatter(
            verdicts.sigma_w, [sigma_b] * verdicts.size, s=17, c=[COLOURS[v] for v in verdicts.values],
            edgecolors="white", linewidths=0.7, zorder=3, clip_on=False,
        )  # fmt: skip
        axis.set_xlim(float(chi.phase_sigma_w.min()), float(chi.phase_sigma_w.max()))
        axis.set_ylim(0, float(chi.phase_sigma_b.max()))
    _label(figure, axes, r"weight gain $\sigma_w$", r"bias $\sigma_b$")
    bar = figure.colorbar(mesh, ax=[axis for _, axis in axes], pad=0.01, aspect=30, extend="both")
    bar.set_label(r"predicted $\ln\chi_1$", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_MUTED)
    return figure


def gradient_norms(dataset: xr.Dataset) -> Figure:
    """|dL/dh_l| relative to the last layer against l, measured (points, standard errors) over predicted (lines).

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = _panels(dataset, 2.9)
    gains = dataset.sigma_w.values
    scale = np.ptp(gains) or 1.0
    every = max(1, dataset.layer.size // 13)
    for name, axis in axes:
        of = dataset.sel(activation=name)
        for gain in _shown_gains(dataset, name):
            colour = _GAINS((gain - gains[0]) / scale)
            cell = of.sel(sigma_w=gain)
            axis.plot(cell.layer, cell.predicted_gradient_profile / np.log(10), color=colour, lw=1.3, zorder=1)
            points = cell.isel(layer=slice(None, None, every))
            axis.errorbar(
                points.layer, points.gradient_profile / np.log(10), points.gradient_profile_se / np.log(10),
                fmt="o", ms=3.2, mfc="white", mec=colour, ecolor=colour, mew=1.1, elinewidth=1.0, zorder=2,
                label=f"{gain:.2f}",
            )  # fmt: skip
        axis.axhline(0, color=_MUTED, lw=0.6, zorder=0)
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        _gain_legend(axis)
    _label(figure, axes, "layer $l$", r"$|dL/dh_l|\;/\;|dL/dh_L|$")
    return figure


def forward_signal(dataset: xr.Dataset) -> Figure:
    """Length q_l and correlation c_l against l, measured (points) over predicted (lines).

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    names = dataset.activation.values.tolist()
    columns = min(_COLUMNS, len(names))
    figure = Figure(figsize=(3.1 * columns + 0.8, 4.6 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(2 * -(-len(names) // columns), columns, squeeze=False, sharex="all")
    for axis in axes.ravel():
        axis.set_visible(False)
    gains, every = dataset.sigma_w.values, max(1, dataset.layer.size // 13)
    scale = np.ptp(gains) or 1.0
    for i, name in enumerate(names):
        of = dataset.sel(activation=name)
        for row, (field, factor, label) in enumerate((("log_q", np.log(10), "$q_l$"), ("c", 1.0, "$c_l$"))):
            axis = axes[2 * (i // columns) + row, i % columns]
            axis.set_visible(True)
            for gain in _shown_gains(dataset, name):
                cell, colour = of.sel(sigma_w=gain), _GAINS((gain - gains[0]) / scale)
                axis.plot(cell.layer, cell[f"predicted_{field}"] / factor, color=colour, lw=1.3, zorder=1)
                points = cell[field].mean(("seed", "input")).isel(layer=slice(None, None, every)) / factor
                axis.plot(points.layer, points, "o", ms=3.2, mfc="white", mec=colour, mew=1.1, label=f"{gain:.2f}")
            if field == "log_q":
                axis.set_title(name, loc="left", fontsize=10.5, color=_INK, fontweight="bold")
                axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
                axis.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
                _gain_legend(axis)
            else:
                axis.set_ylim(-0.05, 1.05)
            if i % columns == 0:
                axis.set_ylabel(label, fontsize=10, color=_INK)
            axis.tick_params(labelsize=8, colors=_MUTED)
            for side in ("top", "right"):
                axis.spines[side].set_visible(False)
    figure.supxlabel("layer $l$", fontsize=9.5, color=_INK)
    return figure


def _edges(values: np.ndarray) -> np.ndarray:
    """Boundaries half-way between neighbours, for cells drawn around values."""
    if len(values) < 2:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[1.5 * values[0] - 0.5 * values[1]], middle, [1.5 * values[-1] - 0.5 * values[-2]]])


def gradient_heat_map(dataset: xr.Dataset) -> Figure:
    """ln |dL/dh_0| - ln |dL/dh_L| over gain and depth, measured, with the lines L = n xi_c and L = n xi_grad.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = _panels(dataset, 2.9, sharex="all", sharey="all")
    norm = _symmetric(dataset.gradient_ratio.values, 3.0)
    depths, gains = np.log2(dataset.depth.values), dataset.sigma_w.values
    for name, axis in axes:
        of = dataset.sel(activation=name)
        ratio = of.gradient_ratio.transpose("depth", "sigma_w").values
        mesh = axis.pcolormesh(_edges(gains), _edges(depths), ratio, cmap=_DIVERGING, norm=norm, rasterized=True)
        for field, style, label in (("xi_c", "--", r"\xi_c"), ("xi_grad", "-", r"\xi_\nabla")):
            scale = of[f"fixed_point_{field}"].values
            with np.errstate(divide="ignore"):
                line = np.log2(N_XI * np.where(np.isfinite(scale) & (scale > 0), scale, np.nan))
            axis.plot(gains, line, style, color=_INK, lw=1.5, label=f"${N_XI}{label}$")
        axis.set_ylim(_edges(depths)[0], _edges(depths)[-1])
        axis.set_xlim(_edges(gains)[0], _edges(gains)[-1])
        axis.set_yticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_minor_locator(NullLocator())
    axes[0][1].legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="lower right")
    _label(figure, axes, r"weight gain $\sigma_w$", "depth $L$")
    bar = figure.colorbar(mesh, ax=[axis for _, axis in axes], pad=0.01, aspect=30, extend="both")
    bar.set_label(r"$\ln\,|dL/dh_0|\,/\,|dL/dh_L|$", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_MUTED)
    return figure


def singular_values(dataset: xr.Dataset) -> Figure:
    """Distribution of the input-output Jacobian's singular values against depth, near the critical gain and off it.

    Args:
        dataset: a survey.

    Returns:
        The figure.
    """
    figure, axes = _panels(dataset, 3.0)
    depths = np.log2(dataset.depth.values)
    gains = dataset.sigma_w.values
    scale = np.ptp(gains) or 1.0
    for name, axis in axes:
        shown = _shown_gains(dataset, name, 3)
        for offset, gain in zip(np.linspace(-0.24, 0.24, len(shown)) if len(shown) > 1 else [0.0], shown, strict=True):
            cell, colour = dataset.sel(activation=name, sigma_w=gain), _GAINS((gain - gains[0]) / scale)
            low, lower, middle, upper, high, top = (cell.log_s_quantile.values / np.log(10)).T
            at = depths + offset
            axis.vlines(at, low, high, color=colour, lw=1.2)
            axis.vlines(at, lower, upper, color=colour, lw=5.0, alpha=0.45)
            axis.plot(at, middle, "o", ms=3.4, mfc="white", mec=colour, mew=1.1, label=f"{gain:.2f}")
            axis.plot(at, top, "_", ms=6, color=colour, mew=1.4)
            axis.plot(at, cell.predicted_log_mean_square / 2 / np.log(10), ":", color=colour, lw=1.4, zorder=0)
        axis.axhline(0, color=_MUTED, lw=0.6, zorder=0)
        axis.set_xticks(depths, [str(d) for d in dataset.depth.values])
        axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        _gain_legend(axis)
    _label(figure, axes, "depth $L$", r"singular values of $dh_L/dx$")
    return figure


_SECTIONS: tuple[tuple[str, Callable[[xr.Dataset], Figure], str], ...] = (
    (
        "Phase diagram",
        phase_diagram,
        "Colour: predicted &chi;<sub>1</sub>, the factor of the squared gradient per layer (blue vanishes, orange "
        "explodes). Line: the critical line &chi;<sub>1</sub> = 1, drawn where a network can stay on it. Points: "
        "what was measured at the swept &sigma;<sub>b</sub>.",
    ),
    (
        "Gradient against layer",
        gradient_norms,
        "Points: measured, mean and standard error over seeds, deepest network. Lines: mean-field prediction "
        "(root mean square at infinite width; a typical network of finite width lies lower by O(depth/width)). "
        "A gradient that falls to the left vanishes on its way to the input.",
    ),
    (
        "Depth and gain",
        gradient_heat_map,
        f"Measured. Solid: L = {N_XI} &xi;<sub>&nabla;</sub>, where theory has the gradient changed by "
        f"e<sup>&plusmn;{N_XI / 2:g}</sup>. Dashed: L = {N_XI} &xi;<sub>c</sub>, the depth to which Schoenholz et al. "
        "(2017) found networks trainable.",
    ),
    (
        "Singular values of the input-output Jacobian",
        singular_values,
        "Thin bars: 5 % to 95 % of the values that are not exactly zero, seeds pooled; thick: the middle half; circle: "
        "median; tick: largest. Dotted: predicted root mean square over all values, zeros included.",
    ),
    (
        "Forward signal",
        forward_signal,
        "Length q<sub>l</sub> (mean square pre-activation) and correlation c<sub>l</sub> of two digits. Points: "
        "measured means. Lines: the length and correlation maps iterated.",
    ),
)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2630;background:#fbfbfa;margin:0 auto;max-width:1180px;padding:28px 24px 60px}
h1{font-size:25px;margin:0 0 2px} h2{font-size:18px;margin:38px 0 4px} p{margin:4px 0 10px;max-width:80ch}
.sub{color:#5c6672} img{width:100%;height:auto;display:block;background:#fff;border:1px solid #e4e6e9;border-radius:6px}
table{border-collapse:collapse;margin:14px 0;font-variant-numeric:tabular-nums;width:100%}
th{font-weight:600;text-align:left;color:#5c6672;font-size:13px;vertical-align:bottom}
td,th{padding:6px 14px 6px 0;border-bottom:1px solid #e4e6e9} .bar{display:flex;height:22px;min-width:330px;border-radius:4px;overflow:hidden}
.bar span{color:#fff;font-size:11.5px;line-height:22px;text-align:center;overflow:hidden;white-space:nowrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;font-size:13px;color:#5c6672} dd{margin:0;overflow-wrap:anywhere}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 12px}
"""


def write(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write the report page of a survey, all figures inside.

    Args:
        dataset: a survey, fresh or loaded.
        path: the HTML file; an existing one is replaced.

    Returns:
        The path.

    Raises:
        ValueError: if the dataset is no survey.
        OSError: if the file cannot be written.
    """
    missing = {"verdict", "gradient_profile", "phase_chi_1", "log_s_quantile"} - set(dataset)
    if missing or "grid" not in dataset.attrs:
        raise ValueError(f"a report needs a survey's dataset; this one lacks {', '.join(sorted(missing)) or 'its grid'}")
    grid = json.loads(dataset.attrs["grid"])
    settings = (
        f"{html.escape(str(dataset.attrs['data']))}, width {grid['width']}, depths {grid['depths'][0]} to "
        f"{grid['depths'][-1]}, {len(grid['sigma_w'])} gains in [{grid['sigma_w'][0]:g}, {grid['sigma_w'][-1]:g}], "
        f"&sigma;<sub>b</sub> = {grid['sigma_b']:.4g}, {grid['seeds']} seeds, {grid['inputs']} inputs each of mean "
        f"square 1, {grid['weights']} weights, {grid['dtype']}"
    )
    sections = "".join(
        f"<h2>{title}</h2><p class=sub>{caption}</p>{_image(draw(dataset), title)}" for title, draw, caption in _SECTIONS
    )
    details = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in dataset.attrs.items()
    )
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>jaxstab: will signal and gradient survive this depth?</title><style>{_STYLE}</style>"
        f"<h1>Will signal and gradient survive this depth?</h1><p class=sub>{settings}</p>{_table(dataset)}"
        f"{sections}<h2>Provenance</h2><dl>{details}</dl></html>"
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _image(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white")
    return f"<img alt='{title}' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def _number(value: float, where: str = "") -> str:
    return f"{value:.3f}" if np.isfinite(value) else f"none{where}"


def _error(value: float) -> str:
    return f" &plusmn; {value:.3f}" if np.isfinite(value) else ""


def _table(dataset: xr.Dataset) -> str:
    """Critical gains and verdicts, one row per activation."""
    depth = int(dataset.depth.max())
    rows = []
    for name in dataset.activation.values.tolist():
        of = dataset.sel(activation=name)
        joined = regions(of.verdict)
        bar = "".join(
            f"<span style='flex:{int((of.verdict.sigma_w >= low).values.sum() - (of.verdict.sigma_w > high).values.sum())};"
            f"background:{COLOURS[verdict]}' title='{verdict}: {low:g} to {high:g}'>"
            f"{f'{low:.2f}&ndash;{high:.2f}' if high > low else f'{low:.2f}'}</span>"
            for verdict, low, high in joined
        )
        rows.append(
            f"<tr><td><b>{html.escape(name)}</b></td><td>{_number(float(of.critical_here))}</td>"
            f"<td>{_number(float(of.predicted_critical), ' in range')}</td>"
            f"<td>{_number(float(of.measured_critical), ' in range')}{_error(float(of.measured_critical_se))}</td>"
            f"<td><div class=bar>{bar}</div></td></tr>"
        )
    keys = "".join(f"<span class=key style='background:{COLOURS[v]}'></span>{v}" for v in ("vanish", "critical", "explode"))
    return (
        "<table><tr><th>activation</th><th>critical line,<br>&chi;<sub>1</sub> = 1</th>"
        f"<th>predicted critical<br>&sigma;<sub>w</sub> at depth {depth}</th>"
        "<th>measured critical<br>&sigma;<sub>w</sub> &plusmn; standard error</th>"
        f"<th>verdict against &sigma;<sub>w</sub>{keys}</th></tr>{''.join(rows)}</table>"
        "<p class=sub>The statistic is the fitted rate d ln|dL/dh<sub>l</sub>| / dl at the deepest depth; its zero is the "
        "critical gain. &ldquo;None&rdquo; on the critical line: no gain at which a network stays at &chi;<sub>1</sub> = 1 "
        "(for gelu and silu at small &sigma;<sub>b</sub> the point exists, but lengths are repelled from it). Critical: "
        "rate within two standard errors of zero, or less than a factor e over the whole depth.</p>"
    )
