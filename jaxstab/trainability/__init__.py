"""Trainability: networks of every depth, gain, learning rate, ... trained, in few compiles, in groups that survive."""

from jaxstab.trainability.grid import AXES, OPTIMISERS, Cells, Grid, Variant
from jaxstab.trainability.plan import Group, Plan, flops, memory, plan
from jaxstab.trainability.run import Result, Split, fields, labelled, run

__all__ = [
    "AXES",
    "OPTIMISERS",
    "Cells",
    "Grid",
    "Group",
    "Plan",
    "Result",
    "Split",
    "Variant",
    "fields",
    "flops",
    "labelled",
    "memory",
    "plan",
    "run",
]
