"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = {
    "linear, Gaussian": "#0072b2",
    "relu, Gaussian": "#d55e00",
    "relu, orthogonal": "#009e73",
}
SHOWN = 4


def over_networks(values):
    """Mean over the networks that have a value, and its standard error; NaN where fewer than two have one."""
    alive = np.isfinite(values)
    counts = np.where(np.sum(alive, axis=0) > 1, np.sum(alive, axis=0), np.nan)
    mean = np.sum(values, axis=0, where=alive) / counts
    spread = np.sum((values - mean) ** 2, axis=0, where=alive)
    return mean, np.sqrt(spread / counts / (counts - 1))


def growth(axis, data, family):
    """ln s_i / L against L, and the exponents that they go to."""
    depths = data["depths"]
    log_s = data[f"{family} ln s"]
    exponents = data[f"{family} exponents"]
    for i in range(SHOWN):
        mean, error = over_networks(log_s[:, :, i] / depths)
        shade = COLOURS[family]
        axis.axhline(exponents[i], color="black", lw=0.8, ls="--")
        axis.errorbar(depths, mean, error, fmt="o-", color=shade, ms=4, lw=1, alpha=1 - 0.2 * i)
        axis.annotate(f"$i={i + 1}$", (depths[0], mean[0]), (-6, 0), ha="right", va="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xlim(depths[0] / 2, depths[-1] * 1.2)
    axis.set(xlabel="depth $L$", ylabel=r"$\ln s_i / L$", title=family)


def spectrum(axis, data):
    """Rates of all values between the last two depths beside the closed form."""
    half, whole = data["depths"][-2:]
    for family, colour in COLOURS.items():
        log_s = data[f"{family} ln s"]
        exponents = data[f"{family} exponents"]
        alive = np.all(np.isfinite(log_s[:, -2:]), axis=1)
        last, before = (np.where(alive, log_s[:, i], np.nan) for i in (-1, -2))
        many = int(np.sum(np.mean(alive, axis=0) > 0.5))
        mean, _ = over_networks((last - before)[:, :many] / (whole - half))
        index = np.arange(1, many + 1)
        axis.plot(index, exponents[:many], "-", color="black", lw=0.8)
        axis.plot(index, mean, "o", color=colour, ms=4, label=family)
    axis.set(xlabel="index $i$", ylabel="nats per layer", title="exponents, all that survive")
    axis.set_ylim(-1.2, 0.1)
    axis.legend(fontsize=8, frameon=False)


def alignment(axis, data):
    """How far the first singular vector turns between L and 2 L."""
    depths = data["depths"][:-1]
    for family, colour in COLOURS.items():
        angles = data[f"{family} ln sin"]
        exponents = data[f"{family} exponents"]
        mean, error = over_networks(angles)
        axis.errorbar(depths, mean, error, fmt="o", color=colour, ms=4, label=family)
        line = mean[-1] + (exponents[1] - exponents[0]) * (depths - depths[-1])
        axis.plot(depths, line, "-", color="black", lw=0.8)
    axis.set(xlabel="depth $L$", ylabel=r"mean $\ln \sin \angle(v_1(L), v_1(2L))$",
             title=r"alignment, slope $\lambda_2 - \lambda_1$")  # fmt: skip
    axis.legend(fontsize=8, frameon=False)


def main(source=HERE.parents[1] / "runs" / HERE.name, target=HERE / "figure.png"):
    with np.load(Path(source) / "result.npz") as data:
        figure = Figure(figsize=(11, 3.8), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        growth(left, data, "relu, Gaussian")
        spectrum(middle, data)
        alignment(right, data)
        for axis in (left, middle, right):
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(target, dpi=100, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
