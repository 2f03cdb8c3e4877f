"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

HERE = Path(__file__).parent
INK, MUTED = "#1f2630", "#5c6672"
ACCURACY = LinearSegmentedColormap.from_list(
    "accuracy", ["#20242b", "#2f4f7f", "#4f8fc0", "#f0b060", "#fdf3d8"]
)


def edges(values):
    """Boundaries half-way between neighbours."""
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate(
        [[1.5 * values[0] - 0.5 * values[1]], middle, [1.5 * values[-1] - 0.5 * values[-2]]]
    )


def panel(axis, data, fits, look):
    """Accuracy after one number of steps, the boundary, and n xi_c: fitted, and as the paper has it."""
    variances, depths, xi = (data[name] for name in ("variances", "depths", "xi_c"))
    rows = np.exp(edges(np.log(depths)))
    mesh = axis.pcolormesh(
        edges(variances), rows, data["accuracy"][look], cmap=ACCURACY, vmin=0.1, vmax=1
    )
    fit = fits["xi_c, both"]
    n, ends = fit["n"], [fit[name] for name in ("low", "high") if fit[name] is not None]
    for line in ends:
        axis.plot(variances, line * xi, color="white", lw=0.8, alpha=0.8)
    label = rf"$n\,\xi_c$, $n$ = {n:.2g}" + (" [{:.2g}, {:.2g}]".format(*ends) if ends else "")
    axis.plot(variances, n * xi, color="white", lw=3.4, alpha=0.85)
    axis.plot(variances, n * xi, color=INK, lw=1.6, label=label)
    axis.plot(variances, 6 * xi, ":", color="white", lw=1.6)
    axis.plot([], [], ":", color=MUTED, lw=1.6, label=r"$6\,\xi_c$, as in the paper")
    known = data["low"][look] == data["high"][look]
    axis.plot(
        variances[known],
        data["low"][look][known],
        "o",
        ms=4,
        mfc="white",
        mec=INK,
        mew=0.9,
        zorder=4,
    )
    axis.set_yscale("log")
    axis.set(xlim=edges(variances)[[0, -1]], ylim=rows[[0, -1]], yticks=depths, yticklabels=depths)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set(xlabel=r"$\sigma_w^2$", ylabel="depth $L$")
    axis.set_title(
        f"after {fits['steps']} steps", loc="left", fontsize=10, color=INK, fontweight="bold"
    )
    axis.legend(fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return mesh


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE / "figure.png"):
    fits = json.loads((Path(source) / "measured.json").read_text())["fits"]
    with np.load(Path(source) / "result.npz") as data:
        figure = Figure(figsize=(9.5, 4.8), layout="constrained")
        axes = figure.subplots(1, len(fits))
        for look, axis in enumerate(axes):
            mesh = panel(axis, data, fits[look], look)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=MUTED)
        bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
        bar.set_label("training accuracy", fontsize=9, color=INK)
        bar.ax.tick_params(labelsize=8, colors=MUTED)
        figure.savefig(target, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
