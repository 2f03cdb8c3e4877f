"""Diagnosis of a model, and the parameters that it prescribes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from jaxstab import networks
from jaxstab.diagnosis.comparing import compared
from jaxstab.diagnosis.cures import prescriptions
from jaxstab.diagnosis.disagreeing import disagreement
from jaxstab.diagnosis.findings import Diagnosis
from jaxstab.diagnosis.measuring import Loss, Measured, check_loss, measurement
from jaxstab.diagnosis.rules import findings, gradient_rate, small_share
from jaxstab.diagnosis.running import of_run, of_stability
from jaxstab.diagnosis.stability import stability
from jaxstab.diagnosis.watching import Watched
from jaxstab.networks import Probe
from jaxstab.networks.interception import ATTENTION


def diagnose(
    model: Any,
    params: PyTree,
    batch: PyTree,
    loss: Loss,
    *,
    key: Key[Array, ""] | None = None,
    rngs: PyTree = None,
    tx: optax.GradientTransformation | None = None,
    watched: Watched | None = None,
    **keywords: Any,
) -> Diagnosis:
    """Diagnose a model at one batch: the faults of its signal and its gradient, and their places.

    The gradient of a chain with a law is compared with the prediction of theory.

    Args:
        model: a model that `networks.probe` takes, such as a chain, or a probe of one. Kernels can
            be prescribed for functions whose tags are the paths of their parameters.
        params: parameters of the model, as `networks.probe` takes them.
        batch: input with examples along the first axis; a tuple for several inputs.
        loss: scalar function of the output, such as a mean over the batch.
        key: PRNG key of small disturbances; None for a fixed one.
        rngs: keys by name of stream, {"dropout": key}.
        tx: optimiser of the trained parameters (the "params" of a linen module, the `nnx.Param` of
            an nnx module). Its first update is compared with the largest stable step of the loss,
            by 20 products with the Hessian and 12 forward passes. None for no comparison.
        watched: summary that `watch` kept of a run of the model, or summaries of a scan along a
            leading axis; adds findings on clipping and updates. None for no run.
        keywords: other arguments of the model's call, such as train=True.

    Returns:
        The diagnosis; `str` formats it as a page.

    Raises:
        ValueError: if the loss is not a scalar, `networks.probe` does not take the model and its
            parameters, or the optimiser does not take the trained parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> def model(params, x):
        ...     for name, layer in params.items():
        ...         x = networks.tag(name, jnp.tanh(x) @ layer["w"])
        ...     return x
        >>> params = {f"layer{i}": {"w": jnp.eye(4) / 4} for i in range(6)}
        >>> report = diagnose(model, params, jnp.ones((8, 4)), jnp.sum)
        >>> [finding.fault for finding in report.findings][0]
        'vanishing gradient'
        >>> cured = report.apply()
        >>> bool(abs(diagnose(model, cured, jnp.ones((8, 4)), jnp.sum).rate.value) < 0.1)
        True
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)
    given = isinstance(model, Probe)
    if given:
        probe = model
    else:
        probe = probed(model, params, *inputs, rngs=rngs, **keywords)
    # parameters read from a file are NumPy arrays
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params)):
        params = jax.tree.map(jnp.asarray, params)
    check_loss(probe, loss, params, inputs)
    measure = measurement(probe, loss)
    if key is None:
        key = jax.random.key(0)
    measured = measure(params, inputs, key)
    beside = compared(probe.model.chain, params, measured)
    run = [] if watched is None else of_run(watched)
    steps = None
    if tx is not None and np.isfinite(measured.loss) and not np.any(measured.nonfinite > 0):
        steps = stability(probe, params, inputs, loss, tx, key)
        run = [*of_stability(steps), *run]
    everything = (*findings(measured), *disagreement(measured, beside), *run)

    def remeasure(changed: PyTree) -> Measured:
        return measure(changed, inputs, key)

    return Diagnosis(
        findings=everything,
        prescriptions=prescriptions(probe, params, measured, everything, inputs, remeasure),
        rate=gradient_rate(measured),
        small=small_share(measured),
        theory=beside,
        missed=probe.missed,
        measured=measured,
        stability=steps,
    )


def probed(model: Any, params: PyTree, *inputs: PyTree, **keywords: Any) -> Probe:
    """Make the probe of a diagnosis, with sites at every value and at the logits of attention.

    Args:
        model: the model, as in `networks.probe`.
        params: parameters of the model.
        inputs: inputs of the model.
        keywords: other arguments of the probe.

    Returns:
        The probe.
    """
    return networks.probe(model, params, *inputs, kind=("*", ATTENTION), **keywords)
