"""`jaxstab sweep`: measure a grid of networks, predict the same, and write a store and a report."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

from jaxstab import datasets, networks, records, store, survey, sweeps
from jaxstab.cli import history, interrupts
from jaxstab.cli.arguments import choice
from jaxstab.cli.faults import (
    UserError,
    check_memory,
    check_networks,
    divide_cpu,
    told_time,
    users_fault,
)
from jaxstab.store import fingerprint, locks
from jaxstab.store.dataset import attributes, check_writable, remove, versions
from jaxstab.sweeps.run import as_attributes
from jaxstab.sweeps.run import settings as settings_of_sweep

_DEFAULTS = sweeps.Grid()
# seconds that the defaults take on two cores: to measure, and to compile and predict an activation
_MEASURING = 40.0
_COMPILING = 15.0


@dataclasses.dataclass(frozen=True)
class Sweep:
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
    """Replace a store of other settings, finished or not, or measure a finished one anew."""
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
        KeyboardInterrupt: when told to stop; what is finished is kept.
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
            check_memory(f"groups of {measure}", plan.memory * len(jax.local_devices()))
        finished = not settings.dry_run and _is_finished(settings, place, grid, data)
    print(_header(grid, plans), flush=True)
    if settings.dry_run:
        return
    total = sum(plan.groups for plan in plans.values())
    if finished and page.exists() and not any(part.exists() for part in survey.parts(settings.out)):
        print(f"nothing was left to do\nstore:  {place}\nreport: {page}")
        return
    from jaxstab import (
        report,
    )  # matplotlib takes a second to import, and bad settings are to be told sooner

    def told() -> str:
        return f"{_kept(settings.out)} of {total} groups are in {settings.out}"

    with users_fault(), interrupts.resumable(told), locks.owned(place):
        if finished:
            print("nothing was left to do")
        else:
            _make(settings, place, grid, data, total)
        for part in survey.parts(settings.out):
            remove(part)
        if not (finished and page.exists()):
            report.write(store.load(place).assign_attrs(history.told(str(place))), page)
    print(f"store:  {place}\nreport: {page}")


def _is_finished(settings: Sweep, place: Path, grid: sweeps.Grid, data: records.Data) -> bool:
    """Whether the store of this very sweep is there; a place that cannot be used is refused."""
    for part, of in zip(
        survey.parts(settings.out), (grid, dataclasses.replace(grid, inputs=1)), strict=True
    ):
        changed = "" if settings.overwrite else _changed(part, settings_of_sweep(of, data))
        if changed:
            raise UserError(
                f"{part} holds another sweep ({changed}); choose another place, or pass --overwrite"
            )
    try:
        check_writable(place, settings.overwrite)
    except FileExistsError as error:
        if not _is_ours(place):
            raise
        changed = _changed(place, as_attributes(settings_of_sweep(grid, data)))
        if changed:
            raise UserError(f"{error}: it holds another sweep ({changed})") from error
        return True
    return False


def _is_ours(place: Path) -> bool:
    """Whether there is a store whose root is whole."""
    with contextlib.suppress(ValueError):
        return bool(attributes(place))
    return False


def _changed(place: Path, wanted: Mapping[str, Any]) -> str:
    """What differs between the settings of a store and those that are wanted; nothing if there is no store."""
    if not _is_ours(place):
        return ""
    kept = attributes(place)
    both = ({name: _decoded(of.get(name)) for name in wanted} for of in (kept, wanted))
    return fingerprint.differences(*both)


def _decoded(value: Any) -> Any:
    """A setting out of an attribute, which may be JSON."""
    with contextlib.suppress(ValueError):
        return json.loads(value) if isinstance(value, str) else value
    return value


def _make(settings: Sweep, place: Path, grid: sweeps.Grid, data: records.Data, total: int) -> None:
    """Measure what is not measured yet, predict, judge, and write the whole."""
    begun = _kept(settings.out)
    # the groups of two measures, then every activation twice
    steps = total + 2 * len(grid.activations)
    try:
        with tqdm(
            total=steps, initial=begun, unit="step", dynamic_ncols=True, mininterval=0.5
        ) as bar:
            dataset = _surveyed(settings, grid, data, _progress(bar))
    finally:
        cells = len(grid.activations) * len(grid.sigma_w) * grid.seeds
        history.note(str(place), round(cells * max(0, _kept(settings.out) - begun) / total))
    store.save(dataset, place, settings.overwrite, made=versions())


def _surveyed(
    settings: Sweep, grid: sweeps.Grid, data: records.Data, progress: sweeps.ProgressBar
) -> xr.Dataset:
    """The survey; with --overwrite it begins anew where an unfinished one of other settings is."""
    kept: dict[str, Any] = {
        "into": settings.out,
        "chunk_size": settings.chunk_size,
        "progress": progress,
    }
    try:
        return survey.survey(grid, data, **kept)
    except store.OtherSweepError as error:
        if not settings.overwrite:
            raise UserError(f"{error}, or pass --overwrite to replace it") from error
    for part in survey.parts(settings.out):
        remove(part)
    return survey.survey(grid, data, **kept)


def _kept(out: Path) -> int:
    """How many groups of an unfinished sweep are measured."""
    done = 0
    for part in survey.parts(out):
        # what is not there, or is damaged, is measured anew
        with contextlib.suppress(ValueError, OSError):
            done += store.progress(part).done
    return done


def _check_size(settings: Sweep) -> None:
    """Refuse grids that no machine could hold, before anything is made of them."""
    axes = {
        "activations": len(settings.activations),
        "gains": len(settings.sigma_w),
        "seeds": settings.seeds,
    }
    check_networks(axes)
    check_memory("one network", 4.0 * max((0, *settings.depths)) * settings.width**2)


def _results(grid: sweeps.Grid) -> float:
    """Bytes of all that is measured: profiles of every input, gradients of every depth, spectra."""
    networks = len(grid.activations) * len(grid.sigma_w) * grid.seeds
    profiles = grid.inputs * (max(grid.depths) + 1) * (5 + 2 * len(grid.depths))
    spectra = len(grid.depths) * grid.width * (grid.batch or 1)
    # twice while they are put together
    return 2.0 * np.dtype(grid.dtype).itemsize * networks * (profiles + spectra)


def _plans(grid: sweeps.Grid, d_in: int, chunk_size: int | None) -> dict[str, sweeps.Plan]:
    """How the two measures of a survey are cut into groups, by what they measure."""
    one_input = dataclasses.replace(grid, inputs=1)
    return {
        "profiles": sweeps.plan(grid, d_in, sweeps.signal, chunk_size),
        "spectra": sweeps.plan(one_input, d_in, sweeps.jacobian, chunk_size),
    }


def _header(grid: sweeps.Grid, plans: dict[str, sweeps.Plan]) -> str:
    """What is going to be computed, in a line."""
    devices = jax.local_devices()
    each = "; ".join(
        f"{name}: {plan.groups} groups of {plan.group[0] * plan.group[1]} networks in about "
        f"{plan.memory / 2**20:.0f} MiB each, {plan.programs} programs"
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

    def wrap(steps: Iterable[Any]) -> Any:
        for step in steps:
            # a signal's exception may have been lost in a callback
            interrupts.check()
            yield step
            bar.update()

    return wrap
