"""`jaxstab sweep`: measure a grid of networks, predict the same, and write a store and a report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxstab import datasets, report, store, survey, sweeps
from jaxstab.cli import interrupts
from jaxstab.cli.faults import divide_cpu, users_fault

_DEFAULTS = sweeps.Grid()


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
    weights: str = _DEFAULTS.weights
    """gaussian, orthogonal, or {lecun,glorot,he}_{normal,uniform}."""
    norm: str | None = _DEFAULTS.norm
    """batch, layer or rms: norm in every block; batch needs --batch."""
    norm_after: bool = _DEFAULTS.norm_after
    """Norm after the activation instead of before it."""
    skip: str | None = _DEFAULTS.skip
    """sum, scaled, rezero, highway or dense: skip connection around every block."""
    dropout: float = _DEFAULTS.dropout
    """Share of features dropped."""
    batch: int | None = _DEFAULTS.batch
    """Digits that go through the network together, as one input."""
    dtype: str = _DEFAULTS.dtype
    """float32 or float64 of the measurement; theory is always float64."""
    chunk_size: int | None = None
    """Networks computed at once; fitted to memory unless given."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; one per core unless given."""
    overwrite: bool = False
    """Replace an existing store."""
    config: Path | None = None
    """TOML file with any of these settings; flags override it."""

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
    place, page = settings.out / "store.zarr", settings.out / "report.html"
    divide_cpu(settings.cpu_devices)
    with users_fault():
        grid = settings.grid()
        store.check_writable(place, settings.overwrite)
        data = datasets.load(settings.data, settings.data_path)
        sweeps.samples(grid, data)
        devices = sweeps.usable_devices()
        plan = sweeps.estimate(grid, data.x.shape[1], settings.chunk_size, len(devices))
    print(
        f"{plan.cells} networks ({len(grid.names)} activations x {len(grid.sigma_w)} gains x {grid.seeds} seeds), each "
        f"read at {len(grid.depths)} depths to {max(grid.depths)}; 2 measures, {plan.compiles} compiles each; "
        f"{plan.chunk[0] * plan.chunk[1]} networks at once in about {plan.memory / 2**20:.0f} MiB "
        f"on {len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}",
        flush=True,
    )
    with tqdm(total=2 * plan.chunks + 2 * plan.compiles, unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        dataset = survey.survey(grid, data, chunk_size=settings.chunk_size, progress=_progress(bar))
    with users_fault(), interrupts.orderly():
        store.save(dataset, place, settings.overwrite)
        report.write(store.load(place), page)
    print(f"store:  {place}\nreport: {page}")


def _progress(bar: tqdm) -> sweeps.ProgressBar:
    """One bar over the steps of measuring and predicting."""

    def wrap(steps: Sequence[Any]) -> Any:
        for step in steps:
            yield step
            bar.update()

    return wrap
