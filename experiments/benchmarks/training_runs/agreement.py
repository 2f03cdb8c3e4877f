"""How far trainings can be compared: rounding grows in chaotic networks until no two programs agree on a loss."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from training_runs.problem import Problem, Result, Weights

# relative change of the weights, some roundings; and how much of it in a loss ends the comparison
CHANGE, MOVED = 1e-6, 1e-4
# share of examples about which roundings may decide
ACCURACY = 0.01


class Truth(NamedTuple):
    """What to compare with.

    Attributes:
        result: of a program that others should agree with.
        steps: so many from the start can be compared [depth, cell].
    """

    result: Result
    steps: np.ndarray

    def only(self, cells: slice) -> "Truth":
        """That of some of the cells."""
        result = self.result._replace(
            losses=self.result.losses[:, cells], accuracy=self.result.accuracy[:, cells]
        )
        return Truth(result, self.steps[:, cells])

    def __str__(self) -> str:
        length = self.result.losses.shape[-1]
        whole, early = int(np.sum(self.steps == length)), int(np.sum(self.steps >= min(10, length)))
        return f"compared: {whole} of {self.steps.size} trainings to the end, {early} for ten steps or more"


def truth(problem: Problem, train: Callable[[Problem], Result]) -> Truth:
    """Train twice, the second time from weights that are a little off."""
    rng = np.random.default_rng(1)
    off = lambda a: a * (1 + CHANGE * rng.choice([-1, 1], a.shape)).astype(a.dtype)
    first = train(problem)
    second = train(
        problem._replace(unit=Weights(*((off(kernel), bias) for kernel, bias in problem.unit)))
    )
    with np.errstate(invalid="ignore"):
        alike = np.abs(first.losses - second.losses) < MOVED
    return Truth(first, np.sum(np.logical_and.accumulate(alike, axis=-1), axis=-1))


def disagreement(found: Result, truth: Truth) -> float:
    """Largest error of a loss that can be compared; inf if one that can be has other examples right."""
    steps = truth.result.losses.shape[-1]
    if found.losses.shape != truth.result.losses.shape:
        return float("inf")
    apart = np.abs(found.accuracy - truth.result.accuracy)[truth.steps == steps]
    if not np.all(apart <= ACCURACY):
        return float("inf")
    comparable = np.arange(steps) < truth.steps[..., None]
    return float(np.max(np.abs(found.losses - truth.result.losses)[comparable], initial=0.0))
