"""The programs that take a measure over a grid, a group of cells per device at a time.

Depth is no axis of the programs: a measure takes all wanted depths from one pass to the deepest.
Gains are traced, and all gains of a seed share one draw of weights.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxstab import networks, store
from jaxstab.activations import Activation, get
from jaxstab.checks import check_dtype
from jaxstab.devices import can_hang, one_blas_thread, spread
from jaxstab.records import Data, dimensions
from jaxstab.store import chunks
from jaxstab.sweeps.durable import ProgressBar, Sized, complete, open_store, settings_of_run
from jaxstab.sweeps.grid import Grid, Sample, samples, with_coordinates
from jaxstab.sweeps.measures import Measure, Record, jacobian, signal
from jaxstab.sweeps.own import MeasuringOwn, OwnGrid
from jaxstab.sweeps.plan import axes, plan
from jaxstab.sweeps.programs import Programs

_OURS = (signal, jacobian)


class Result(NamedTuple):
    """A measured group.

    Attributes:
        group: its number in the plan.
        values: the records' fields [1, seed, sigma_w, input, ...] by name.
    """

    group: int
    values: dict[str, np.ndarray]


def run(
    grid: Grid | OwnGrid,
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
        grid: what to sweep over; an `OwnGrid` for layers of the user's own.
        measure: (chain, params, sample, depths) -> record or tuple of records, such as `signal` or
            `jacobian`; pure. All gains share the weights in params, where they stand as drawn;
            `networks.unbind` has them scaled.
        data: examples to measure at.
        chunk_size: cells of a group, see `plan`.
        progress: wraps the groups as they are computed, such as tqdm.
        precision: of matrix products, as in `jax.default_matmul_precision`.
        devices: to compute a group each; None for all, or for one CPU device if the measure
            decomposes stacks itself.

    Returns:
        The records' fields as variables over (activation, seed, sigma_w, input, ...), the rest
        named by the records; of an `OwnGrid` over (depth, seed, sigma_w, input, ...).

    Raises:
        ValueError: if data or grid do not fit, or float64 is asked for while JAX has it switched
            off.
    """
    job = _job(grid, measure, data, chunk_size=chunk_size, precision=precision, devices=devices)
    every = range(job.groups)
    lengths = tuple(axis.length for axis in job.axes.values())
    arrays = {
        name: np.empty((*lengths, *field.shape), field.dtype) for name, field in job.fields.items()
    }
    with one_blas_thread():
        for result in progress(Sized(job.compute(job.batches(), every), job.groups)):
            at = chunks.part(job.axes, result.group)
            inside = tuple(slice(cells.stop - cells.start) for cells in at)
            for name, values in result.values.items():
                arrays[name][at] = values[inside]
    variables = {
        name: ((*job.axes, *field.dims), arrays[name]) for name, field in job.fields.items()
    }
    coordinates = {name: values for name, (_, values) in job.coordinates.items()}
    return xr.Dataset(variables, coordinates).assign_attrs(as_attributes(job.decided))


def run_into(
    place: str | Path,
    grid: Grid | OwnGrid,
    measure: Measure,
    data: Data,
    *,
    shard: tuple[int, int] | None = None,
    join: bool = False,
    progress: ProgressBar = iter,
    chunk_size: int | None = None,
    precision: str = "highest",
    devices: Sequence[jax.Device] | None = None,
) -> xr.Dataset:
    """Measure every cell of a grid into a store, group by group; the same call goes on where a stopped one stood.

    The finished store is the same, byte by byte, however often the run was interrupted, on any
    number of devices, and however many processes shared it.

    Args:
        place: the store: a folder to be, or an fsspec URL such as s3://bucket/sweep.zarr.
        grid: as in `run`.
        measure: as in `run`.
        data: examples to measure at.
        shard: (I, N), the I-th of N equal parts of the groups; None for all.
        join: whether to share the groups with a run that has them, each going to whoever is first.
        progress: wraps the groups as they are computed, such as tqdm; each is kept before the next
            is asked for.
        chunk_size: cells of a group, see `plan`.
        precision: of matrix products.
        devices: as in `run`.

    Returns:
        What the store holds: what `run` gives, and `done`, which says which cells are computed.

    Raises:
        ValueError: if data or grid do not fit, or the store is of another sweep; says what differs.
        FileExistsError: if something else stands at the place; it is left alone.
        BlockingIOError: if another run has some of these groups and join is False; says who.
        OSError: if the place cannot be written to.

    Example:
        >>> from jaxstab import datasets, sweeps
        >>> grid = Grid(depths=(2,), sigma_w=(1.0, 2.0), activations=("tanh",), seeds=1, width=8, inputs=1)
        >>> found = run_into("memory://doctest/measured.zarr", grid, sweeps.signal, datasets.load("digits"))
        >>> found.log_q.dims, bool(found.done.all())
        (('activation', 'seed', 'sigma_w', 'input', 'layer'), True)
    """
    job = _job(grid, measure, data, chunk_size=chunk_size, precision=precision, devices=devices)
    complete(open_store(place, job), job, shard, join, progress)
    found = store.load_groups(place)
    return found.assign_attrs(as_attributes(found.attrs))


