"""The least that any training must do: its matrix products.

They are those of a linear network without biases, dy = y for the output's cotangent, whose weights stay as drawn, at
gain 1 so that nothing leaves float32's range. What comes out is its gradient on the last minibatch, and what it says of
all examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring.machine import on_every_core

from training_runs.problem import Problem, Weights
from training_runs.spread import spread


def numpy_floor(problem: Problem) -> Callable[[], list[Any]]:
    """By BLAS, one network after the other in a thread per core: (gradients by layer, outputs) [depth][cell]."""
    (embed, _), (blocks, _), (readout, _) = problem.unit
    x, batches = problem.x, problem.batches

    def some(kernels: list[np.ndarray], part: slice) -> list[Any]:
        batch, width = batches.shape[1], problem.width
        buffers = [np.empty((batch, width), np.float32) for _ in range(len(kernels) + 1)]
        return [one(kernels, buffers) for _ in range(part.start, part.stop)]

    def one(
        kernels: list[np.ndarray], buffers: list[np.ndarray]
    ) -> tuple[list[np.ndarray], np.ndarray]:
        *inner, readout = kernels
        *states, pulled, other = buffers
        grads = [np.empty_like(kernel) for kernel in kernels]
        for examples in batches:
            before = [x[examples], *states]
            for kernel, h, after in zip(inner, before, states, strict=False):
                np.matmul(h, kernel, out=after)
            cotangent = np.matmul(states[-1], readout)
            np.matmul(states[-1].T, cotangent, out=grads[-1])
            np.matmul(cotangent, readout.T, out=pulled)
            for layer in range(len(inner) - 1, 0, -1):
                np.matmul(before[layer].T, pulled, out=grads[layer])
                np.matmul(pulled, inner[layer].T, out=other)
                pulled, other = other, pulled
            np.matmul(before[0].T, pulled, out=grads[0])
        h = x
        for kernel in kernels:
            h = np.matmul(h, kernel)
        return grads, h

    def run() -> list[Any]:
        found = []
        for depth in problem.depths:
            kernels = [embed, *blocks[:depth], readout]
            parts = on_every_core(lambda part, kernels=kernels: some(kernels, part), problem.cells)
            found.append([net for part in parts for net in part])
        return found

    return run


def jax_floor(problem: Problem) -> Callable[[], list[Any]]:
    """The same in JAX, one network after the other on every device: (gradients by layer, outputs) [depth]."""
    product = lambda a, b: jnp.matmul(a, b, precision="highest")
    # on a CPU a product with a transposed left side takes twice the time of one with its copy
    transposed = lambda a: jax.lax.optimization_barrier(a.T)

    def train(
        weights: Weights, x: jax.Array, y: jax.Array, batches: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        kernels = [kernel for kernel, _ in (weights.embed, *weights.blocks, weights.readout)]

        def forwards(x: jax.Array) -> list[jax.Array]:
            states = [x]
            for kernel in kernels:
                states.append(product(states[-1], kernel))
            return states

        def step(_: Any, examples: jax.Array) -> tuple[list[jax.Array], None]:
            *states, cotangent = forwards(x[examples])
            grads = []
            for layer in reversed(range(len(kernels))):
                grads.append(product(transposed(states[layer]), cotangent))
                if layer:
                    cotangent = product(cotangent, kernels[layer].T)
            return grads[::-1], None

        return jax.lax.scan(step, [jnp.zeros_like(kernel) for kernel in kernels], batches)[
            0
        ], forwards(x)[-1]

    return spread(problem, train, one_by_one=True, listed=True, gain=1.0)
