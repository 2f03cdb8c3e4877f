"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def panel(axis, rows, depths):
    """One network: stable rates over gains as lines, the largest that trained as points."""
    for colour, depth in zip(COLOURS, depths, strict=False):
        some = [row for row in rows if row["depth"] == depth]
        gains = [row["gain"] for row in some]
        stable = np.array([2 / np.mean(row["hessian"]) for row in some])
        axis.semilogy(gains, stable, color=colour, lw=1.5, label=f"depth {depth}")
        if some[0]["predicted"] is not None:
            axis.semilogy(
                gains, [2 / row["predicted"] for row in some], color=colour, lw=1, ls="--"
            )
        for row in some:
            for top, limit in zip(row["hessian"], row["largest"], strict=True):
                if limit > 0:
                    axis.plot(row["gain"], 2 / top * limit, "o", color=colour, ms=5, alpha=0.8)
                else:
                    axis.plot(row["gain"], 2 / top, "x", color=colour, ms=7, mew=1.5)


def main(results, figure_path):
    measured = json.loads((Path(results) / "measured.json").read_text())
    networks = measured["setting"]["networks"]
    figure = Figure(figsize=(3.1 * len(networks), 3.6), layout="constrained")
    axes = figure.subplots(1, len(networks), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (activation, cure) in zip(axes, networks, strict=True):
        rows = [r for r in measured["rows"] if (r["activation"], r["cure"]) == (activation, cure)]
        panel(axis, rows, measured["setting"]["depths"])
        axis.set(title=f"{activation}, {cure}", xlabel="weight gain")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="learning rate")
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        "lines: 2 / sharpness at the start, dashed: predicted; points: largest rate that trained, crosses: none did",
        fontsize=9,
    )
    figure.savefig(figure_path, dpi=110, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    main(results, sys.argv[2] if len(sys.argv) > 2 else HERE / "figure.png")
