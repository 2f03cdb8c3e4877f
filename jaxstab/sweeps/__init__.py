"""Sweeps: one network measure over a grid of gains, seeds and activations, in one compile per activation."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.sweeps.durable import Job, ProgressBar, Sized, complete, open_store, settings_of_run
    from jaxstab.sweeps.grid import Grid, Sample, samples, with_coordinates
    from jaxstab.sweeps.measures import Measure, Memory, Record, jacobian, memory, signal
    from jaxstab.sweeps.plan import MEMORY, Plan, plan
    from jaxstab.sweeps.programs import AHEAD, Programs
    from jaxstab.sweeps.run import Measuring, Result, as_attributes, labelled, run, run_into, settings

__all__ = [
    "AHEAD",
    "MEMORY",
    "Grid",
    "Job",
    "Measure",
    "Measuring",
    "Memory",
    "Plan",
    "Programs",
    "ProgressBar",
    "Record",
    "Result",
    "Sample",
    "Sized",
    "as_attributes",
    "complete",
    "jacobian",
    "labelled",
    "memory",
    "open_store",
    "plan",
    "run",
    "run_into",
    "samples",
    "settings",
    "settings_of_run",
    "signal",
    "with_coordinates",
]
