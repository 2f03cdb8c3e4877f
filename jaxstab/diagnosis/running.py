"""Rules of a training run: first updates too large, clipping without effect, odd updates."""

import math

import numpy as np
from jaxtyping import Float

from jaxstab.diagnosis.findings import Finding
from jaxstab.diagnosis.intervals import Interval, certain, share
from jaxstab.diagnosis.stability import Stability
from jaxstab.diagnosis.watching import Watched

# fewest updates for a meaningful firing rate
ENOUGH = 20
# firing rate above which a threshold only rescales the learning rate
ALWAYS = 0.99
# share of gradients that a threshold should let through
THROUGH = 0.9
# bounds of |update| / |parameters| of the median group
LARGEST = 0.1
SMALLEST = 1e-6
# nats by which a group may differ from the median group
APART = math.log(100.0)
# smallest share of the first update along which the loss must fall
SHARE = 0.1
# largest learning rate over the stable one: wide networks survive a ratio of 6 by moving to a
# flatter place (Lewkowycz et al. 2020), with momentum of 0.9 twice as much; of 96 narrow networks
# of experiments/08_stable_learning_rate 8 trained at a ratio of 8 and 4 at 16
BEYOND = 12.0


def of_run(watched: Watched) -> list[Finding]:
    """Find the faults of a run in the summaries that `watch` kept.

    Args:
        watched: one summary, or the summaries of a run along a leading axis.

    Returns:
        List of findings; empty for a healthy run.
    """
    steps = np.atleast_1d(np.asarray(watched.last_step))
    _, rows = np.unique(steps, return_index=True)
    rows = rows[steps[rows] >= 0]
    if not len(rows):
        return []
    stacked = np.ndim(watched.last_step) > 0

    def logs(groups: dict) -> dict[str, Float[np.ndarray, " summary"]]:
        return _by_layer(groups, rows, stacked)

    gradient = logs(watched.log_gradient)
    ratios = {
        name: log - of_parameters
        for (name, log), of_parameters in zip(
            logs(watched.log_update).items(), logs(watched.log_parameters).values(), strict=True
        )
    }
    updates = int(steps[rows[-1]]) + 1
    rates = {name: rate[-1] for name, rate in logs(watched.firing_rates).items()}
    nonfinite = np.atleast_1d(np.asarray(watched.nonfinite))[rows]
    return [
        *_nonfinite(steps[rows], nonfinite),
        *_clipping(rates, updates, gradient),
        *_updates(ratios),
    ]


def of_stability(found: Stability) -> list[Finding]:
    """Find a first update that is too large.

    Args:
        found: measured stability of the loss.

    Returns:
        List of one finding, or of none.
    """
    # a search that never saw the loss fall knows only an upper end
    share = found.share.value
    if math.isnan(share):
        share = found.share.high
    ratio = found.rate / found.largest_rate
    if ratio > BEYOND:
        return [
            Finding(
                "learning rate too large",
                "the first update",
                certain(ratio),
                f"times the largest stable rate of gradient descent, {found.largest_rate:.3g}",
                "an error along the sharpest direction grows by |1 - rate sharpness| in each update "
                "(LeCun et al. 1998); at 8 times that rate one network in twelve trains, at 16 times one in "
                "twenty-four (experiments/08_stable_learning_rate)",
                f"use a rate of {found.largest_rate:.2g} or a few times that, and a warm-up for "
                "larger rates",
            )
        ]
    if share < SHARE:
        return [
            Finding(
                "learning rate too large",
                "the first update",
                Interval(share, found.share.low, found.share.high),
                "of this update is the largest step that lowers the loss of this batch",
                "a step beyond 2 over the curvature along the update raises the loss (Kalra et al. "
                "2026)",
                f"divide the learning rate by {_divisor(share)}, or begin with a warm-up",
            )
        ]
    return []


def _divisor(share: float) -> str:
    if share > 0:
        return f"{1 / share:.2g}"
    return "much more than was tried"


