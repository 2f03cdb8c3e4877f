"""Sweeps: one network measure over a grid of gains, seeds and activations, in one compile per activation."""

from jaxstab.sweeps.grid import MEMORY, Estimate, Grid, Sample, estimate, samples, with_coordinates
from jaxstab.sweeps.run import Measure, Progress, Record, jacobian, labelled, run, signal, usable_devices

__all__ = [
    "MEMORY",
    "Estimate",
    "Grid",
    "Measure",
    "Progress",
    "Record",
    "Sample",
    "estimate",
    "jacobian",
    "labelled",
    "run",
    "samples",
    "signal",
    "usable_devices",
    "with_coordinates",
]
