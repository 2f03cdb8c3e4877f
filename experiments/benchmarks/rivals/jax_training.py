"""JAX's own transformations, one program per depth: layers and steps in scans, networks under vmap or lax.map."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from training_runs.problem import LEARNING_RATE, Result, Weights
from training_runs.spread import spread


def trained(
    problem: Any, one_by_one: bool, unrolled: bool, devices: Sequence[jax.Device] | None = None
) -> Callable[[], Result]:
    """Train all networks.

    Args:
        problem: the trainings.
        one_by_one: networks under lax.map rather than vmap.
        unrolled: a Python loop over layers, each with arrays of its own, rather than a scan.
        devices: to spread the networks over; all unless given.
    """
    with jax.default_matmul_precision("highest"):
        run = spread(problem, _train, one_by_one, unrolled, devices)

    def call() -> Result:
        losses, hits = (
            np.stack([np.asarray(a) for a in arrays]) for arrays in zip(*run(), strict=True)
        )
        return Result(losses, problem.accuracy(hits))

    return call


def _train(
    weights: Weights, x: jax.Array, y: jax.Array, batches: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses [step], and which examples the network has right at the end."""

    def loss(weights: Weights, examples: jax.Array) -> jax.Array:
        logits = _logits(weights, x[examples])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[examples]))

    def step(weights: Weights, examples: jax.Array) -> tuple[Weights, jax.Array]:
        value, grads = jax.value_and_grad(loss)(weights, examples)
        return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, grads), value

    weights, losses = jax.lax.scan(step, weights, batches)
    return losses, jnp.argmax(_logits(weights, x), axis=-1).astype(y.dtype) == y


def _logits(weights: Weights, x: jax.Array) -> jax.Array:
    dense = lambda h, pair: h @ pair[0] + pair[1][None]
    h = dense(x, weights.embed)
    if isinstance(weights.blocks, list):
        for pair in weights.blocks:
            h = dense(jnp.tanh(h), pair)
    else:
        h = jax.lax.scan(lambda h, pair: (dense(jnp.tanh(h), pair), None), h, weights.blocks)[0]
    return dense(jnp.tanh(h), weights.readout)
