"""Results of trainings for other tools: a table of cells, and TensorBoard's event files."""

import itertools
import math
from pathlib import Path

import numpy as np
import xarray as xr


def write_table(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a line per finished cell, comma-separated: where it stands on every axis, and what came of it.

    Args:
        dataset: trainings over their axes, as `trainability.labelled` gives them.
        path: the file.

    Returns:
        The path.

    Raises:
        OSError: if it cannot be written.
    """
    end = dataset[["train_accuracy", "test_accuracy", "first_nonfinite", "done"]].isel(evaluation=-1, drop=True)
    table = end.assign(loss=dataset.loss.isel(step=-1, drop=True)).to_dataframe().reset_index()
    table[table.done].drop(columns="done").to_csv(path, index=False)
    return Path(path)


def write_events(dataset: xr.Dataset, folder: str | Path) -> Path:
    """Write TensorBoard's event files, a run per finished cell: loss and accuracy of every step, accuracies at the end.

    Args:
        dataset: trainings over their axes, as `trainability.labelled` gives them.
        folder: where the runs go, each into a folder named after the axes along which cells differ.

    Returns:
        The folder.

    Raises:
        ValueError: if tensorboardX is not installed.
        OSError: if a file cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter  # an extra
    except ImportError as error:
        raise ValueError("event files need tensorboardX; install jaxstab[tensorboard]") from error
    axes = [str(dim) for dim in dataset.done.dims]
    varied = [axis for axis in axes if dataset.sizes[axis] > 1]
    for at in itertools.product(*(range(dataset.sizes[axis]) for axis in axes)):
        cell = dataset.isel(dict(zip(axes, at, strict=True)))
        if not cell.done:
            continue
        name = ",".join(f"{axis}={cell[axis].item()}" for axis in varied) or "run"
        with SummaryWriter(str(Path(folder) / name)) as writer:
            for field in ("loss", "accuracy"):
                for step, value in enumerate(np.asarray(cell[field])):
                    if math.isfinite(value):
                        writer.add_scalar(field, float(value), step)
            for field in ("train_accuracy", "test_accuracy"):
                for step, value in zip(dataset.evaluation.values, np.asarray(cell[field]), strict=True):
                    writer.add_scalar(field, float(value), int(step))
    return Path(folder)
