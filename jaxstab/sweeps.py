"""Sweeps: one network measure over a grid of gains, seeds and activations, in one compile per activation.

Depth is no axis of the programs: a measure takes all wanted depths from one pass to the deepest. Gains are traced,
and all gains of a seed share one draw of weights. This is where programs are compiled and run, so this is where the
linear algebra is kept sound: one BLAS thread, one program in flight, no two decompositions at once within it.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg  # noqa: F401  jaxlib loads its BLAS at the first decomposition; only a loaded one can be limited
import xarray as xr
from jaxtyping import Array, Float, Int
from threadpoolctl import threadpool_limits

from jaxstab import networks, propagation, spectra
from jaxstab.activations import Activation, get
from jaxstab.records import Data, dimensions

Record = Any
Measure = Callable[[networks.Chain, networks.Params, "Sample", Sequence[int]], Record | tuple[Record, ...]]
Progress = Callable[[Sequence[Any]], Iterable[Any]]

# bytes a chunk of cells may take, unless told otherwise
MEMORY = 256 * 2**20


class Sample(NamedTuple):
    """What one measurement of a network looks at.

    Attributes:
        x: input, of mean square 1; a batch of them where the grid has one.
        other: a second input, for correlations.
        label: class of x.
    """

    x: Float[Array, "*cells d_in"]
    other: Float[Array, "*cells d_in"]
    label: Int[Array, "*cells"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to sweep over.

    Attributes:
        depths: depths at which gradients and spectra are read, ascending.
        sigma_w: weight gains (standard deviations), ascending.
        activations: names, or `Activation`s.
        seeds: number of independent networks per cell.
        sigma_b: standard deviation of the biases.
        width: units per layer.
        inputs: inputs per network, or batches of them.
        weights: one of `networks.WEIGHTS`.
        norm: None, "batch", "layer" or "rms".
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense".
        dropout: share of features dropped, in [0, 1); masks differ from input to input.
        batch: examples that make up one input; BatchNorm needs two or more.
        dtype: "float32" or "float64" of the measurement.
    """

    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    sigma_w: tuple[float, ...] = tuple(float(g) for g in np.linspace(0.5, 4.0, 24).round(4))
    activations: tuple[str | Activation, ...] = ("tanh", "relu", "gelu", "sigmoid")
    seeds: int = 4
    sigma_b: float = 0.05**0.5
    width: int = 128
    inputs: int = 4
    weights: str = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None
    dropout: float = 0.0
    batch: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if an axis is empty or out of order, or a value is out of range or unknown.
        """
        for axis in ("depths", "sigma_w"):
            values = getattr(self, axis)
            if len(values) == 0 or list(values) != sorted(set(values)):
                raise ValueError(f"{axis} must be ascending values, at least one, got {list(values)}")
        if len(self.activations) == 0 or len({get(a).name for a in self.activations}) < len(self.activations):
            raise ValueError(f"activations must be one or more different ones, got {self.activations}")
        for name, values in (("sigma_w", self.sigma_w), ("sigma_b", (self.sigma_b,))):
            if not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        for name, values in (
            ("depths", self.depths),
            *((n, (getattr(self, n),)) for n in ("seeds", "width", "inputs")),
        ):
            if not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"{name} must be integers >= 1, got {getattr(self, name)}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if (self.norm == "batch" or self.batch is not None) and not (isinstance(self.batch, int) and self.batch >= 2):
            raise ValueError(f"batch must be an integer >= 2, and BatchNorm needs one, got {self.batch}")
        self.network(self.activations[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the activations."""
        return tuple(get(a).name for a in self.activations)

    def network(self, activation: str | Activation) -> networks.MLP:
        """The network of the deepest depth with this activation."""
        return networks.MLP(
            max(self.depths),
            self.width,
            get(activation),
            weights=self.weights,
            norm=self.norm,
            norm_after=self.norm_after,
            dropout=self.dropout > 0,
            skip=self.skip,
        )

    @property
    def plain(self) -> bool:
        """Whether the networks are those of mean-field theory: h -> W phi(h) + b, weights of unit gain."""
        unit = ("gaussian", "orthogonal", "lecun_normal", "lecun_uniform")
        return not (self.norm or self.skip or self.dropout) and self.weights in unit

    def to_json(self) -> str:
        """All settings, for the provenance of results."""
        return json.dumps(dataclasses.asdict(self) | {"activations": self.names})


