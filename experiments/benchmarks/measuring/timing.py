"""Sides timed in one run: each checked and warmed up first, then all interleaved; and the table of what came out."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from measuring.machine import Rates


class Settings(NamedTuple):
    """How to run.

    Attributes:
        small: about a tenth of the work.
        repeats: timings of each side.
        rivals: whether to time them.
        torch: where PyTorch runs, or None where it is not to be had on the same kind of device.
        patience: seconds that the repeats of a side may take.
    """

    small: bool = False
    repeats: int = 5
    rivals: bool = True
    torch: str | None = None
    patience: float = 10.0


class Side(NamedTuple):
    """One way to the result.

    Attributes:
        name: what it is.
        prepare: compiles, gives the call.
        kind: "floor", "ours" or "rival"; the first of ours is what rivals are held against.
        error: of the result of a call, or None where there is nothing to compare.
        allowed: largest error with which it may be timed.
        share: of the work that a call does; times are for all of it, by extrapolation.
        flops: of all the work, for the rate.
        bytes: read by all the work, for the rate.
        tune: call -> the same in its fastest form, off the clock.
        compiling: result of a call -> seconds of it that every call compiles for, no part of the steady ones.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]
    kind: str = "rival"
    error: Callable[[Any], float] | None = None
    allowed: float = 1e-3
    share: float = 1.0
    flops: float = 0.0
    bytes: float = 0.0
    tune: Callable[[Callable[[], Any]], Callable[[], Any]] | None = None
    compiling: Callable[[Any], float] = lambda result: 0.0


class Timing(NamedTuple):
    """Seconds of a side: steady ones for all of the work, and what the first result takes on top."""

    side: Side
    steady: np.ndarray
    warm_up: float
    error: float | None

    @property
    def total(self) -> float:
        """From nothing to the first result."""
        return self.warm_up + float(self.steady.min())


def measure(sides: Sequence[Side], settings: Settings) -> list[Timing]:
    """Check, warm up and time the sides; one that takes too long for all repeats is repeated less."""
    calls, firsts, repeated, errors, counts, seconds = [], [], [], [], [], []
    for side in sides:
        print(f"  {side.name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        call = side.prepare()
        result = jax.block_until_ready(call())
        firsts.append(time.perf_counter() - start)
        error = None if side.error is None else side.error(result)
        if error is not None and not error <= side.allowed:
            raise SystemExit(f"{side.name}: off by {error:.1e}, more than {side.allowed:.0e}")
        untuned = _seconds(call, side) if side.tune else None
        call = side.tune(call) if side.tune else call
        calls.append(call)
        errors.append(error)
        repeated.append(untuned)
        again = _seconds(call, side)
        counts.append(min(settings.repeats, int(settings.patience / again)))
        seconds.append([] if counts[-1] else [again])
    for repeat in range(settings.repeats):
        order = range(len(sides)) if repeat % 2 == 0 else reversed(range(len(sides)))
        for index in order:
            if repeat < counts[index]:
                seconds[index].append(_seconds(calls[index], sides[index]))
    return [
        Timing(side, np.array(spent) / side.share, max(first - (untuned or min(spent)), 0.0), error)
        for side, spent, first, untuned, error in zip(
            sides, seconds, firsts, repeated, errors, strict=True
        )
    ]


def _seconds(call: Callable[[], Any], side: Side) -> float:
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start - side.compiling(result)


def table(timings: Sequence[Timing], floors: dict[str, Sequence[str]], rate: Rates) -> None:
    """Print the sides, each over the first floor and over the first of ours, if there is one.

    Args:
        timings: from `measure`.
        floors: name -> sides of which it is the sum; of a side "a|b" the faster counts.
        rate: of the machine.
    """
    by_name = {t.side.name: t for t in timings}
    least = lambda names: min(float(by_name[n].steady.min()) for n in names.split("|"))
    sums = {name: sum(map(least, parts)) for name, parts in floors.items()}
    ours = next((t for t in timings if t.side.kind == "ours"), None)
    floor = next(iter(sums.values()))
    print(
        f"{'seconds':<46}{'min':>9}{'median':>9}{'warm-up':>9}{'total':>9}{'x floor':>9}{'x ours':>8}{'total':>7}"
        f"{'GFLOP/s':>9}{'%':>5}{'GB/s':>7}{'%':>5}{'error':>9}"
    )
    for timing in timings:
        side, low = timing.side, float(timing.steady.min())
        beside = ours is not None and side.kind != "floor"
        against = (
            f"{low / ours.steady.min():>8.2f}{timing.total / ours.total:>7.2f}"
            if beside
            else " " * 15
        )
        print(
            f"{_label(side):<46}{low:>9.3f}{np.median(timing.steady):>9.3f}{timing.warm_up:>9.2f}{timing.total:>9.2f}"
            f"{low / floor:>9.2f}{against}"
            f"{_rate(side.flops, low, rate.flops, 9)}{_rate(side.bytes, low, rate.bytes, 7)}"
            f"{'' if timing.error is None else f'{timing.error:.0e}':>9}"
        )
    for name, seconds in sums.items():
        over = f"; ours {ours.steady.min() / seconds:.2f} x" if ours else ""
        print(f"floor, {name} = {' + '.join(floors[name])}: {seconds:.3f} s{over}")


def _label(side: Side) -> str:
    part = f" (1/{1 / side.share:.0f} of it)" if side.share < 1 else ""
    return f"{side.kind}: {side.name}{part}"


def _rate(work: float, seconds: float, most: float, width: int) -> str:
    if not work:
        return " " * (width + 5)
    return f"{work / seconds / 1e9:>{width}.{0 if width > 7 else 1}f}{100 * work / seconds / most:>5.0f}"
