"""Gradient norms at every layer, of networks of several depths.

The floor: all depths share one forward pass, a product [batch, n] [n, n] per layer. Backwards, the cotangents of all
depths still alive at a layer go through its weights in one product [alive * batch, n] [n, n]. The norm of the weights'
gradient dW = a^T c takes a product [n, batch] [batch, n] for each; or none of that size: |a^T c|^2 is the sum of the
entries of (a a^T) * (c c^T), two products [batch, n] [n, batch], fewer FLOPs where the batch is smaller than n / 2.
Both floors are measured: "gradients formed", as automatic differentiation must, and "Gram".
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring.machine import Rates, on_every_core
from measuring.timing import Settings, Side, measure, table

from jaxstab import networks, propagation, training
from jaxstab.networks import Params
from spectral.problem import ACTIVATIONS, Placed, Problem, draw, gains, ours, place

# cells in one call of a JAX program, on all devices together: more of them work on memory rather than on the cache;
# of ours, whose cells share their weights
AT_ONCE, GAINS_AT_ONCE = 4, 8


def norms(problem: Problem) -> Callable:
    """What ours takes of each network, by propagation.backward: (log_grad_h, log_grad_theta) [depth, layer]."""

    def measure(
        chain: networks.Chain, params: Params, x: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        loss = lambda y: training.cross_entropy(y, labels)
        found = propagation.backward(chain, params, x, loss, problem.depths)
        return found.log_grad_h, found.log_grad_theta

    return measure


def disagreement(found: Any, truth: Any) -> float:
    """Largest error in ln of the norms, where float32 holds their squares and chaos does not decide."""
    found, truth = (np.stack([np.asarray(part) for part in pair]) for pair in (found, truth))
    # how much a gradient grew from its network's last layer down, in nats: rounding grows with it, or faster
    last = np.take_along_axis(
        truth[0], np.sum(~np.isnan(truth[0]), axis=-1, keepdims=True) - 1, axis=-1
    )
    comparable = (truth > -30) & (np.nanmax(truth[0], axis=-1, keepdims=True) - last < 0.1)
    if not np.array_equal(np.isnan(found) | ~comparable, np.isnan(truth) | ~comparable):
        return float("inf")
    return float(np.max(np.abs(found - truth)[comparable]))


def segments(problem: Problem) -> list[tuple[int, int]]:
    """(layers, depths alive there), from the last layer to the first."""
    ends = [*reversed(problem.depths), 0]
    return [(high - low, alive) for alive, (high, low) in enumerate(itertools.pairwise(ends), 1)]


def flops(problem: Problem, gram: bool) -> float:
    """Of the products of the floor."""
    batch, n, deepest, reads = (
        problem.x.shape[1],
        problem.width,
        max(problem.depths),
        sum(problem.depths),
    )
    norms = 2 * batch**2 * n * (deepest + reads) if gram else 2 * batch * n**2 * reads
    return float(
        problem.cells * len(problem.activations) * (2 * batch * n**2 * (deepest + reads) + norms)
    )


def numpy_floor(problem: Problem, gram: bool) -> Callable[[], Any]:
    """The products by BLAS, cells spread over threads, four at a time so that what they work on stays in the cache."""
    weights = problem.params.blocks["dense"]["kernel"]
    batch, n = problem.x.shape[1:]

    def some(part: slice) -> None:
        h = np.ascontiguousarray(problem.x[part]).reshape(-1, batch, n)
        other, above = np.empty_like(h), len(weights)
        for kernel in weights:
            np.matmul(h, kernel[part], out=other)
        formed = np.empty((len(h), n, n), np.float32)
        for layers, alive in segments(problem):
            cotangent = np.ones((len(h), alive * batch, n), np.float32) / n
            pulled, each = np.empty_like(cotangent), cotangent.reshape(len(h), alive, batch, n)
            for layer in reversed(range(above - layers, above)):
                np.matmul(cotangent, weights[layer][part].swapaxes(1, 2), out=pulled)
                if gram:
                    np.matmul(h, h.swapaxes(1, 2))
                    np.matmul(each, each.swapaxes(2, 3))
                else:
                    for depth in range(alive):
                        np.matmul(h.swapaxes(1, 2), each[:, depth], out=formed)
            above -= layers

    def run(part: slice) -> None:
        for _ in problem.activations:
            for start in range(part.start, part.stop, 4):
                some(slice(start, min(start + 4, part.stop)))

    return lambda: on_every_core(run, problem.cells)


def jax_floor(problem: Problem, placed: Placed, gram: bool) -> Callable[[], Any]:
    """The products in scans, cells vmapped and spread over devices."""
    product = lambda a, b: jnp.matmul(a, b, precision="highest")

    def cell(kernels: jax.Array, x: jax.Array) -> jax.Array:
        states = jax.lax.scan(lambda h, kernel: (product(h, kernel), h), x, kernels)[1]
        total, cotangent, layer = jnp.zeros((), x.dtype), x[:0], len(kernels)

        def step(carry: tuple, at: tuple) -> tuple[tuple, None]:
            cotangent, total = carry
            kernel, h = at
            each = cotangent.reshape(-1, *x.shape)
            if gram:
                total += jnp.sum(product(h, h.T)[None] * product(each, each.swapaxes(1, 2)))
            else:
                total += jnp.sum(product(h.T, each) ** 2)
            return (product(cotangent, kernel.T), total), None

        for layers, _ in segments(problem):
            cotangent, at = jnp.concatenate([cotangent, x]), slice(layer - layers, layer)
            carry, layer = (cotangent, total), layer - layers
            (cotangent, total), _ = jax.lax.scan(
                step, carry, (kernels[at], states[at]), reverse=True
            )
        return total

    def program(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
        kernels = params.blocks["dense"]["kernel"]
        # inputs that differ by activation, lest one pass serve for all
        each = [
            jax.vmap(cell, in_axes=(1, 0))(kernels, x * (1 + a))
            for a in range(len(problem.activations))
        ]
        return jnp.stack(each)

    return placed.compile(program)


def rivals(problem: Problem, placed: Placed, device: str | None, truth: Any) -> list[Side]:
    """What a user could pick instead."""
    from rivals import jax_per_depth

    agree = lambda found: disagreement(found, truth)
    sides = [Side("JAX per depth", lambda: jax_per_depth.gradients(problem, placed), error=agree)]
    if device is None:
        return sides
    from rivals import torch_func, torch_loop, torch_product
    from rivals.torch_network import tuned

    def some(cells: int) -> tuple[Problem, float, Callable[[Any], float]]:
        few = list(range(problem.cells // (2 * cells), problem.cells, problem.cells // cells))[
            :cells
        ]
        return (
            problem.only(few),
            cells / problem.cells,
            lambda f: disagreement(f, [part[:, few] for part in truth]),
        )

    batched, batched_share, batched_agree = some(min(16, problem.cells))
    part, share, part_agree = some(2)
    func = lambda: torch_func.gradients(part, device)
    loop = lambda: torch_loop.gradients(part, device)
    hand = lambda: torch_product.gradients(batched, device)
    return [
        *sides,
        Side("PyTorch batched", hand, error=batched_agree, share=batched_share, tune=tuned),
        Side("PyTorch hooks", loop, error=part_agree, share=share, tune=tuned),
        Side("torch.func vmap(grad)", func, error=part_agree, share=share, tune=tuned),
    ]


def report(settings: Settings, rate: Rates) -> None:
    """Measure and print."""
    problem = draw(
        ACTIVATIONS,
        (16, 32, 64, 128),
        256,
        gains(4 if settings.small else 16),
        1 if settings.small else 4,
        batch=32,
    )
    placed = place(problem, AT_ONCE)
    print(
        f"\ngradients: {problem.nets} networks, width {problem.width}, batch {problem.x.shape[1]}: depths "
        f"{problem.depths} x {len(problem.activations)} activations x {problem.cells} networks"
    )
    compiled = lambda: ours(problem, norms(problem), min(GAINS_AT_ONCE, len(problem.gains)))
    truth = compiled()()
    on_cpu = placed.mesh.devices.flat[0].platform == "cpu"
    sides, floors = [], {}
    for name, gram in (("gradients formed", False), ("Gram", True)):
        work = flops(problem, gram)
        jax_ = Side(
            f"{name}, JAX", lambda gram=gram: jax_floor(problem, placed, gram), "floor", flops=work
        )
        blas = Side(
            f"{name}, BLAS", lambda gram=gram: numpy_floor(problem, gram), "floor", flops=work
        )
        sides += [jax_, blas] if on_cpu else [jax_]
        floors[name] = ["|".join(side.name for side in ([jax_, blas] if on_cpu else [jax_]))]
    agree = lambda found: disagreement(found, truth)
    sides.append(Side("propagation.backward", compiled, "ours", agree, flops=flops(problem, False)))
    if settings.rivals:
        # rounding turns a relu unit on or off somewhere in 128 layers, which is 1/256 of its example's gradient
        sides += [
            side._replace(allowed=1e-2) for side in rivals(problem, placed, settings.torch, truth)
        ]
    table(measure(sides, settings), floors, rate)
