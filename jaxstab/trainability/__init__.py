"""Trainability: networks of every depth, gain, learning rate, ... trained, in few compiles, in groups that survive."""

from jaxstab.trainability.grid import AXES, OPTIMISERS, Cells, Grid, Split, Variant
from jaxstab.trainability.plan import Group, Plan, cut, flops, memory, plan
from jaxstab.trainability.run import Result, fields, labelled, run

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
    "cut",
    "fields",
    "flops",
    "labelled",
    "memory",
    "plan",
    "run",
]
