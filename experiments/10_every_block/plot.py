"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
QUANTITIES = ("ln q", "c", "ln |g|^2")
TITLES = (
    "ln q at the last layer",
    "correlation at the last layer",
    "ln of the squared gradient's growth",
)
COLOURS = {"gaussian": "#0072b2", "orthogonal": "#d55e00"}
MARKERS = {"gaussian": "o", "orthogonal": "x"}


def main(results, figure_path):
    measured = json.loads((Path(results) / "measured.json").read_text())
    figure = Figure(figsize=(10.5, 3.7), layout="constrained")
    for axis, quantity, title in zip(figure.subplots(1, 3), QUANTITIES, TITLES, strict=True):
        ends = []
        for weights, colour in COLOURS.items():
            rows = [
                row
                for row in measured["rows"]
                if row["quantity"] == quantity and row["weights"] == weights
            ]
            points = np.array([(row["predicted"], row["measured"]) for row in rows])
            axis.plot(
                *points.T,
                MARKERS[weights],
                ms=3.5,
                mew=0.8,
                mfc="none",
                color=colour,
                label=weights,
            )
            ends += [points.min(), points.max()]
        axis.axline((min(ends), min(ends)), slope=1, color="0.6", lw=0.8, zorder=0)
        axis.set(title=title, xlabel="predicted")
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
        if quantity == QUANTITIES[0]:
            axis.set(ylabel="measured, mean over seeds")
            axis.legend(title="weights", fontsize=8, frameon=False)
    figure.savefig(figure_path, dpi=110, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    main(results, sys.argv[2] if len(sys.argv) > 2 else HERE / "figure.png")
