"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def main(results, figure_path):
    table = json.loads((Path(results) / "measured.json").read_text())["table"]
    panels = [(group, lead) for group, row in table.items() for lead in row["signs"]]
    figure = Figure(figsize=(3.4 * max(1, len(panels)), 3.8), layout="constrained")
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axis, (group, lead) in zip(axes, panels, strict=False):
        for colour, (name, at) in zip(COLOURS, table[group]["signs"][lead].items(), strict=False):
            points = sorted(map(tuple, [*at["roc"], (0, 0), (1, 1)]))
            label = f"{name}, {at['area']:.2f} ± {at['area_error']:.2f}"
            axis.plot(*zip(*points, strict=True), color=colour, lw=1.3, label=label)
        axis.plot([0, 1], [0, 1], color="0.7", lw=0.8, ls="--")
        axis.set(title=f"{group}, {lead} before", xlabel="false alarms")
        axis.legend(fontsize=6, frameon=False, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="divergences warned of")
    figure.savefig(figure_path, dpi=110, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    main(results, sys.argv[2] if len(sys.argv) > 2 else HERE / "figure.png")
