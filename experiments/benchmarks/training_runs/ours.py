"""Ours: the trainings of a grid through jaxstab.trainability, which draws weights and minibatches itself."""

from collections.abc import Callable

import numpy as np

from jaxstab import trainability
from jaxstab.trainability import Grid, Split
from jaxstab.trainability.run import fields, labelled
from training_runs.problem import Result


def ours(grid: Grid, split: Split) -> Callable[[], Result]:
    """Plan; the call compiles and trains. A cell is a gain and a seed, the seed the faster."""
    plan = trainability.plan(grid, split)

    def run() -> Result:
        found = sorted(trainability.run(grid, plan, split), key=lambda result: result.group)
        rows = {
            name: np.concatenate([getattr(one.seen, name) for one in found])
            for name in fields(grid)
        }
        seen = labelled(grid, plan, rows, np.ones(len(plan.groups), bool))
        flat = lambda name: (
            seen[name].to_numpy().reshape(len(grid.depths), len(grid.sigma_w) * grid.seeds, -1)
        )
        accuracy = np.stack(
            [flat("train_accuracy")[..., -1], flat("test_accuracy")[..., -1]], axis=-1
        )
        return Result(flat("loss"), accuracy, sum(one.compiling for one in found))

    return run
