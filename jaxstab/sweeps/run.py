"""The programs that take a measure over a grid.

Depth is no axis of the programs: a measure takes all wanted depths from one pass to the deepest. Gains are traced,
and all gains of a seed share one draw of weights. This is where programs are compiled and run, so this is where the
linear algebra is kept sound: one BLAS thread, one program in flight, no two decompositions at once on one device. Gains
are spread over devices; a CPU counts as several where `jax_num_cpu_devices` says so.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxstab import networks
from jaxstab.activations import Activation
from jaxstab.checks import check_dtype
from jaxstab.records import Data, dimensions
from jaxstab.sweeps.devices import one_blas_thread, one_by_one, spread, usable_devices
from jaxstab.sweeps.grid import Grid, Sample, samples, with_coordinates
from jaxstab.sweeps.measures import Measure, Record, signal
from jaxstab.sweeps.plan import Estimate, estimate

ProgressBar = Callable[[Sequence[Any]], Iterable[Any]]


def run(
    grid: Grid,
    measure: Measure,
    data: Data,
    *,
    chunk_size: int | None = None,
    progress: ProgressBar = iter,
    precision: str = "highest",
    devices: Sequence[jax.Device] | None = None,
) -> xr.Dataset:
    """Measure every cell of a grid: one compile per activation, whatever the depths, gains and seeds.

    A cell that diverges holds inf or NaN; it disturbs no other.

    Args:
        grid: what to sweep over.
        measure: (chain, params, sample, depths) -> record or tuple of records, such as `signal` or `jacobian`; pure.
            All gains share the weights in params, where they stand as drawn; `networks.unbind` has them scaled.
        data: examples to measure at.
        chunk_size: cells computed at once; None to fit them into MEMORY.
        progress: wraps the sequence of chunks, such as tqdm.
        precision: of matrix products, as in `jax.default_matmul_precision`.
        devices: to spread the gains over; None for `usable_devices()`, all of them for `signal`.

    Returns:
        The records' fields as variables over (activation, seed, sigma_w, input, ...), the rest named by the records.

    Raises:
        ValueError: if data or grid do not fit, or float64 is asked for while JAX has it switched off.
    """
    check_dtype(grid.dtype)
    devices = usable_devices(decomposing=measure is not signal) if devices is None else devices
    plan, inputs = estimate(grid, data.x.shape[1], chunk_size, len(devices), measure), samples(grid, data)
    programs = [_program(grid, activation, measure, precision, devices) for activation in grid.activations]
    chunks = [
        (program, np.arange(s, s + plan.chunk[0]), np.arange(g, g + plan.chunk[1]))
        for program in programs
        for s in range(0, grid.seeds, plan.chunk[0])
        for g in range(0, len(grid.sigma_w), plan.chunk[1])
    ]
    results, gains = [], np.asarray(grid.sigma_w, grid.dtype)
    with one_blas_thread():
        for program, seeds, at in progress(chunks):
            # the last chunk repeats cells to keep its shape, so that nothing compiles anew
            seeds, at = seeds % grid.seeds, at % len(gains)
            keys = jax.vmap(jax.random.key)(seeds)
            # fetched, hence finished, before the next is sent: one program in flight
            results.append(jax.device_get(program(keys, gains[at], Sample(*(field[seeds] for field in inputs)))))
    dataset = _labelled(grid, plan, results)
    return dataset.assign_attrs(grid=grid.to_json(), data=data.name, data_sha256=data.sha256, precision=precision)


def _program(
    grid: Grid, activation: str | Activation, measure: Measure, precision: str, devices: Sequence[jax.Device]
) -> Callable:
    """The compiled measurement of a chunk: (keys [s], sigma_w [g], samples [s, i]) -> records [s, g, i]."""
    mlp = grid.network(activation)
    chain = networks.chain(mlp)

    def chunk(keys: Array, sigma_w: Array, samples: Sample) -> Record:
        draw = lambda key, samples: networks.init(mlp, key, samples.x[0], 1.0, grid.sigma_b)

        def seed(key: Array, unit: networks.Params, samples: Sample) -> Record:
            def cell(sigma_w: Array) -> Record:
                def one(sample: Sample, masks: Array) -> Record:
                    wet = masks if mlp.dropout else None
                    # a gain of its own, not times the weights: all gains share one copy of them
                    params = networks.bind(mlp, unit, key=wet, rate=grid.dropout, sigma_w=sigma_w)
                    return measure(chain, params, sample, grid.depths)

                return jax.vmap(one)(samples, jax.random.split(jax.random.fold_in(key, 1), grid.inputs))

            return jax.vmap(cell)(sigma_w)

        with jax.default_matmul_precision(precision):
            return jax.vmap(seed)(keys, one_by_one(draw)(keys, samples), samples)

    mesh, whole, gains = Mesh(np.array(devices), ("gain",)), PartitionSpec(), PartitionSpec("gain")
    return spread(chunk, mesh, (whole, gains, whole), PartitionSpec(None, "gain"))


def _labelled(grid: Grid, plan: Estimate, results: list[Record]) -> xr.Dataset:
    """Chunks of records as one dataset, the cells that only filled up a last chunk dropped."""
    rows = math.ceil(grid.seeds / plan.chunk[0])
    columns = math.ceil(len(grid.sigma_w) / plan.chunk[1])

    def assemble(*parts: np.ndarray) -> np.ndarray:
        blocks = np.array_split(np.arange(len(parts)), len(grid.activations))
        whole = [
            np.concatenate([np.concatenate([parts[i] for i in row], axis=1) for row in np.split(block, rows)], axis=0)
            for block in blocks
        ]
        assert len(blocks[0]) == rows * columns
        return np.stack(whole)[:, : grid.seeds, : len(grid.sigma_w)]

    whole = jax.tree.map(assemble, *results)
    records = (whole,) if hasattr(whole, "_fields") else whole
    return labelled(records, ("activation", "seed", "sigma_w", "input")).pipe(with_coordinates, grid)


def labelled(records: Iterable[Record], cell: tuple[str, ...]) -> xr.Dataset:
    """Records whose arrays carry leading axes, as one dataset.

    Args:
        records: records of different fields.
        cell: names of the leading axes.

    Returns:
        Their fields over (*cell, ...), the rest named by the records.
    """
    return xr.Dataset(
        {
            field: ((*cell, *dimensions(type(record), field, array.ndim - len(cell))), array)
            for record in records
            for field, array in record._asdict().items()
        }
    )