class Estimate(NamedTuple):
    """What one measure over a grid will take.

    Attributes:
        cells: networks measured.
        compiles: programs compiled, one per activation.
        chunk: (seeds, gains) computed at once.
        chunks: how often.
        memory: bytes, about, that a chunk takes.
    """

    cells: int
    compiles: int
    chunk: tuple[int, int]
    chunks: int
    memory: int


def signal(chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]) -> tuple[Record, ...]:
    """Measure: forward, correlation and backward profiles, the loss being (mean) softmax cross-entropy.

    Args:
        chain: the network.
        params: its parameters.
        sample: inputs and label.
        depths: depths at which the loss is attached.

    Returns:
        ForwardProfile, CorrelationProfile, BackwardProfile.
    """
    loss = lambda y: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, sample.label))
    return (
        propagation.forward(chain, params, sample.x),
        propagation.correlation(chain, params, sample.x, sample.other),
        propagation.backward(chain, params, sample.x, loss, depths),
    )


def jacobian(chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]) -> Record:
    """Measure: log singular values of the input-output Jacobian at every depth; of all of a batch at once.

    Args:
        chain: the network.
        params: its parameters.
        sample: inputs and label.
        depths: depths wanted.

    Returns:
        Spectrum.
    """
    if sample.x.ndim == 2:
        chain = networks.flatten(chain, len(sample.x))
    return spectra.spectrum(chain, params, sample.x.ravel(), depths)


