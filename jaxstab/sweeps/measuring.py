"""Programs that measure a grid, one group of cells per device at a time.

A measure of `networks.MLP` reads all depths off from one pass to the largest depth, so that depth
is no axis of the programs. Gains are traced, and all gains of a seed share one draw of weights. A
user's own network has a program for each depth; layers and singular values that a depth does not
have are NaN.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxstab import store
from jaxstab.checks import check_dtype
from jaxstab.devices import can_hang, spread, stated_memory
from jaxstab.records import Data, dimensions
from jaxstab.sweeps.durable import Result, settings_of_run
from jaxstab.sweeps.examples import Sample, classes, samples
from jaxstab.sweeps.grid import Grid
from jaxstab.sweeps.measured_cells import CHOICE, measured_cell, measured_own_cell
from jaxstab.sweeps.measures import OURS, Measure, Record
from jaxstab.sweeps.plan import Plan, sharing
from jaxstab.sweeps.programs import Programs
from jaxstab.sweeps.settings import SETTINGS, is_built_in
from jaxstab.theory.laws import NO_LAW

# axes along which a group has several values; a group has one value of every other axis
_INSIDE = ("seed", "sigma_w")
NO_THEORY = f"absent: {NO_LAW}"
# (seeds [s], gains [g], other traced settings, samples [s, i, ...]) -> records [s, g, i, ...]
Cells = Callable[[Array, Array, Mapping[str, Array], Sample], Record]


class Measuring:
    """Job of the durable run that measures a grid.

    Attributes:
        grid: grid of the sweep.
        measure: measure of every cell.
        plan: cut of the grid into groups.
        devices: devices, each of which computes one group at a time.
        fields: fields stored for each cell.
        axes: axes that are cut into groups.
        coordinates: coordinates of the dataset, (dims, values) by name.
        decided: settings that the results depend on, without the measure.
    """

    def __init__(
        self,
        grid: Grid,
        measure: Measure,
        data: Data,
        plan: Plan,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Trace the first program, and all others whose results may differ in shape.

        Args:
            grid: grid of the sweep.
            measure: measure of every cell.
            data: examples to measure at.
            plan: cut of the grid into groups.
            devices: devices, each of which computes one group at a time; None for all, or for one
                CPU device if the measure decomposes stacks of matrices itself.

        Raises:
            ValueError: if data or grid do not fit, or dtype is "float64" without JAX's x64 mode.
        """
        check_dtype(grid.fixed["dtype"])
        _check(grid)
        self.grid = grid
        self.measure = measure
        self.plan = plan
        self.axes = plan.axes
        self._kinds = grid.kinds
        self._sharing = sharing(grid, measure)
        self._outputs = classes(data)
        batches = {kind["batch"] for kind in self._kinds}
        self._samples: dict[int | None, Sample] = {
            batch: jax.tree.map(np.asarray, samples(grid, data, batch)) for batch in batches
        }
        self._programs: Programs[tuple[int, int]] = Programs(self._lowered)
        self.devices = jax.local_devices() if devices is None else devices
        first = self._lowered(self.program(0))
        if devices is None and measure not in OURS and can_hang(first, self._mesh):
            self.devices = self.devices[:1]
            first = self._lowered(self.program(0))
        traced = {self.program(0): first}
        if grid.network is not None or set(grid.static_axes) - {"activation", "weights"}:
            for key in dict.fromkeys(map(self.program, range(plan.groups))):
                traced[key] = traced.get(key) or self._lowered(key)
        for key, program in traced.items():
            self._programs.keep(key, program)
        self.fields = _fields([program.out_info for program in traced.values()])
        self.coordinates = self._labels()
        self.decided = settings(grid, data)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that the results depend on."""
        return self.decided | {"measure": self._identity()}

    def program(self, group: int) -> tuple[int, int]:
        """Return the key of a group's program.

        Args:
            group: number of the group.

        Returns:
            The number of the first kind that shares the program, and the depth.
        """
        kind, depth = self.plan.place(self.grid, group)
        return self._sharing[kind].first, depth

    def rank(self, group: int) -> int:
        """Rank a group by its number.

        Args:
            group: number of the group.

        Returns:
            The number.
        """
        return group

    def share(self, groups: Sequence[int]) -> float:
        """Return the share of some groups in the whole work.

        Args:
            groups: numbers of the groups.

        Returns:
            Share of the number of groups.
        """
        return len(groups) / self.plan.groups

    def memory(self, group: int) -> int:
        """Return the memory of a group, as stated by the compiler.

        Args:
            group: number of the group.

        Returns:
            Bytes on the group's device.
        """
        return stated_memory(self._programs.ready(self.program(group)))

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Measure groups, one per device at a time.

        Args:
            batches: numbers of groups of one program, at most one per device.
            pending: groups that may follow, whose programs are compiled ahead.

        Yields:
            Each group as it is finished.
        """
        order = list(dict.fromkeys(map(self.program, pending)))
        for numbers in batches:
            wanted = self.program(numbers[0])
            if wanted in order:
                coming = order[order.index(wanted) + 1 :]
            else:
                coming = []
            program = self._programs.ready(wanted, coming)
            # fetching waits for the result: only one program is in flight
            records = jax.device_get(program(*self._arguments(numbers)))
            leaves = {
                name: leaf
                for record in _records(records)
                for name, leaf in record._asdict().items()
            }
            for place, number in enumerate(numbers):
                values = {name: self._kept(name, leaf[place]) for name, leaf in leaves.items()}
                yield Result(number, values)

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("group",))

    def _kept(self, name: str, values: np.ndarray) -> np.ndarray:
        """Arrange a field [seed, gain, i, ...] of one group along the axes of the store, padded with NaN."""
        names = list(self.axes)
        if "sigma_w" in names and "seed" in names and names.index("sigma_w") < names.index("seed"):
            values = values.swapaxes(0, 1)
        inside = values.shape[2:]
        wide = self.fields[name].shape
        values = values.reshape((*(axis.chunk for axis in self.axes.values()), *inside))
        if inside == wide:
            return values
        beyond = [(0, 0)] * len(names)
        beyond += [(0, want - have) for want, have in zip(wide, inside, strict=True)]
        blank = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        return np.pad(values, beyond, constant_values=blank)

    def _arguments(
        self, numbers: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], Sample]:
        """Return seeds [device, s], gains [device, g], other traced settings [device], samples [device, s, ...]."""
        # for equal shapes, devices without a group repeat one, and incomplete groups repeat cells
        slices = [self.plan.at(number) for number in numbers]
        seeds = self._places("seed", slices)
        gains = self._places("sigma_w", slices)
        others = {
            name: self._column(name)[self._places(name, slices)[:, 0]]
            for name in self.grid.traced_axes
            if name not in _INSIDE
        }
        first = self.program(numbers[0])[0]
        if len(self._choices(first)) > 1:
            kinds = [self.plan.place(self.grid, number)[0] for number in numbers]
            choice = np.array([self._sharing[kind].place for kind in kinds], np.int32)
            others[CHOICE] = np.resize(choice, len(self.devices))
        kind = self._kinds[first]
        sample = jax.tree.map(lambda field: field[seeds], self._samples[kind["batch"]])
        seed_values = np.asarray(self.grid.values("seed"), np.int32)[seeds]
        return seed_values, self._column("sigma_w")[gains], others, sample

    def _column(self, name: str) -> np.ndarray:
        return np.asarray(self.grid.values(name), self.grid.fixed["dtype"])

    def _places(self, name: str, slices: Sequence[Mapping[str, slice]]) -> np.ndarray:
        """Return the indices along an axis of each device's cells, [device, cells of a group]."""
        many = len(self.devices)
        if name not in self.axes:
            return np.zeros((many, 1), int)
        length, chunk = self.axes[name]
        places = np.array([np.arange(one[name].start, one[name].start + chunk) for one in slices])
        return np.resize(places % length, (many, chunk))

    def _lowered(self, key: tuple[int, int]) -> jax.stages.Lowered:
        """Trace the program (seeds, gains, others, samples) -> records [device, s, g, i, ...]."""
        kind, depth = key
        cells = self._cells(kind, depth)

        def group(seeds: Array, gains: Array, others: dict[str, Array], sample: Sample) -> Record:
            # the leading axis has one entry: this device's group
            own = jax.tree.map(lambda leaf: leaf[0], (seeds, gains, others, sample))
            records = cells(*own)
            return jax.tree.map(lambda leaf: leaf[None], records)

        own = PartitionSpec("group")
        programs = map(self.program, range(self.plan.groups))
        first = next(number for number, one in enumerate(programs) if one == key)
        program = spread(group, self._mesh, (own, own, own, own), own)
        return program.lower(*self._arguments([first]))

    def _cells(self, kind: int, depth: int) -> Cells:
        if self.grid.network is None:
            choices = self._choices(kind)
            one = measured_cell(self.grid, self._kinds[kind], choices, self.measure, self._outputs)
        else:
            one = measured_own_cell(self.grid, self._kinds[kind], depth, self.measure)
        return jax.vmap(one, (0, None, None, 0))

    def _choices(self, first: int) -> list[Any]:
        """Return the activations of the kinds that share the program of kind `first`."""
        pairs = zip(self._kinds, self._sharing, strict=True)
        return [kind["activation"] for kind, share in pairs if share.first == first]

    def _labels(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        sizes = {name: axis.length for name, axis in self.axes.items()}
        for field in self.fields.values():
            sizes |= dict(zip(field.dims, field.shape, strict=True))
        known = {name: self.grid.labels(name) for name in (*self.grid.axes, *self.axes)}
        return {
            name: ((name,), np.asarray(known.get(name, np.arange(size))))
            for name, size in sizes.items()
        }

    def _identity(self) -> dict[str, str]:
        """Identify the measure by its name, and by a digest of its programs if they contain user code."""
        name = getattr(self.measure, "__qualname__", type(self.measure).__qualname__)
        if self.measure in OURS and self.grid.network is None and is_built_in(self._kinds):
            return {"name": name}
        digest = hashlib.sha256()
        kinds = dict.fromkeys(
            self.plan.place(self.grid, group) for group in range(self.plan.groups)
        )
        others = {
            axis: jax.ShapeDtypeStruct((), self.grid.fixed["dtype"])
            for axis in self.grid.traced_axes
            if axis not in _INSIDE
        }
        shapes = np.zeros(1, np.int32), jax.ShapeDtypeStruct((1,), self.grid.fixed["dtype"]), others
        for number, depth in kinds:
            kind = self._kinds[number]
            one = jax.tree.map(lambda field: field[:1], self._samples[kind["batch"]])
            traced = jax.jit(self._cells(number, depth)).lower(*shapes, one)
            digest.update(traced.as_text().encode())
        return {"name": name, "program": digest.hexdigest()[:16]}


def _check(grid: Grid) -> None:
    """Check that every axis affects measurements, and that BatchNorm gets batches."""
    known = [name for name in grid.axes if name in SETTINGS]
    needless = [name for name in known if SETTINGS[name].trained]
    if needless:
        raise ValueError(
            f"{', '.join(needless)} must be axes of trainings, with sweeps.Train as the measure"
        )
    for kind in grid.kinds:
        if grid.network is None and kind["batch"] in (None, 1):
            mixes = grid.mlp(kind, 1, 1).mixes_examples
            if mixes or kind["batch"] == 1:
                raise ValueError(
                    f"batch must be an integer >= 2, and BatchNorm needs one, got {kind['batch']}"
                )


def _records(records: Record | tuple[Record, ...]) -> tuple[Record, ...]:
    if hasattr(records, "_fields"):
        return (records,)
    return tuple(records)


def _fields(programs: Sequence[Any]) -> dict[str, store.Field]:
    """Return the fields stored for a cell: arrays of the records, in the largest shape of any program."""
    fields: dict[str, store.Field] = {}
    for records in programs:
        for record in _records(records):
            for name, leaf in record._asdict().items():
                # the axes are device, seed, gain, input, and those of the record
                shape = leaf.shape[3:]
                dims = ("input", *dimensions(type(record), name, len(shape) - 1))
                if name in fields:
                    shape = tuple(map(max, shape, fields[name].shape))
                fields[name] = store.Field(shape, np.dtype(leaf.dtype).name, dims)
    return fields


def settings(grid: Grid, data: Data) -> dict[str, Any]:
    """Collect everything that measured results depend on, without the measure.

    Args:
        grid: grid of the sweep.
        data: examples to measure at.

    Returns:
        Plain settings for a store.
    """
    # settings of trainings do not affect measurements
    whole = json.loads(grid.to_json())
    trained = {name for name, setting in SETTINGS.items() if setting.trained}
    known: dict[str, Any] = {
        "grid": {name: value for name, value in whole.items() if name not in trained},
        "data": {"name": data.name, "sha256": data.sha256},
    }
    if _lawless(grid):
        known["theory"] = NO_THEORY
    return known | settings_of_run()


def _lawless(grid: Grid) -> bool:
    """Check whether any kind of a user's own network has no law."""
    if grid.network is None:
        return False
    return any(grid.chain(kind, grid.deepest).law is None for kind in grid.kinds)
