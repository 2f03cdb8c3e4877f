"""Sweeps: measure or train networks over a grid, in few compiles, resumable."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.sweeps.axes import Variant
    from jaxstab.sweeps.examples import Sample, Split
    from jaxstab.sweeps.grid import Grid
    from jaxstab.sweeps.measures import Train, jacobian, sharpness, signal
    from jaxstab.sweeps.plan import Plan
    from jaxstab.sweeps.run import load, plan, run, run_into

__all__ = [
    "Grid",
    "Plan",
    "Sample",
    "Split",
    "Train",
    "Variant",
    "jacobian",
    "load",
    "plan",
    "run",
    "run_into",
    "sharpness",
    "signal",
]
