"""Sweeps over layers of the user's own: depth by a factory, sigma_w as a factor of their weights.

Blocks of a deeper network need not be those of a shallower one, so that each depth is a program of
its own. Fields of all depths stand in one array: layers and singular values that a shallower
network does not have are NaN.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab import networks, store
from jaxstab.checks import Integer, Integers, Reals, check_ascending, check_count, plain_axis
from jaxstab.networks import Chain, Kernels, binding
from jaxstab.records import Data, dimensions
from jaxstab.store import chunks
from jaxstab.sweeps.durable import settings_of_run
from jaxstab.sweeps.grid import Sample
from jaxstab.sweeps.measures import Measure, Record
from jaxstab.sweeps.programs import Programs

# gains that are computed at once, unless told otherwise
GAINS = 16
NO_THEORY = "absent: layers of the user's own have no law that theory knows"


@dataclasses.dataclass(frozen=True)
class OwnGrid:
    """What to sweep over, of layers of the user's own.

    Attributes:
        network: depth -> the chain of that depth, as `networks.from_linen` and
            `networks.from_functions` make it.
        depths: depths, ascending.
        sigma_w: factors of the weights, ascending: gains, where these are drawn at variance
            1/fan_in.
        seeds: number of independent networks per cell.
        inputs: inputs per network.
        kernels: which parameters are weights, as in `networks.scale_kernels`.
    """

    network: Callable[[int], Chain]
    depths: Integers
    sigma_w: Reals = (1.0,)
    seeds: Integer = 1
    inputs: Integer = 1
    kernels: Kernels | None = None

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if an axis is empty or out of order, or a value is out of range.
        """
        # a Flax module can be called, too
        if not callable(self.network) or hasattr(self.network, "init"):
            raise ValueError(
                f"network must be a function depth -> networks.Chain, got a {type(self.network).__name__}"
            )
        for name in ("depths", "sigma_w"):
            # frozen: set as dataclasses do it
            object.__setattr__(
                self, name, plain_axis(name, getattr(self, name), integer=name == "depths")
            )
            check_ascending(name, getattr(self, name))
        for name in ("seeds", "inputs"):
            object.__setattr__(self, name, check_count(name, getattr(self, name), 1))
        for depth in self.depths:
            check_count("depths", depth, 1)
        if not all(math.isfinite(gain) and gain >= 0 for gain in self.sigma_w):
            raise ValueError(f"sigma_w must be finite and >= 0, got {self.sigma_w}")

    def chain(self, depth: int) -> Chain:
        """The chain of a depth.

        Args:
            depth: number of blocks.

        Returns:
            The chain.

        Raises:
            ValueError: if the factory gives something else.
        """
        found = self.network(depth)
        if not isinstance(found, Chain):
            raise ValueError(
                f"network({depth}) must be a networks.Chain, got a {type(found).__name__}"
            )
        if found.init is None:
            raise ValueError(
                "network must draw its parameters: networks.from_linen or networks.from_functions"
            )
        if isinstance(found.block, tuple) and len(found.block) != depth:
            raise ValueError(f"network({depth}) must be of {depth} blocks, got {len(found.block)}")
        return found


def samples_of_own(grid: OwnGrid, data: Data) -> Sample:
    """The inputs of every seed: pairs of different examples, drawn without replacement, as they are.

    Args:
        grid: says how many seeds and inputs.
        data: examples; x may have any shape behind its first axis.

    Returns:
        A sample with leading axes [seeds, inputs].

    Raises:
        ValueError: if there are fewer examples than one seed needs.
    """
    needed = 2 * grid.inputs
    if len(data.x) < needed:
        raise ValueError(
            f"{grid.inputs} inputs need {needed} examples, {data.name} has {len(data.x)}"
        )
    draws = [
        np.random.default_rng(seed).choice(len(data.x), needed, replace=False)
        for seed in range(grid.seeds)
    ]
    first, second = np.moveaxis(np.stack(draws).reshape(grid.seeds, 2, grid.inputs), 1, 0)
    return Sample(*map(jnp.asarray, (data.x[first], data.x[second], data.y[first])))


