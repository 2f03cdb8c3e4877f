"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RUNS = (("unclipped", "#d55e00"), ("clipped", "#0072b2"))
WINDOW = 20


def surface(figure, axis, data):
    """The plane (w, b), the wall, and the runs."""
    error = np.log10(data["surface"])
    mesh = axis.pcolormesh(
        data["w"], data["b"], error, cmap="gray", vmin=-5, vmax=0, rasterized=True
    )
    figure.colorbar(mesh, ax=axis, pad=0.02, extend="min").set_label(
        r"$\log_{10}$ error", fontsize=9
    )
    axis.plot(*data["wall"].T, "k--", lw=1, label=r"wall, $b = x_0 - w\,\sigma(x_0)$")
    axis.plot(*data["wall"][0], "kx", ms=7, mew=2, label=r"its end, $w\,\sigma'(x_0) = 1$")
    for (name, colour), paths, width in zip(RUNS, data["places"], (0.9, 2.2), strict=True):
        for index, path in enumerate(paths):
            axis.plot(*path.T, color=colour, lw=width, label=name if index == 0 else None)
    axis.plot(
        *data["places"][0, 0, 0], "o", ms=8, mfc="white", mec="black", label="start", zorder=3
    )
    axis.set(
        xlim=data["w"][[0, -1]], ylim=data["b"][[0, -1]], xlabel="weight $w$", ylabel="bias $b$"
    )
    axis.legend(fontsize=8.5, loc="lower left", framealpha=1)


def history(axis, data):
    """Error against update: the largest in a window, as all runs hop to and fro over the wall."""
    for (name, colour), runs in zip(RUNS, data["errors"], strict=True):
        highest = np.lib.stride_tricks.sliding_window_view(runs, WINDOW, axis=1).max(axis=2)
        updates = np.arange(WINDOW, runs.shape[1] + 1)
        for index, run in enumerate(highest):
            axis.loglog(updates, run, color=colour, lw=1.1, label=name if index == 0 else None)
    axis.set(xlabel="update", ylabel=r"error $(\sigma(x_{50}) - 0.7)^2$")
    axis.set(xlim=(WINDOW, updates[-1]), ylim=(1e-8, 2))
    axis.legend(fontsize=9, frameon=False, loc="lower left", title=f"largest of {WINDOW} updates")
    axis.spines[["top", "right"]].set_visible(False)


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE / "figure.png"):
    with np.load(Path(source) / "result.npz") as data:
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        surface(figure, left, data)
        history(right, data)
        figure.savefig(target, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
