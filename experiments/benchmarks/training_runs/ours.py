"""Ours: jaxstab.trainability on the benchmark's weights and minibatches."""

from collections.abc import Callable
from typing import Any

from training_runs.problem import Problem


def ours(problem: Problem) -> Callable[[], Callable[[], Any]] | None:
    """`prepare` of a Side: compiles, gives the call to a Result. None until there is a `jaxstab.trainability`."""
    return None
