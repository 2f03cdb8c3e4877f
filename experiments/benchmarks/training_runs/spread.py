"""JAX programs, one per depth, their cells spread over devices or on one."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from training_runs.problem import Problem, Weights


def spread(
    problem: Problem,
    train: Callable,
    one_by_one: bool,
    listed: bool,
    devices: Sequence[jax.Device] | None = None,
    gain: float | None = None,
) -> Callable[[], list[Any]]:
    """Compile; the call gives the results [depth], with an axis of cells.

    Args:
        problem: what is trained.
        train: (weights of one network, x, y, batches) -> its result.
        one_by_one: each device takes one network after the other, by lax.map, rather than all at once, by vmap.
        listed: blocks as a list of (kernel, bias), rather than in one stack.
        devices: to spread the cells over; all unless given. Their number must divide that of the cells, or fewer serve.
        gain: for all cells, instead of theirs.
    """
    devices = devices or jax.local_devices()
    devices = devices[: max(n for n in range(1, len(devices) + 1) if problem.cells % n == 0)]
    mesh = Mesh(np.array(devices), ("cell",))
    cells, whole = PartitionSpec("cell"), PartitionSpec()

    def program(weights: Weights, *data: jax.Array) -> Any:
        one = lambda weights: train(weights, *data)
        return jax.lax.map(one, weights) if one_by_one else jax.vmap(one)(weights)

    specs = (cells, whole, whole, whole)
    shared = jax.jit(
        jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=cells, check_vma=False)
    )
    put = lambda spec, tree: jax.device_put(tree, NamedSharding(mesh, spec))
    data = put(whole, (problem.x, problem.y, problem.batches))
    programs = []
    for depth in problem.depths:
        weights = problem.weights(depth, gain)
        if listed:
            weights = weights.listed()
        weights = put(cells, weights)
        programs.append((shared.lower(weights, *data).compile(), weights))
    # one in flight
    return lambda: [
        jax.block_until_ready(compiled(weights, *data)) for compiled, weights in programs
    ]
