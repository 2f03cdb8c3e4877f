"""All singular values of many Jacobians, read at several depths of every network."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring.machine import Rates, on_every_core
from measuring.timing import Settings, Side, measure, table

from jaxstab import networks, spectra, sweeps
from jaxstab.networks import Params
from jaxstab.records import Data, Spectrum
from spectral.problem import ACTIVATIONS, CELLS, SIGMA_B, Placed, Problem, draw, gains, ours, place


def jacobians(
    chain: networks.Chain, params: Params, x: jax.Array, depths: Sequence[int]
) -> jax.Array:
    """dh_L/dx [depth, d_in, width], transposed, for every wanted depth: what all floors decompose."""
    slots = (
        jnp.full(params.depth + 1, len(depths)).at[jnp.asarray(depths)].set(jnp.arange(len(depths)))
    )

    def layer(carry: tuple, at: tuple) -> tuple[tuple, None]:
        h, rows, kept = carry
        block, slot = at
        rows = jax.vmap(lambda row: jax.jvp(lambda h: chain.block(block, h), (h,), (row,))[1])(rows)
        kept = jax.lax.dynamic_update_index_in_dim(kept, rows, slot, 0)
        return (chain.block(block, h), rows, kept), None

    with jax.default_matmul_precision("highest"):
        start = jax.jacfwd(lambda x: chain.embed(params, x))(x).T
        kept = jnp.zeros((len(depths) + 1, *start.shape), start.dtype)
        return jax.lax.scan(
            layer, (chain.embed(params, x), start, kept), (params.blocks, slots[1:])
        )[0][2][:-1]


def every(problem: Problem, function: Callable) -> Callable[[Params, jax.Array, jax.Array], Any]:
    """The program that applies (chain, params, x, depths) to every activation and cell: [activation, cell, ...]."""

    def program(params: Params, x: jax.Array, labels: jax.Array) -> Any:
        one = lambda chain: lambda params, x: function(chain, params, x, problem.depths)
        found = [jax.vmap(one(chain), in_axes=(CELLS, 0))(params, x) for chain in problem.chains]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    return program


def values(problem: Problem, function: Callable = spectra.singular_values) -> Callable:
    """What ours takes of each network."""
    return lambda chain, params, x, labels: function(chain, params, x, problem.depths)


def disagreement(values: Any, ours: np.ndarray) -> float:
    """Largest relative error among the large singular values, a tenth of the largest or more, of networks that compare.

    Where the largest is beyond 10, rounding grows on its way through a chaotic network until no two programs agree;
    below 1e-30 float32 ends.
    """
    values, ours = np.asarray(values), np.asarray(ours)
    largest = ours[..., :1]
    large = (ours > 0.1 * largest) & (largest > 1e-30) & (largest < 10)
    return float(np.max(np.abs(values - ours)[large] / ours[large]))


def product_flops(problem: Problem) -> float:
    """Of one matrix product per layer, activation and cell."""
    return 2.0 * problem.width**3 * max(problem.depths) * problem.cells * len(problem.activations)


def value_flops(problem: Problem) -> float:
    """Of values-only decompositions, 8 n^3 / 3 each (Golub & Van Loan 2013, figure 8.6.1)."""
    return 8 / 3 * problem.width**3 * problem.nets


def numpy_products(problem: Problem) -> Callable[[], Any]:
    """Floor: the layers' weights multiplied up by BLAS, cells spread over threads."""
    weights = problem.params.blocks["dense"]["kernel"]
    start = problem.params.embed["dense"]["kernel"]

    def chained(part: slice) -> None:
        for _ in problem.activations:
            rows, other = start[part].copy(), np.empty_like(start[part])
            for layer in weights:
                np.matmul(rows, layer[part], out=other)
                rows, other = other, rows

    return lambda: on_every_core(chained, problem.cells)


def jax_products(problem: Problem, placed: Placed) -> Callable[[], Any]:
    """Floor: the same in a scan, cells spread over devices."""

    def program(params: Params, x: jax.Array, labels: jax.Array) -> jax.Array:
        start = params.embed["dense"]["kernel"]
        step = lambda rows, layer: (
            jnp.einsum("acij,cjk->acik", rows, layer, precision="highest"),
            None,
        )
        start = jnp.broadcast_to(start[None], (len(problem.activations), *start.shape))
        return jax.lax.scan(step, start, params.blocks["dense"]["kernel"])[0]

    return placed.compile(program)


def numpy_values(matrices: np.ndarray) -> Callable[[], np.ndarray]:
    """Floor: LAPACK's values-only decompositions of the very Jacobians, spread over threads."""
    flat = np.ascontiguousarray(matrices).reshape(-1, *matrices.shape[-2:])
    values = lambda part: np.linalg.svd(flat[part], compute_uv=False)
    return lambda: np.concatenate(on_every_core(values, len(flat))).reshape(matrices.shape[:-1])


