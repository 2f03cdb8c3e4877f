"""Trainings as a job of the durable run: into a store, group by group."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from jaxstab import store
from jaxstab.records import Training, dimensions
from jaxstab.sweeps import ProgressBar, complete, open_store
from jaxstab.sweeps.durable import settings_of_run
from jaxstab.trainability.grid import Grid, Split
from jaxstab.trainability.plan import Plan
from jaxstab.trainability.plan import plan as plan_of
from jaxstab.trainability.run import Result, coordinates, fields, restored, run


class Trainings:
    """A grid of trainings as a job of the durable run.

    Attributes:
        grid: what to train.
        plan: how it is cut into groups.
        data: to train and test on.
        devices: a group is computed by each.
        settings: all that decides a number.
        fields: what is kept of each cell.
        axes: those that are cut into groups.
        coordinates: where each row stands on the axes of the grid.
    """

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        data: Split,
        *,
        precision: str = "highest",
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Say what is kept of each cell, and what decides it.

        Args:
            grid: what to train.
            plan: how it is cut.
            data: to train and test on.
            precision: of matrix products.
            devices: to compute a group each; None for all.
        """
        self.grid = grid
        self.plan = plan
        self.data = data
        self.devices = jax.local_devices() if devices is None else devices
        self.fields = {
            name: store.Field(one.shape, one.dtype.name, dimensions(Training, name, len(one.shape)))
            for name, one in fields(grid).items()
        }
        self.axes = {"row": store.Axis(len(plan.groups) * plan.size, plan.size)}
        self.coordinates = coordinates(grid, plan)
        self._precision = precision
        self.settings = {
            "grid": json.loads(grid.to_json()),
            "plan": {"size": plan.size, "lanes": plan.lanes, "programs": plan.programs},
            "precision": precision,
            "data": {
                "train": data.train.sha256,
                "test": data.test.sha256,
                "name": data.train.name,
                "classes": data.classes,
                "chance": data.chance,
            },
        } | settings_of_run()

    def program(self, group: int) -> tuple[int, int]:
        """Say what decides the program of a group.

        Args:
            group: its number.

        Returns:
            Kind of network, and the depth that the program is made for.
        """
        return self.plan.program(group)

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Train groups, as `run` does.

        Args:
            batches: numbers of groups of one program, no more than there are devices.
            pending: groups that may come.

        Returns:
            The groups as they are finished.
        """
        options: dict[str, Any] = {
            "pending": pending,
            "devices": self.devices,
            "precision": self._precision,
        }
        return run(self.grid, self.plan, self.data, batches, **options)


def run_into(
    place: str | Path,
    grid: Grid,
    data: Split,
    *,
    shard: tuple[int, int] | None = None,
    join: bool = False,
    progress: ProgressBar = iter,
    plan: Plan | None = None,
    precision: str = "highest",
    devices: Sequence[jax.Device] | None = None,
) -> xr.Dataset:
    """Train a grid into a store, group by group; the same call goes on where a stopped one stood.

    The finished store is the same, byte by byte, however often the run was interrupted, on any
    number of devices, and however many processes shared it.

    Args:
        place: the store: a folder to be, or an fsspec URL such as s3://bucket/trained.zarr.
        grid: what to train.
        data: to train and test on.
        shard: (I, N), the I-th of N equal parts of the groups; None for all.
        join: whether to share the groups with a run that has them, each going to whoever is first.
        progress: wraps the groups as they are trained, such as tqdm; each is kept before the next
            is asked for.
        plan: how the grid is cut; None for `plan(grid, data)`.
        precision: of matrix products.
        devices: to compute a group each; None for all.

    Returns:
        What the store holds, over the axes of the grid, as `restored` has it.

    Raises:
        ValueError: if data or grid do not fit, or the store is of another grid; says what differs.
        FileExistsError: if something else stands at the place; it is left alone.
        BlockingIOError: if another run has some of these groups and join is False; says who.
        OSError: if the place cannot be written to.

    Example:
        >>> from jaxstab import datasets
        >>> digits = datasets.load("digits")
        >>> grid = Grid(depths=(1,), sigma_w=(1.0, 1.5), width=8, steps=5, batch=16)
        >>> found = run_into("memory://doctest/trained.zarr", grid, Split(digits, digits))
        >>> dict(found.loss.squeeze().sizes), bool(found.done.all())
        ({'sigma_w': 2, 'step': 5}, True)
    """
    job = Trainings(
        grid,
        plan_of(grid, data) if plan is None else plan,
        data,
        precision=precision,
        devices=devices,
    )
    complete(open_store(place, job), job, shard, join, progress)
    return restored(store.load_groups(place))
