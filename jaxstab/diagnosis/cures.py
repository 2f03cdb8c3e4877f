"""Other parameters of the same shapes, kept only where they were measured to be better."""

import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import PyTree

from jaxstab.diagnosis.findings import Finding, Prescription
from jaxstab.diagnosis.measuring import Measured
from jaxstab.networks import Probe

Measure = Callable[[PyTree], Measured]

# rounds of rescaling, each after a new measurement
ROUNDS = 6
# nats by which one round may scale a kernel
LARGEST = 2.0
# share of what a cure promised to remove that it has to remove
HALF = 0.5


def prescriptions(
    probe: Probe, params: PyTree, measured: Measured, found: tuple[Finding, ...], measure: Measure
) -> tuple[Prescription, ...]:
    """Cures that were measured to help.

    Args:
        probe: the model.
        params: its parameters.
        measured: what was measured with them.
        found: what is wrong.
        measure: parameters -> what is measured with them.

    Returns:
        The cures, for each finding that has one; none where no trial halved what it was to bring
        towards zero.
    """
    whats = {finding.what for finding in found}
    cures = []
    if whats & {"vanishing gradient", "exploding gradient"}:
        cures.append(
            _tried(
                "critical kernels",
                "kernels of the blocks scaled until each keeps the norm of the gradient (Doshi et al. 2023)",
                "ln of the gradient's change over the depth, in nats",
                _gradient_change,
                lambda measured: np.diff(measured.log_grad_h[list(measured.blocks)]),
                probe,
                params,
                measured,
                measure,
            )
        )
    if whats & {"vanishing signal", "exploding signal"}:
        cures.append(
            _tried(
                "unit variance",
                "kernels of the blocks scaled until each keeps the variance of the signal (LSUV, Mishkin & Matas 2016)",
                "ln of the signal's change over the depth, in nats",
                _signal_change,
                lambda measured: (
                    -np.diff(np.asarray(measured.signal.log_q)[list(measured.blocks)]) / 2
                ),
                probe,
                params,
                measured,
                measure,
            )
        )
    return tuple(cure for cure in cures if cure is not None)


def _tried(
    name: str,
    what: str,
    quantity: str,
    amount: Callable[[Measured], float],
    steps: Callable[[Measured], np.ndarray],
    probe: Probe,
    params: PyTree,
    measured: Measured,
    measure: Measure,
) -> Prescription | None:
    """Rescale kernels block by block and keep the best; None if it is not half as bad."""
    before = amount(measured)
    best: tuple[float, PyTree] = (before, params)
    for _ in range(ROUNDS):
        logs = np.clip(steps(measured), -LARGEST, LARGEST)
        if not np.all(np.isfinite(logs)):
            break
        params = _rescaled(probe, params, measured, logs)
        measured = measure(params)
        after = amount(measured)
        if math.isfinite(measured.loss) and after < best[0]:
            best = (after, params)
    after, params = best
    if not after <= HALF * before:
        return None
    return Prescription(name, what, quantity, before, after, params)


def _gradient_change(measured: Measured) -> float:
    logs = measured.log_grad_h[list(measured.blocks)]
    return float(abs(logs[0] - logs[-1]))


def _signal_change(measured: Measured) -> float:
    logs = np.asarray(measured.signal.log_q)[list(measured.blocks)]
    return float(abs(logs[0] - logs[-1]) / 2)


def _rescaled(probe: Probe, params: PyTree, measured: Measured, logs: np.ndarray) -> PyTree:
    """Kernels of all blocks but the first times e^log."""
    theta, rest = probe.model.split(params)
    leaves, structure = jax.tree.flatten(theta)
    stacked = {i for i, (_, sliced) in enumerate(probe.parameters(theta, "")) if sliced}
    for number, log in zip(measured.blocks[1:], logs, strict=True):
        row = measured.rows[number]
        site = measured.sites[number]
        for i in probe.owned(theta, site.path):
            leaf = leaves[i]
            in_scan = i in stacked and bool(row.steps)
            if leaf.ndim - in_scan < 2:
                continue
            factor = np.asarray(math.exp(log), leaf.dtype)
            leaves[i] = leaf.at[row.steps[0]].multiply(factor) if in_scan else leaf * factor
    return probe.model.join(jax.tree.unflatten(structure, leaves), rest)
