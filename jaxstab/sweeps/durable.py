"""The durable run: open a store, claim its groups, compute and commit each, resume after interruptions.

Measuring and training are run this way. A `Job` defines the computation. The store records which
groups are finished, and which process holds which group.
"""

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import store
from jaxstab.devices import one_blas_thread
from jaxstab.store import claims, fingerprint, opening
from jaxstab.store.groups import Groups


class Result(NamedTuple):
    """Values of a finished group.

    Attributes:
        group: number of the group.
        values: arrays [*cells of a group, ...] by field; cells beyond the end of an axis are blank.
        seconds: seconds of the batch of groups computed together, divided by their number,
            without compiling.
        compiling: seconds spent waiting for the batch's program, divided likewise; about 0 for a
            compiled program.
    """

    group: int
    values: Mapping[str, np.ndarray]
    seconds: float = 0.0
    compiling: float = 0.0


ProgressBar = Callable[[Any], Iterable[Any]]


@runtime_checkable
class Job(Protocol):
    """Groups of cells to compute, and the layout of their store."""

    @property
    def devices(self) -> Sequence[jax.Device]:
        """Devices, each of which computes one group at a time."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that the results depend on."""

    @property
    def fields(self) -> Mapping[str, store.Field]:
        """Fields stored for each cell."""

    @property
    def axes(self) -> Mapping[str, store.Axis]:
        """Axes that are cut into groups."""

    @property
    def coordinates(self) -> Mapping[str, tuple[tuple[str, ...], Any]]:
        """Coordinates of the dataset, known before the run: (dims, values) by name."""

    def program(self, group: int) -> Hashable:
        """Return the key of a group's program; groups with equal keys run side by side."""

    def rank(self, group: int) -> Any:
        """Return the sort key of a group; groups of lower rank are computed first."""

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Compute batches of groups, each batch of one program and of at most one group per device.

        `pending` are the groups that may follow.
        """


class Sized:
    """Iterator over results with a length, for progress bars."""

    def __init__(self, results: Iterable[Result], count: int) -> None:
        """Store the results and their number.

        Args:
            results: iterator over results.
            count: number of results.
        """
        self._results = results
        self._count = count

    def __iter__(self) -> Iterator[Result]:
        """Iterate over the results."""
        return iter(self._results)

    def __len__(self) -> int:
        """Number of results; fewer come if another run computes some."""
        return self._count


def batches(
    groups: Iterable[int],
    most: int,
    program: Callable[[int], Hashable],
    rank: Callable[[int], Any],
) -> Iterator[list[int]]:
    """Batch groups that share a program, in order of rank.

    Args:
        groups: numbers of the groups.
        most: largest number of groups in a batch.
        program: key of a group's program.
        rank: sort key; the lowest come first.

    Yields:
        Batches of group numbers.
    """
    for _, same in itertools.groupby(sorted(groups, key=rank), program):
        numbers = list(same)
        yield from (numbers[i : i + most] for i in range(0, len(numbers), most))


def settings_of_run() -> dict[str, Any]:
    """Collect settings that results depend on beside grid and data: random numbers, machine, code.

    Returns:
        Plain settings for a store.
    """
    return {
        "platform": jax.default_backend(),
        "random": {
            "generator": str(jax.random.key_impl(jax.random.key(0))),
            "partitionable": jax.config.jax_threefry_partitionable,  # type: ignore[attr-defined]
            # integers are as wide as the default float, and their width changes the minibatches
            "default": jnp.result_type(float).name,
        },
        "machine": fingerprint.machine(),
        "code": fingerprint.code_version(),
    }


def open_store(place: str | Path, job: Job) -> Groups:
    """Create the store of a job, or open an existing store of the same job.

    Args:
        place: a future folder, or an fsspec URL.
        job: job of the run.

    Returns:
        The store.

    Raises:
        OtherSweepError: if the store is of another job; the message names the changes.
        ValueError: if an argument is invalid, or the store is damaged.
        FileExistsError: if the place exists and is no such store; it is left unchanged.
        OSError: if the place cannot be written to.
    """
    return opening.open_grid(place, job.settings, job.fields, job.axes, job.coordinates)


def complete(
    groups: Groups,
    job: Job,
    shard: tuple[int, int] | None = None,
    join: bool = False,
    progress: ProgressBar = iter,
) -> None:
    """Compute and commit the unfinished groups of a store.

    A committed group stays finished. A second run of the same groups is refused, so that no group
    is written twice.

    Args:
        groups: the store, from `open_store`.
        job: job of the run.
        shard: (I, N), the I-th of N equal parts; None for all groups.
        join: True to share the groups with a run in progress; each group goes to the run that
            claims it first.
        progress: wraps the iterator over results, such as tqdm; each result is committed before
            the next is requested.

    Raises:
        BlockingIOError: if another run has some of these groups and join is False; the message
            names the run.
        OSError: if the store cannot be written to.
    """
    with claims.claim(groups, shard or (1, 1), join) as claim, one_blas_thread():
        batches = claim.batches(len(job.devices), job.program, job.rank)
        results = job.compute(batches, claim.pending)
        for result in progress(Sized(results, len(claim.pending))):
            claim.commit(result.group, {name: result.values[name] for name in groups.fields})
