"""Export of trainings: a table of cells, and TensorBoard's event files."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import xarray as xr

from jaxstab.store.files import check_folder, whole_file
from jaxstab.tables import plain_cell


def write_table(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a comma-separated line of coordinates and results per finished cell.

    Args:
        dataset: trainings over their axes, as `sweeps.load` gives them.
        path: the file.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> known = {"depth": [2, 4], "step": range(3), "evaluation": [3]}
        >>> shares = {n: (("depth", "evaluation"), [[0.5], [0.1]]) for n in ("train_accuracy", "test_accuracy")}
        >>> curves = {n: (("depth", "step"), np.ones((2, 3))) for n in ("loss", "accuracy")}
        >>> ends = {"first_nonfinite": ("depth", [-1, -1]), "done": ("depth", [True, False])}
        >>> dataset = xr.Dataset(shares | curves | ends, known)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = write_table(dataset, Path(folder) / "table.csv").read_text().splitlines()
        >>> len(lines), lines[0].split(",")[:3]
        (2, ['depth', 'train_accuracy', 'test_accuracy'])
    """
    end = dataset[["train_accuracy", "test_accuracy", "first_nonfinite", "done"]].isel(
        evaluation=-1, drop=True
    )
    table = end.assign(loss=dataset.loss.isel(step=-1, drop=True)).to_dataframe().reset_index()
    with whole_file(path) as aside:
        table[table.done].drop(columns="done").map(plain_cell).to_csv(aside, index=False)
    return Path(path)


def check_events(folder: str | Path) -> Path:
    """Check that event files can be written, before anything is computed.

    Args:
        folder: folder of the runs, not created.

    Returns:
        The folder.

    Raises:
        ValueError: if tensorboardX is not installed.
        OSError: if the folder, or the folder above one that does not exist, cannot be written to.

    Example:
        >>> check_events("/dev/null/events")
        Traceback (most recent call last):
        NotADirectoryError: cannot write to /dev/null/events: /dev/null is not a folder
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("event files need tensorboardX; install jaxstab[tensorboard]")
    return check_folder(folder)


def write_events(dataset: xr.Dataset, folder: str | Path) -> Path:
    """Write TensorBoard's event files, a run per finished cell.

    A run has the loss and accuracy of every step, and the final accuracies.

    Args:
        dataset: trainings over their axes, as `sweeps.load` gives them.
        folder: folder of the runs; each run's folder is named after its coordinates.

    Returns:
        The folder.

    Raises:
        ValueError: if tensorboardX is not installed.
        OSError: if a file cannot be written.

    Example:
        >>> import tempfile
        >>> known = {"depth": [2, 4], "step": range(3), "evaluation": [3]}
        >>> shares = {n: (("depth", "evaluation"), [[0.5], [0.1]]) for n in ("train_accuracy", "test_accuracy")}
        >>> curves = {n: (("depth", "step"), np.ones((2, 3))) for n in ("loss", "accuracy")}
        >>> ends = {"first_nonfinite": ("depth", [-1, -1]), "done": ("depth", [True, False])}
        >>> dataset = xr.Dataset(shares | curves | ends, known)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sorted(run.name for run in write_events(dataset, folder).iterdir())
        ['depth=2']
    """
    try:
        from tensorboardX import SummaryWriter  # an extra
    except ImportError as error:
        raise ValueError("event files need tensorboardX; install jaxstab[tensorboard]") from error
    axes = [str(dim) for dim in dataset.done.dims]
    varied = [axis for axis in axes if dataset.sizes[axis] > 1]
    for indices in itertools.product(*(range(dataset.sizes[axis]) for axis in axes)):
        cell = dataset.isel(dict(zip(axes, indices, strict=True)))
        if not cell.done:
            continue
        name = ",".join(f"{axis}={cell[axis].item()}" for axis in varied) or "run"
        # a value may be text with separators, which must not lead out of the folder
        name = name.replace("/", "_").replace("\\", "_")
        with SummaryWriter(str(Path(folder) / name)) as writer:
            for field in ("loss", "accuracy"):
                for step, value in enumerate(np.asarray(cell[field])):
                    if math.isfinite(value):
                        writer.add_scalar(field, float(value), step)
            for field in ("train_accuracy", "test_accuracy"):
                for step, value in zip(
                    dataset.evaluation.values, np.asarray(cell[field]), strict=True
                ):
                    writer.add_scalar(field, float(value), int(step))
    return Path(folder)
