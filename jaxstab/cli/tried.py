"""Estimate of a job's time and memory from its first groups, for `--dry-run`."""

import math

from jaxstab.cli.faults import duration
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.trainings import Trainings
from jaxstab.sweeps.trial import trial


def tried(name: str, job: Measuring | Trainings) -> str:
    """Compute the first groups of a job, and estimate the time and memory of the whole.

    Args:
        name: name of the job.
        job: the job.

    Returns:
        A line that states the estimate.
    """
    first = trial(job)
    networks = sum(
        math.prod(part.stop for part in job.plan.inside(group)) for group in first.groups
    )
    return (
        f"{name}, tried: {networks} networks on {len(job.devices)} devices took "
        f"{first.seconds:.2g} s and {first.memory / 2**20:.2g} MiB on each (stated by the "
        f"compiler); all networks take about {duration(first.seconds / job.share(first.groups))} "
        f"and {job.plan.programs} x {first.compiling:.1f} s of compiling, two programs at a time"
    )
