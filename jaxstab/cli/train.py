"""`jaxstab train`: train a grid of networks, group by group, into a store that survives."""

import dataclasses
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxstab import datasets, sweeps
from jaxstab.cli import cluster, history, interrupts
from jaxstab.cli.arguments import choice
from jaxstab.cli.family import Family
from jaxstab.cli.faults import (
    UserError,
    check_memory,
    check_networks,
    divide_cpu,
    told_time,
    users_fault,
)
from jaxstab.cli.tried import tried
from jaxstab.store import export, files
from jaxstab.sweeps.durable import Result, Sized, complete, open_store
from jaxstab.sweeps.settings import OPTIMISERS
from jaxstab.sweeps.training_plan import available, total_flops, training_plan
from jaxstab.sweeps.trainings import Trainings

# GiB of a device: more than any has
_MOST_MEMORY = 65_536
# of a core, at width 128 and batch 128: 166 GFLOP/s on two were measured
CORE_FLOPS = 83e9


@dataclasses.dataclass(frozen=True)
class Train(Family):
    """Train networks of every depth, gain, learning rate, ... on real digits, and keep what each did.

    Runs that stop for any reason go on where they were when the same command is given again.
    Several processes share a store with --shard I/N (an array job, no communication), --join
    (whoever is free), or --distributed (JAX's own engine, several hosts).
    """

    out: str = "runs/trained.zarr"
    """Where results go: a folder, or an fsspec URL such as s3://bucket/trained.zarr."""
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Depths, ascending."""
    sigma_w: tuple[float, ...] = tuple(float(gain) for gain in np.linspace(0.5, 2.5, 12).round(4))
    """Weight gains, ascending."""
    batch: int | None = 128
    """Examples per update; None for all."""
    sigma_b: tuple[float, ...] = (0.05**0.5,)
    """Standard deviations of the biases, ascending."""
    learning_rates: tuple[float, ...] = (0.01,)
    """Learning rates, ascending."""
    clips: tuple[float, ...] = (math.inf,)
    """Largest norms of a gradient, ascending; inf for no clipping."""
    dropouts: tuple[float, ...] = (0.0,)
    """Shares of features dropped, ascending."""
    steps: int = 200
    """Updates."""
    optimiser: choice(str, OPTIMISERS, "--optimizer") = "sgd"  # type: ignore[valid-type]
    """Optimiser."""
    evaluate: tuple[int, ...] = (0,)
    """Numbers of updates after which to evaluate all data, besides the end."""
    curvature_every: int | None = None
    """Updates from one record of the sharpness of the loss to the next; not recorded unless given."""
    memory: float | None = None
    """GiB of a device that may be used; from the device unless given."""
    lanes: int | None = None
    """Networks trained side by side on a device; one on a CPU, what fits elsewhere, unless given."""
    group: int | None = None
    """Networks of a group, which is computed by one device and kept as a whole; some seconds' work unless given."""
    shard: str = "1/1"
    """I/N: the I-th of N equal parts of the groups."""
    join: bool = False
    """Share the store with runs that have it, each group going to whoever is first."""
    distributed: bool = False
    """Share the groups among the processes of a cluster that JAX recognises (SLURM, Kubernetes, TPU pods, ...)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for --distributed where JAX does not find it by itself; with --processes, --process."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    coordinator_timeout: float = 60.0
    """Seconds that --distributed waits for the other processes."""
    csv: Path | None = None
    """Also write a line per network to this file at the end."""
    tensorboard: Path | None = None
    """Also write TensorBoard's event files, a run per network, to this folder at the end."""

    def grid(self) -> sweeps.Grid:
        """The grid of these settings."""
        axes = {
            "activation": self.activations,
            "depth": self.depths,
            "sigma_w": self.sigma_w,
            "sigma_b": self.sigma_b,
            "learning_rate": self.learning_rates,
            "clip": self.clips,
            "dropout": self.dropouts,
            "seed": self.seed_axis(),
        }
        return sweeps.Grid(
            axes,
            weights=self.weights,
            norm=self.norm,
            norm_after=self.norm_after,
            precision=self.precision,
            skip=self.skip,
            width=self.width,
            batch=self.batch,
            optimiser=self.optimiser,
            dtype=self.dtype,
        )

    def measure(self) -> sweeps.Train:
        """What a training is."""
        return sweeps.Train(self.steps, self.evaluate, curvature_every=self.curvature_every)

    def sharing(self) -> cluster.Sharing:
        """The flags that say how processes share the grid."""
        return cluster.Sharing(
            self.shard,
            self.distributed,
            self.coordinator,
            self.processes,
            self.process,
            self.coordinator_timeout,
        )


