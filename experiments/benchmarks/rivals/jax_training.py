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
        losses, right = zip(*run(), strict=True)
        return Result(np.stack([np.asarray(a) for a in losses]), np.stack([np.asarray(a) for a in right]))

    return call


def _train(weights: Weights, x: jax.Array, y: jax.Array, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
    def step(weights: Weights, examples: jax.Array) -> tuple[Weights, tuple[jax.Array, jax.Array]]:
        wanted = y[examples]
        (loss, logits), grads = jax.value_and_grad(_loss, has_aux=True)(weights, x[examples], wanted)
        weights = jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, grads)
        return weights, (loss, jnp.mean(jnp.argmax(logits, axis=-1) == wanted, dtype=loss.dtype))

    losses, right = jax.lax.scan(step, weights, batches)[1]
    return losses, right[-1]


def _loss(weights: Weights, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    dense = lambda h, pair: h @ pair[0] + pair[1][None]
    h = dense(x, weights.embed)
    if isinstance(weights.blocks, list):
        for pair in weights.blocks:
            h = dense(jnp.tanh(h), pair)
    else:
        h = jax.lax.scan(lambda h, pair: (dense(jnp.tanh(h), pair), None), h, weights.blocks)[0]
    logits = dense(jnp.tanh(h), weights.readout)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), logits
