"""Sweeps: one network measure over a grid of gains, seeds and activations, in one compile per activation."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.sweeps.devices import one_blas_thread, one_by_one, spread, usable_devices
    from jaxstab.sweeps.grid import Grid, Sample, samples, with_coordinates
    from jaxstab.sweeps.measures import Measure, Memory, Record, jacobian, memory, signal
    from jaxstab.sweeps.plan import MEMORY, Estimate, estimate
    from jaxstab.sweeps.run import ProgressBar, labelled, run

__all__ = [
    "MEMORY",
    "Estimate",
    "Grid",
    "Measure",
    "Memory",
    "ProgressBar",
    "Record",
    "Sample",
    "estimate",
    "jacobian",
    "labelled",
    "memory",
    "one_blas_thread",
    "one_by_one",
    "run",
    "samples",
    "signal",
    "spread",
    "usable_devices",
    "with_coordinates",
]
