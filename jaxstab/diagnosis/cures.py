"""Cures: changed parameters of the same shapes, kept only where a measurement shows them better."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxstab.diagnosis.findings import Finding, Prescription
from jaxstab.diagnosis.measuring import Measured
from jaxstab.networks import Probe

Measure = Callable[[PyTree], Measured]

# rounds of rescaling, each after a new measurement
ROUNDS = 6
# largest change of ln of a kernel's scale in one round
LARGEST = 2.0
# decrease of ln of the scale of attention's kernels in one round
COOLER = 1.0
# a logit of at least this size is a mask
MASKED = 4e4
# largest ratio of a cure's quantity after to before
HALF = 0.5


def prescriptions(
    probe: Probe,
    params: PyTree,
    measured: Measured,
    found: tuple[Finding, ...],
    inputs: tuple,
    measure: Measure,
) -> tuple[Prescription, ...]:
    """Try the cures of each finding and return those that a measurement shows to help.

    Args:
        probe: the model.
        params: parameters of the model.
        measured: measurement with these parameters.
        found: findings to cure.
        inputs: inputs of the model.
        measure: function of parameters that returns their measurement.

    Returns:
        Cures that halved their quantity; empty where none did.
    """
    faults = {finding.fault for finding in found}
    cures = []
    if faults & {"vanishing gradient", "exploding gradient"}:
        cures.append(
            _tried(
                "critical kernels",
                "kernels of the blocks scaled until each keeps the norm of the gradient (Doshi et "
                "al. 2023)",
                "ln of the gradient's change over the depth, in nats",
                _gradient_change,
                lambda measured: np.diff(measured.log_grad_h[list(measured.blocks)]),
                probe,
                params,
                measured,
                measure,
            )
        )
    if faults & {"vanishing signal", "exploding signal"}:
        cures.append(
            _tried(
                "unit variance",
                "kernels of the blocks scaled until each keeps the variance of the signal (LSUV, "
                "Mishkin & Matas 2016)",
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
    if faults & {"exploding gradient", "exploding signal"}:
        cures += _scaled_branches(probe, params, measured, faults, measure)
    if "dead units" in faults:
        cures.append(_zero_biases(probe, params, measured, found, measure))
    if "entropy collapse" in faults:
        cures.append(_cooled(probe, params, measured, inputs, measure))
    return tuple(cure for cure in cures if cure is not None)


def _scaled_branches(
    probe: Probe, params: PyTree, measured: Measured, faults: set[str], measure: Measure
) -> list[Prescription | None]:
    """Scale the last kernel of each block, a residual block's branch, by 1 / sqrt(L)."""
    theta, rest = probe.model.split(params)
    leaves, structure = jax.tree.flatten(theta)
    log = -math.log(len(measured.blocks)) / 2
    for row in {measured.rows[i].site: measured.rows[i] for i in measured.blocks}.values():
        path = next(site.path for site in probe.sites if site.name == row.site)
        # sites are ordered by their outputs, so that a block follows its submodules
        within = [site.path for site in probe.sites if site.path.startswith(f"{path}/")]
        for inner in [*reversed(within), path]:
            kernels = [
                i for i in probe.owned(theta, inner) if leaves[i].ndim - bool(row.steps) >= 2
            ]
            if kernels:
                last = kernels[-1]
                leaves[last] = leaves[last] * np.asarray(math.exp(log), leaves[last].dtype)
                break
    changed = probe.model.join(jax.tree.unflatten(structure, leaves), rest)
    scaled = measure(changed)
    name = "scaled branches"
    change = (
        "the last kernel of each block times 1/sqrt(L) (Hanin & Rolnick 2018; Zhang et al. 2019)"
    )
    amounts = {
        "exploding gradient": (
            "ln of the gradient's change over the depth, in nats",
            _gradient_change,
        ),
        "exploding signal": ("ln of the signal's change over the depth, in nats", _signal_change),
    }
    return [
        _kept(name, change, quantity, amount, measured, scaled, changed)
        for finding, (quantity, amount) in amounts.items()
        if finding in faults
    ][:1]


