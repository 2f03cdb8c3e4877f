"""Measure or train every cell of a grid, in memory or into a store that survives interruptions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from jaxstab.devices import one_blas_thread
from jaxstab.records import Data, dimensions
from jaxstab.store.reading import load_groups
from jaxstab.sweeps.durable import ProgressBar, Sized, batches, complete, open_store
from jaxstab.sweeps.examples import Split
from jaxstab.sweeps.grid import Grid
from jaxstab.sweeps.measures import Measure, Record, Train
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.plan import Plan, measuring_plan
from jaxstab.sweeps.training_plan import training_plan
from jaxstab.sweeps.trainings import Trainings


def plan(
    grid: Grid, measure: Measure | Train, data: Data | Split, chunk_size: int | None = None
) -> Plan:
    """Cut a grid into groups.

    Args:
        grid: grid of the sweep.
        measure: measure of every cell, or `Train`.
        data: examples.
        chunk_size: approximate number of cells of a group; None to choose by memory and work.

    Returns:
        The plan: cells, programs, groups, memory.

    Raises:
        ValueError: if data or grid do not fit, or one cell is too large for this machine.

    Example:
        >>> from jaxstab import datasets, sweeps
        >>> grid = Grid({"sigma_w": (1.0, 1.5, 2.0), "seed": range(4)}, depth=2)
        >>> found = plan(grid, sweeps.signal, datasets.load("digits"))
        >>> found.cells, found.programs, found.groups
        (12, 1, 4)
    """
    if isinstance(measure, Train):
        return training_plan(grid, measure, _split(data), chunk_size)
    return measuring_plan(grid, measure, _whole(data), chunk_size)


def run(
    grid: Grid,
    measure: Measure | Train,
    data: Data | Split,
    *,
    chunk_size: int | None = None,
    progress: ProgressBar = iter,
    devices: Sequence[jax.Device] | None = None,
) -> xr.Dataset:
    """Measure or train every cell of a grid, in one compile per value of the static axes.

    A cell that diverges holds inf or NaN, or the step at which it stopped; other cells are not
    affected.

    Args:
        grid: grid of the sweep.
        measure: `Train`, or a pure function (chain, params, sample, depths) -> record or tuple of
            records, such as `signal` or `jacobian`. Weights in params are drawn at gain 1 and
            shared by all gains; `networks.rescale(params, 1)` multiplies the gain in.
        data: examples to measure at; to train, a `Split`, or data of which a fifth is for testing.
        chunk_size: cells of a group, see `plan`.
        progress: wraps the iterator over computed groups, such as tqdm.
        devices: devices, each of which computes one group at a time; None for all, or for one CPU
            device if the measure decomposes stacks of matrices itself.

    Returns:
        The records' fields as variables over the axes of the grid, static ones first, and the
        dimensions that the records name. Depth is a dimension of the records where it is read off
        from one pass.

    Raises:
        ValueError: if data or grid do not fit, or dtype is "float64" without JAX's x64 mode.
        MemoryError: if training one cell at a time does not fit into memory.

    Example:
        >>> from jaxstab import datasets, sweeps
        >>> grid = Grid({"depth": (1, 2), "sigma_w": (1.0, 1.5)}, width=16, learning_rate=0.1, batch=32)
        >>> found = run(grid, sweeps.Train(steps=60), datasets.load("digits"))
        >>> found.train_accuracy.dims, bool(found.train_accuracy.isel(evaluation=-1).min() > 0.6)
        (('depth', 'sigma_w', 'evaluation'), True)
    """
    job = job_of(grid, measure, data, chunk_size, devices)
    count = job.plan.groups
    lengths = tuple(axis.length for axis in job.axes.values())
    arrays: dict[str, np.ndarray] = {
        name: np.empty((*lengths, *field.shape), field.dtype) for name, field in job.fields.items()
    }
    with one_blas_thread():
        parts = batches(range(count), len(job.devices), job.program, job.rank)
        results = job.compute(parts, range(count))
        for result in progress(Sized(results, count)):
            slices = tuple(job.plan.at(result.group).values())
            inside = job.plan.inside(result.group)
            for name, array in arrays.items():
                array[slices] = result.values[name][inside]
    variables = {
        name: ((*job.axes, *field.dims), arrays[name]) for name, field in job.fields.items()
    }
    return xr.Dataset(variables, job.coordinates).assign_attrs(as_attributes(job.decided))


def run_into(
    place: str | Path,
    grid: Grid,
    measure: Measure | Train,
    data: Data | Split,
    *,
    shard: tuple[int, int] | None = None,
    join: bool = False,
    progress: ProgressBar = iter,
    chunk_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> xr.Dataset:
    """Measure or train every cell of a grid into a store; the same call resumes an interrupted run.

    The bytes of the finished store do not depend on interruptions, the number of devices, or the
    number of processes.

    Args:
        place: the store: a future folder, or an fsspec URL such as s3://bucket/sweep.zarr.
        grid: as in `run`.
        measure: as in `run`.
        data: as in `run`.
        shard: (I, N), the I-th of N equal parts of the groups; None for all.
        join: True to share the groups with a run in progress; each group goes to the run that
            claims it first.
        progress: wraps the iterator over computed groups, such as tqdm; each group is committed
            before the next is requested.
        chunk_size: cells of a group, see `plan`.
        devices: as in `run`.

    Returns:
        The dataset of `run`, with the mask `done` of computed cells.

    Raises:
        ValueError: if data or grid do not fit, or the store is of another sweep; the message names
            the differences.
        FileExistsError: if the place exists and is no such store; it is left unchanged.
        BlockingIOError: if another run has some of these groups and join is False; the message
            names the run.
        OSError: if the place cannot be written to.
        MemoryError: if training one cell at a time does not fit into memory.

    Example:
        >>> from jaxstab import datasets, sweeps
        >>> grid = Grid({"sigma_w": (1.0, 2.0), "depth": (2,)}, width=8)
        >>> found = run_into("memory://doctest/measured.zarr", grid, sweeps.signal, datasets.load("digits"))
        >>> found.log_q.dims, bool(found.done.all())
        (('sigma_w', 'input', 'layer'), True)
    """
    job = job_of(grid, measure, data, chunk_size, devices)
    complete(open_store(place, job), job, shard, join, progress)
    return load(place)


def load(place: str | Path) -> xr.Dataset:
    """Load the store of `run_into`; cells not computed are NaN, and False in `done`.

    Args:
        place: the store.

    Returns:
        The dataset of `run_into`.

    Raises:
        ValueError: if place is no store of a sweep, or the values along an axis are torn.
    """
    dataset = load_groups(place)
    if not {"grid", "data"} <= set(dataset.attrs):
        raise ValueError(f"{place}: not a store of a sweep: its settings lack grid or data")
    torn = [str(name) for name in dataset["done"].dims if name not in dataset.coords]
    if torn:
        raise ValueError(
            f"{place}: the values along {', '.join(torn)} are missing or torn; the command that made "
            "the store restores them"
        )
    return dataset.assign_attrs(as_attributes(dataset.attrs))


def job_of(
    grid: Grid,
    measure: Measure | Train,
    data: Data | Split,
    chunk_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Measuring | Trainings:
    """Make the job of the durable run that `run` and `run_into` compute.

    Args:
        grid: as in `run`.
        measure: as in `run`.
        data: as in `run`.
        chunk_size: cells of a group, see `plan`.
        devices: as in `run`.

    Returns:
        The job.

    Raises:
        ValueError: as `run` does.
    """
    cuts = plan(grid, measure, data, chunk_size)
    if isinstance(measure, Train):
        split = _split(data)
        return Trainings(grid, measure, split, cuts, devices=devices)
    return Measuring(grid, measure, _whole(data), cuts, devices=devices)


def _split(data: Data | Split) -> Split:
    if isinstance(data, Split):
        return data
    return Split.of(data)


def _whole(data: Data | Split) -> Data:
    if isinstance(data, Split):
        raise ValueError("data must be one Data to measure at, got a Split; use split.train")
    return data


def as_attributes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to attributes of a dataset.

    Args:
        settings: settings of a sweep.

    Returns:
        Text by name; settings that are no text become JSON. Descriptions of the data have names
        that begin with "data_"; "data" is the name of the data.
    """
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
        if name != "data"
    }
    data = {f"data_{name}": value for name, value in settings["data"].items() if name != "name"}
    return texts | {"data": settings["data"]["name"]} | data


def labelled(records: Iterable[Record], cell: tuple[str, ...]) -> xr.Dataset:
    """Combine records with leading axes into one dataset.

    Args:
        records: records of different fields.
        cell: names of the leading axes.

    Returns:
        Fields of all records over (*cell, ...); the records name the other dimensions.
    """
    return xr.Dataset(
        {
            field: ((*cell, *dimensions(type(record), field, array.ndim - len(cell))), array)
            for record in records
            for field, array in record._asdict().items()
        }
    )
