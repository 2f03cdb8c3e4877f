"""Trainability: networks of every depth, gain, learning rate, ... trained, in few compiles, in groups that survive."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.trainability.boundary import (
        Boundary,
        DepthFit,
        deepest_trainable,
        fit_depth_scale,
        steps_to,
        tuned,
    )
    from jaxstab.trainability.durable import run_into
    from jaxstab.trainability.grid import OPTIMISERS, Grid, Split, Variant, divided
    from jaxstab.trainability.plan import Plan, flops, memory, plan
    from jaxstab.trainability.run import run
    from jaxstab.trainability.summary import OUTCOMES, summarise

__all__ = [
    "OPTIMISERS",
    "OUTCOMES",
    "Boundary",
    "DepthFit",
    "Grid",
    "Plan",
    "Split",
    "Variant",
    "deepest_trainable",
    "divided",
    "fit_depth_scale",
    "flops",
    "memory",
    "plan",
    "run",
    "run_into",
    "steps_to",
    "summarise",
    "tuned",
]
