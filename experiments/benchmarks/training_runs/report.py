"""The table of all sides, what was asked of ours, and the cost of a training over their number."""

import functools
import time
from collections.abc import Sequence

import jax
import numpy as np
from measuring.machine import Rates
from measuring.timing import Settings, Side, Timing, measure, table
from rivals import jax_training

from jaxstab import datasets
from jaxstab.sweeps import Grid
from training_runs import floors
from training_runs.agreement import Truth, disagreement, truth
from training_runs.ours import ours
from training_runs.problem import Problem, draw, halves

ENSEMBLE, LOOP = "PyTorch ensemble", "PyTorch loop"
# most that was asked of ours: steady over the floor; with compile over a rival, at so many steps
FLOOR_TARGET, TARGETS, STEPS = 1.3, {ENSEMBLE: 0.7, LOOP: 0.4}, 400


def report(settings: Settings, rate: Rates, steps: int, width: int, sizes: Sequence[int]) -> None:
    """Measure and print."""
    gains = np.linspace(0.5, 2.5, 12).round(4)
    axes = {"depth": (4, 8, 16, 32, 64), "sigma_w": gains, "seed": range(1)}
    grid = Grid(axes, sigma_b=0.05**0.5, width=width, batch=128)
    if settings.small:
        grid = grid.but(depth=(4, 8, 16), sigma_w=gains[1::3])
    problem = draw(grid, steps, halves(datasets.load("digits")))
    print(
        f"\ntraining: {problem.trainings} networks, depths {problem.depths} x {problem.cells} gains, width {width}, "
        f"batch 128, {steps} steps: {problem.flops / 1e12:.3f} TFLOP in products"
    )
    expected = truth(
        problem, lambda problem: jax_training.trained(problem, one_by_one=True, unrolled=True)()
    )
    print(expected, flush=True)
    least = floor_sides(problem)
    agree = lambda result: disagreement(result, expected)
    prepare = lambda: ours(problem)
    compiling = lambda result: result.compiling
    sides = [
        *least,
        Side("jaxstab.sweeps", prepare, "ours", agree, flops=problem.flops, compiling=compiling),
    ]
    sides += rivals(problem, expected, settings.torch) if settings.rivals else []
    found = measure(sides, settings)
    table(found, {"products": ["|".join(side.name for side in least)]}, rate)
    print(asked(found, steps), end="", flush=True)
    scaling(problem, sizes)


def floor_sides(problem: Problem) -> list[Side]:
    """The products of a quarter of the steps, by JAX and by BLAS."""
    part = problem.first(max(1, problem.steps // 4))
    side = functools.partial(
        Side, kind="floor", share=part.flops / problem.flops, flops=problem.flops
    )
    found = [side("products, JAX", lambda: floors.jax_floor(part))]
    if jax.local_devices()[0].platform == "cpu":
        found.append(side("products, BLAS", lambda: floors.numpy_floor(part)))
    return found


def rivals(problem: Problem, expected: Truth, device: str | None) -> list[Side]:
    """What a user could pick instead."""
    one = jax.local_devices()[:1]
    ways = {
        "JAX vmap": {"one_by_one": False, "unrolled": False, "devices": one},
        "JAX lax.map": {"one_by_one": True, "unrolled": False, "devices": one},
        "JAX vmap, unrolled, over devices": {"one_by_one": False, "unrolled": True},
        "JAX lax.map, unrolled, over devices": {"one_by_one": True, "unrolled": True},
    }
    side = functools.partial(
        Side, error=lambda result: disagreement(result, expected), flops=problem.flops
    )
    sides = [
        side(name, lambda way=way: jax_training.trained(problem, **way))
        for name, way in ways.items()
    ]
    if device is None:
        return sides
    from rivals import torch_training

    # four of the gains
    every = max(1, problem.cells // 4)
    part = slice(every // 2, None, every)
    few = problem.only(part)
    agree = lambda result: disagreement(result, expected.only(part))
    tune = lambda call: call.tune()
    loop = lambda: torch_training.loop(few, device)
    return [
        *sides,
        side(ENSEMBLE, lambda: torch_training.ensemble(problem, device), tune=tune),
        Side(
            LOOP, loop, error=agree, share=few.cells / problem.cells, flops=problem.flops, tune=tune
        ),
    ]


def asked(found: Sequence[Timing], steps: int) -> str:
    """What was asked of ours beside what was measured."""
    by_name = {timing.side.name: timing for timing in found}
    ours_ = next(timing for timing in found if timing.side.kind == "ours")
    lines = []
    for name, most in TARGETS.items():
        if name in by_name:
            ratio = ours_.total / by_name[name].total
            lines.append(
                f"with compile, over {name}: {ratio:.2f} at {steps} steps; {most} was asked at {STEPS}\n"
            )
    least = min(timing.steady.min() for timing in found if timing.side.kind == "floor")
    lines.append(
        f"steady, over the floor: {ours_.steady.min() / least:.2f}; {FLOOR_TARGET} was asked\n"
    )
    return "".join(lines)


def scaling(problem: Problem, sizes: Sequence[int]) -> None:
    """Seconds that one of ours costs when there are more, by more seeds; one call each, which tells its compiling."""
    for seeds in sorted({max(1, round(size / problem.trainings)) for size in sizes}):
        call = ours(problem._replace(grid=problem.grid.but(seed=range(seeds))))
        start = time.perf_counter()
        compiling = call().compiling
        total, many = time.perf_counter() - start, seeds * problem.trainings
        print(
            f"{many} trainings: {total - compiling:.2f} s steady, {total:.2f} with compile; "
            f"{1e3 * (total - compiling) / many:.1f} and {1e3 * total / many:.1f} ms each",
            flush=True,
        )
