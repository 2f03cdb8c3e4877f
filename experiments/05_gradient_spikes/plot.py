"""Draws figure.png from what run.py wrote: python plot.py [DIR] [FIGURE]."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
CLEAN = "clean, no clipping"


def main(results, figure_path):
    table = json.loads((Path(results) / "measured.json").read_text())["table"]
    clean = table.pop(CLEAN)
    rows = sorted(table.items(), key=lambda row: row[1]["accuracy"])
    figure = Figure(figsize=(7, 0.6 + 0.32 * len(rows)), layout="constrained")
    axis = figure.subplots()
    low, high = (clean["accuracy"] + sign * clean["accuracy_se"] for sign in (-1, 1))
    axis.axvspan(
        low, high, color="#009e73", alpha=0.35, lw=0, label="no corrupted batches, no clipping"
    )
    axis.axvline(0.1, color="0.6", lw=1, ls=":", label="chance")
    for place, (_, row) in enumerate(rows):
        axis.plot(
            row["worst_seed"],
            place,
            "|",
            color="#d55e00",
            ms=9,
            label="worst seed" if place == 0 else None,
        )
        axis.errorbar(
            row["accuracy"], place, xerr=row["accuracy_se"], fmt="o", color="#0072b2", ms=5, capsize=3,
            label="mean of seeds, standard error" if place == 0 else None,
        )  # fmt: skip
    axis.set(xlabel="test accuracy after training", xlim=(0, 1), yticks=range(len(rows)))
    axis.set_yticklabels([name for name, _ in rows])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(0.15, 0.55), framealpha=1)
    figure.savefig(figure_path, dpi=130, facecolor="white")


if __name__ == "__main__":
    results = sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "runs" / HERE.name
    main(results, sys.argv[2] if len(sys.argv) > 2 else HERE / "figure.png")
