"""The least that any training must do: its matrix products.

They are those of a linear network without biases, dy = y for the output's cotangent, whose weights stay as drawn, at
gain 1 so that nothing leaves float32's range. What comes out is its gradient on the last minibatch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring.machine import on_every_core

from training_runs.problem import Problem, Weights
from training_runs.spread import spread


def numpy_floor(problem: Problem) -> Callable[[], list[list[Any]]]:
    """By BLAS, one network after the other in a thread per core: gradients [depth][cell]."""
    problem = problem._replace(gains=(1.0,) * len(problem.gains))
    return lambda: [[g for part in _numpy(problem, depth) for g in part] for depth in problem.depths]


def _numpy(problem: Problem, depth: int) -> list[Any]:
    def some(part: slice) -> list[list[np.ndarray]]:
        batch = problem.batches.shape[1]
        buffers = [np.empty((batch, problem.width), np.float32) for _ in range(depth + 3)]
        return [one(cell // len(problem.gains), buffers) for cell in range(part.start, part.stop)]

    def one(seed: int, buffers: list[np.ndarray]) -> list[np.ndarray]:
        (embed, _), (blocks, _), (readout, _) = (tuple(a[seed] for a in pair) for pair in problem.unit)
        kernels = [embed, *blocks[:depth]]
        grads = [np.empty_like(kernel) for kernel in (*kernels, readout)]
        *states, pulled, other = buffers
        for examples in problem.batches:
            x = problem.x[examples]
            for kernel, before, after in zip(kernels, [x, *states], states, strict=False):
                np.matmul(before, kernel, out=after)
            cotangent = states[-1] @ readout
            np.matmul(states[-1].T, cotangent, out=grads[-1])
            np.matmul(cotangent, readout.T, out=pulled)
            for layer in range(depth, 0, -1):
                np.matmul(states[layer - 1].T, pulled, out=grads[layer])
                np.matmul(pulled, kernels[layer].T, out=other)
                pulled, other = other, pulled
            np.matmul(x.T, pulled, out=grads[0])
        return grads

    return on_every_core(some, problem.cells)


def jax_floor(problem: Problem) -> Callable[[], list[Any]]:
    """The same in JAX, one network after the other on every device: gradients [depth], with an axis of cells."""
    product = lambda a, b: jnp.matmul(a, b, precision="highest")
    # on a CPU a product with a transposed left side takes twice the time of one with its copy
    transposed = lambda a: jax.lax.optimization_barrier(a.T)

    def train(weights: Weights, x: jax.Array, y: jax.Array, batches: jax.Array) -> list[jax.Array]:
        embed, blocks, readout = ((w[0] if isinstance(w, tuple) else [k for k, _ in w]) for w in weights)

        def step(_: Any, examples: jax.Array) -> tuple[list[jax.Array], None]:
            states, kernels = [x[examples]], [embed, *blocks, readout]
            for kernel in kernels:
                states.append(product(states[-1], kernel))
            cotangent, grads = states[-1], []
            for layer in reversed(range(len(kernels))):
                grads.append(product(transposed(states[layer]), cotangent))
                if layer:
                    cotangent = product(cotangent, kernels[layer].T)
            return grads[::-1], None

        start = [jnp.zeros_like(kernel) for kernel in (embed, *blocks, readout)]
        return jax.lax.scan(step, start, batches)[0]

    at_gain_1 = problem._replace(gains=(1.0,) * len(problem.gains))
    return spread(at_gain_1, train, one_by_one=True, listed=True)
