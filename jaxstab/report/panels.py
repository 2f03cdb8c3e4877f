"""Panels in rows of four, with the labels, legends and colours that all figures share."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

INK, MUTED, PAPER = "#1f2630", "#5c6672", "#ffffff"
# lines over a map of colours, whose colours are the same on dark pages
ON_MAP, UNDER_MAP = "#10141a", "#fdfdfd"
# Okabe and Ito (2008), from cold to warm: distinct for any colour vision, on white and on black
CURVE_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00")
CURVE_MARKERS = ("o", "s", "D", "^", "v")
COLUMNS = 4


class Curve(NamedTuple):
    """Style of one curve of several.

    Attributes:
        position: index of the curve's gain or depth.
        colour: colour of the line.
        marker: marker of the points.
        label: label in the legend.
    """

    position: int
    colour: str
    marker: str
    label: str


def panels(
    names: Sequence[str],
    height: float,
    share: Literal["all", "none"] = "none",
    columns: int = COLUMNS,
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """Make a figure with one panel per name.

    Args:
        names: titles of the panels.
        height: height of a panel, in inches.
        share: "all" for panels that share their axes, else "none".
        columns: panels in a row.

    Returns:
        The figure, and pairs of name and panel.
    """
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.8, height * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes[: len(names)], strict=True):
        title(axis, name)
        plain_frame(axis)
    return figure, list(zip(names, axes[: len(names)], strict=True))


def title(axis: Axes, name: str, pad: float | None = None) -> None:
    """Set a panel's title, in smaller type where the title is long.

    Args:
        axis: the panel.
        name: text of the title.
        pad: points between title and frame; None for matplotlib's default.
    """
    # names come from a store: drop line breaks, mathematics and characters that SVG cannot hold
    shown = "".join(letter if letter.isprintable() else " " for letter in name[:80])
    # points: 10.5 up to 24 letters
    size = min(10.5, max(6.0, 10.5 * 24 / max(1, len(shown))))
    axis.set_title(
        shown, loc="left", fontsize=size, color=INK, fontweight="bold", pad=pad, parse_math=False
    )


def plain_frame(axis: Axes) -> None:
    """Draw the frame at the left and below only, in the colour of small text.

    Args:
        axis: the panel.
    """
    axis.tick_params(labelsize=8, colors=MUTED)
    axis.set_facecolor("none")
    for side, spine in axis.spines.items():
        spine.set_color(MUTED)
        spine.set_visible(side in ("left", "bottom"))


def label_axes(figure: Figure, x: str, y: str) -> None:
    """Set the labels that all panels share.

    Args:
        figure: the figure.
        x: label below.
        y: label at the left.
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
    """Add a colour bar for all panels.

    Args:
        figure: the figure.
        axes: panels of the figure, by name.
        mesh: one of the coloured meshes.
        label: label of the bar.
        extend: "both" for values beyond the ends of the colours, else "neither".
    """
    column = len({axis.get_position().x0 for _, axis in axes}) == 1 and len(axes) > 1
    location: Literal["bottom", "right"] = "right"
    if column:
        location = "bottom"
    bar = figure.colorbar(
        mesh, ax=[axis for _, axis in axes], location=location, pad=0.01, aspect=30, extend=extend
    )
    bar.outline.set_edgecolor(MUTED)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=MUTED)


def shown_gains(gains: Float[np.ndarray, " gain"], near: float, count: int = 5) -> list[Curve]:
    """Choose gains for curves: spread over all, with both ends and the one nearest a given gain.

    Args:
        gains: gains of the grid, ascending.
        near: gain whose nearest neighbour gets a curve; NaN for none.
        count: most curves, no more than there are colours.

    Returns:
        Styles of the curves, by ascending gain.
    """
    spread = np.unique(np.linspace(0, len(gains) - 1, min(count, len(gains))).round().astype(int))
    if np.isfinite(near) and len(spread) > 2:
        nearest = int(np.abs(gains - near).argmin())
        # keep the ends, which show both phases
        spread[1 + np.abs(spread[1:-1] - nearest).argmin()] = nearest
    return curves({int(i): f"{gains[i]:.3g}" for i in np.unique(spread)})


def curves(labels: Mapping[int, str]) -> list[Curve]:
    """Assign colours and markers to curves, from cold to warm.

    Args:
        labels: labels by index of the gain or depth; no more than there are colours.

    Returns:
        Styles of the curves.
    """
    last = len(CURVE_COLOURS) - 1
    places = np.linspace(0, last, len(labels)).round().astype(int)
    return [
        Curve(position, CURVE_COLOURS[place], CURVE_MARKERS[place], label)
        for (position, label), place in zip(labels.items(), places, strict=True)
    ]


def curve_legend(axis: Axes, symbol: str = r"$\sigma_w$") -> None:
    """Add the legend of a panel's curves, in one row between title and frame.

    Args:
        axis: the panel, with labelled curves.
        symbol: symbol of the quantity whose values the labels are.
    """
    title(axis, axis.get_title(loc="left"), pad=19)
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return
    labels[0] = f"{symbol} = {labels[0]}"
    axis.legend(
        handles, labels, ncols=len(labels), fontsize=7.5, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.98),
        handletextpad=0.05, columnspacing=0.7, borderpad=0.1, handlelength=1.2, labelcolor=INK,
    )  # fmt: skip


def edges(values: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " edge"]:
    """Compute the boundaries of cells around values, half-way between neighbours.

    Args:
        values: centres of the cells, ascending.

    Returns:
        Boundaries, one more than values.
    """
    if len(values) < 2:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate(
        [[1.5 * values[0] - 0.5 * values[1]], middle, [1.5 * values[-1] - 0.5 * values[-2]]]
    )


def power_of_ten(value: float, _: int) -> str:
    """Format a decimal logarithm as the label of a tick.

    Args:
        value: the exponent.
        _: number of the tick, unused.

    Returns:
        Label of the tick.
    """
    return f"$10^{{{value:.0f}}}$"
