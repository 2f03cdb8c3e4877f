"""Figures of theory alone: signal and gradient of a block, and its phase diagram."""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxstab.records import BackwardProfile, CorrelationProfile, ForwardProfile
from jaxstab.report.figures import DIVERGING, symmetric
from jaxstab.report.panels import CURVE_COLOURS, MUTED, ON_MAP, colour_bar, label_axes, panels
from jaxstab.store.files import whole_file


def law_profiles(
    name: str, forward: ForwardProfile, correlation: CorrelationProfile, backward: BackwardProfile
) -> Figure:
    """Draw length, correlation and gradient of one block at every layer.

    Args:
        name: name of the block.
        forward: predicted lengths.
        correlation: predicted correlations.
        backward: predicted gradients of one depth.

    Returns:
        The figure.
    """
    decade = np.log(10)
    curves = {
        r"$\log_{10} q_l$": np.asarray(forward.log_q) / decade,
        "$c_l$": np.asarray(correlation.c),
        r"$\log_{10} |dL/dh_l| / |dL/dh_L|$": np.asarray(backward.log_grad_h)[-1] / decade,
    }
    figure, axes = panels(list(curves), 2.7)
    for (label, axis), colour in zip(axes, CURVE_COLOURS[::2], strict=True):
        # the titles of `panels` do not parse mathematics, and titles stay as they were set
        axis.set_title(label, loc="left", fontsize=10.5, parse_math=True)
        values = np.where(np.isfinite(curves[label]), curves[label], np.nan)
        axis.plot(np.arange(len(values)), values, color=colour, lw=1.5)
        axis.axhline(0, color=MUTED, lw=0.6, zorder=0)
    label_axes(figure, "layer $l$", "")
    figure.suptitle(name, fontsize=10.5, parse_math=False)
    return figure


def phase_plane(
    name: str,
    sigma_w: Float[np.ndarray, " w"],
    sigma_b: Float[np.ndarray, " b"],
    chi_1: Float[np.ndarray, "b w"],
    critical: Float[np.ndarray, " b"],
) -> Figure:
    """Draw ln chi_1 of one block over (sigma_w, sigma_b), and its critical line.

    Args:
        name: name of the block.
        sigma_w: weight gains, ascending.
        sigma_b: bias standard deviations, ascending.
        chi_1: factor of the mean squared gradient per layer.
        critical: gains with chi_1 = 1 at each sigma_b; NaN for none.

    Returns:
        The figure.
    """
    figure, axes = panels([name], 3.6)
    figure.set_figwidth(5.0)
    axis = axes[0][1]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_chi = np.log(chi_1)
    shown = np.where(np.isfinite(log_chi), log_chi, np.nan)
    norm = symmetric(shown, 1.0)
    mesh = axis.pcolormesh(
        sigma_w, sigma_b, shown, cmap=DIVERGING, norm=norm, shading="nearest", rasterized=True
    )
    axis.plot(critical, sigma_b, color=ON_MAP, lw=1.8)
    axis.set_xlim(sigma_w[0], sigma_w[-1])
    axis.set_ylim(sigma_b[0], sigma_b[-1])
    label_axes(figure, r"weight gain $\sigma_w$", r"bias $\sigma_b$")
    colour_bar(figure, axes, mesh, r"$\ln\chi_1$")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure into a file, replacing an existing file once the new one is complete.

    Args:
        figure: the figure.
        path: path of the file, whose suffix sets the format.
    """
    with whole_file(path) as aside:
        figure.savefig(aside, format=path.suffix[1:].lower(), dpi=150)