def _job(grid: Grid | OwnGrid, *arguments: Any, **options: Any) -> "Measuring | MeasuringOwn":
    if isinstance(grid, OwnGrid):
        return MeasuringOwn(grid, *arguments, **options)
    return Measuring(grid, *arguments, **options)


class Measuring:
    """A measure over a grid as a job of the durable run.

    Attributes:
        grid: what to sweep over.
        measure: what to take of every cell.
        plan: how the grid is cut into groups.
        devices: a group is computed by each.
        fields: what is kept of each cell.
        axes: those that are cut into groups.
        coordinates: of the dataset, (dims, values) by name.
        decided: all that decides a number, but for the measure.
    """

    def __init__(
        self,
        grid: Grid,
        measure: Measure,
        data: Data,
        *,
        chunk_size: int | None = None,
        precision: str = "highest",
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Plan the sweep and trace its first program.

        Args:
            grid: what to sweep over.
            measure: what to take of every cell.
            data: examples to measure at.
            chunk_size: cells of a group, see `plan`.
            precision: of matrix products.
            devices: as in `run`.

        Raises:
            ValueError: if data or grid do not fit, or float64 is asked for while JAX has it
                switched off.
        """
        check_dtype(grid.dtype)
        self.grid = grid
        self.measure = measure
        self.plan = plan(grid, data.x.shape[1], measure, chunk_size)
        self.axes = axes(grid, self.plan)
        self._precision = precision
        self._samples: Sample = jax.tree.map(np.asarray, samples(grid, data))
        self._programs = Programs(self._lowered)
        self.devices = jax.local_devices() if devices is None else devices
        first = self._lowered(0)
        if devices is None and measure not in _OURS and can_hang(first, self._mesh):
            self.devices = self.devices[:1]
            first = self._lowered(0)
        self._programs.keep(0, first)
        self.fields = _fields(first.out_info)
        sizes = {name: axis.length for name, axis in self.axes.items()}
        for field in self.fields.values():
            sizes |= dict(zip(field.dims, field.shape, strict=True))
        labels = with_coordinates(
            xr.Dataset(coords={name: np.arange(size) for name, size in sizes.items()}), grid
        )
        self.coordinates = {name: ((name,), labels[name].values) for name in sizes}
        self.decided = settings(grid, data, precision)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """All that decides a number."""
        return self.decided | {"measure": self._identity()}

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return self.plan.groups

    def program(self, group: int) -> int:
        """Say which activation a group is of.

        Args:
            group: its number.

        Returns:
            The number of the activation.
        """
        return group * len(self.grid.activations) // self.plan.groups

    def batches(self) -> Iterator[list[int]]:
        """Groups to compute side by side, one per device.

        Yields:
            Numbers of groups of one activation.
        """
        of_one = self.plan.groups // len(self.grid.activations)
        for start in range(0, self.plan.groups, of_one):
            numbers = list(range(start, start + of_one))
            yield from (
                numbers[i : i + len(self.devices)] for i in range(0, of_one, len(self.devices))
            )

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Measure groups, each device one at a time.

        Args:
            batches: numbers of groups of one activation, no more than there are devices.
            pending: groups that may come; programs that only others need are not compiled ahead.

        Yields:
            Each group as it is finished.
        """
        order = list(dict.fromkeys(map(self.program, pending)))
        for numbers in batches:
            wanted = self.program(numbers[0])
            coming = order[order.index(wanted) + 1 :] if wanted in order else []
            program = self._programs.ready(wanted, coming)
            # fetched, hence finished, before the next is sent: one program in flight
            found = jax.device_get(program(*self._arguments(numbers)))
            values = {
                name: leaf for record in _records(found) for name, leaf in record._asdict().items()
            }
            for place, number in enumerate(numbers):
                yield Result(number, {name: leaf[place][None] for name, leaf in values.items()})

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("group",))

    def _arguments(self, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray, Sample]:
        """Seeds [device, s], gains [device, g] and samples [device, s, ...]; devices without a group repeat one."""
        many, (s, g) = len(self.devices), self.plan.group
        at = [chunks.part(self.axes, number) for number in numbers]
        # a last group repeats cells to keep its shape, so that nothing compiles anew
        seeds = (
            np.array([np.arange(cells[1].start, cells[1].start + s) for cells in at])
            % self.grid.seeds
        )
        gains = np.array([np.arange(cells[2].start, cells[2].start + g) for cells in at]) % len(
            self.grid.sigma_w
        )
        seeds = np.resize(seeds, (many, s))
        gains = np.resize(gains, (many, g))
        sigma_w = np.asarray(self.grid.sigma_w, self.grid.dtype)[gains]
        return seeds, sigma_w, jax.tree.map(lambda field: field[seeds], self._samples)

    def _lowered(self, activation: int) -> jax.stages.Lowered:
        """The traced program (seeds, sigma_w, samples) -> records [device, s, g, i, ...] of an activation."""
        cell = _cell(self.grid, self.grid.activations[activation], self.measure)

        def chunk(seeds: Array, sigma_w: Array, samples: Sample) -> Record:
            # a leading axis of one: this device's own group
            seed, gains, x = jax.tree.map(lambda leaf: leaf[0], (seeds, sigma_w, samples))
            with jax.default_matmul_precision(self._precision):
                found = jax.vmap(cell, (0, None, 0))(seed, gains, x)
            return jax.tree.map(lambda leaf: leaf[None], found)

        own = PartitionSpec("group")
        return spread(chunk, self._mesh, (own, own, own), own).lower(*self._arguments([0]))

    def _identity(self) -> dict[str, str]:
        """The measure by its name; where functions of the user's own are in it, by the programs that they make."""
        name = getattr(self.measure, "__qualname__", type(self.measure).__qualname__)
        if self.measure in _OURS and all(
            _built_in(activation) for activation in self.grid.activations
        ):
            return {"name": name}
        digest = hashlib.sha256()
        one = jax.tree.map(
            lambda field: jax.ShapeDtypeStruct(field.shape[1:], field.dtype), self._samples
        )
        seed = np.int32(0)
        gain = jax.ShapeDtypeStruct((1,), self.grid.dtype)
        for activation in self.grid.activations:
            traced = jax.jit(_cell(self.grid, activation, self.measure)).lower(seed, gain, one)
            digest.update(traced.as_text().encode())
        return {"name": name, "program": digest.hexdigest()[:16]}


