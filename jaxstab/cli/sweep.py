"""`jaxstab sweep`: measure a grid of networks, predict the same, and write a store and a report."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxstab import datasets, networks, store, survey, sweeps
from jaxstab.cli import interrupts
from jaxstab.cli.arguments import choice
from jaxstab.cli.faults import check_memory, check_networks, divide_cpu, told_time, users_fault

_DEFAULTS = sweeps.Grid()
# seconds that the defaults take on two cores: to measure, and to compile and predict an activation
_MEASURING = 40.0
_COMPILING = 15.0


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Measure a grid of networks on real digits, predict the same, and write a store and a report.

    For every depth, gain, activation and seed: the forward profile (length, correlation, saturation, dead units),
    the gradient of the loss at every layer, and the singular values of the input-output Jacobian; beside each its
    mean-field prediction (of plain networks: no norm, skip or dropout). The defaults take about two minutes on two
    cores.
    """

    out: Path = Path("runs/main")
    """Folder for the results: OUT/store.zarr (labelled arrays) and OUT/report.html."""
    data: str = "mnist-5k"
    """mnist-5k, digits, mnist (with --data-path), or an .npz file holding x and y."""
    data_path: Path | None = None
    """Folder of the four MNIST IDX files, for --data mnist (scripts/fetch_mnist makes one)."""
    depths: tuple[int, ...] = _DEFAULTS.depths
    """Depths at which gradients and spectra are read, ascending."""
    sigma_w: tuple[float, ...] = _DEFAULTS.sigma_w
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = tuple(str(name) for name in _DEFAULTS.activations)
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = _DEFAULTS.seeds
    """Independent networks per cell; the standard errors are over them."""
    sigma_b: float = _DEFAULTS.sigma_b
    """Standard deviation of the biases."""
    width: int = _DEFAULTS.width
    """Units per layer."""
    inputs: int = _DEFAULTS.inputs
    """Digits per network."""
    weights: choice(str, networks.WEIGHTS) = _DEFAULTS.weights  # type: ignore[valid-type]
    """Law of the weights."""
    norm: choice(str | None, networks.NORMS) = _DEFAULTS.norm  # type: ignore[valid-type]
    """Norm in every block; batch needs --batch."""
    norm_after: bool = _DEFAULTS.norm_after
    """Norm after the activation instead of before it."""
    skip: choice(str | None, networks.SKIPS) = _DEFAULTS.skip  # type: ignore[valid-type]
    """Skip connection around every block."""
    dropout: float = _DEFAULTS.dropout
    """Share of features dropped."""
    batch: int | None = _DEFAULTS.batch
    """Digits that go through the network together, as one input."""
    dtype: choice(str, ("float32", "float64")) = _DEFAULTS.dtype  # type: ignore[valid-type]
    """Precision of the measurement; theory is always float64."""
    chunk_size: int | None = None
    """Networks computed at once; fitted to memory unless given."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; one per core unless given."""
    overwrite: bool = False
    """Replace an existing store."""
    config: Path | None = None
    """TOML file with any of these settings; flags override it."""
    dry_run: bool = False
    """Check the settings, say what would be computed, and stop."""
    print_config: bool = False
    """Print these settings as a TOML file for --config, and stop."""

    def grid(self) -> sweeps.Grid:
        """The grid of these settings."""
        fields = {field.name for field in dataclasses.fields(sweeps.Grid)}
        return sweeps.Grid(**{k: v for k, v in dataclasses.asdict(self).items() if k in fields})


