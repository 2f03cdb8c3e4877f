"""Trainability: networks of every depth, gain, learning rate, ... trained, in few compiles, in groups that survive."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.trainability.boundary import (
        Boundary,
        DepthFit,
        deepest_trainable,
        fit_depth_scale,
        halfway,
        sides,
        steps_to,
        tuned,
    )
    from jaxstab.trainability.durable import Trainings, run_into
    from jaxstab.trainability.grid import AXES, OPTIMISERS, Cells, Grid, Split, Variant, divided
    from jaxstab.trainability.plan import Group, Plan, available, cut, flops, memory, plan
    from jaxstab.trainability.run import Result, coordinates, fields, labelled, restored, run
    from jaxstab.trainability.summary import OUTCOMES, SCALES, SIDES, summarise

__all__ = [
    "AXES",
    "OPTIMISERS",
    "OUTCOMES",
    "SCALES",
    "SIDES",
    "Boundary",
    "Cells",
    "DepthFit",
    "Grid",
    "Group",
    "Plan",
    "Result",
    "Split",
    "Trainings",
    "Variant",
    "available",
    "coordinates",
    "cut",
    "deepest_trainable",
    "divided",
    "fields",
    "fit_depth_scale",
    "flops",
    "halfway",
    "labelled",
    "memory",
    "plan",
    "restored",
    "run",
    "run_into",
    "sides",
    "steps_to",
    "summarise",
    "tuned",
]
