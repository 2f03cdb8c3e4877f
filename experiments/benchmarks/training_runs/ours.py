"""Ours: the trainings of a grid through jaxstab.sweeps, which draws weights and minibatches itself."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from jaxstab import sweeps
from training_runs.problem import Problem, Result


def ours(problem: Problem) -> Callable[[], Result]:
    """The call plans, compiles and trains. A cell is a gain and a seed, the seed the faster."""
    grid = problem.grid
    measure = sweeps.Train(problem.steps, evaluate=())

    def run() -> Result:
        compiling = []

        def watched(results: Iterable[object]) -> Iterator[object]:
            for result in results:
                compiling.append(result.compiling)
                yield result

        found = sweeps.run(grid, measure, problem.split, progress=watched)

        def flat(name: str) -> np.ndarray:
            return found[name].to_numpy().reshape(len(problem.depths), -1, found[name].shape[-1])

        accuracy = np.stack(
            [flat("train_accuracy")[..., -1], flat("test_accuracy")[..., -1]], axis=-1
        )
        return Result(flat("loss"), accuracy, sum(compiling))

    return run
