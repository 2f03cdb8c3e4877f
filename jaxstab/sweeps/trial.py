"""Try a job before it is run: compile one program, time its first groups, and ask the compiler for memory."""

import time
from typing import NamedTuple

from jaxstab.devices import one_blas_thread
from jaxstab.sweeps.durable import batches
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.trainings import Trainings


class Trial(NamedTuple):
    """What the first groups of a job took, one on each device.

    Attributes:
        groups: their numbers.
        seconds: of computing them, once their program is compiled.
        compiling: seconds of tracing and compiling their program.
        memory: bytes that each device needs, as the compiler says.
    """

    groups: tuple[int, ...]
    seconds: float
    compiling: float
    memory: int


def trial(job: Measuring | Trainings) -> Trial:
    """Compute the first groups of a job twice, and keep nothing of them.

    Args:
        job: what would be run.

    Returns:
        What they took. The first groups of trainings are the deepest.
    """
    groups = next(batches(range(job.plan.groups), len(job.devices), job.program, job.rank))
    with one_blas_thread():
        first = _seconds(job, groups)
        second = _seconds(job, groups)
    return Trial(tuple(groups), second, max(0.0, first - second), job.memory(groups[0]))


def _seconds(job: Measuring | Trainings, groups: list[int]) -> float:
    """Seconds that groups take, their program compiled before or not."""
    begun = time.perf_counter()
    for _ in job.compute([groups], groups):
        pass
    return time.perf_counter() - begun
