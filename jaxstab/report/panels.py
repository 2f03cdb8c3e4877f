"""What all figures share: panels in rows of four, their labels, legends, colours."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED = "#1f2630", "#5c6672"
GAINS = LinearSegmentedColormap.from_list("gain", ["#2f6db3", "#7a5fa8", "#c2528b", "#e0823d"])
COLUMNS = 4
# a gain that has a curve: index, colour, label
Shown = tuple[int, tuple[float, float, float, float], str]


def panels(
    names: Sequence[str], height: float, share: Literal["all", "none"] = "none"
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """One panel per name, up to four in a row.

    Args:
        names: titles of the panels.
        height: of a panel, inches.
        share: which panels share their axes.

    Returns:
        The figure, and the panels by name.
    """
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.8, height * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes[: len(names)], strict=True):
        title(axis, name)
        axis.tick_params(labelsize=8, colors=MUTED)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, list(zip(names, axes[: len(names)], strict=True))


def title(axis: Axes, name: str, pad: float | None = None) -> None:
    """A panel's title, smaller where it is long.

    Args:
        axis: the panel.
        name: the title.
        pad: points between it and the frame; None for the usual.
    """
    size = 10.5 if len(name) <= 24 else max(6.0, 10.5 * 24 / len(name))
    axis.set_title(name, loc="left", fontsize=size, color=INK, fontweight="bold", pad=pad)


def label_axes(figure: Figure, x: str, y: str) -> None:
    """Labels that all panels share.

    Args:
        figure: the figure.
        x: below.
        y: at the left.
    """
    figure.supxlabel(x, fontsize=9.5, color=INK)
    figure.supylabel(y, fontsize=9.5, color=INK)


def colour_bar(
    figure: Figure,
    axes: list[tuple[str, Axes]],
    mesh: QuadMesh,
    label: str,
    extend: Literal["both", "neither"] = "both",
) -> None:
    """The colours of all panels.

    Args:
        figure: the figure.
        axes: its panels.
        mesh: one of the coloured meshes.
        label: what the colours mean.
        extend: whether there are values beyond the ends.
    """
    bar = figure.colorbar(mesh, ax=[axis for _, axis in axes], pad=0.01, aspect=30, extend=extend)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)


def shown_gains(gains: Float[np.ndarray, " gain"], near: float, count: int = 5) -> list[Shown]:
    """Which gains have a curve: spread over all, the ends among them, and the one nearest to a given gain.

    Args:
        gains: ascending.
        near: to be among them; NaN for none.
        count: how many at most.

    Returns:
        Index, colour and label of each.
    """
    spread = np.unique(np.linspace(0, len(gains) - 1, min(count, len(gains))).round().astype(int))
    if np.isfinite(near) and len(spread) > 2:
        nearest = int(np.abs(gains - near).argmin())
        # the ends stay: they show what lies either side
        spread[1 + np.abs(spread[1:-1] - nearest).argmin()] = nearest
    scale = np.ptp(gains) or 1.0
    return [(int(at), GAINS((gains[at] - gains[0]) / scale), f"{gains[at]:.2f}") for at in np.unique(spread)]


def gain_legend(axis: Axes) -> None:
    """The gains of a panel's curves, in one row between its title and its frame.

    Args:
        axis: the panel, with labelled curves.
    """
    title(axis, axis.get_title(loc="left"), pad=19)
    handles, labels = axis.get_legend_handles_labels()
    labels[0] = rf"$\sigma_w$ = {labels[0]}"
    axis.legend(
        handles, labels, ncols=len(labels), fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
        handletextpad=0.05, columnspacing=0.7, borderpad=0.1, handlelength=1.2,
    )  # fmt: skip


def edges(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " edge"]:
    """Boundaries half-way between neighbours, for cells drawn around values.

    Args:
        values: ascending.

    Returns:
        One more than there are values.
    """
    if len(values) < 2:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[1.5 * values[0] - 0.5 * values[1]], middle, [1.5 * values[-1] - 0.5 * values[-2]]])


def power_of_ten(value: float, _: int) -> str:
    """A logarithm as a tick's label.

    Args:
        value: the exponent.
        _: the tick's place.

    Returns:
        The label.
    """
    return f"$10^{{{value:.0f}}}$"
