"""Means with their errors, and whether a benefit holds."""

import numpy as np

ERRORS = 3  # standard errors that decide
GUESSING = 0.15  # test accuracy of a network that has learnt nothing, at most
FAR = 1e3  # what stands for an infinite difference of logarithms


def estimate(values):
    """Mean and standard error, None where it is infinite."""
    values = np.asarray(values, float)
    if not np.all(np.isfinite(values)):
        return [None, None]
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def verdict(benefit, margin):
    """[whether a benefit exceeds its margin by so many standard errors, falls short by as many or neither; it; error].

    Without the numbers where runs diverged.
    """
    if benefit is None:
        return ["neither", None, None]
    mean, error = benefit.mean(), benefit.std(ddof=1) / np.sqrt(len(benefit))
    open_ = "does not" if mean + ERRORS * error < margin else "undecided"
    word = "holds" if mean - ERRORS * error > margin else open_
    return [word, *estimate(np.where(np.abs(benefit) < FAR, benefit, np.inf))]
