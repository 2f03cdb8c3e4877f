"""Flags of every command, without JAX, whose import takes a second, so that errors come at once."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

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
    """Data, and a family of networks over depth, gain, activation and seed."""

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
    """Independent networks per cell; standard errors are over them."""
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
    """Examples that go through the network together; in training None for all of them."""
    precision: str = "highest"
    """Precision of matrix products: highest is full float32, default is what the device does fastest."""
    dtype: choice(str, ("float32", "float64")) = "float32"  # type: ignore[valid-type]
    """Floating-point numbers of what is computed; theory is always float64."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; one per core unless given."""
    config: Path | None = None
    """TOML file with any of these settings; flags override it."""
    dry_run: bool = False
    """Check the settings, say what would be computed and what its first networks took, and stop."""
    print_config: bool = False
    """Print these settings as a TOML file for --config, and stop."""


@dataclasses.dataclass(frozen=True)
class Sweep(Family):
    """Measure a grid of networks on real digits, predict the same, and write a store and a report.

    For every depth, gain, activation and seed: the forward profile (length, correlation,
    saturation, dead units), the gradient of the loss at every layer, and the singular values of the
    input-output Jacobian; beside each its mean-field prediction, where theory has one. The defaults
    take about two minutes on two cores. A run that stops for any reason goes on where it was when
    the same command is given again.
    """

    out: Path = Path("runs/main")
    """Folder for the results: OUT/store.zarr (labelled arrays) and OUT/report.html; until they are finished, what is
    measured is in OUT/profiles.zarr and OUT/spectra.zarr."""
    sigma_w: tuple[float, ...] = tuple(float(gain) for gain in np.linspace(0.5, 4.0, 24).round(4))
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = ("tanh", "relu", "gelu", "sigmoid")
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = 4
    """Independent networks per cell; the standard errors are over them."""
    sigma_b: float = 0.05**0.5
    """Standard deviation of the biases."""
    inputs: int = 4
    """Digits per network."""
    dropout: float = 0.0
    """Share of features dropped."""
    sharpness: int | None = None
    """Examples over which the curvature of the loss is measured too, at every depth; not measured unless given."""
    chunk_size: int | None = None
    """Networks computed at once; fitted to memory unless given."""
    overwrite: bool = False
    """Replace a store of other settings, finished or not, or measure a finished one anew."""


@dataclasses.dataclass(frozen=True)
class Train(Family):
    """Train networks of every depth, gain, learning rate, ... on real digits, and keep what each did.

    Runs that stop for any reason go on where they were when the same command is given again.
    Several processes share a store with --shard I/N (an array job, no communication), --join
    (whoever is free), or --distributed (JAX's own engine, several hosts).
    """

    out: str = "runs/trained.zarr"
    """Where results go: a folder, or an fsspec URL such as s3://bucket/trained.zarr."""
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
    """Updates."""
    optimiser: choice(str, OPTIMISERS, "--optimizer") = "sgd"  # type: ignore[valid-type]
    """Optimiser."""
    evaluate: tuple[int, ...] = (0,)
    """Numbers of updates after which to evaluate all data, besides the end."""
    curvature_every: int | None = None
    """Updates from one record of the sharpness of the loss to the next; not recorded unless given."""
    memory: float | None = None
    """GiB of a device that may be used; from the device unless given."""
    lanes: int | None = None
    """Networks trained side by side on a device; one on a CPU, what fits elsewhere, unless given."""
    group: int | None = None
    """Networks of a group, which is computed by one device and kept as a whole; some seconds' work unless given."""
    shard: str = "1/1"
    """I/N: the I-th of N equal parts of the groups."""
    join: bool = False
    """Share the store with runs that have it, each group going to whoever is first."""
    distributed: bool = False
    """Share the groups among the processes of a cluster that JAX recognises (SLURM, Kubernetes, TPU pods, ...)."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for --distributed where JAX does not find it by itself; with --processes, --process."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    coordinator_timeout: float = 60.0
    """Seconds that --distributed waits for the other processes."""
    csv: Path | None = None
    """Also write a line per network to this file at the end."""
    tensorboard: Path | None = None
    """Also write TensorBoard's event files, a run per network, to this folder at the end."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The block of a network, as theory takes it."""

    activation: str = "tanh"
    """Name of the activation, or module:function for one of your own."""
    norm: choice(str | None, NORMS) = None  # type: ignore[valid-type]
    """Norm in every block; batch without --batch is the limit of many examples."""
    norm_after: bool = False
    """Norm after the activation instead of before it."""
    skip: choice(str | None, SKIPS) = None  # type: ignore[valid-type]
    """Skip connection around every block."""
    dropout: float = 0.0
    """Share of features dropped; two inputs have masks of their own."""
    batch: int | None = None
    """Examples that BatchNorm takes its statistics over, at least 4."""
    weights: choice(str, WEIGHTS) = "gaussian"  # type: ignore[valid-type]
    """Law of the weights."""
    depth: int | None = None
    """Number of blocks, for --skip scaled."""


@dataclasses.dataclass(frozen=True)
class Theory(Block):
    """Print what mean-field theory says of one block, plain or with cures, at one point (sigma_w, sigma_b)."""

    sigma_w: float = 1.0
    """Weight gain."""
    sigma_b: float = 0.0
    """Standard deviation of the biases."""
    q0: float = 1.0
    """Mean square of the input; matters where there are several fixed points, or none."""
    shape: choice(str | None, SHAPES) = None  # type: ignore[valid-type]
    """Transform the activation for a plain network of --depth layers, and say what is then predicted of it."""
    shape_target: float | None = None
    """Target of --shape: zeta > 1 of dks; of tat tau > 0, or eta in (0, 1) for leaky_relu."""
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
    """The figure's file (.png, .svg or .pdf)."""
    json: bool = False
    """Print chi_1 and the critical line as JSON (infinity as the string "inf", an undefined number as null)."""


@dataclasses.dataclass(frozen=True)
class Diagnose:
    """Say what is wrong with a model of your own, where, and what was measured to help.

    The factory is a function without arguments that returns (model, params, loss). The model is a
    linen or nnx module, a chain, a function (params, x) -> output with networks.tag in it, or a
    networks.probe of one of these. The loss is a function of the output that returns a scalar;
    where the batch holds labels it is called as loss(output, y). With an optax optimiser as well,
    (model, params, loss, tx), its first update is compared with the steps that the loss stands.
    """

    factory: Annotated[str, tyro.conf.Positional]
    """The factory as module:function; its module is found from the current folder too."""
    batch: Path
    """An .npz file with x, examples along the first axis, and y if the loss takes labels."""
    out: Path = Path("diagnosis")
    """Folder for diagnosis.json and diagnosis.html; made if it is not there."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the report of a stored sweep, or of trainings finished or not."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, such as runs/main/store.zarr or the folder that holds it, runs/trained.zarr, or an fsspec URL."""
    out: Path | None = None
    """The HTML file; beside the store unless given: report.html of a sweep's, X.html of X.zarr."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Say how far a sweep or a store of trainings is, who works on it, and what failed."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, such as runs/trained.zarr, runs/main/store.zarr or the folder that holds it."""
