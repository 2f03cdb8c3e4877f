"""Flags of every command, without JAX, whose import takes a second, so that errors come at once."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxstab.cli.arguments import choice

# names for the help, copied from tables of networks, theory and sweeps, which need JAX
WEIGHTS = (
    "gaussian",
    "orthogonal",
    "lecun_normal",
    "lecun_uniform",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
)
NORMS = ("batch", "layer", "rms", "peri", "dyt", "derf")
SKIPS = ("sum", "scaled", "rezero", "highway", "dense")
OPTIMISERS = ("sgd", "momentum", "nesterov", "rmsprop", "adagrad", "adam", "adamw", "lion")
SHAPES = ("dks", "tat")


@dataclasses.dataclass(frozen=True)
class Family:
    """Flags of data, and of a family of networks over depth, gain, activation and seed."""

    data: str = "mnist-5k"
    """mnist-5k, digits, mnist (with --data-path), or an .npz file holding x and y."""
    data_path: Path | None = None
    """Folder of the four MNIST IDX files, for --data mnist (scripts/fetch_mnist makes one)."""
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Depths, ascending."""
    sigma_w: tuple[float, ...] = (1.0,)
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = ("tanh",)
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = 1
    """Independent networks per cell, for standard errors."""
    width: int = 128
    """Units per layer."""
    weights: choice(str, WEIGHTS) = "gaussian"  # type: ignore[valid-type]
    """Law of the weights."""
    norm: choice(str | None, NORMS) = None  # type: ignore[valid-type]
    """Norm in every block; batch needs --batch."""
    norm_after: bool = False
    """Norm after the activation instead of before it."""
    skip: choice(str | None, SKIPS) = None  # type: ignore[valid-type]
    """Skip connection around every block."""
    batch: int | None = None
    """Examples that go through the network together; in training, None for all examples."""
    precision: str = "highest"
    """Precision of matrix products: highest is full float32, default is the fastest of the device."""
    dtype: choice(str, ("float32", "float64")) = "float32"  # type: ignore[valid-type]
    """Floating-point type of the networks; theory is always float64."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; None for one per core."""
    config: Path | None = None
    """TOML file with any of these settings; flags override the file."""
    dry_run: bool = False
    """Check the settings, compute the first networks, print the cost of the whole, and stop."""
    print_config: bool = False
    """Print these settings as a TOML file for --config, and stop."""

    @property
    def of_networks(self) -> dict[str, Any]:
        """Settings that all networks share, as keywords of `sweeps.Grid`."""
        names = ("width", "weights", "norm", "norm_after", "skip", "batch", "precision", "dtype")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Sweep(Family):
    """Measure and predict a grid of networks on real digits, and write a store and a report.

    For every depth, gain, activation and seed, the store holds the forward profile (length,
    correlation, saturation, dead units), the gradient of the loss at every layer, the singular
    values of the input-output Jacobian, and mean-field predictions where theory has them. The
    defaults take about two minutes on two cores. The same command resumes an interrupted run.
    """

    out: Path = Path("runs/main")
    """Folder for the results: OUT/store.zarr (labelled arrays) and OUT/report.html; an unfinished run keeps its
    measurements in OUT/profiles.zarr and OUT/spectra.zarr."""
    sigma_w: tuple[float, ...] = tuple(float(gain) for gain in np.linspace(0.5, 4.0, 24).round(4))
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = ("tanh", "relu", "gelu", "sigmoid")
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = 4
    """Independent networks per cell, for standard errors."""
    sigma_b: float = 0.05**0.5
    """Standard deviation of the biases."""
    inputs: int = 4
    """Inputs measured per network."""
    dropout: float = 0.0
    """Share of features dropped."""
    sharpness: int | None = None
    """Examples over which the curvature of the loss is also measured, at every depth; None for no curvature."""
    chunk_size: int | None = None
    """Networks computed at once; None to fit memory."""
    overwrite: bool = False
    """Replace a store of other settings, finished or not, or measure a finished store again."""


