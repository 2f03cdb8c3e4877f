"""`jaxstab train`: train a grid of networks into a store, group by group, resumable."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxstab import datasets, sweeps
from jaxstab.checks import check_count
from jaxstab.cli import cluster, history, interrupts
from jaxstab.cli.faults import (
    UserError,
    check_memory,
    check_networks,
    divide_cpu,
    duration,
    users_fault,
)
from jaxstab.cli.settings import Train
from jaxstab.cli.tried import tried
from jaxstab.store import export, files
from jaxstab.sweeps.durable import ProgressBar, Result, Sized, complete, open_store
from jaxstab.sweeps.training_plan import available, total_flops, training_plan
from jaxstab.sweeps.trainings import Trainings

# upper bound of a device's memory in GiB
_MOST_MEMORY = 65_536
# FLOP/s of a core at width 128 and batch 128, measured as 166 GFLOP/s on two
CORE_FLOPS = 83e9


def train(settings: Train) -> None:
    """Run `jaxstab train`.

    Args:
        settings: the flags.

    Raises:
        KeyboardInterrupt: if interrupted; finished groups are kept.
    """
    divide_cpu(settings.cpu_devices)
    with users_fault():
        grid, measure, data = _checked(settings)
        # jax.distributed must start before JAX looks for devices
        if settings.dry_run:
            part = (1, 1)
        else:
            part = cluster.part(_sharing(settings))
        plan = _planned(settings, grid, measure, data)
        header = _header(grid, measure, plan, data)
        job = Trainings(grid, measure, data, plan)
        if settings.dry_run:
            print(header, flush=True)
            print(tried("trainings", job))
            return
        groups = open_store(settings.out, job)
    print(header, flush=True)
    tally = _Tally()

    def progress() -> str:
        return f"{len(groups.marks())} of {groups.count} groups are in {settings.out}"

    try:
        with users_fault(), interrupts.resumable(progress):
            complete(groups, job, part, settings.join, tally.watching(job))
    finally:
        history.note(settings.out, tally.cells)
    print(tally.line())
    left = plan.groups - len(groups.marks())
    if settings.csv or settings.tensorboard:
        with users_fault():
            dataset = sweeps.load(settings.out)
            if settings.csv:
                print(f"table: {export.write_table(dataset, settings.csv)}")
            if settings.tensorboard:
                print(f"events: {export.write_events(dataset, settings.tensorboard)}")
    others = ""
    if left:
        others = f" ({left} groups are unfinished)"
    print(f"store: {settings.out}{others}")


def _checked(settings: Train) -> tuple[sweeps.Grid, sweeps.Train, sweeps.Split]:
    """Make the grid, the training and its data, and check all settings; nothing is written."""
    _check_size(settings)
    grid = _grid(settings)
    measure = sweeps.Train(
        settings.steps, settings.evaluate, curvature_every=settings.curvature_every
    )
    cluster.check(_sharing(settings))
    _check_outputs(settings)
    return grid, measure, split(settings.data, settings.data_path)


def _grid(settings: Train) -> sweeps.Grid:
    """Make the grid that the flags describe."""
    axes = {
        "activation": settings.activations,
        "depth": settings.depths,
        "sigma_w": settings.sigma_w,
        "sigma_b": settings.sigma_b,
        "learning_rate": settings.learning_rates,
        "clip": settings.clips,
        "dropout": settings.dropouts,
        # a range, as a list of seeds may exceed memory
        "seed": range(check_count("seeds", settings.seeds, 1)),
    }
    return sweeps.Grid(axes, **settings.of_networks, optimiser=settings.optimiser)


def _sharing(settings: Train) -> cluster.Sharing:
    """Collect the flags that divide the grid among processes."""
    return cluster.Sharing(
        settings.shard,
        settings.distributed,
        settings.coordinator,
        settings.processes,
        settings.process,
        settings.coordinator_timeout,
    )


def _planned(
    settings: Train, grid: sweeps.Grid, measure: sweeps.Train, data: sweeps.Split
) -> sweeps.Plan:
    """Cut the grid into groups that fit into memory."""
    if settings.memory is None:
        budget = available()
    else:
        budget = int(settings.memory * 2**30)
    plan = training_plan(grid, measure, data, settings.group, budget, settings.lanes)
    if plan.memory > budget:
        raise ValueError(
            f"{plan.lanes} lanes take {plan.memory} bytes, at most {budget} may be used; use fewer "
            "lanes"
        )
    return plan


def _header(grid: sweeps.Grid, measure: sweeps.Train, plan: sweeps.Plan, data: sweeps.Split) -> str:
    """Describe the trainings in a line."""
    devices = jax.local_devices()
    work = total_flops(grid, measure, data)
    rough = ""
    if devices[0].platform == "cpu":
        rough = f", on this CPU {duration(work / (CORE_FLOPS * (os.cpu_count() or 1)))} or more"
    return (
        f"{grid.count} networks in {plan.groups} groups of {plan.size}, {plan.programs} programs, "
        f"{work / 1e12:.3g} TFLOP{rough}; {plan.lanes} at once in about {plan.memory / 2**20:.0f} "
        "MiB on each of "
        f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
    )


def split(name: str, path: Path | None) -> sweeps.Split:
    """Load training and test data: MNIST's own split, or a fifth of other data for testing.

    Args:
        name: name of the data set, as in `datasets.load`.
        path: path of its files, as in `datasets.load`.

    Returns:
        The split.

    Raises:
        ValueError: if there are fewer than two examples.
    """
    whole = datasets.load(name, path)
    if name == "mnist":
        return sweeps.Split(whole, datasets.load(name, path, train=False))
    return sweeps.Split.of(whole)


@dataclasses.dataclass
class _Tally:
    """Counts and times of a run, for its last line."""

    cells: int = 0
    at_once: int = 0
    later: int = 0
    working: float = 0.0
    compiling: float = 0.0
    flops: float = 0.0
    begun: float = dataclasses.field(default_factory=time.perf_counter)

    def line(self) -> str:
        """Describe the run in a line."""
        if not self.cells:
            return "nothing was left to do"
        whole = time.perf_counter() - self.begun
        return (
            f"{self.cells} networks trained in {whole:.1f} s, {self.at_once} not finite from the "
            f"start, {self.later} "
            f"later; {self.flops / max(self.working, 1e-9) / 1e9:.0f} GFLOP/s; "
            f"{100 * self.compiling / whole:.0f} % of the time compiling"
        )

    def watching(self, job: Trainings) -> ProgressBar:
        """Make a progress bar that counts the committed groups of a job."""

        def wrap(results: Sized) -> Iterator[Result]:
            with tqdm(total=len(results), unit="group", dynamic_ncols=True, mininterval=0.5) as bar:
                for result in results:
                    # a signal's exception may have been lost in a callback
                    interrupts.check()
                    yield result
                    ends = result.values["first_nonfinite"][job.plan.inside(result.group)]
                    self._count(result, np.asarray(ends))
                    self.flops += job.flops(result.group)
                    depth = job.place(result.group)[1]
                    bar.set_postfix_str(
                        f"depth {depth}, {self.compiling:.0f} s compiling", refresh=False
                    )
                    bar.update()

        return wrap

    def _count(self, result: Result, first_nonfinite: np.ndarray) -> None:
        self.cells += first_nonfinite.size
        self.at_once += int(np.sum(first_nonfinite == 0))
        self.later += int(np.sum(first_nonfinite > 0))
        self.working += result.seconds
        self.compiling += result.compiling


def _check_size(settings: Train) -> None:
    """Check that the grid is not too large, before anything is allocated."""
    kinds = ("activations", "depths", "sigma_w", "sigma_b", "learning_rates", "clips", "dropouts")
    axes = {name: len(getattr(settings, name)) for name in kinds}
    networks = check_networks(axes | {"seeds": settings.seeds})
    check_memory("one network", 4.0 * max((0, *settings.depths)) * settings.width**2)
    if settings.memory is not None and not 0 < settings.memory <= _MOST_MEMORY:
        raise UserError(f"--memory must be in (0, {_MOST_MEMORY}] GiB, got {settings.memory:g}")
    for flag, value in (("--lanes", settings.lanes), ("--group", settings.group)):
        if value is not None and not 1 <= value <= networks:
            raise UserError(f"{flag} must be in 1..{networks}, the number of networks, got {value}")


def _check_outputs(settings: Train) -> None:
    """Check folders and packages of the outputs, before anything is trained."""
    if settings.csv:
        files.check_file(settings.csv)
    if settings.tensorboard:
        export.check_events(settings.tensorboard)
