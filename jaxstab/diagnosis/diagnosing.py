"""From a model to its diagnosis."""

from typing import Any

import jax
from jaxtyping import Array, Key, PyTree

from jaxstab import networks
from jaxstab.diagnosis.findings import Diagnosis
from jaxstab.diagnosis.measuring import Loss, measurement
from jaxstab.diagnosis.rules import findings, gradient_rate, small_share
from jaxstab.networks import Probe


def diagnose(
    model: Any,
    params: PyTree,
    batch: PyTree,
    loss: Loss,
    *,
    key: Key[Array, ""] | None = None,
    rngs: PyTree = None,
    **keywords: Any,
) -> Diagnosis:
    """Say what is wrong with a model at one batch: of its signal, of its gradient, and where.

    Args:
        model: what `networks.probe` takes, a chain among them, or a probe of such.
        params: its parameters, likewise.
        batch: its input, examples along the first axis; a tuple where it takes several inputs.
        loss: scalar function of the output, such as a mean over the batch.
        key: PRNG key of small disturbances; None for a fixed one.
        rngs: keys by name of stream, {"dropout": key}.
        keywords: other arguments of the model's call, such as train=True.

    Returns:
        The diagnosis; `str` of it is a page.

    Raises:
        ValueError: if the loss is not a scalar, or model and parameters are not such as `networks.probe` takes.

    Example:
        >>> import jax.numpy as jnp
        >>> def model(weights, x):
        ...     for i, w in enumerate(weights):
        ...         x = networks.tag(f"layer{i}", jnp.tanh(x) @ w)
        ...     return x
        >>> weights = [jnp.eye(4) / 4] * 6
        >>> report = diagnose(model, weights, jnp.ones((8, 4)), jnp.sum)
        >>> [finding.what for finding in report.findings][0]
        'vanishing gradient'
    """
    inputs = batch if isinstance(batch, tuple) else (batch,)
    given = isinstance(model, Probe)
    probe = model if given else networks.probe(model, params, *inputs, rngs=rngs, **keywords)
    measure = measurement(probe, loss)
    measured = measure(params, inputs, jax.random.key(0) if key is None else key)
    return Diagnosis(
        findings=findings(measured),
        prescriptions=(),
        rate=gradient_rate(measured),
        small=small_share(measured),
        missed=probe.missed,
        measured=measured,
    )


def apply(report: Diagnosis, name: str | None = None) -> PyTree:
    """Parameters that a prescription gives.

    Args:
        report: the diagnosis.
        name: of the prescription; None for the first.

    Returns:
        Parameters of the same shapes.

    Raises:
        ValueError: if there is no such prescription.
    """
    for cure in report.prescriptions:
        if name in (None, cure.name):
            return cure.params
    known = ", ".join(cure.name for cure in report.prescriptions) or "none"
    raise ValueError(f"no prescription {name or 'was measured to help'}; there are: {known}")