def _cell(
    grid: Grid, activation: str | Activation, measure: Measure
) -> Callable[[Array, Array, Sample], Record]:
    """(seed, sigma_w [g], sample [i]) -> records [g, i]: networks of one draw of weights."""
    mlp = grid.network(activation)
    chain = networks.chain(mlp)

    def measured(seed: Array, gains: Array, samples: Sample) -> Record:
        key = jax.random.key(seed)
        unit = networks.init(mlp, key, samples.x[0], 1.0, grid.sigma_b)
        masks = jax.random.split(jax.random.fold_in(key, 1), grid.inputs)

        def one(sigma_w: Array, sample: Sample, masks: Array) -> Record:
            wet = masks if mlp.dropout else None
            # a gain of its own, not times the weights: all gains share one copy of them
            params = networks.bind(mlp, unit, key=wet, rate=grid.dropout, sigma_w=sigma_w)
            return measure(chain, params, sample, grid.depths)

        over_inputs = jax.vmap(one, (None, 0, 0))
        return jax.vmap(lambda sigma_w: over_inputs(sigma_w, samples, masks))(gains)

    return measured


def _built_in(activation: str | Activation) -> bool:
    """Whether a name is enough to tell an activation."""
    try:
        return isinstance(activation, str) or get(activation.name) == activation
    except ValueError:
        return False


def _records(found: Record | tuple[Record, ...]) -> tuple[Record, ...]:
    return (found,) if hasattr(found, "_fields") else tuple(found)


def _fields(found: Any) -> dict[str, store.Field]:
    """What is kept of a cell: the records' arrays, whose axes device, seed and sigma_w are left out."""
    return {
        name: store.Field(
            leaf.shape[3:],
            np.dtype(leaf.dtype).name,
            ("input", *dimensions(type(record), name, len(leaf.shape) - 4)),
        )
        for record in _records(found)
        for name, leaf in record._asdict().items()
    }


def settings(grid: Grid, data: Data, precision: str = "highest") -> dict[str, Any]:
    """All that decides a number of a sweep, but for the measure.

    Args:
        grid: what to sweep over.
        data: examples to measure at.
        precision: of matrix products.

    Returns:
        Plain settings for a store.
    """
    return {
        "grid": json.loads(grid.to_json()),
        "precision": precision,
        "data": {"name": data.name, "sha256": data.sha256},
    } | settings_of_run()


def as_attributes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as attributes of a dataset.

    Args:
        settings: of a sweep.

    Returns:
        Text by name: JSON where a setting is no text, the data by their name and checksum.
    """
    told = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.items()
    }
    return told | {"data": settings["data"]["name"], "data_sha256": settings["data"]["sha256"]}


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