def _by_layer(
    groups: dict, rows: np.ndarray, stacked: bool
) -> dict[str, Float[np.ndarray, " summary"]]:
    """Split the numbers of each stack into one entry per layer."""
    found = {}
    for name, values in groups.items():
        numbers = np.asarray(values, float)
        numbers = numbers[rows] if stacked else numbers[None]
        if numbers.ndim == 1:
            found[name] = numbers
            continue
        found |= {f"{name}@{i}": numbers[:, i] for i in range(numbers.shape[1])}
    return found


def _nonfinite(steps: np.ndarray, counts: np.ndarray) -> list[Finding]:
    if not np.any(counts > 0):
        return []
    first = int(np.flatnonzero(counts > 0)[0])
    return [
        Finding(
            "non-finite gradient while training",
            f"update {steps[first]}",
            certain(float(counts[first])),
            f"entries of the gradient are NaN or infinite, as in {np.mean(counts > 0):.0%} of the "
            "summaries",
            "one such entry makes every parameter that it updates NaN (IEEE 754)",
            "diagnose the parameters of that update; clipping.guarded skips it",
        )
    ]


def _clipping(
    rates: dict[str, float], updates: int, gradient: dict[str, np.ndarray]
) -> list[Finding]:
    if updates < ENOUGH:
        return []
    with np.errstate(invalid="ignore"):
        whole = np.logaddexp.reduce([2 * log for log in gradient.values()]) / 2
    known = whole[np.isfinite(whole)]
    seen = "no gradient had a finite norm"
    if len(known):
        low, middle, high = np.exp(np.quantile(known, [0.05, 0.5, THROUGH]))
        seen = (
            f"gradients had a median norm of {middle:.3g}, and 95 % a norm above {low:.3g}; a "
            f"threshold of {high:.3g} lets {THROUGH:.0%} of them through"
        )
    found = []
    for name, rate in rates.items():
        if 0 < rate < ALWAYS:
            continue
        if rate == 0:
            fault = "clipping never fires"
            why = "a threshold above all norms has no effect"
        else:
            fault = "clipping always fires"
            why = (
                "clipping of every gradient gives all steps one length, so that the threshold is "
                "part of the learning rate (Zhang et al. 2020)"
            )
        found.append(
            Finding(
                fault,
                f"clipper {name}",
                share(float(rate), updates),
                f"of {updates} updates were clipped",
                why,
                f"{seen}; or use clipping.auto_clip, which follows the norms (Seetharaman et al. "
                "2020)",
            )
        )
    return found


def _updates(ratios: dict[str, np.ndarray]) -> list[Finding]:
    sizes = {}
    for name, logs in ratios.items():
        # the second half of a run is less affected by a warm-up of the learning rate
        known = logs[len(logs) // 2 :]
        known = known[np.isfinite(known)]
        if len(known):
            sizes[name] = known
    if not sizes:
        return []
    medians = {name: float(np.median(known)) for name, known in sizes.items()}
    middle = float(np.median(list(medians.values())))
    found = []
    if not math.log(SMALLEST) < middle < math.log(LARGEST):
        size, change = "small", "raise"
        if middle >= math.log(LARGEST):
            size, change = "large", "lower"
        powers = abs(middle - math.log(1e-3)) / math.log(10)
        found.append(
            Finding(
                f"updates too {size}",
                "the median group",
                certain(math.exp(middle)),
                "is the norm of an update over that of its parameters",
                "healthy runs move a layer by a thousandth of its norm per update (You et al. "
                "2017 fix the ratio)",
                f"{change} the learning rate by {powers:.1f} powers of ten",
            )
        )
    odd = [name for name, log in medians.items() if abs(log - middle) > APART and len(medians) > 2]
    for name in sorted(odd, key=lambda name: -abs(medians[name] - middle))[:3]:
        low, high = np.exp(np.quantile(sizes[name], [0.05, 0.95]))
        found.append(
            Finding(
                "update out of line",
                name,
                Interval(math.exp(medians[name]), float(low), float(high)),
                "is the norm of its update over that of its parameters; of the median group "
                f"{math.exp(middle):.3g}",
                "layers that move at very different rates make training unstable or leave one "
                "behind (You et al. 2017)",
                "check its scale and its gradient; use an optimiser with a trust ratio "
                "(optax.lamb), or a learning rate of its own",
            )
        )
    return found
