"""Programs that train a grid, one group of cells per device at a time.

Depth, gains, learning rate, clip threshold, dropout and seed are traced: a program serves all
groups of its kind and range of depths. Groups of different depths may run side by side; each device
loops to its own depth.
"""

import functools
import hashlib
import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from jaxstab import training
from jaxstab.checks import check_dtype
from jaxstab.devices import spread, stated_memory
from jaxstab.sweeps.durable import Result, settings_of_run
from jaxstab.sweeps.examples import Split
from jaxstab.sweeps.grid import Grid
from jaxstab.sweeps.measures import Train
from jaxstab.sweeps.plan import Plan
from jaxstab.sweeps.programs import AHEAD, Programs
from jaxstab.sweeps.settings import is_built_in, label, traced
from jaxstab.sweeps.trained_cells import Cell, trained_cell
from jaxstab.sweeps.training_plan import bounds, fields, flops, total_flops
from jaxstab.training import Examples

# number of the kind, depth of the program, cells side by side
Key = tuple[int, int, int]


class Trainings:
    """Job of the durable run that trains a grid.

    Results of a cell depend only on the grid, the plan and the data. A cell that diverges stops,
    and `first_nonfinite` holds the step. If memory runs out, groups are computed in fewer lanes.

    Attributes:
        grid: grid of trainings.
        measure: settings of the trainings.
        plan: cut of the grid into groups.
        data: examples to train and test on.
        devices: devices, each of which computes one group at a time.
        fields: fields stored for each cell.
        axes: axes that are cut into groups.
        coordinates: coordinates of the dataset, (dims, values) by name.
        decided: settings that the results depend on, with a user's own functions by name.
        lanes: number of cells computed side by side, fewer than planned after memory ran out.
    """

    def __init__(
        self,
        grid: Grid,
        measure: Train,
        data: Split,
        plan: Plan,
        *,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Prepare the fields, the coordinates and the settings; nothing is compiled.

        Args:
            grid: grid of trainings.
            measure: settings of the trainings.
            data: examples to train and test on.
            plan: cut of the grid into groups.
            devices: devices, each of which computes one group at a time; None for all.

        Raises:
            ValueError: if dtype is "float64" without JAX's x64 mode.
        """
        check_dtype(grid.fixed["dtype"])
        self.grid = grid
        self.measure = measure
        self.data = data
        self.plan = plan
        self.axes = plan.axes
        self.lanes = plan.lanes
        if devices is None:
            devices = jax.local_devices()
        self.devices = devices
        self.fields = fields(grid, measure)
        self._kinds = grid.kinds
        self._bounds = [bounds(grid, kind, measure) for kind in self._kinds]
        self._mesh = Mesh(np.array(self.devices), ("cell",))
        self._programs: Programs[Key] = Programs(self._lowered)
        self._flops: dict[tuple[int, int], float] = {}
        self._examples = tuple(map(self._as_examples, data))
        self.coordinates = self._labels()
        self.decided = self._decided()

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that the results depend on, with a user's own functions by a digest of programs."""
        own = self.grid.network is not None or self.measure.loss is not training.cross_entropy
        if not own and is_built_in(self._kinds):
            return self.decided
        digest = hashlib.sha256()
        for kind, depths in enumerate(self._bounds):
            for bound in sorted(set(depths.values())):
                digest.update(self._lowered((kind, bound, self.lanes)).as_text().encode())
        program = {"program": digest.hexdigest()[:16]}
        return self.decided | {"measure": self.decided["measure"] | program}

    def place(self, group: int) -> tuple[int, int]:
        """Return the kind and the depth that the cells of a group share.

        Args:
            group: number of the group.

        Returns:
            The number of the kind, and the depth.
        """
        return self.plan.place(self.grid, group)

    def program(self, group: int) -> tuple[int, int]:
        """Return the key of a group's program.

        Args:
            group: number of the group.

        Returns:
            The number of the kind, and the depth of the program.
        """
        kind, depth = self.place(group)
        return kind, self._bounds[kind][depth]

    def rank(self, group: int) -> tuple[int, int, int]:
        """Rank groups by kind, the deepest first.

        Args:
            group: number of the group.

        Returns:
            A sort key; the lowest comes first.
        """
        kind, depth = self.place(group)
        return kind, -depth, group

    def flops(self, group: int) -> float:
        """Count the FLOPs of a group's matrix products.

        Args:
            group: number of the group.

        Returns:
            Number of FLOPs.
        """
        place = self.place(group)
        if place not in self._flops:
            kind, depth = place
            self._flops[place] = flops(self.grid, self._kinds[kind], self.measure, depth, self.data)
        return self._flops[place] * math.prod(part.stop for part in self.plan.inside(group))

    def share(self, groups: Sequence[int]) -> float:
        """Return the share of some groups in the whole work.

        Args:
            groups: numbers of the groups.

        Returns:
            Share of all FLOPs.
        """
        return sum(map(self.flops, groups)) / total_flops(self.grid, self.measure, self.data)

    def memory(self, group: int) -> int:
        """Return the memory of a group, as stated by the compiler.

        Args:
            group: number of the group.

        Returns:
            Bytes on the group's device.
        """
        return stated_memory(self._programs.ready((*self.program(group), self.lanes)))

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[Result]:
        """Train groups, one per device at a time.

        Args:
            batches: numbers of groups of one program, at most one per device.
            pending: groups that may follow, whose programs are compiled ahead.

        Yields:
            Each group as it is finished.

        Raises:
            MemoryError: if one cell at a time does not fit into memory.
        """
        ranked = sorted(pending, key=self.rank)
        order = list(dict.fromkeys(map(self.program, ranked)))
        for numbers in batches:
            records, seconds, compiling = self._trained(numbers, order)
            share = len(numbers)
            for place, number in enumerate(numbers):
                values = self._kept(number, [leaf[place] for leaf in records])
                yield Result(number, values, seconds / share, compiling / share)

    def _trained(
        self, numbers: Sequence[int], order: Sequence[tuple[int, int]]
    ) -> tuple[list[np.ndarray], float, float]:
        """Train groups; return fields [device, cell, ...], seconds of running and of compiling."""
        compiling = 0.0
        while True:
            try:
                begun = time.perf_counter()
                program = self._ready(self.program(numbers[0]), order)
                compiling += time.perf_counter() - begun
                begun = time.perf_counter()
                # fetching waits for the result: only one program is in flight
                records = jax.device_get(program(*self._arguments(numbers)))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                if self.lanes == 1:
                    raise MemoryError(
                        f"training one network at a time ran out of memory: {error}"
                    ) from error
                self.lanes //= 2
                continue
            seconds = time.perf_counter() - begun
            many = len(self.devices)
            parts = [leaf.reshape(many, -1, *leaf.shape[1:]) for leaf in records]
            return parts, seconds, compiling

    def _cells(self, group: int) -> dict[str, np.ndarray]:
        """Return the traced settings of a group's cells; the last axis varies fastest.

        The first cell is repeated to fill the lanes.
        """
        slices = self.plan.at(group)
        dtype = self.grid.fixed["dtype"]
        # in the order of the store's axes
        names = [*self.grid.traced_axes, *(n for n in traced() if n not in self.grid.traced_axes)]
        columns: dict[str, np.ndarray] = {}
        for name in names:
            values = self.grid.values(name)[slices.get(name, slice(None))]
            if values != (None,):
                columns[name] = np.asarray(values, np.int32 if name == "seed" else dtype)
        mesh = np.meshgrid(*columns.values(), indexing="ij")
        rows = self._rows
        return {
            name: np.concatenate([column.ravel(), np.full(rows - column.size, column.flat[0])])
            for name, column in zip(columns, mesh, strict=True)
        }

    @property
    def _rows(self) -> int:
        """Number of cells of a group, including repeated cells that fill the lanes."""
        return self.lanes * math.ceil(self.plan.size / self.lanes)

    def _arguments(
        self, groups: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, Cell, tuple[Examples, ...]]:
        """Return depths [device], numbers of cells [device], cells [device * rows] and examples."""
        idle = len(self.devices) - len(groups)
        # devices without a group loop over no cell
        depths = [self.place(group)[1] for group in groups] + [0] * idle
        counts = [math.prod(part.stop for part in self.plan.inside(group)) for group in groups]
        cells = [self._cells(group) for group in groups] + [self._cells(0)] * idle
        columns = {name: np.concatenate([one[name] for one in cells]) for name in cells[0]}
        return (
            np.array(depths, np.int32),
            np.array(counts + [0] * idle, np.int32),
            columns,
            self._examples,
        )

    def _kept(self, group: int, leaves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Arrange a group's fields along the axes of the store; missing cells and layers are blank."""
        parts = self.plan.inside(group)
        lengths = tuple(part.stop for part in parts)
        chunk = tuple(axis.chunk for axis in self.axes.values())
        kept = {}
        for (name, field), leaf in zip(self.fields.items(), leaves, strict=True):
            whole = np.full((*chunk, *field.shape), _blank(leaf.dtype), leaf.dtype)
            values = leaf[: math.prod(lengths)].reshape((*lengths, *leaf.shape[1:]))
            # shallower networks have fewer layers
            within = tuple(map(slice, values.shape[len(lengths) :]))
            whole[(*parts, *within)] = values
            kept[name] = whole
        return kept

    def _ready(self, wanted: tuple[int, int], order: Sequence[tuple[int, int]]) -> Any:
        """Return the compiled program, and start to compile the next programs."""
        position = order.index(wanted) if wanted in order else len(order)
        coming = [(*key, self.lanes) for key in order[position + 1 : position + AHEAD]]
        return self._programs.ready((*wanted, self.lanes), coming)

    def _lowered(self, key: Key) -> jax.stages.Lowered:
        """Trace the program of a kind, depth and number of lanes."""
        return self._program(*key).lower(*self._arguments([]))

    def _program(self, kind: int, bound: int, lanes: int) -> Any:
        """Make the program (depths, counts, cells, examples) -> fields [device * rows, ...]."""
        one = trained_cell(self.grid, self._kinds[kind], bound, self.measure, self.data.classes)

        def together(cells: Cell, depth: Array, examples: tuple[Examples, Examples]) -> list[Array]:
            if lanes == 1:
                records = one({name: column[0] for name, column in cells.items()}, depth, examples)
                return jax.tree.map(lambda leaf: leaf[None], records)
            return jax.vmap(lambda cell: one(cell, depth, examples))(cells)

        def device(
            depths: Array, counts: Array, cells: Cell, examples: tuple[Examples, Examples]
        ) -> list[Array]:
            first = {name: column[:lanes] for name, column in cells.items()}
            shapes = jax.eval_shape(together, first, depths[0], examples)
            rows = cells["seed"].size
            start = [
                jnp.full((rows, *leaf.shape[1:]), _blank(leaf.dtype), leaf.dtype) for leaf in shapes
            ]

            def some(index: Array, kept: list[Array]) -> list[Array]:
                first = index * lanes
                own = {
                    name: jax.lax.dynamic_slice_in_dim(column, first, lanes)
                    for name, column in cells.items()
                }
                new = together(own, depths[0], examples)
                return [
                    jax.lax.dynamic_update_slice_in_dim(all_, part, first, 0)
                    for all_, part in zip(kept, new, strict=True)
                ]

            return jax.lax.fori_loop(0, (counts[0] + lanes - 1) // lanes, some, start)

        own = PartitionSpec("cell")
        return spread(device, self._mesh, (own, own, own, PartitionSpec()), own)

    def _as_examples(self, part: Any) -> Examples:
        if self.grid.network is not None:
            return Examples(jnp.asarray(part.x), jnp.asarray(part.y))
        x = part.normalised().x.astype(self.grid.fixed["dtype"])
        return Examples(jnp.asarray(x), jnp.asarray(part.y))

    def _labels(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        inside = {
            "step": np.arange(self.measure.steps),
            "evaluation": np.array(self.measure.evaluations),
            "layer": np.arange(self.grid.deepest + 1),
        }
        if self.measure.records:
            inside["record"] = np.array(self.measure.records)
        known = {name: np.asarray(self.grid.labels(name)) for name in self.axes} | inside
        return {name: ((name,), values) for name, values in known.items()}

    def _decided(self) -> dict[str, Any]:
        measure = {
            "name": "train",
            "steps": self.measure.steps,
            "evaluate": list(self.measure.evaluate),
            "loss": label(self.measure.loss),
        }
        if self.measure.curvature_every is not None:
            measure["curvature_every"] = self.measure.curvature_every
        data = self.data
        return {
            "grid": json.loads(self.grid.to_json()),
            "measure": measure,
            "plan": {"lanes": self.plan.lanes},
            "data": {
                "name": data.train.name,
                "sha256": data.train.sha256,
                "test_sha256": data.test.sha256,
                "classes": data.classes,
                "chance": data.chance,
            },
        } | settings_of_run()


def _blank(dtype: Any) -> Any:
    """Return the blank value of a dtype: NaN, or -1 for integers."""
    if np.issubdtype(dtype, np.floating):
        return np.nan
    return -1
