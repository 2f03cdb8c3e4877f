"""The durable run: open a store, claim its groups, compute them, commit each, and go on after any interruption.

Measuring and training are both run this way. What they compute is a `Job`; who computes which
group, and what is finished, is the store's to say.
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
    """A finished group.

    Attributes:
        group: its number.
        values: arrays [*cells of a group, ...] by field; cells beyond the end of an axis are blank.
        seconds: its share of the time that it and those beside it took, compiling not included.
        compiling: its share of the seconds spent waiting for their program, next to none for most
            groups.
    """

    group: int
    values: Mapping[str, np.ndarray]
    seconds: float = 0.0
    compiling: float = 0.0


ProgressBar = Callable[[Any], Iterable[Any]]


@runtime_checkable
class Job(Protocol):
    """Groups of cells to compute, and the store that they go into."""

    @property
    def devices(self) -> Sequence[jax.Device]:
        """Devices that compute a group each, side by side."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that decides a number."""

    @property
    def fields(self) -> Mapping[str, store.Field]:
        """What is kept of each cell."""

    @property
    def axes(self) -> Mapping[str, store.Axis]:
        """The axes that are cut into groups."""

    @property
    def coordinates(self) -> Mapping[str, tuple[tuple[str, ...], Any]]:
        """What is known before anything is computed: (dims, values) by name."""

    def program(self, group: int) -> Hashable:
        """What decides the program of a group; groups of one program run side by side."""

    def rank(self, group: int) -> Any:
        """When a group is best computed: the lowest first."""

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Compute batches of groups of one program, no more than there are devices; pending are those that may come."""


class Sized:
    """Results as they come, whose number is known: what a progress bar takes."""

    def __init__(self, results: Iterable[Result], count: int) -> None:
        """Take results and how many they may be.

        Args:
            results: as they come.
            count: how many.
        """
        self._results = results
        self._count = count

    def __iter__(self) -> Iterator[Result]:
        """One after the other."""
        return iter(self._results)

    def __len__(self) -> int:
        """How many come, unless another run computes some."""
        return self._count


def batches(
    groups: Iterable[int],
    most: int,
    program: Callable[[int], Hashable],
    rank: Callable[[int], Any],
) -> Iterator[list[int]]:
    """Share groups out over devices: those of one program side by side.

    Args:
        groups: their numbers.
        most: groups computed at a time.
        program: what decides the program of a group.
        rank: the lowest go first.

    Yields:
        Numbers of groups of one program.
    """
    for _, same in itertools.groupby(sorted(groups, key=rank), program):
        numbers = list(same)
        yield from (numbers[i : i + most] for i in range(0, len(numbers), most))


def settings_of_run() -> dict[str, Any]:
    """What decides a number beside grid and data: random numbers, machine and code.

    Returns:
        Plain settings for a store.
    """
    return {
        "platform": jax.default_backend(),
        "random": {
            "generator": str(jax.random.key_impl(jax.random.key(0))),
            "partitionable": jax.config.jax_threefry_partitionable,  # type: ignore[attr-defined]
            # the default float; integers are as wide, and other integers draw other minibatches
            "default": jnp.result_type(float).name,
        },
        "machine": fingerprint.machine(),
        "code": fingerprint.code_version(),
    }


def open_store(place: str | Path, job: Job) -> Groups:
    """Make the store of a job, or open the one that is there if it is of the same job.

    Args:
        place: a folder to be, or an fsspec URL.
        job: what is computed.

    Returns:
        The store.

    Raises:
        OtherSweepError: if the store is of another job; says what changed.
        ValueError: if an argument will not do, or the store is damaged.
        FileExistsError: if something that is no such store stands there; it is left alone.
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
    """Compute and commit the groups of a store that are not finished.

    A group counts as finished once it is committed, whatever happens later. Another run of the same
    groups is refused, so no group is written twice.

    Args:
        groups: the store, as `open_store` gives it.
        job: what is computed.
        shard: (I, N), the I-th of N equal parts; None for all groups.
        join: whether to share the groups with a run that has them, each going to whoever is first.
        progress: wraps the results as they come, such as tqdm; each is committed before the next is
            asked for.

    Raises:
        BlockingIOError: if another run has some of these groups and join is False; says who.
        OSError: if the store cannot be written to.
    """
    with claims.claim(groups, shard or (1, 1), join) as claim, one_blas_thread():
        batches = claim.batches(len(job.devices), job.program, job.rank)
        results = job.compute(batches, claim.pending)
        for result in progress(Sized(results, len(claim.pending))):
            claim.commit(result.group, {name: result.values[name] for name in groups.fields})