def jax_values(matrices: np.ndarray, placed: Placed) -> Callable[[], jax.Array]:
    """Floor: the same through jnp.linalg.svd on the devices."""
    params, x, labels = placed.parts[0]
    given = placed._replace(
        parts=((params, jax.device_put(matrices.swapaxes(0, 1).copy(), x.sharding), labels),)
    )
    return given.compile(
        lambda params, x, labels: jnp.linalg.svd(x.swapaxes(0, 1), compute_uv=False)
    )


def floors(
    problem: Problem, placed: Placed, ours: np.ndarray | None = None
) -> tuple[list[Side], list[str]]:
    """Sides of the floor, and of which it is the sum."""
    matrices = np.asarray(placed.compile(every(problem, jacobians))())
    agree = None if ours is None else lambda values: disagreement(values, ours)
    products, values = product_flops(problem), value_flops(problem)
    sides = [
        Side("products, JAX", lambda: jax_products(problem, placed), "floor", flops=products),
        Side("values, JAX", lambda: jax_values(matrices, placed), "floor", agree, flops=values),
    ]
    if placed.mesh.devices.flat[0].platform != "cpu":
        return sides, ["products, JAX", "values, JAX"]
    sides += [
        Side("products, BLAS", lambda: numpy_products(problem), "floor", flops=products),
        Side("values, LAPACK", lambda: numpy_values(matrices), "floor", agree, flops=values),
    ]
    return sides, ["products, BLAS|products, JAX", "values, LAPACK|values, JAX"]


def rivals(problem: Problem, placed: Placed, device: str | None, ours: np.ndarray) -> list[Side]:
    """What a user could pick instead."""
    from rivals import jax_per_depth

    agree = lambda values: disagreement(values, ours)
    sides = [Side("JAX per depth", lambda: jax_per_depth.spectra(problem, placed), error=agree)]
    if device is None:
        return sides
    from rivals import torch_func, torch_loop, torch_product
    from rivals.torch_network import tuned

    few = list(range(1, problem.cells, problem.cells // 2))
    part = problem.only(few)
    agree_part = lambda values: disagreement(values, ours[:, few])
    hand = lambda **threads: lambda: torch_product.spectra(problem, device, **threads)
    func, loop = (
        lambda: torch_func.spectra(problem, device),
        lambda: torch_loop.spectra(part, device),
    )
    return [
        *sides,
        Side("PyTorch product", hand(), error=agree, tune=tuned),
        Side("PyTorch product, cells over threads", hand(threads=True), error=agree),
        Side("torch.func vmap(jacrev)", func, error=agree, tune=tuned),
        Side("PyTorch loop", loop, error=agree_part, share=len(few) / problem.cells, tune=tuned),
    ]


def report(settings: Settings, rate: Rates) -> None:
    """Measure and print."""
    depths = (1, 2, 4, 8, 16, 32, 64)
    problem = draw(
        ACTIVATIONS, depths, 128, gains(4 if settings.small else 16), 2 if settings.small else 4
    )
    placed = place(problem)
    print(
        f"\nspectra: {problem.nets} Jacobians, width {problem.width}: {len(depths)} depths to {max(depths)} x "
        f"{len(problem.activations)} activations x {problem.cells} networks"
    )
    prepare = lambda: ours(problem, values(problem))
    truth = prepare()()
    agree = lambda values: disagreement(values, truth)
    flops = product_flops(problem) + value_flops(problem)
    floor_sides, floor = floors(problem, placed, truth)
    sides = [
        *floor_sides,
        Side("singular_values", prepare, "ours", agree, flops=flops),
        *(rivals(problem, placed, settings.torch, truth) if settings.rivals else []),
    ]
    table(measure(sides, settings), {"products + values": floor}, rate)
    swept(problem)


def swept(problem: Problem) -> None:
    """Print what the same takes from nothing through sweeps.run: weights drawn and scaled, a compile per activation."""

    def measure(
        chain: networks.Chain, params: Params, sample: sweeps.Sample, depths: Sequence[int]
    ) -> Spectrum:
        log_s = jnp.log(spectra.singular_values(chain, params, sample.x, depths))
        return Spectrum(log_s, jax.nn.logsumexp(2 * log_s, axis=-1) - jnp.log(float(problem.width)))

    seconds: list[float] = []

    def clock(chunks: Sequence[Any]) -> Iterator[Any]:
        for chunk in chunks:
            start = time.perf_counter()
            yield chunk
            seconds.append(time.perf_counter() - start)

    seeds = problem.cells // len(problem.gains)
    axes = {
        "activation": problem.activations,
        "depth": problem.depths,
        "seed": range(seeds),
        "sigma_w": problem.gains,
    }
    grid = sweeps.Grid(axes, sigma_b=SIGMA_B, width=problem.width)
    x = np.random.default_rng(0).standard_normal((8, problem.width), np.float32)
    sweeps.run(grid, measure, Data(x, np.zeros(8, int), "noise"), progress=clock)
    steady = [part[1:] for part in np.split(np.array(seconds), len(problem.activations))]
    again = (
        f", {sum((len(p) + 1) * p.min() for p in steady):.2f} s steady" if len(steady[0]) else ""
    )
    print(
        f"the same through sweeps.run, which draws the weights too: {sum(seconds):.2f} s in all{again}"
    )
