"""Sweeps: measure or train networks over a grid, in few compiles, resumable."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.sweeps.axes import Variant
    from jaxstab.sweeps.durable import ProgressBar
    from jaxstab.sweeps.examples import Sample, Split, divided, samples
    from jaxstab.sweeps.grid import Grid
    from jaxstab.sweeps.measures import Measure, Train, jacobian, sharpness, signal
    from jaxstab.sweeps.plan import Plan
    from jaxstab.sweeps.run import load, plan, run, run_into

__all__ = [
    "Grid",
    "Measure",
    "Plan",
    "ProgressBar",
    "Sample",
    "Split",
    "Train",
    "Variant",
    "divided",
    "jacobian",
    "load",
    "plan",
    "run",
    "run_into",
    "samples",
    "sharpness",
    "signal",
]
