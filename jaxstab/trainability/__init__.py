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
    from jaxstab.trainability.grid import AXES, OPTIMISERS, Cells, Grid, Split, Variant
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
    "Variant",
    "available",
    "coordinates",
    "cut",
    "deepest_trainable",
    "fields",
    "fit_depth_scale",
    "flops",
    "halfway",
    "labelled",
    "memory",
    "plan",
    "restored",
    "run",
    "sides",
    "steps_to",
    "summarise",
    "tuned",
]