@dataclasses.dataclass(frozen=True)
class Train(Family):
    """Train a grid of networks on real digits, over depth, gain, learning rate and others, into a store.

    The same command resumes an interrupted run. Several processes share a store with --shard I/N
    (an array job, no communication), --join (each group to the first free process), or
    --distributed (jax.distributed, several hosts).
    """

    out: str = "runs/trained.zarr"
    """Store of the results: a folder, or an fsspec URL such as s3://bucket/trained.zarr."""
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Depths, ascending."""
    sigma_w: tuple[float, ...] = tuple(float(gain) for gain in np.linspace(0.5, 2.5, 12).round(4))
    """Weight gains, ascending."""
    batch: int | None = 128
    """Examples per update; None for all."""
    sigma_b: tuple[float, ...] = (0.05**0.5,)
    """Standard deviations of the biases, ascending."""
    learning_rates: tuple[float, ...] = (0.01,)
    """Learning rates, ascending."""
    clips: tuple[float, ...] = (math.inf,)
    """Largest norms of a gradient, ascending; inf for no clipping."""
    dropouts: tuple[float, ...] = (0.0,)
    """Shares of features dropped, ascending."""
    steps: int = 200
    """Number of updates."""
    optimiser: choice(str, OPTIMISERS, "--optimizer") = "sgd"  # type: ignore[valid-type]
    """Optimiser."""
    evaluate: tuple[int, ...] = (0,)
    """Numbers of updates after which to evaluate all data, besides the last update."""
    curvature_every: int | None = None
    """Updates from one record of the sharpness of the loss to the next; None for no record."""
    memory: float | None = None
    """GiB of a device that may be used; None to ask the device."""
    lanes: int | None = None
    """Networks trained side by side on a device; None for one on a CPU, as many as fit on other devices."""
    group: int | None = None
    """Networks of a group, computed by one device and committed as a whole; None for some seconds of work."""
    shard: str = "1/1"
    """I/N: the I-th of N equal parts of the groups."""
    join: bool = False
    """Share the store with running processes; each group goes to the first."""
    distributed: bool = False
    """Share the groups among the processes of a cluster that JAX recognises (SLURM, Kubernetes, TPU pods, ...)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for --distributed if JAX recognises no cluster; with --processes, --process."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    coordinator_timeout: float = 60.0
    """Seconds that --distributed waits for the other processes."""
    csv: Path | None = None
    """Also write a line per network to this file at the end."""
    tensorboard: Path | None = None
    """Also write TensorBoard's event files, a run per network, to this folder at the end."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Flags of the block of a network, for theory."""

    activation: str = "tanh"
    """Name of the activation, or module:function of your own."""
    norm: choice(str | None, NORMS) = None  # type: ignore[valid-type]
    """Norm in every block; batch without --batch is the limit of many examples."""
    norm_after: bool = False
    """Norm after the activation instead of before it."""
    skip: choice(str | None, SKIPS) = None  # type: ignore[valid-type]
    """Skip connection around every block."""
    dropout: float = 0.0
    """Share of features dropped, with independent masks for two inputs."""
    batch: int | None = None
    """Examples in the statistics of BatchNorm, at least 4."""
    weights: choice(str, WEIGHTS) = "gaussian"  # type: ignore[valid-type]
    """Law of the weights."""
    depth: int | None = None
    """Number of blocks, for --skip scaled."""


@dataclasses.dataclass(frozen=True)
class Theory(Block):
    """Print mean-field predictions for one block, plain or with cures, at one point (sigma_w, sigma_b)."""

    sigma_w: float = 1.0
    """Weight gain."""
    sigma_b: float = 0.0
    """Standard deviation of the biases."""
    q0: float = 1.0
    """Mean square of the input, which selects among several fixed points."""
    shape: choice(str | None, SHAPES) = None  # type: ignore[valid-type]
    """Transform the activation for a plain network of --depth layers, and print predictions for the result."""
    shape_target: float | None = None
    """Target of --shape: zeta > 1 for dks; tau > 0 for tat, or eta in (0, 1) for tat of leaky_relu."""
    json: bool = False
    """Print JSON (infinity as the string "inf", an undefined number as null)."""
    plot: Path | None = None
    """Draw length, correlation and gradient at every layer into this file (.png, .svg or .pdf)."""


@dataclasses.dataclass(frozen=True)
class Phase(Block):
    """Draw the phase diagram of one block, plain or with cures: ln chi_1 over (sigma_w, sigma_b)."""

    sigma_w: tuple[float, float] = (0.5, 4.0)
    """Lowest and highest weight gain."""
    sigma_b: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest standard deviation of the biases."""
    points: int = 65
    """Points along either axis."""
    out: Path = Path("phase.png")
    """File of the figure (.png, .svg or .pdf)."""
    json: bool = False
    """Print chi_1 and the critical line as JSON (infinity as the string "inf", an undefined number as null)."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Find the faults of a model of your own, and cures that are measured to help.

    The factory is a function without arguments that returns (model, params, loss). The model is a
    linen or nnx module, a chain, a function (params, x) -> output with networks.tag in it, or a
    networks.probe of one of these. The loss is a function of the output that returns a scalar, or
    loss(output, y) if the batch holds labels y. A factory that returns (model, params, loss, tx)
    with an optax optimiser tx has its first update compared with the largest step that lowers the
    loss.
    """

    factory: Annotated[str, tyro.conf.Positional]
    """The factory as module:function; the module may be in the current folder."""
    batch: Path
    """An .npz file with x, examples along the first axis, and y if the loss takes labels."""
    out: Path = Path("diagnosis")
    """Folder for diagnosis.json and diagnosis.html, created if missing."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the report of a stored sweep or of trainings, finished or not."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: runs/main/store.zarr or its folder, runs/trained.zarr, or an fsspec URL."""
    out: Path | None = None
    """The HTML file; None for report.html (a sweep) or X.html (trainings X.zarr) beside the store."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Print the progress of a sweep or a store of trainings, its running processes and failures."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: runs/trained.zarr, runs/main/store.zarr or its folder, or an fsspec URL."""
