"""The table of all sides, what was asked of ours, and the cost of a training over their number."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from measuring.machine import Rates
from measuring.timing import Settings, Side, Timing, measure, table
from rivals import jax_training

from jaxstab import datasets, sweeps
from training_runs import floors
from training_runs.agreement import Truth, disagreement, truth
from training_runs.ours import ours
from training_runs.problem import Problem, draw, gains

DEPTHS, WIDTH, BATCH = (4, 8, 16, 32, 64), 128, 128
ENSEMBLE, LOOP = "PyTorch ensemble", "PyTorch loop"
# what the issue asks of ours: (of which seconds, over which side's, at most, for the number of steps at least)
FLOOR_TARGET, TARGETS = 1.3, {ENSEMBLE: 0.7, LOOP: 0.4}


def drawn(settings: Settings, seeds: int, steps: int) -> Problem:
    """The trainings on the 8x8 digits; small, a few of the shallower for fewer steps."""
    depths, many = (DEPTHS[:3], 4) if settings.small else (DEPTHS, 12)
    return draw(datasets.load("digits"), depths, gains(many), seeds, steps, WIDTH, BATCH)


def report(settings: Settings, rate: Rates, steps: int, cells: Sequence[int]) -> None:
    """Measure and print."""
    problem = drawn(settings, 1, steps)
    print(
        f"\ntraining: {problem.trainings} networks, depths {problem.depths} x {len(problem.gains)} gains, width "
        f"{WIDTH}, batch {BATCH}, {steps} steps: {problem.flops / 1e12:.3f} TFLOP in products"
    )
    expected = truth(problem, lambda problem: jax_training.trained(problem, one_by_one=True, unrolled=True)())
    print(expected, flush=True)
    least = floor_sides(problem)
    sides = [*least, *our_sides(problem, expected)]
    sides += rivals(problem, expected, settings.torch) if settings.rivals else []
    found = measure(sides, settings)
    table(found, {"products": ["|".join(side.name for side in least)]}, rate)
    print(asked(found, steps), end="")
    scaling(problem, settings, steps, cells)


def floor_sides(problem: Problem) -> list[Side]:
    """The products in a quarter of the steps, by BLAS and by JAX."""
    steps = max(1, len(problem.batches) // 4)
    part, share = problem.first(steps), steps / len(problem.batches)
    side = functools.partial(Side, kind="floor", share=share, flops=problem.flops)
    found = [side("products, JAX", lambda: floors.jax_floor(part))]
    if sweeps.usable_devices()[0].platform == "cpu":
        found.append(side("products, BLAS", lambda: floors.numpy_floor(part)))
    return found


def our_sides(problem: Problem, expected: Truth) -> list[Side]:
    """Ours, as soon as there is one."""
    agree = lambda result: disagreement(result, expected)
    prepare = ours(problem)
    return [Side("jaxstab.trainability", prepare, "ours", agree, flops=problem.flops)] if prepare else []


def rivals(problem: Problem, expected: Truth, device: str | None) -> list[Side]:
    """What a user could pick instead."""
    agree = lambda result: disagreement(result, expected)
    one = sweeps.usable_devices()[:1]
    ways = {
        "JAX vmap": {"one_by_one": False, "unrolled": False, "devices": one},
        "JAX lax.map": {"one_by_one": True, "unrolled": False, "devices": one},
        "JAX vmap, unrolled, over devices": {"one_by_one": False, "unrolled": True},
        "JAX lax.map, unrolled, over devices": {"one_by_one": True, "unrolled": True},
    }
    side = functools.partial(Side, error=agree, flops=problem.flops)
    sides = [side(name, lambda way=way: jax_training.trained(problem, **way)) for name, way in ways.items()]
    if device is None:
        return sides
    from rivals import torch_training

    # four gains of all depths
    part = problem.only(every=max(1, len(problem.gains) // 4))
    agree_part = lambda result: disagreement(result, expected.only(problem, part))
    tune = lambda call: call.tune()
    loop = lambda: torch_training.loop(part, device)
    return [
        *sides,
        side(ENSEMBLE, lambda: torch_training.ensemble(problem, device), tune=tune),
        Side(LOOP, loop, error=agree_part, share=part.cells / problem.cells, flops=problem.flops, tune=tune),
    ]


def asked(found: Sequence[Timing], steps: int) -> str:
    """What was asked of ours beside what was measured."""
    by_name = {timing.side.name: timing for timing in found}
    ours_ = next((timing for timing in found if timing.side.kind == "ours"), None)
    if ours_ is None:
        return ""
    lines = []
    for name, most in TARGETS.items():
        if name in by_name:
            ratio = ours_.total / by_name[name].total
            lines.append(f"with compile, over {name}: {ratio:.2f} at {steps} steps; {most} asked at 400\n")
    least = min(timing.steady.min() for timing in found if timing.side.kind == "floor")
    lines.append(f"steady, over the floor: {ours_.steady.min() / least:.2f}; {FLOOR_TARGET} asked\n")
    return "".join(lines)


def scaling(problem: Problem, settings: Settings, steps: int, cells: Sequence[int]) -> None:
    """Seconds that a training costs when there are more of them, by more seeds."""
    each = problem.trainings
    sizes = sorted({max(1, round(count / each)) for count in cells})
    for seeds in sizes:
        many = drawn(settings, seeds, steps)
        prepare: Callable[[], Callable[[], Any]] | None = ours(many)
        if prepare is None:
            print("no side of ours yet: nothing to scale")
            return
        (timing,) = measure([Side(f"{many.trainings} trainings", prepare, "ours")], settings)
        low = timing.steady.min()
        print(
            f"{many.trainings} trainings: {low:.2f} s steady, {timing.total:.2f} with compile; "
            f"{1e3 * low / many.trainings:.1f} and {1e3 * timing.total / many.trainings:.1f} ms each"
        )
