"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

HERE = Path(__file__).parent
# one colour a depth, as report's gains: from near to far
COLOURS = ("#2f6db3", "#7a5fa8", "#c2528b", "#e0823d")
INK, MUTED = "#1f2630", "#5c6672"
BINS = 0.08 * (np.arange(-49, 67) - 0.5)  # of ln s, from 0.02 to 200; the isometry's 0 amid one
WEIGHTS = {"orthogonal": COLOURS[0], "gaussian": COLOURS[3]}
MARKS = {"identity": "o", "relu": "s", "hard_tanh": "D", "erf": "^", "tanh": "v"}
HEIGHT = 0.82  # of a ridge, in units of their distance


def share_below(data, cell, depth, log_s):
    """A law's share of singular values at most s; its atoms are jumps."""
    at, cdf = data[f"{cell}/log_s_limit"][depth], data[f"{cell}/cdf_limit"][depth]
    return np.interp(log_s, at, cdf)


def ridges(axis, data, row, cell):
    """One ridge a depth: measured histogram of ln s, and the law's share of every bin."""
    for i, measured in enumerate(np.swapaxes(data[f"{cell}/log_s"], 0, 1)):
        ours = np.histogram(measured, BINS)[0] / measured.size
        law = np.diff(share_below(data, cell, i, BINS))
        base, scale = -i, HEIGHT / max(law.max(), ours.max())
        axis.stairs(
            base + scale * ours, BINS, baseline=base, fill=True, color=COLOURS[i], alpha=0.5, lw=0
        )
        axis.stairs(base + scale * law, BINS, baseline=base, color=INK, lw=0.9)
        axis.plot(
            np.log(row["largest_limit"][i]),
            base - 0.07,
            "^",
            ms=3.5,
            color=INK,
            clip_on=False,
            zorder=3,
        )
        axis.axhline(base, color=MUTED, lw=0.4)
        below = np.mean(measured < BINS[0])
        if below >= 0.005:
            axis.text(
                BINS[-1], base + 0.1, f"\u2190{below:.0%}", fontsize=7.5, color=MUTED, ha="right"
            )
    axis.set(xlim=(BINS[0], BINS[-1]), ylim=(-len(data["depths"]) + 0.8, 0.95), yticks=[])
    axis.xaxis.set_major_locator(FixedLocator(np.log([0.1, 1, 10, 100])))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{np.exp(value):g}"))


def against_depth(axis, data, table, field, label):
    """A number of every cell, measured over predicted, against depth."""
    depths = data["depths"]
    for cell, row in table.items():
        name, weights = cell.split()
        if field == "variance" and cell == "identity orthogonal":
            continue
        limit = np.asarray(row[f"{field}_limit"])
        axis.errorbar(
            depths * (1 + 0.04 * (list(MARKS).index(name) - 2)), row[field] / limit, row[f"{field}_se"] / limit,
            fmt=MARKS[name], ms=4, mfc="white", color=WEIGHTS[weights], elinewidth=0.8, mew=1,
        )  # fmt: skip
    axis.axhline(1, color=INK, lw=0.8)
    axis.set_xscale("log", base=2)
    axis.set(
        xticks=depths,
        xticklabels=depths,
        xlim=(depths[0] / 1.4, depths[-1] * 1.4),
        xlabel="depth $L$",
    )
    axis.set_title(label, loc="left", fontsize=9, color=INK)
    handles = [
        Line2D([], [], marker=m, color=MUTED, mfc="white", ls="", ms=4, label=n)
        for n, m in MARKS.items()
    ]
    if field == "largest":
        axis.legend(handles=handles, fontsize=7.5, frameon=False, loc="lower left")
    else:
        kinds = [
            Line2D([], [], marker="o", color=c, ls="", ms=4, label=w) for w, c in WEIGHTS.items()
        ]
        axis.legend(handles=kinds, fontsize=7.5, frameon=False, loc="lower left")


def chaos(left, right, data):
    """Every logarithm of a chaotic net's singular values; Lyapunov exponents."""
    depths, log_s, naive = data["chaos/depths"], data["chaos/log_s"], data["chaos/naive"]
    index = np.arange(1, log_s.shape[1] + 1)
    for colour, i in zip(COLOURS, np.delete(np.arange(len(depths)), -2), strict=True):
        left.plot(index, log_s[i], color=colour, lw=1.6, label=f"$L={depths[i]}$")
        right.plot(index, log_s[i] / depths[i], color=colour, lw=1.6)
    left.plot(index, naive, color=MUTED, lw=1, ls="--", label="$L=1000$, product\nin float64, SVD")
    left.set(xlabel="index $i$")
    left.set_title(r"chaotic tanh net, $\ln s_i$", loc="left", fontsize=9, color=INK)
    left.legend(fontsize=7.5, frameon=False, loc="lower left")
    right.axhline(0, color=INK, lw=0.6)
    right.set(xlabel="index $i$", ylim=(1.15 * log_s[-1, -1] / depths[-1], None))
    right.set_title(r"its exponents, $\ln s_i\,/\,L$", loc="left", fontsize=9, color=INK)


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE / "figure.png"):
    table = json.loads((Path(source) / "measured.json").read_text())["table"]
    names = list(dict.fromkeys(cell.split()[0] for cell in table))
    with np.load(Path(source) / "result.npz") as data:
        figure = Figure(figsize=(11, 9), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(2.3, 1))
        axes = top.subplots(2, len(names), squeeze=False)
        for (row, weights), (column, name) in itertools.product(
            enumerate(WEIGHTS), enumerate(names)
        ):
            axis, cell = axes[row, column], f"{name} {weights}"
            ridges(axis, data, table[cell], cell)
            axis.set_title(
                f"{name}, {weights}", loc="left", fontsize=9, color=INK, fontweight="bold"
            )
            if column == 0:
                axis.set_yticks(
                    -np.arange(len(data["depths"])), [f"$L={d}$" for d in data["depths"]]
                )
                axis.tick_params(axis="y", length=0)
        top.supxlabel("singular value $s$ of $dh_L/dh_0$", fontsize=9.5, color=INK)
        panels = bottom.subplots(1, 4)
        against_depth(panels[0], data, table, "variance", "variance of $s^2$, measured / limit")
        against_depth(panels[1], data, table, "largest", "largest $s$, measured / limit")
        chaos(panels[2], panels[3], data)
        for axis in (*axes.ravel(), *panels):
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=MUTED)
        figure.savefig(target, dpi=100, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
