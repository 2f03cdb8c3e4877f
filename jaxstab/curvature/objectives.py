"""Mean loss over examples, as outputs of a model and a loss of the outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxstab import networks
from jaxstab.arguments import explained
from jaxstab.checks import check_choice, check_labels
from jaxstab.curvature.kernels import LOSSES
from jaxstab.networks import MLP, Chain, Probe

Outputs = Callable[[PyTree, PyTree], PyTree]
MeanLoss = Callable[[PyTree, PyTree], Float[Array, ""]]


@dataclass(frozen=True)
class Objective:
    """Mean loss over examples, L(theta) = (1/n) sum_b loss(y(theta, x_b), t_b), of (params, (x, targets)).

    Attributes:
        outputs: (params, x [batch, ...]) -> y [batch, ...].
        loss: (y, targets) -> mean over the batch.
    """

    outputs: Outputs
    loss: MeanLoss

    def __call__(self, params: PyTree, examples: tuple[PyTree, PyTree]) -> Float[Array, ""]:
        """Compute the mean loss.

        Args:
            params: parameters of the model.
            examples: inputs and targets, with a leading axis of examples.

        Returns:
            The mean loss.
        """
        x, targets = examples
        return self.loss(self.outputs(params, x), targets)


@explained
def objective(
    model: Chain | Outputs, loss: str | MeanLoss = "cross_entropy", mixes: bool = False
) -> Objective:
    """Make the mean loss of a chain or of a function.

    Args:
        model: a chain; or a function (params, x [batch, ...]) -> y [batch, ...].
        loss: "cross_entropy" (labels), "squared" (|y - t|^2 / 2), or a function (y, targets) ->
            mean over the batch.
        mixes: True if blocks of the chain mix examples, as BatchNorm does, and must be applied to
            the whole batch.

    Returns:
        The objective, called as (params, (x, targets)), with fields `outputs`, (params, x) -> y,
        and `loss`, (y, targets) -> mean.

    Raises:
        ValueError: if the model is no chain and no function, or the loss is unknown.

    Example:
        >>> goal = objective(lambda w, x: x * w[0], "squared")
        >>> float(goal(jnp.asarray([2.0]), (jnp.ones((3, 1)), jnp.zeros((3, 1)))))
        2.0
    """
    if not callable(loss):
        check_choice("loss", loss, LOSSES)
    if callable(loss):
        of_outputs = loss
    else:
        of_outputs = {"cross_entropy": cross_entropy, "squared": squared}[loss]
    return Objective(_outputs(model, mixes), of_outputs)


def cross_entropy(
    y: Float[Array, "*batch d_out"], labels: Int[Array, "*batch"]
) -> Float[Array, ""]:
    """Compute the mean softmax cross-entropy, in nats.

    Args:
        y: logits of one example or a batch.
        labels: class of each example.

    Returns:
        The mean; NaN with a NaN gradient if a label has no logit.

    Raises:
        ValueError: if concrete labels are not integers in [0, d_out).

    Example:
        >>> round(float(cross_entropy(jnp.zeros((3, 10)), jnp.arange(3))), 4)  # ln 10
        2.3026
    """
    check_labels(labels, y.shape[-1])
    told_apart = jnp.all((labels >= 0) & (labels < y.shape[-1]))
    # multiplied, so that the gradient is NaN, too
    known = jnp.where(told_apart, jnp.ones((), y.dtype), jnp.full((), jnp.nan, y.dtype))
    return known * jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, labels))


def squared(y: Float[Array, "batch ..."], targets: Array) -> Float[Array, ""]:
    """Compute the mean of |y - t|^2 / 2 over a batch.

    Args:
        y: outputs.
        targets: targets of the same shape.

    Returns:
        The mean.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> float(squared(jnp.ones((3, 2)), jnp.zeros((3, 2))))
        1.0
    """
    if jnp.shape(targets) != jnp.shape(y):
        raise ValueError(
            f"targets must have the outputs' shape {jnp.shape(y)}, got {jnp.shape(targets)}"
        )
    return jnp.sum(jnp.square(y - targets)) / (2 * len(y))


def _outputs(model: Any, mixes: bool) -> Outputs:
    if isinstance(model, Chain):
        batched = model if mixes else networks.over_batch(model)
        return lambda params, x: batched.readout(params, networks.state(batched, params, x))
    if isinstance(model, Probe):
        raise ValueError(
            "model must be a function (params, x) -> y, got a networks.Probe: outputs, theta = "
            "probe.function(params) gives one"
        )
    if isinstance(model, MLP):
        raise ValueError(
            "model must be a chain, got a networks.MLP: networks.chain(mlp) makes a chain of it"
        )
    if hasattr(model, "apply") and hasattr(model, "init"):
        raise ValueError(
            f"model must be a function (params, x) -> y, got a {type(model).__name__}: lambda "
            "params, x: "
            "model.apply(params, x) is one"
        )
    if not callable(model):
        raise ValueError(
            "model must be a networks.Chain or a function (params, x) -> y, got a "
            f"{type(model).__name__}"
        )
    return model