def train(settings: Train) -> None:
    """Run `jaxstab train`.

    Args:
        settings: the flags.

    Raises:
        KeyboardInterrupt: when told to stop; what is finished is kept.
    """
    divide_cpu(settings.cpu_devices)
    with users_fault():
        grid, measure, data = _checked(settings)
        # before JAX first looks for its devices
        if settings.dry_run:
            part = (1, 1)
        else:
            part = cluster.part(settings.sharing())
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

    def told() -> str:
        return f"{len(groups.marks())} of {groups.count} groups are in {settings.out}"

    try:
        with users_fault(), interrupts.resumable(told):
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
        others = f" ({left} groups are left to others)"
    print(f"store: {settings.out}{others}")


def _checked(settings: Train) -> tuple[sweeps.Grid, sweeps.Train, sweeps.Split]:
    """The grid, the training and its data; all that can be refused is refused, and nothing is written."""
    _check_size(settings)
    grid = settings.grid()
    measure = settings.measure()
    cluster.check(settings.sharing())
    _check_outputs(settings)
    return grid, measure, split(settings.data, settings.data_path)


def _planned(
    settings: Train, grid: sweeps.Grid, measure: sweeps.Train, data: sweeps.Split
) -> sweeps.Plan:
    """How the grid is cut into groups that fit into memory."""
    if settings.memory is None:
        budget = available()
    else:
        budget = int(settings.memory * 2**30)
    plan = training_plan(grid, measure, data, settings.group, budget, settings.lanes)
    if plan.memory > budget:
        raise ValueError(
            f"{plan.lanes} lanes take {plan.memory} bytes, {budget} may be used; fewer would do"
        )
    return plan


def _header(grid: sweeps.Grid, measure: sweeps.Train, plan: sweeps.Plan, data: sweeps.Split) -> str:
    """What is going to be trained, in a line."""
    devices = jax.local_devices()
    work = total_flops(grid, measure, data)
    rough = ""
    if devices[0].platform == "cpu":
        rough = f", on this CPU {told_time(work / (CORE_FLOPS * (os.cpu_count() or 1)))} or more"
    return (
        f"{grid.count} networks in {plan.groups} groups of {plan.size}, {plan.programs} programs, "
        f"{work / 1e12:.3g} TFLOP{rough}; {plan.lanes} at once in about {plan.memory / 2**20:.0f} "
        "MiB on each of "
        f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}"
    )


def split(name: str, path: Path | None) -> sweeps.Split:
    """Data to train and to test on: a fifth of them, unless they come apart.

    Args:
        name: of the data set, as in `datasets.load`.
        path: of its files, likewise.

    Returns:
        The two.

    Raises:
        ValueError: if there are not two examples.
    """
    whole = datasets.load(name, path)
    if name == "mnist":
        return sweeps.Split(whole, datasets.load(name, path, train=False))
    return sweeps.divided(whole)


@dataclasses.dataclass
class _Tally:
    """What a run did, for its last line."""

    cells: int = 0
    at_once: int = 0
    later: int = 0
    working: float = 0.0
    compiling: float = 0.0
    flops: float = 0.0
    begun: float = dataclasses.field(default_factory=time.perf_counter)

    def line(self) -> str:
        """The summary."""
        if not self.cells:
            return "nothing was left to do"
        whole = time.perf_counter() - self.begun
        return (
            f"{self.cells} networks trained in {whole:.1f} s, {self.at_once} not finite from the "
            f"start, {self.later} "
            f"later; {self.flops / max(self.working, 1e-9) / 1e9:.0f} GFLOP/s; "
            f"{100 * self.compiling / whole:.0f} % of the time compiling"
        )

    def watching(self, job: Trainings) -> sweeps.ProgressBar:
        """Count the groups of a job as they are kept, and show how far it is."""

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
    """Refuse grids that no machine could hold, before anything is made of them."""
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
    """Refuse places and packages that are missing, before anything is trained for them."""
    if settings.csv:
        files.check_file(settings.csv)
    if settings.tensorboard:
        export.check_events(settings.tensorboard)
