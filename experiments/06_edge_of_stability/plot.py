"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73")
VARIANT_COLOURS = (*COLOURS, "#cc79a7", "#e69f00", "#56b4e9")
NAMES = {"sgd": "gradient descent", "adam": "Adam, preconditioned"}


def main(results, figure_path):
    measured = json.loads((Path(results) / "measured.json").read_text())
    every = measured["setting"]["every"]
    groups = {}
    for run in measured["runs"]:
        groups.setdefault((run["activation"], run["optimiser"]), []).append(run)
    figure = Figure(figsize=(3.4 * len(groups), 5), layout="constrained")
    axes = figure.subplots(2, len(groups), sharex=True, squeeze=False)
    for (above, below), ((activation, optimiser), runs) in zip(axes.T, groups.items(), strict=True):
        for colour, run in zip(COLOURS, runs, strict=False):
            steps = every * np.arange(len(run["sharpness"]))
            above.plot(
                steps,
                np.array(run["sharpness"], float),
                color=colour,
                lw=1.2,
                label=f"rate {run['rate']:g}",
            )
            above.axhline(run["edge"], color=colour, lw=1, ls="--")
            below.semilogy(steps, run["losses"], color=colour, lw=1.2)
        above.set(
            title=f"{activation}, {NAMES[optimiser]}",
            ylim=(0, 1.35 * max(run["edge"] for run in runs)),
        )
        above.legend(fontsize=8, frameon=False, loc="lower right")
        below.set(xlabel="step")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="sharpness\n(dashed: largest stable)")
    axes[1, 0].set(ylabel="training loss")
    figure.savefig(figure_path, dpi=110, facecolor="white")


def variants(results, figure_path):
    """Sharpness of every variant in units of the largest stable one."""
    measured = json.loads((Path(results) / "measured.json").read_text())
    every = measured["setting"]["every"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    groups = {True: [], False: []}
    for run in measured["variants"]:
        groups[run["kind"] == "BatchNorm"].append(run)
    titles = ("BatchNorm; begins at so many times its edge", "no BatchNorm")
    for axis, title, runs in zip(axes, titles, groups.values(), strict=True):
        for colour, run in zip(VARIANT_COLOURS, runs, strict=False):
            relative = np.array(run["sharpness"], float) / run["edge"]
            steps = every * np.arange(len(relative))
            label = f"{run['activation']}, {run['variant'].removeprefix('BatchNorm, ')}"
            axis.plot(steps, relative, color=colour, lw=1.1, label=label)
        axis.axhline(1, color="#5c6672", lw=1, ls="--")
        axis.set(xlabel="step", ylim=(0, 2.4))
        axis.set_title(title, fontsize=10)
        axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="sharpness / largest stable")
    figure.savefig(figure_path, dpi=110, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "figure.png"
    main(results, path)
    variants(results, path.with_name("variants.png"))