def sweep(settings: Sweep) -> None:
    """Run `jaxstab sweep`.

    Args:
        settings: the flags.

    Raises:
        UserError: if settings, data or place do not fit.
    """
    place = settings.out / "store.zarr"
    page = settings.out / "report.html"
    divide_cpu(settings.cpu_devices)
    with users_fault():
        _check_size(settings)
        grid = settings.grid()
        data = datasets.load(settings.data, settings.data_path)
        grid = dataclasses.replace(grid, outputs=int(data.y.max()) + 1)
        # every seed draws as many examples
        sweeps.samples(dataclasses.replace(grid, seeds=1), data)
        check_memory("the results", _results(grid))
        plans = _plans(grid, data.x.shape[1], settings.chunk_size)
        for measure, plan in plans.items():
            check_memory(f"a chunk of {measure}", plan.memory)
        if not settings.dry_run:
            store.check_writable(place, settings.overwrite)
    print(_header(grid, plans), flush=True)
    if settings.dry_run:
        return
    steps = sum(plan.chunks + plan.compiles for plan in plans.values())
    with tqdm(total=steps, unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        dataset = survey.survey(grid, data, chunk_size=settings.chunk_size, progress=_progress(bar))
    from jaxstab import report  # matplotlib takes a second to import, and bad settings are to be told sooner

    with users_fault(), interrupts.orderly():
        store.save(dataset, place, settings.overwrite)
        report.write(store.load(place), page)
    print(f"store:  {place}\nreport: {page}")


def _check_size(settings: Sweep) -> None:
    """Refuse grids that no machine could hold, before anything is made of them."""
    axes = {"activations": len(settings.activations), "gains": len(settings.sigma_w), "seeds": settings.seeds}
    check_networks(axes)
    check_memory("one network", 4.0 * max((0, *settings.depths)) * settings.width**2)


def _results(grid: sweeps.Grid) -> float:
    """Bytes of all that is measured: profiles of every input, gradients of every depth, spectra."""
    networks = len(grid.activations) * len(grid.sigma_w) * grid.seeds
    profiles = grid.inputs * (max(grid.depths) + 1) * (5 + 2 * len(grid.depths))
    spectra = len(grid.depths) * grid.width * (grid.batch or 1)
    # twice while they are put together
    return 2.0 * np.dtype(grid.dtype).itemsize * networks * (profiles + spectra)


def _plans(grid: sweeps.Grid, d_in: int, chunk_size: int | None) -> dict[str, sweeps.Estimate]:
    """How the two measures of a survey are computed, by what they measure."""
    one_input = dataclasses.replace(grid, inputs=1)
    every = len(sweeps.usable_devices(decomposing=False))
    decomposing = len(sweeps.usable_devices())
    return {
        "profiles": sweeps.estimate(grid, d_in, chunk_size, every, sweeps.signal),
        "spectra": sweeps.estimate(one_input, d_in, chunk_size, decomposing, sweeps.jacobian),
    }


def _header(grid: sweeps.Grid, plans: dict[str, sweeps.Estimate]) -> str:
    """What is going to be computed, in a line."""
    devices = sweeps.usable_devices()
    each = "; ".join(
        f"{name}: {plan.chunk[0] * plan.chunk[1]} networks at once in about {plan.memory / 2**20:.0f} MiB, "
        f"{plan.chunks} chunks, {plan.compiles} compiles"
        for name, plan in plans.items()
    )
    return (
        f"{plans['profiles'].cells} networks ({len(grid.names)} activations x {len(grid.sigma_w)} gains x "
        f"{grid.seeds} seeds), each read at {len(grid.depths)} depths to {max(grid.depths)}; {each}; on "
        f"{len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}{_rough_time(grid, devices[0])}"
    )


def _rough_time(grid: sweeps.Grid, device: jax.Device) -> str:
    """How long it takes, from what the defaults take: spectra cost as networks x depth x width^3 do."""
    if device.platform != "cpu":
        return ""

    def cost(of: sweeps.Grid) -> float:
        networks = len(of.activations) * len(of.sigma_w) * of.seeds
        return networks * max(of.depths) * (of.width * (of.batch or 1)) ** 3

    measuring = _MEASURING * cost(grid) / cost(_DEFAULTS) * 2 / (os.cpu_count() or 2)
    return f", about {told_time(measuring + _COMPILING * len(grid.activations))}"


def _progress(bar: tqdm) -> sweeps.ProgressBar:
    """One bar over the steps of measuring and predicting."""

    def wrap(steps: Sequence[Any]) -> Any:
        for step in steps:
            yield step
            bar.update()

    return wrap
