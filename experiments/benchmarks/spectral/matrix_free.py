"""The ten largest singular values of one wide Jacobian, every side at its cheapest setting that is accurate enough.

The weights are read from memory once per product with a vector, or with a block of them: bytes are 4 n^2 (L + 1) for
every such pass, FLOPs 2 n^2 (L + 1) for every vector in it. The floor is a single pass over the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring.machine import Rates, on_every_core
from measuring.timing import Settings, Side, measure, table

from jaxstab import spectra
from spectral.dense import jacobians
from spectral.problem import Problem, draw

TOP, ACCURACY = 10, 1e-4
BLOCKS = (16, 24, 32)
STEPS = (16, 20, 24, 28, 32, 40, 48, 64)
VECTORS = (16, 20, 24, 28, 32, 40)


def extremes(problem: Problem, block: int, steps: int) -> Callable[[], Any]:
    """Ours."""
    chain, params, x = single(problem)

    def run(params: Any, x: jax.Array) -> jax.Array:
        operator = spectra.jacobian(chain, params, x)
        return jnp.exp(spectra.extremes(operator, jax.random.key(0), TOP, steps, block).log_s)

    compiled = jax.jit(run).lower(params, x).compile()
    return lambda: compiled(params, x)


def single(problem: Problem) -> tuple:
    """Chain, parameters and input of the first network, on the first device, layers in one stack."""
    take = lambda axis, tree: jax.tree.map(lambda leaf: jnp.asarray(leaf.take(0, axis)), tree)
    params = type(problem.params)(
        take(0, problem.params.embed), take(1, problem.params.blocks), None
    )
    return problem.chains[0], params, jnp.asarray(problem.x[0])


def dense(problem: Problem) -> Callable[[], np.ndarray]:
    """The matrix formed and decomposed, values only."""
    chain, params, x = single(problem)
    form = (
        jax.jit(lambda params, x: jacobians(chain, params, x, problem.depths)[0])
        .lower(params, x)
        .compile()
    )
    return lambda: np.asarray(jnp.linalg.svd(form(params, x), compute_uv=False))[:TOP]


def one_pass(problem: Problem) -> Callable[[], Any]:
    """Floor: one vector through the weights by BLAS, each layer's inputs spread over threads."""
    weights = [
        problem.params.embed["dense"]["kernel"][0],
        *problem.params.blocks["dense"]["kernel"][:, 0],
    ]

    def run(part: slice) -> np.ndarray:
        v = np.ones(problem.width, np.float32)
        for kernel in weights:
            kernel[part] @ v
        return v

    return lambda: on_every_core(run, problem.width)


def accurate(
    calls: Sequence[tuple[Any, Callable[[], Callable[[], Any]]]], truth: np.ndarray
) -> tuple[Any, Callable]:
    """The first setting that reaches the accuracy, or the last; with its side's `prepare`."""
    good = (call for call in calls if error(call[1]()(), truth) <= ACCURACY)
    return next(good, calls[-1])


def error(found: Any, truth: np.ndarray) -> float:
    """Largest relative error of the ten."""
    return float(np.max(np.abs(np.asarray(found)[:TOP] - truth) / truth))


def report(settings: Settings, rate: Rates) -> None:
    """Measure and print."""
    problem = draw(
        ("tanh",), (8,) if settings.small else (32,), 512 if settings.small else 2048, (1.5,), 1
    )
    truth = dense(problem)()
    print(
        f"\nmatrix-free: the {TOP} largest, width {problem.width}, depth {problem.depths[0]}, error at most {ACCURACY}"
    )
    agree = lambda found: error(found, truth)
    bytes_ = 4.0 * problem.width**2 * (problem.depths[0] + 1)
    ours = []
    for block in BLOCKS:
        ways = [
            ((block, n), lambda n=n, block=block: extremes(problem, block, n)) for n in range(3, 9)
        ]
        (_, steps), prepare = accurate(ways, truth)
        work = {"flops": bytes_ * steps * block, "bytes": 2 * bytes_ * steps}
        ours.append(
            Side(f"extremes, {steps} blocks of {block}", prepare, "ours", agree, ACCURACY, **work)
        )
    fastest = min(
        measure(ours, settings._replace(repeats=2)), key=lambda timing: timing.steady.min()
    ).side
    work = 2.0 * problem.width**3 * problem.depths[0] + 8 / 3 * problem.width**3
    sides = [
        Side(
            "one pass over the weights, BLAS",
            lambda: one_pass(problem),
            "floor",
            flops=bytes_ / 2,
            bytes=bytes_,
        ),
        fastest,
        Side("J formed and decomposed", lambda: dense(problem), error=agree, flops=work),
        *(rivals(problem, settings.torch, truth, bytes_) if settings.rivals else []),
    ]
    table(measure(sides, settings), {"one pass": [sides[0].name]}, rate)


def rivals(problem: Problem, device: str | None, truth: np.ndarray, bytes_: float) -> list[Side]:
    """What a user could pick instead."""
    from rivals import matfree_partial

    agree, net = lambda found: error(found, truth), single(problem)
    steps, prepare = accurate(
        [(n, lambda n=n: matfree_partial.largest(*net, TOP, n)) for n in STEPS], truth
    )
    work = {"flops": bytes_ * steps, "bytes": 2 * bytes_ * steps}
    sides = [Side(f"matfree, {steps} steps", prepare, "rival", agree, ACCURACY, **work)]
    if device is None:
        return sides
    from rivals import arpack
    from rivals.torch_network import tuned

    vectors, prepare = accurate(
        [(n, lambda n=n: arpack.largest(problem, device, TOP, n)) for n in VECTORS], truth
    )
    passes = arpack.products(problem, device, TOP, vectors)
    work = {"flops": bytes_ / 2 * passes, "bytes": bytes_ * passes, "tune": tuned}
    name = f"PyTorch gemv + ARPACK, {passes} products"
    return [*sides, Side(name, prepare, "rival", agree, ACCURACY, **work)]