def estimate(grid: Grid, d_in: int, chunk_size: int | None = None) -> Estimate:
    """Size up a sweep before it runs.

    Args:
        grid: the grid.
        d_in: input features.
        chunk_size: cells computed at once; None to fit them into MEMORY.

    Returns:
        Cells, compiles, chunks and bytes of one measure.

    Raises:
        ValueError: if chunk_size < 1.
    """
    state = grid.width * grid.network(grid.activations[0]).sources
    # weights drawn and scaled, then per depth what a spectrum keeps and works on
    weights = max(grid.depths) * state * grid.width + d_in * grid.width
    floats = 2 * weights + (4 * len(grid.depths) + 8) * (state * (grid.batch or 1)) ** 2
    cell = floats * np.dtype(grid.dtype).itemsize
    if chunk_size is None:
        chunk_size = max(1, MEMORY // cell)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    gains = _even(len(grid.sigma_w), chunk_size)
    seeds = _even(grid.seeds, max(1, chunk_size // len(grid.sigma_w)))
    programs = len(grid.activations)
    chunks = programs * math.ceil(grid.seeds / seeds) * math.ceil(len(grid.sigma_w) / gains)
    cells = programs * len(grid.sigma_w) * grid.seeds
    return Estimate(cells, programs, (seeds, gains), chunks, seeds * gains * cell)


def _even(total: int, most: int) -> int:
    """The size of equal parts of `total`, none larger than `most`."""
    return math.ceil(total / math.ceil(total / most))


def samples(grid: Grid, data: Data) -> Sample:
    """The inputs of every seed: pairs of different examples, drawn without replacement, of mean square 1.

    Args:
        grid: says how many seeds and inputs.
        data: examples.

    Returns:
        A sample with leading axes [seeds, inputs], and [batch] where the grid has one.

    Raises:
        ValueError: if there are fewer examples than one seed needs.
    """
    shape = (2, grid.inputs) if grid.batch is None else (2, grid.inputs, grid.batch)
    needed = math.prod(shape)
    if len(data.x) < needed:
        raise ValueError(f"{needed // 2} inputs need {needed} examples, {data.name} has {len(data.x)}")
    draws = [np.random.default_rng(seed).choice(len(data.x), needed, replace=False) for seed in range(grid.seeds)]
    first, second = np.moveaxis(np.stack(draws).reshape(grid.seeds, *shape), 1, 0)
    x = data.normalised().x
    return Sample(*map(jnp.asarray, (x[first].astype(grid.dtype), x[second].astype(grid.dtype), data.y[first])))


def run(
    grid: Grid,
    measure: Measure,
    data: Data,
    *,
    chunk_size: int | None = None,
    progress: Progress = iter,
    precision: str = "highest",
) -> xr.Dataset:
    """Measure every cell of a grid: one compile per activation, whatever the depths, gains and seeds.

    A cell that diverges holds inf or NaN; it disturbs no other.

    Args:
        grid: what to sweep over.
        measure: (chain, params, sample, depths) -> record or tuple of records, such as `signal` or `jacobian`; pure.
        data: examples to measure at.
        chunk_size: cells computed at once; None to fit them into MEMORY.
        progress: wraps the sequence of chunks, such as tqdm.
        precision: of matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The records' fields as variables over (activation, seed, sigma_w, input, ...), the rest named by the records.

    Raises:
        ValueError: if data or grid do not fit, or float64 is asked for while JAX has it switched off.
    """
    if grid.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise ValueError('dtype "float64" needs JAX\'s x64 mode: switch jax_enable_x64 on first')
    plan, inputs = estimate(grid, data.x.shape[1], chunk_size), samples(grid, data)
    programs = [_program(grid, activation, measure, precision) for activation in grid.activations]
    chunks = [
        (program, np.arange(s, s + plan.chunk[0]), np.arange(g, g + plan.chunk[1]))
        for program in programs
        for s in range(0, grid.seeds, plan.chunk[0])
        for g in range(0, len(grid.sigma_w), plan.chunk[1])
    ]
    results, gains = [], np.asarray(grid.sigma_w, grid.dtype)
    # BLAS threads of its own under XLA's pool: slower by factors, and able to stall on few cores
    with threadpool_limits(1, user_api="blas"):
        for program, seeds, at in progress(chunks):
            # the last chunk repeats cells to keep its shape, so that nothing compiles anew
            seeds, at = seeds % grid.seeds, at % len(gains)
            keys = jax.vmap(jax.random.key)(seeds)
            # fetched, hence finished, before the next is sent: one program in flight
            results.append(jax.device_get(program(keys, gains[at], Sample(*(field[seeds] for field in inputs)))))
    dataset = _labelled(grid, plan, results)
    return dataset.assign_attrs(grid=grid.to_json(), data=data.name, data_sha256=data.sha256, precision=precision)


def _program(grid: Grid, activation: str | Activation, measure: Measure, precision: str) -> Callable:
    """The compiled measurement of a chunk: (keys [s], sigma_w [g], samples [s, i]) -> records [s, g, i]."""
    mlp = grid.network(activation)
    chain = networks.chain(mlp)
    sigma_b = jnp.asarray(grid.sigma_b, grid.dtype)

    def chunk(keys: Array, sigma_w: Array, samples: Sample) -> Record:
        def seed(key: Array, samples: Sample) -> Record:
            unit = networks.init(mlp, key, samples.x[0], 1.0, 1.0)

            def cell(sigma_w: Array) -> Record:
                params = networks.rescale(unit, sigma_w, sigma_b)

                def one(sample: Sample, masks: Array) -> Record:
                    bound = networks.bind(mlp, params, key=masks, rate=grid.dropout) if mlp.dropout else params
                    return measure(chain, bound, sample, grid.depths)

                return jax.vmap(one)(samples, jax.random.split(jax.random.fold_in(key, 1), grid.inputs))

            return jax.vmap(cell)(sigma_w)

        with jax.default_matmul_precision(precision):
            return jax.vmap(seed)(keys, samples)

    # in program order on a CPU: two batched decompositions side by side can deadlock a small thread pool
    ordered = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return jax.jit(chunk, compiler_options=ordered if jax.default_backend() == "cpu" else None)


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


def with_coordinates(dataset: xr.Dataset, grid: Grid) -> xr.Dataset:
    """Label a dataset's dimensions with the grid's values, or with 0, 1, ... where the grid has none.

    Args:
        dataset: dimensions without coordinates.
        grid: the grid.

    Returns:
        The dataset with coordinates.
    """
    known = {"activation": list(grid.names), "sigma_w": list(grid.sigma_w), "depth": list(grid.depths)}
    return dataset.assign_coords({d: known.get(str(d), np.arange(size)) for d, size in dataset.sizes.items()})
