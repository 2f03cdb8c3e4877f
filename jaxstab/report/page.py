"""Report page of a survey: one self-contained HTML file, drawn without new computation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from jaxstab.analysis.verdicts import AGREEMENTS, regions
from jaxstab.report import figures
from jaxstab.report.document import Picture, page, picture
from jaxstab.report.figures import COLOURS, N_XI
from jaxstab.store.files import whole_file

_NEEDED = ("verdict", "gradient_profile", "phase_chi_1", "log_s_quantile", "fine_xi_c")
# function of each figure, with the variables that it draws
_DRAWN: dict[str, tuple[Callable[[xr.Dataset, int], Figure], tuple[str, ...]]] = {
    "phase_diagram": (figures.phase_diagram, ("phase_chi_1", "critical_sigma_w")),
    "gradient_norms": (
        figures.gradient_norms,
        ("gradient_profile", "gradient_profile_se", "predicted_gradient_profile"),
    ),
    "gradient_heat_map": (
        figures.gradient_heat_map,
        ("gradient_ratio", "fixed_point_xi_c", "fixed_point_xi_grad"),
    ),
    "sharpness": (
        figures.sharpness,
        (
            "mean_log_sharpness",
            "mean_log_sharpness_se",
            "mean_log_gauss_newton",
            "mean_log_gauss_newton_se",
            "predicted_log_gauss_newton",
        ),
    ),
    "singular_values": (figures.singular_values, ("log_s_quantile", "predicted_log_mean_square")),
    "forward_signal": (figures.forward_signal, ("log_q", "predicted_log_q", "c", "predicted_c")),
}


def write(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write the report page of a survey, with all figures and their data inside.

    Args:
        dataset: a survey, fresh or loaded.
        path: path of the HTML file; an existing file is replaced once the new one is complete.

    Returns:
        Path of the file.

    Raises:
        ValueError: if the dataset is no survey.
        OSError: if the file cannot be written.
    """
    missing = set(_NEEDED) - set(dataset)
    if missing or "grid" not in dataset.attrs:
        raise ValueError(
            "a report needs a survey or a summary of trainings; as a survey this dataset lacks "
            f"{', '.join(sorted(missing)) or 'its grid'}"
        )
    alts = _alts(dataset)
    content = {
        "depth": int(dataset.depth.max()),
        "n_xi": N_XI,
        "colours": [(verdict, COLOURS[verdict]) for verdict in ("vanish", "critical", "explode")],
        "rows": [_row(dataset.sel(activation=name)) for name in dataset.activation.values.tolist()],
        "figures": {
            name: _picture(dataset, name, alts[name])
            for name, (_, variables) in _DRAWN.items()
            if name != "sharpness" or set(variables) <= set(dataset)
        },
        "examples": dataset.attrs.get("sharpness"),
    }
    text = page(
        "survey.html",
        "Will signal and gradient survive this depth?",
        _settings(dataset),
        dataset.attrs,
        content,
    )
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(path)


def _settings(dataset: xr.Dataset) -> str:
    """Describe the measurement in one sentence."""
    grid = json.loads(dataset.attrs["grid"])
    depths = grid["depth"]
    gains = grid["sigma_w"]
    if "network" in grid:
        return (
            f"{dataset.attrs['data']}, layers of {grid['network']}, depths {depths[0]} to "
            f"{depths[-1]}, "
            f"{len(gains)} gains in [{gains[0]:g}, {gains[-1]:g}], {len(grid['seed'])} seeds, "
            f"{grid['inputs']} inputs each"
        )
    return (
        f"{dataset.attrs['data']}, width {grid['width']}, depths {depths[0]} to {depths[-1]}, "
        f"{len(gains)} gains in [{gains[0]:g}, {gains[-1]:g}], sigma_b = {grid['sigma_b']:.4g}, "
        f"{len(grid['seed'])} seeds, {grid['inputs']} inputs each of mean square 1, "
        f"{grid['weights']} weights, {grid['dtype']}"
    )


def _picture(dataset: xr.Dataset, name: str, alt: str) -> Picture:
    """Draw one figure with the data behind it, one line per point."""
    draw, variables = _DRAWN[name]
    return picture(lambda columns: draw(dataset, columns), name, alt, _table(dataset, variables))


