"""Figure of a diagnosis: signal and gradient along a model."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxstab.diagnosis import Diagnosis
from jaxstab.report.figures import EXPLODE, VANISH
from jaxstab.report.panels import INK, MUTED, panels

GRADIENT = "ln |dL/dh|"
SIGNAL = "ln of the signal's root mean square"


def along_the_model(diagnosis: Diagnosis, columns: int = 2) -> Figure:
    """Draw ln |dL/dh| and ln of the signal's root mean square at every place of a model.

    Args:
        diagnosis: the diagnosis.
        columns: panels in a row, at most 2.

    Returns:
        The figure, with the blocks joined by a line.
    """
    table = table_of(diagnosis)
    figure, axes = panels([GRADIENT, SIGNAL], 3.0, columns=min(columns, 2))
    figure.set_figwidth(5.2 * min(columns, 2) + 0.6)
    blocks = list(diagnosis.measured.blocks)
    names = diagnosis.measured.rows
    wrong = {finding.where for finding in diagnosis.findings}
    marked = [i for i, row in enumerate(names) if row.name in wrong]
    for name, axis in axes:
        values = table[name].replace([np.inf, -np.inf], np.nan).to_numpy(float)
        axis.plot(values, ".", color=MUTED, markersize=4, label="a place")
        if blocks:
            axis.plot(blocks, values[blocks], "o-", color=VANISH, markersize=4, label="blocks")
        for i in marked:
            axis.axvline(
                i, color=EXPLODE, linewidth=1.2, label="a finding" if i == marked[0] else None
            )
        _predicted(diagnosis, name, axis, values)
        axis.set_xlabel("place, in order of execution", color=INK)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _predicted(diagnosis: Diagnosis, name: str, axis: Axes, values: np.ndarray) -> None:
    """Draw the gradient's predicted rate as a line through the middle of the blocks."""
    blocks = np.asarray(diagnosis.measured.blocks)
    if diagnosis.theory.why or name != GRADIENT or not np.all(np.isfinite(values[blocks])):
        return
    number = np.arange(len(blocks)) - (len(blocks) - 1) / 2
    line = np.mean(values[blocks]) + diagnosis.theory.rate * number
    axis.plot(blocks, line, "--", color=INK, linewidth=1, label="predicted rate")


def table_of(diagnosis: Diagnosis) -> pd.DataFrame:
    """List the numbers of the figure.

    Args:
        diagnosis: the diagnosis.

    Returns:
        Table with one row per place.
    """
    measured = diagnosis.measured
    return pd.DataFrame(
        {
            "place": [row.name for row in measured.rows],
            GRADIENT: measured.log_grad_h,
            SIGNAL: np.asarray(measured.signal.log_q) / 2,
        }
    )
