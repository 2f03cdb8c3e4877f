"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
STYLES = {"raw": {"color": "#d55e00", "ls": "--"}, "shaped": {"color": "#0072b2", "ls": "-"}}
# steps over which a loss is averaged
SMOOTHED = 10


def label(row):
    return row["method"].upper() if row["kind"] == "shaped" else f"raw, gain {row['sigma_w']:.3g}"


def smoothed(losses):
    """Means over SMOOTHED steps, and the steps in their middle."""
    losses = np.asarray(losses, float)
    parts = losses[: len(losses) // SMOOTHED * SMOOTHED].reshape(-1, SMOOTHED)
    return SMOOTHED * (np.arange(len(parts)) + 0.5), parts.mean(1)


def main(results, figure_path):
    measured = json.loads((Path(results) / "measured.json").read_text())
    names = list(dict.fromkeys(row["activation"] for row in measured["runs"]))
    figure = Figure(figsize=(3.3 * len(names), 5), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharey="row")
    for (above, below), name in zip(axes.T, names, strict=True):
        for row in measured["runs"]:
            if row["activation"] != name:
                continue
            style = STYLES[row["kind"]] | {"lw": 1.4}
            above.plot(*smoothed(row["losses"]), label=label(row), **style)
            below.plot(row["c"], **style)
        above.axhline(np.log(10), color="0.6", lw=0.8)
        above.set(title=name, xlabel="step", ylim=(0, 3))
        above.legend(fontsize=8, frameon=False, loc="upper right")
        below.set(xlabel="layer", ylim=(-0.05, 1.05))
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="training loss (grey: chance)")
    axes[1, 0].set(ylabel="correlation of unrelated inputs")
    figure.savefig(figure_path, dpi=110, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    main(results, sys.argv[2] if len(sys.argv) > 2 else HERE / "figure.png")