def _table(dataset: xr.Dataset, names: tuple[str, ...]) -> pd.DataFrame:
    """Tabulate variables as means over seeds and inputs, without empty lines."""
    variables = dataset[list(names)]
    averaged = variables.mean([dim for dim in ("seed", "input") if dim in variables.dims])
    return averaged.to_dataframe().dropna(how="all").reset_index()


def _number(value: float, where: str = "") -> str:
    if np.isfinite(value):
        return f"{value:.3f}"
    return f"none{where}"


def _row(of: xr.Dataset) -> dict[str, Any]:
    """Collect critical gains and verdicts of one activation."""
    error = float(of.measured_critical_se)
    measured = _number(float(of.measured_critical), " in range")
    if np.isfinite(error):
        measured += f" \N{PLUS-MINUS SIGN} {error:.3f}"
    return {
        "name": of.activation.item(),
        "line": _number(float(of.critical_here)),
        "predicted": _number(float(of.predicted_critical), " in range"),
        "measured": measured,
        "agreement": _agreement(of),
        "no_theory": str(of.no_theory.item()) if "no_theory" in of else "",
        "verdicts": [
            {
                "verdict": verdict,
                "count": count,
                "colour": COLOURS[verdict],
                "range": _span(low, high),
            }
            for verdict, low, high, count in regions(of.verdict)
        ],
    }


def _span(low: float, high: float) -> str:
    """Format a range of gains, or a single gain."""
    if high > low:
        return f"{low:.2f}\N{EN DASH}{high:.2f}"
    return f"{low:.2f}"


def _agreement(of: xr.Dataset) -> str:
    """Count the rates by their agreement with theory; empty for a store of an older version."""
    if "agreement" not in of:
        return ""
    rates = of.agreement.values.astype(str).tolist()
    return ", ".join(f"{rates.count(kind)} {kind}" for kind in AGREEMENTS if kind in rates)


def _verdicts(of: xr.Dataset) -> str:
    """List ranges of gain by verdict, in words."""
    return ", ".join(
        f"{verdict} from {low:.2f} to {high:.2f}" for verdict, low, high, _ in regions(of.verdict)
    )


def _ends(values: xr.DataArray) -> str:
    """Describe the values at both ends of the gains, in words."""
    return f"{float(values[0]):.2g} at the smallest gain, {float(values[-1]):.2g} at the largest"


def _alts(dataset: xr.Dataset) -> dict[str, str]:
    """Describe every figure in words."""
    names = dataset.activation.values.tolist()
    gains = dataset.sigma_w.values
    span = f"weight gains {gains[0]:g} to {gains[-1]:g}"
    depth = int(dataset.depth.max())

    def each(describe: Callable[[xr.Dataset], str]) -> str:
        return "; ".join(f"{name}: {describe(dataset.sel(activation=name))}" for name in names)

    def sharpest(of: xr.Dataset) -> str:
        return _ends(of.mean_log_sharpness.isel(depth=-1))

    def correlation(of: xr.Dataset) -> str:
        layer = min(depth, dataset.sizes["layer"] - 1)
        return _ends(of.c.mean(("seed", "input")).isel(layer=layer))

    alts = {
        "phase_diagram": f"Predicted ln chi_1 over {span} and biases, with measured verdicts. {each(_verdicts)}.",
        "gradient_norms": (
            f"Norm of the gradient against the layer, depth {depth}, relative to the last layer, "
            "measured over "
            f"predicted. Fitted rate in nats per layer: {each(lambda of: _ends(of.rate))}."
        ),
        "gradient_heat_map": (
            f"Logarithm of the gradient at the input over that at the output, over {span} and "
            f"depths to {depth}. At "
            f"the deepest: {each(lambda of: _ends(of.gradient_ratio.isel(depth=-1)))}."
        ),
        "singular_values": (
            "Quantiles of the logarithm of the Jacobian's singular values against depth, for three "
            "gains. Median at "
            f"the deepest: {each(lambda of: _ends(of.log_s_quantile.isel(depth=-1).sel(quantile=0.5)))}."
        ),
        "forward_signal": (
            "Length and correlation of the signal against the layer, measured over predicted. "
            "Correlation at layer "
            f"{depth}: {each(correlation)}."
        ),
    }
    if "mean_log_sharpness" in dataset:
        alts["sharpness"] = (
            f"Largest Hessian eigenvalue of the loss at the start, over {span}, measured beside "
            "the predicted "
            f"Gauss-Newton eigenvalue. Its logarithm at depth {depth}: {each(sharpest)}."
        )
    return alts