@dataclasses.dataclass(frozen=True)
class OwnResult:
    """A measured group.

    Attributes:
        group: its number.
        values: the records' fields [1, seed, sigma_w, input, ...] by name.
    """

    group: int
    values: dict[str, np.ndarray]


class MeasuringOwn:
    """A measure over networks of the user's own layers as a job of the durable run.

    Attributes:
        grid: what to sweep over.
        groups: how many groups it is cut into: of one depth and one seed each, and of some gains.
        devices: the one that computes.
        fields: what is kept of each cell.
        axes: those that are cut into groups.
        coordinates: of the dataset, (dims, values) by name.
        decided: all that decides a number, but for the measure.
        settings: that and the measure, by the programs that it makes.
    """

    def __init__(
        self,
        grid: OwnGrid,
        measure: Measure,
        data: Data,
        *,
        chunk_size: int | None = None,
        precision: str = "highest",
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """Trace the program of each depth.

        Args:
            grid: what to sweep over.
            measure: what to take of every cell.
            data: examples to measure at.
            chunk_size: gains of a group; None for at most GAINS = 16.
            precision: of matrix products.
            devices: whose first computes; None for JAX's first.

        Raises:
            ValueError: if data or grid do not fit.
        """
        gains = GAINS if chunk_size is None else check_count("chunk_size", chunk_size, 1)
        self.grid = grid
        self.devices = list(devices or jax.local_devices())[:1]
        self.axes = {
            "depth": store.Axis(len(grid.depths), 1),
            "seed": store.Axis(grid.seeds, 1),
            "sigma_w": store.Axis(len(grid.sigma_w), min(gains, len(grid.sigma_w))),
        }
        self.groups = math.prod(axis.groups for axis in self.axes.values())
        self._measure = measure
        self._precision = precision
        self._samples: Sample = jax.tree.map(np.asarray, samples_of_own(grid, data))
        self._programs = Programs(self._lowered)
        traced = [self._lowered(number) for number in range(len(grid.depths))]
        for number, program in enumerate(traced):
            self._programs.keep(number, program)
        self.fields = _fields([program.out_info for program in traced], grid.inputs)
        self.coordinates = self._labels()
        digest = hashlib.sha256("".join(program.as_text() for program in traced).encode())
        name = getattr(measure, "__qualname__", type(measure).__qualname__)
        self.decided = {
            "grid": self._described(),
            "precision": precision,
            "data": {"name": data.name, "sha256": data.sha256},
            "theory": NO_THEORY,
        } | settings_of_run()
        self.settings = self.decided | {
            "measure": {"name": name, "program": digest.hexdigest()[:16]}
        }

    def program(self, group: int) -> int:
        """Say which depth a group is of.

        Args:
            group: its number.

        Returns:
            The number of the depth.
        """
        return chunks.part(self.axes, group)[0].start

    def batches(self) -> Iterator[list[int]]:
        """Groups in order, one at a time.

        Yields:
            The number of a group.
        """
        for group in range(self.groups):
            yield [group]

    def compute(
        self, batches: Iterable[Sequence[int]], pending: Collection[int]
    ) -> Iterator[OwnResult]:
        """Measure groups.

        Args:
            batches: numbers of groups of one depth.
            pending: groups that may come; programs that only others need are not compiled ahead.

        Yields:
            Each group as it is finished.
        """
        order = list(dict.fromkeys(map(self.program, pending)))
        for numbers in batches:
            for number in numbers:
                wanted = self.program(number)
                coming = order[order.index(wanted) + 1 :] if wanted in order else []
                program = self._programs.ready(wanted, coming)
                found = jax.device_get(program(*self._arguments(number)))
                yield OwnResult(number, self._values(found))

    def _arguments(self, group: int) -> tuple[np.int32, np.ndarray, Sample]:
        """Seed, gains [g] and samples [i] of a group; a last group repeats gains to keep its shape."""
        _, seeds, gains = chunks.part(self.axes, group)
        at = np.arange(gains.start, gains.start + self.axes["sigma_w"].chunk) % len(
            self.grid.sigma_w
        )
        samples = jax.tree.map(lambda field: field[seeds.start], self._samples)
        return np.int32(seeds.start), np.asarray(self.grid.sigma_w)[at], samples

    def _lowered(self, number: int) -> jax.stages.Lowered:
        """The traced program (seed, gains [g], samples [i]) -> fields [g, i, ...] of a depth."""
        cell = _cell(self.grid, self.grid.depths[number], self._measure)

        def group(seed: Array, gains: Array, samples: Sample) -> Record:
            with jax.default_matmul_precision(self._precision):
                return cell(seed, gains, samples)

        return jax.jit(group).lower(*self._arguments(0))

    def _values(self, found: Record) -> dict[str, np.ndarray]:
        """A group's fields by name."""
        values = {}
        for record in _records(found):
            for name, leaf in record._asdict().items():
                # behind the axes of gains and inputs
                of_depth = dimensions(type(record), name, leaf.ndim - 2)[:1] == ("depth",)
                values[name] = self._padded(name, leaf[:, :, 0] if of_depth else leaf)
        return values

    def _padded(self, name: str, values: np.ndarray) -> np.ndarray:
        """A group's field [1, 1, g, i, ...], NaN where only deeper networks have something."""
        wide = self.fields[name].shape
        beyond = [
            (0, 0),
            *((0, want - have) for want, have in zip(wide, values.shape[1:], strict=True)),
        ]
        blank = np.nan if np.issubdtype(values.dtype, np.floating) else 0
        return np.pad(values, beyond, constant_values=blank)[None, None]

    def _labels(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        sizes = {name: axis.length for name, axis in self.axes.items()}
        for field in self.fields.values():
            sizes |= dict(zip(field.dims, field.shape, strict=True))
        known = {"depth": self.grid.depths, "sigma_w": self.grid.sigma_w}
        return {
            name: ((name,), np.asarray(known.get(name, np.arange(size))))
            for name, size in sizes.items()
        }

    def _described(self) -> dict[str, Any]:
        fields = {
            name: getattr(self.grid, name) for name in ("depths", "sigma_w", "seeds", "inputs")
        }
        named = {
            "network": getattr(
                self.grid.network, "__qualname__", type(self.grid.network).__qualname__
            )
        }
        return json.loads(json.dumps(fields | named))


def _cell(grid: OwnGrid, depth: int, measure: Measure) -> Callable[[Array, Array, Sample], Record]:
    """(seed, sigma_w [g], samples [i]) -> records [g, i]: networks of one draw of weights."""
    chain = grid.chain(depth)
    bind = chain.bind or binding.bind

    def measured(seed: Array, gains: Array, samples: Sample) -> Record:
        key = jax.random.key(seed)
        assert chain.init is not None
        unit = chain.init(key, jax.tree.map(lambda leaf: leaf[0], samples.x))
        masks = jax.random.split(jax.random.fold_in(key, 1), grid.inputs)

        def one(sigma_w: Array, sample: Sample, mask: Array) -> Record:
            scaled = (
                unit
                if grid.sigma_w == (1.0,)
                else networks.scale_kernels(unit, sigma_w, grid.kernels)
            )
            return measure(chain, bind(scaled, key=mask), sample, (depth,))

        over_inputs = jax.vmap(one, (None, 0, 0))
        return jax.vmap(lambda sigma_w: over_inputs(sigma_w, samples, masks))(gains)

    return measured


def _records(found: Record | tuple[Record, ...]) -> tuple[Record, ...]:
    return (found,) if hasattr(found, "_fields") else tuple(found)


def _fields(programs: Sequence[Any], inputs: int) -> dict[str, store.Field]:
    """What is kept of a cell: the records' arrays, of the largest shape of any depth, without the axis of depth."""
    fields: dict[str, store.Field] = {}
    for found in programs:
        for record in _records(found):
            for name, leaf in record._asdict().items():
                # behind the axes of gains and inputs
                dims = dimensions(type(record), name, len(leaf.shape) - 2)
                first = 3 if dims[:1] == ("depth",) else 2
                shape = (inputs, *leaf.shape[first:])
                if name in fields:
                    shape = tuple(map(max, shape, fields[name].shape))
                kept = ("input", *dims[first - 2 :])
                fields[name] = store.Field(shape, np.dtype(leaf.dtype).name, kept)
    return fields
