"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
# one colour a depth, from near to far
COLOURS = ("#2f6db3", "#7a5fa8", "#c2528b", "#e0823d")
INK, MUTED, FAINT = "#1f2630", "#5c6672", "#e8eaee"


def points(axis, rows, places, colours, field):
    """Mean and standard error of every cure, one colour a depth."""
    depths = list(rows)
    for depth, table in rows.items():
        shift = 0.16 * (depths.index(depth) - (len(depths) - 1) / 2)
        at = [places[name] + shift for name in table]
        mean, error = np.array([row[field] for row in table.values()], float).T
        label = "784-128-10" if depth == "0" else f"depth {depth}"
        axis.errorbar(
            mean,
            at,
            xerr=error,
            fmt="o",
            ms=4,
            color=colours[depth],
            elinewidth=1,
            capsize=0,
            label=label,
            zorder=3,
        )


def gradients(axis, table, places, colour):
    """From the smallest to the largest layer's gradient at the start."""
    for name, row in table.items():
        low, high = row["low"][0], row["high"][0]
        if low is not None and high is not None:
            axis.plot(
                [low, high],
                [places[name]] * 2,
                color=colour,
                lw=4,
                solid_capstyle="round",
                zorder=3,
            )


MAPS = {
    "end_nearby": "maps of one digit with other noise",
    "end_seeds": "maps of one digit, other seeds",
    "start_nearby": "other noise, before training",
}


def maps(measured, target):
    """Mean cosines of the saliency maps of every cure."""
    explained, kinds = measured["explained"], measured["kinds"]
    places = {name: -place for place, name in enumerate(kinds)}
    colours = dict(zip(map(str, measured["setting"]["depths"]), COLOURS, strict=False))
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(kinds)), layout="constrained")
    axes = figure.subplots(1, len(MAPS), sharey=True)
    for axis, (field, title) in zip(axes, MAPS.items(), strict=True):
        known = {
            depth: {name: row for name, row in table.items() if row[field][0] is not None}
            for depth, table in explained.items()
        }
        points(axis, known, places, colours, field)
        axis.set_title(title, loc="left", fontsize=9.5, color=INK)
        axis.set_xlabel("mean cosine", fontsize=9, color=INK)
        axis.set(xlim=(-0.15, 1.05))
        axis.axvline(0, color=MUTED, lw=0.8, ls=":", zorder=1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=MUTED)
    axes[0].set_yticks(list(places.values()), list(places), fontsize=9, color=INK)
    axes[0].set_ylim(-len(kinds) + 0.4, 0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=9, frameon=False, loc="outside upper center", ncols=len(labels)
    )
    figure.savefig(target, dpi=100, facecolor="white")


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE / "figure.png"):
    measured = json.loads((Path(source) / "measured.json").read_text())
    maps(measured, Path(target).with_name("maps.png"))
    rows, kinds, setting = measured["rows"], measured["kinds"], measured["setting"]
    places = {name: -place for place, name in enumerate(kinds)}
    colours = dict(zip(map(str, setting["depths"]), COLOURS, strict=False))
    deep = str(max(setting["depths"]))
    figure = Figure(figsize=(11, 1.2 + 0.34 * len(kinds)), layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.8))
    points(left, rows["fixed"], places, colours, "test")
    points(middle, rows["tuned"], places, colours, "test")
    gradients(right, rows["fixed"][deep], places, colours[deep])
    left.set_title(
        f"test accuracy, learning rate {setting['rate']}", loc="left", fontsize=9.5, color=INK
    )
    middle.set_title("test accuracy, learning rate tuned", loc="left", fontsize=9.5, color=INK)
    right.set_title(f"layers' gradients, depth {deep}", loc="left", fontsize=9.5, color=INK)
    right.set_xlabel(
        r"$\ln\,|\partial L/\partial\theta_l|$, smallest to largest", fontsize=9, color=INK
    )
    for axis in (left, middle):
        axis.axvline(0.1, color=MUTED, lw=0.8, ls=":", zorder=1)
        axis.set(xlim=(0, 1))
        axis.set_xlabel("share of test digits right; dotted: chance", fontsize=9, color=INK)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, fontsize=9, frameon=False, loc="outside upper center", ncols=len(labels)
    )
    left.set_yticks(list(places.values()), list(places), fontsize=9, color=INK)
    left.set_ylim(-len(kinds) + 0.4, 0.6)
    first = min((-places[name] for name, kind in kinds.items() if kind == "pair"), default=None)
    for axis in (left, middle, right):
        if first is not None:
            axis.axhline(0.5 - first, color=MUTED, lw=0.8, zorder=2)
        for place in list(places.values())[1::2]:
            axis.axhspan(place - 0.5, place + 0.5, color=FAINT, lw=0, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=MUTED)
        axis.tick_params(axis="y", labelsize=9, colors=INK, length=0)
    figure.savefig(target, dpi=100, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
