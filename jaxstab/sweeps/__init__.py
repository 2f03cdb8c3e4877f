"""Sweeps: one network measure over a grid of gains, seeds and activations, in one compile per activation."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.sweeps.durable import Job, ProgressBar, complete, open_store
    from jaxstab.sweeps.grid import Grid, Sample, samples
    from jaxstab.sweeps.measures import Measure, jacobian, memory, signal
    from jaxstab.sweeps.own import OwnGrid
    from jaxstab.sweeps.plan import Plan, plan
    from jaxstab.sweeps.run import run, run_into

__all__ = [
    "Grid",
    "Job",
    "Measure",
    "OwnGrid",
    "Plan",
    "ProgressBar",
    "Sample",
    "complete",
    "jacobian",
    "memory",
    "open_store",
    "plan",
    "run",
    "run_into",
    "samples",
    "signal",
]
