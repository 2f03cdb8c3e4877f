"""Trial of a job before the run: compile one program, time its first groups, and state its memory."""

import time
from typing import NamedTuple

from jaxstab.devices import one_blas_thread
from jaxstab.sweeps.durable import batches
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.trainings import Trainings


class Trial(NamedTuple):
    """Time and memory of the first groups of a job, one on each device.

    Attributes:
        groups: numbers of the groups.
        seconds: seconds of computing the groups with a compiled program.
        compiling: seconds of tracing and compiling the program.
        memory: bytes on each device, as stated by the compiler.
    """

    groups: tuple[int, ...]
    seconds: float
    compiling: float
    memory: int


def trial(job: Measuring | Trainings) -> Trial:
    """Compute the first groups of a job twice, and discard the results.

    Args:
        job: the job.

    Returns:
        Time and memory of the groups. The first groups of trainings are the deepest.
    """
    groups = next(batches(range(job.plan.groups), len(job.devices), job.program, job.rank))
    with one_blas_thread():
        first = _seconds(job, groups)
        second = _seconds(job, groups)
    return Trial(tuple(groups), second, max(0.0, first - second), job.memory(groups[0]))


def _seconds(job: Measuring | Trainings, groups: list[int]) -> float:
    """Time some groups, compiling included if their program is not compiled."""
    begun = time.perf_counter()
    for _ in job.compute([groups], groups):
        pass
    return time.perf_counter() - begun