def _zero_biases(
    probe: Probe,
    params: PyTree,
    measured: Measured,
    found: tuple[Finding, ...],
    measure: Measure,
) -> Prescription | None:
    """Set the biases of modules with dead units to zero."""
    theta, rest = probe.model.split(params)
    leaves, structure = jax.tree.flatten(theta)
    names = {finding.where for finding in found if finding.fault == "dead units"}
    sites = [
        site for row, site in zip(measured.rows, measured.sites, strict=True) if row.name in names
    ]
    for site in sites:
        for i in probe.owned(theta, site.path):
            if leaves[i].ndim - bool(site.loops) == 1:
                leaves[i] = leaves[i] * 0
    changed = probe.model.join(jax.tree.unflatten(structure, leaves), rest)
    change = f"biases of {', '.join(sorted(names))} set to zero (He et al. 2015)"
    quantity = "largest share of dead units of a layer"
    return _kept("zero biases", change, quantity, _dead_share, measured, measure(changed), changed)


def _cooled(
    probe: Probe, params: PyTree, measured: Measured, inputs: tuple, measure: Measure
) -> Prescription | None:
    """Scale down the kernels behind the logits of settled attention until its entropy recovers."""
    before = _missing_entropy(measured)
    bad = {
        measured.rows[i].site
        for i in np.flatnonzero(1 - measured.attention.entropy > HALF * before)
    }
    theta, rest = probe.model.split(params)
    names = sorted(bad)

    @jax.jit
    def influence(theta: PyTree) -> PyTree:
        def logits(theta: PyTree) -> Any:
            read = probe.read(probe.model.join(theta, rest), *inputs, sites=names).sites
            # a mask replaces a logit by a number near the largest float
            kept = [jnp.where(jnp.abs(z) < MASKED, z, 0).astype(jnp.float32) for z in read.values()]
            return sum(jnp.sum(z**2) for z in kept)

        return jax.grad(logits, allow_int=True)(theta)

    slopes = jax.tree.leaves(influence(theta))
    leaves, structure = jax.tree.flatten(theta)
    owned = {
        i
        for site in probe.sites
        if site.name in bad
        for i in probe.owned(theta, site.path)
        if leaves[i].ndim - bool(site.loops) >= 2 and np.any(np.asarray(slopes[i], np.float32))
    }
    best: Prescription | None = None
    for _ in range(ROUNDS):
        for i in owned:
            leaves[i] = leaves[i] * np.asarray(math.exp(-COOLER), leaves[i].dtype)
        changed = probe.model.join(jax.tree.unflatten(structure, leaves), rest)
        change = "kernels of queries and keys scaled down (Zhai et al. 2023)"
        quantity = "largest share of a softmax's entropy that is missing"
        best = _kept(
            "cooler attention",
            change,
            quantity,
            _missing_entropy,
            measured,
            measure(changed),
            changed,
        )
        if best is not None:
            break
    return best


def _kept(
    name: str,
    change: str,
    quantity: str,
    amount: Callable[[Measured], float],
    measured: Measured,
    changed: Measured,
    params: PyTree,
) -> Prescription | None:
    """Return the prescription if it halves its quantity, else None."""
    before = amount(measured)
    after = amount(changed)
    if not (math.isfinite(changed.loss) and after <= HALF * before):
        return None
    return Prescription(name, change, quantity, before, after, params)


def _dead_share(measured: Measured) -> float:
    return float(np.nanmax(measured.signal.dead))


def _missing_entropy(measured: Measured) -> float:
    return float(1 - np.nanmin(measured.attention.entropy))


def _tried(
    name: str,
    change: str,
    quantity: str,
    amount: Callable[[Measured], float],
    steps: Callable[[Measured], np.ndarray],
    probe: Probe,
    params: PyTree,
    measured: Measured,
    measure: Measure,
) -> Prescription | None:
    """Rescale kernels block by block; return the best round if it halves `amount`, else None."""
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
    return Prescription(name, change, quantity, before, after, params)


def _gradient_change(measured: Measured) -> float:
    logs = measured.log_grad_h[list(measured.blocks)]
    return float(abs(logs[0] - logs[-1]))


def _signal_change(measured: Measured) -> float:
    logs = np.asarray(measured.signal.log_q)[list(measured.blocks)]
    return float(abs(logs[0] - logs[-1]) / 2)


def _rescaled(probe: Probe, params: PyTree, measured: Measured, logs: np.ndarray) -> PyTree:
    """Multiply the kernels of each block after the first by exp of its entry of `logs`."""
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
            if in_scan:
                leaves[i] = leaf.at[row.steps[0]].multiply(factor)
            else:
                leaves[i] = leaf * factor
    return probe.model.join(jax.tree.unflatten(structure, leaves), rest)
