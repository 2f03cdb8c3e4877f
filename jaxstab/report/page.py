"""The report page: one self-contained HTML file. Draws what a survey holds; computes nothing."""

import html
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from jaxstab.report import figures
from jaxstab.report.document import document, section
from jaxstab.report.figures import COLOURS, N_XI
from jaxstab.store import whole_file
from jaxstab.verdicts import regions

_SECTIONS: tuple[tuple[str, Callable[[xr.Dataset], Figure], str], ...] = (
    (
        "Phase diagram",
        figures.phase_diagram,
        "Colour: predicted &chi;<sub>1</sub>, the factor of the squared gradient per layer (blue vanishes, orange "
        "explodes). Line: the critical line &chi;<sub>1</sub> = 1, drawn where a network can stay on it. Points: "
        "what was measured at the swept &sigma;<sub>b</sub>.",
    ),
    (
        "Gradient against layer",
        figures.gradient_norms,
        "Points: measured, mean and standard error over seeds, deepest network. Lines: mean-field prediction "
        "(root mean square at infinite width; a typical network of finite width lies lower by O(depth/width)). "
        "A gradient that falls to the left vanishes on its way to the input.",
    ),
    (
        "Depth and gain",
        figures.gradient_heat_map,
        f"Measured. Solid: L = {N_XI} &xi;<sub>&nabla;</sub>, where theory has the gradient changed by "
        f"e<sup>&plusmn;{N_XI / 2:g}</sup>. Dashed: L = {N_XI} &xi;<sub>c</sub>, the depth to which Schoenholz et al. "
        "(2017) found networks trainable.",
    ),
    (
        "Singular values of the input-output Jacobian",
        figures.singular_values,
        "Thin bars: 5 % to 95 % of the values that are not exactly zero, seeds pooled; thick: the middle half; circle: "
        "median; tick: largest. Dotted: predicted root mean square over all values, zeros included.",
    ),
    (
        "Forward signal",
        figures.forward_signal,
        "Length q<sub>l</sub> (mean square pre-activation) and correlation c<sub>l</sub> of two digits. Points: "
        "measured means. Lines: the length and correlation maps iterated.",
    ),
)


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
        raise ValueError(
            f"a report needs a survey's dataset; this one lacks {', '.join(sorted(missing)) or 'its grid'}"
        )
    grid = json.loads(dataset.attrs["grid"])
    settings = (
        f"{html.escape(str(dataset.attrs['data']))}, width {grid['width']}, depths {grid['depths'][0]} to "
        f"{grid['depths'][-1]}, {len(grid['sigma_w'])} gains in [{grid['sigma_w'][0]:g}, {grid['sigma_w'][-1]:g}], "
        f"&sigma;<sub>b</sub> = {grid['sigma_b']:.4g}, {grid['seeds']} seeds, {grid['inputs']} inputs each of mean "
        f"square 1, {grid['weights']} weights, {grid['dtype']}"
    )
    sections = "".join(section(title, caption, draw(dataset)) for title, draw, caption in _SECTIONS)
    page = document("Will signal and gradient survive this depth?", settings, _table(dataset) + sections, dataset.attrs)
    path = Path(path)
    with whole_file(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


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
        bar = "".join(
            f"<span style='flex:{count};background:{COLOURS[verdict]}' title='{verdict}: {low:g} to {high:g}'>"
            f"{f'{low:.2f}&ndash;{high:.2f}' if high > low else f'{low:.2f}'}</span>"
            for verdict, low, high, count in regions(of.verdict)
        )
        rows.append(
            f"<tr><td><b>{html.escape(name)}</b></td><td>{_number(float(of.critical_here))}</td>"
            f"<td>{_number(float(of.predicted_critical), ' in range')}</td>"
            f"<td>{_number(float(of.measured_critical), ' in range')}{_error(float(of.measured_critical_se))}</td>"
            f"<td><div class=bar>{bar}</div></td></tr>"
        )
    keys = "".join(
        f"<span class=key style='background:{COLOURS[v]}'></span>{v}" for v in ("vanish", "critical", "explode")
    )
    return (
        "<table><tr><th>activation</th><th>critical line,<br>&chi;<sub>1</sub> = 1</th>"
        f"<th>predicted critical<br>&sigma;<sub>w</sub> at depth {depth}</th>"
        "<th>measured critical<br>&sigma;<sub>w</sub> &plusmn; standard error</th>"
        f"<th>verdict against &sigma;<sub>w</sub>{keys}</th></tr>{''.join(rows)}</table>"
        "<p class=sub>The statistic is the fitted rate d ln|dL/dh<sub>l</sub>| / dl at the deepest depth; its zero is "
        "the critical gain. &ldquo;None&rdquo; on the critical line: no gain at which a network stays at "
        "&chi;<sub>1</sub> = 1 (for gelu and silu at small &sigma;<sub>b</sub> the point exists, but lengths are "
        "repelled from it). Critical: rate within two standard errors of zero, or less than a factor e over the whole "
        "depth.</p>"
    )
