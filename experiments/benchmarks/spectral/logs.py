"""What logarithms cost: log-scaled spectra over the plain product and its decomposition, and the cost over depth."""

from collections.abc import Sequence

import numpy as np
from measuring.machine import Rates
from measuring.timing import Settings, Side, measure, table

from jaxstab import spectra
from spectral.dense import values
from spectral.problem import ACTIVATIONS, Problem, draw, gains, ours


def disagreement(log_s: np.ndarray, truth: np.ndarray) -> float:
    """Largest error in ln s of each Jacobian's largest values, where float32 holds them and chaos is not at work."""
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(truth)
        largest = plain[..., :1]
        comparable = (plain > largest - 2) & (largest > -60) & (largest < 2)
        return float(np.max(np.abs(np.asarray(log_s) - plain)[comparable]))


def sides(problem: Problem) -> list[Side]:
    """Both ways to the spectra of every wanted depth."""
    log = lambda: ours(problem, values(problem, spectra.log_singular_values))
    plain = lambda: ours(problem, values(problem))
    truth = plain()()
    return [
        Side("log_singular_values", log, "ours", lambda log_s: disagreement(log_s, truth)),
        Side("singular_values", plain, "floor"),
    ]


def report(settings: Settings, rate: Rates) -> None:
    """Measure and print."""
    problem = draw(ACTIVATIONS, (64,), 128, gains(2 if settings.small else 4), 1)
    for depths in ((1, 2, 4, 8, 16, 32, 64), tuple(range(1, 65))):
        part = problem.to(depths)
        print(
            f"\nlog: {part.nets} Jacobians, width {part.width}: {len(depths)} depths to 64 of {part.cells} x 4 networks"
        )
        found = measure(sides(part), settings)
        table(found, {"plain": [found[1].side.name]}, rate)
    over_depth(
        (16, 32, 64, 128, 256, 512) if settings.small else (16, 32, 64, 128, 256, 512, 1024),
        64,
        settings,
        rate,
    )


def over_depth(depths: Sequence[int], width: int, settings: Settings, rate: Rates) -> None:
    """Seconds for the spectrum at the last layer, over depth: a straight line and a power law fitted to them."""
    whole = draw(("tanh",), (max(depths),), width, gains(4), 1)
    print(f"\nlog: the deepest spectrum alone, width {width}, {whole.cells} networks")
    timed = []
    for depth in depths:
        part = whole.to((depth,))
        prepare = lambda part=part: ours(part, values(part, spectra.log_singular_values))
        timed.append(Side(f"depth {depth}", prepare, "ours"))
    found = measure(timed, settings)
    seconds = np.array([timing.steady.min() for timing in found])
    for depth, timing in zip(depths, found, strict=True):
        print(
            f"  depth {depth:>5}: {timing.steady.min():.4f} s, {1e3 * timing.steady.min() / depth:.3f} ms per layer"
        )
    print(fits(np.array(depths), seconds))


def fits(depths: np.ndarray, seconds: np.ndarray) -> str:
    """The line by relative least squares, its largest relative residual, and exponents of a power law."""
    design = np.stack([np.ones(len(depths)), depths], 1) / seconds[:, None]
    (start, slope), *_ = np.linalg.lstsq(design, np.ones(len(depths)), rcond=None)
    worst = np.max(np.abs((start + slope * depths) / seconds - 1))
    exponent = lambda at: np.polyfit(np.log(depths[at]), np.log(seconds[at]), 1)[0]
    deep = depths >= np.median(depths)
    return (
        f"  line: {1e3 * start:.2f} ms + {1e3 * slope:.3f} ms per layer, off by at most {100 * worst:.0f} %; "
        f"power law: exponent {exponent(depths > 0):.2f}, from depth {depths[deep][0]} on {exponent(deep):.2f}"
    )
