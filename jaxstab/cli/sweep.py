"""`jaxstab sweep`: measure a grid of networks, predict the same, and write a store and a report."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

from jaxstab import datasets, records, store, sweeps
from jaxstab.analysis import survey
from jaxstab.analysis.survey import measures, parts, sharp_setting
from jaxstab.checks import check_count
from jaxstab.cli import history, interrupts
from jaxstab.cli.faults import (
    UserError,
    check_memory,
    check_networks,
    divide_cpu,
    duration,
    users_fault,
)
from jaxstab.cli.settings import Sweep
from jaxstab.cli.tried import tried
from jaxstab.store import fingerprint, locks
from jaxstab.store.dataset import attributes, check_writable, remove, versions
from jaxstab.sweeps.durable import ProgressBar
from jaxstab.sweeps.examples import classes, samples
from jaxstab.sweeps.measures import Measure
from jaxstab.sweeps.measuring import Measuring
from jaxstab.sweeps.measuring import settings as settings_of_sweep
from jaxstab.sweeps.run import as_attributes
from jaxstab.training.sharpness import PRODUCTS

# seconds of the default sweep on two cores: measuring, and compiling and predicting an activation
_MEASURING = 40.0
_COMPILING = 8.0
# FLOPs of matrix products per second and core
_FLOPS = 1e10


def grid_of(settings: Sweep, outputs: int = 10) -> sweeps.Grid:
    """Make the grid that the flags describe.

    Args:
        settings: the flags.
        outputs: number of outputs of every network.

    Returns:
        The grid.

    Raises:
        ValueError: if a setting is invalid.
    """
    axes = {
        "activation": settings.activations,
        "depth": settings.depths,
        # a range, as a list of seeds may exceed memory
        "seed": range(check_count("seeds", settings.seeds, 1)),
        "sigma_w": settings.sigma_w,
    }
    return sweeps.Grid(
        axes,
        **settings.of_networks,
        sigma_b=settings.sigma_b,
        dropout=settings.dropout,
        inputs=settings.inputs,
        outputs=outputs,
    )


def sweep(settings: Sweep) -> None:
    """Run `jaxstab sweep`.

    Args:
        settings: the flags.

    Raises:
        UserError: if settings, data or place do not fit.
        KeyboardInterrupt: if interrupted; finished groups are kept.
    """
    place = settings.out / "store.zarr"
    page = settings.out / "report.html"
    divide_cpu(settings.cpu_devices)
    with users_fault():
        _check_size(settings)
        # reports bad settings before the data are read
        grid_of(settings)
        data = datasets.load(settings.data, settings.data_path)
        grid = grid_of(settings, classes(data))
        # one seed is enough, since every seed draws as many examples
        samples(grid.but(seed=range(1)), data, settings.batch)
        check_memory("the results", _results(grid))
        wanted = measures(grid, settings.sharpness)
        for of, _ in wanted.values():
            samples(of.but(seed=range(1)), data, of.fixed["batch"])
        plans = {
            name: sweeps.plan(of, measure, data, settings.chunk_size)
            for name, (of, measure) in wanted.items()
        }
        for measure, plan in plans.items():
            check_memory(f"groups of {measure}", plan.memory * len(jax.local_devices()))
        finished = not settings.dry_run and _is_finished(settings, place, grid, data)
    print(_header(grid, plans, wanted), flush=True)
    if settings.dry_run:
        for name, (of, taken) in wanted.items():
            print(tried(name, Measuring(of, taken, data, plans[name])), flush=True)
        return
    total = sum(plan.groups for plan in plans.values())
    kept = parts(settings.out).values()
    if finished and page.exists() and not any(part.exists() for part in kept):
        print(f"nothing was left to do\nstore:  {place}\nreport: {page}")
        return
    from jaxstab import (
        report,
    )  # matplotlib takes a second to import, and bad settings are to be told sooner

    def progress() -> str:
        return f"{_kept(settings.out)} of {total} groups are in {settings.out}"

    with users_fault(), interrupts.resumable(progress), locks.owned(place):
        # another run may have finished the sweep meanwhile
        if _is_finished(settings, place, grid, data):
            print("nothing was left to do")
        else:
            _make(settings, place, grid, data, total)
        report.write(store.load(place).assign_attrs(history.described(str(place))), page)
        # removed last, since leftover parts mean that the page is missing or old
        for part in kept:
            remove(part)
    print(f"store:  {place}\nreport: {page}")


def _is_finished(settings: Sweep, place: Path, grid: sweeps.Grid, data: records.Data) -> bool:
    """Check whether the store of this sweep is finished, and that its place can be used."""
    for name, (of, _) in measures(grid, settings.sharpness).items():
        part = parts(settings.out)[name]
        if settings.overwrite:
            changed = ""
        else:
            changed = _changed(part, settings_of_sweep(of, data))
        if changed:
            raise UserError(
                f"{part} holds another sweep ({changed}); choose another place, or pass --overwrite"
            )
    try:
        check_writable(place, settings.overwrite)
    except FileExistsError as error:
        if not _is_ours(place):
            raise
        attributes_wanted = as_attributes(settings_of_sweep(grid, data)) | sharp_setting(
            settings.sharpness
        )
        changed = _changed(place, attributes_wanted)
        if changed:
            raise UserError(f"{error}: it holds another sweep ({changed})") from error
        return True
    return False


def _is_ours(place: Path) -> bool:
    """Check whether there is a store with a whole root."""
    with contextlib.suppress(ValueError):
        return bool(attributes(place))
    return False


def _changed(place: Path, wanted: Mapping[str, Any]) -> str:
    """Describe the differences between a store's settings and the wanted ones; empty without a store."""
    if not _is_ours(place):
        return ""
    kept = attributes(place)
    both = ({name: _decoded(of.get(name)) for name in wanted} for of in (kept, wanted))
    return fingerprint.differences(*both)


def _decoded(value: Any) -> Any:
    """Decode a setting from an attribute, which may be JSON."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _make(settings: Sweep, place: Path, grid: sweeps.Grid, data: records.Data, total: int) -> None:
    """Measure the unfinished groups, predict, judge, and write the store."""
    begun = _kept(settings.out)
    # steps of the bar: the groups of every measure, then every activation twice
    steps = total + 2 * len(grid.values("activation"))
    try:
        with tqdm(
            total=steps, initial=begun, unit="step", dynamic_ncols=True, mininterval=0.5
        ) as bar:
            dataset = _surveyed(settings, grid, data, _progress(bar))
    finally:
        cells = _cells(grid)
        history.note(str(place), round(cells * max(0, _kept(settings.out) - begun) / total))
    store.save(dataset, place, settings.overwrite, made=versions())


def _surveyed(
    settings: Sweep, grid: sweeps.Grid, data: records.Data, progress: ProgressBar
) -> xr.Dataset:
    """Make the survey; --overwrite replaces an unfinished survey of other settings."""
    kept: dict[str, Any] = {
        "sharp": settings.sharpness,
        "into": settings.out,
        "chunk_size": settings.chunk_size,
        "progress": progress,
    }
    try:
        return survey(grid, data, **kept)
    except store.OtherSweepError as error:
        if not settings.overwrite:
            raise UserError(f"{error}, or pass --overwrite to replace it") from error
    for part in parts(settings.out).values():
        remove(part)
    return survey(grid, data, **kept)


def _kept(out: Path) -> int:
    """Count the measured groups of an unfinished sweep."""
    done = 0
    for part in parts(out).values():
        # a missing or damaged part is measured again
        with contextlib.suppress(ValueError, OSError):
            done += store.progress(part).done
    return done


def _check_size(settings: Sweep) -> None:
    """Check that the grid is not too large, before anything is allocated."""
    axes = {
        "activations": len(settings.activations),
        "gains": len(settings.sigma_w),
        "seeds": settings.seeds,
    }
    check_networks(axes)
    check_memory("one network", 4.0 * max((0, *settings.depths)) * settings.width**2)


def _results(grid: sweeps.Grid) -> float:
    """Count the bytes of the measurements: profiles per input, gradients per depth, spectra."""
    fixed = grid.fixed
    depths = len(grid.values("depth"))
    profiles = fixed["inputs"] * (grid.deepest + 1) * (5 + 2 * depths)
    spectra = depths * fixed["width"] * (fixed["batch"] or 1)
    # twice while the arrays are combined
    return 2.0 * np.dtype(fixed["dtype"]).itemsize * _cells(grid) * (profiles + spectra)


def _cells(grid: sweeps.Grid) -> int:
    """Count the measured networks, each of which is read off at all depths."""
    return grid.count // len(grid.values("depth"))


def _header(
    grid: sweeps.Grid,
    plans: dict[str, sweeps.Plan],
    wanted: Mapping[str, tuple[sweeps.Grid, Measure]],
) -> str:
    """Describe the computation in a line."""
    devices = jax.local_devices()
    each = "; ".join(
        f"{name}: {plan.groups} groups of {plan.size} networks in about "
        f"{plan.memory / 2**20:.0f} MiB each, {plan.programs} programs"
        for name, plan in plans.items()
    )
    many = {name: len(grid.values(name)) for name in grid.axes}
    return (
        f"{_cells(grid)} networks ({many['activation']} activations x {many['sigma_w']} gains x "
        f"{many['seed']} seeds), each read at {many['depth']} depths to {grid.deepest}; {each}; on "
        f"{len(devices)} {devices[0].platform} "
        f"device{'s' * (len(devices) > 1)}{_rough_time(grid, wanted, devices[0])}"
    )


def _rough_time(
    grid: sweeps.Grid,
    wanted: Mapping[str, tuple[sweeps.Grid, Measure]],
    device: jax.Device,
) -> str:
    """Estimate the time from that of the defaults: spectra cost networks x depth x width^3."""
    if device.platform != "cpu":
        return ""

    def cost(of: sweeps.Grid) -> float:
        state = of.fixed["width"] * (of.fixed["batch"] or 1)
        return _cells(of) * of.deepest * state**3

    measuring = _MEASURING * cost(grid) / cost(grid_of(Sweep())) * 2 / (os.cpu_count() or 2)
    compiling = _COMPILING * len(grid.kinds)
    if "sharpness" in wanted:
        measuring += _products(wanted["sharpness"][0]) / (_FLOPS * (os.cpu_count() or 2))
        compiling *= 2
    return f", about {duration(measuring + compiling)}"


def _products(grid: sweeps.Grid) -> float:
    """Count FLOPs of sharpness: nine matrix products per layer for Hessian, six for Gauss-Newton."""
    layers = sum(grid.values("depth"))
    each = 2.0 * (9 + 6) * grid.fixed["batch"] * grid.fixed["width"] ** 2
    return _cells(grid) * layers * each * PRODUCTS


def _progress(bar: tqdm) -> ProgressBar:
    """Make a progress bar over the steps of measuring and predicting."""

    def wrap(steps: Iterable[Any]) -> Any:
        for step in steps:
            # a signal's exception may have been lost in a callback
            interrupts.check()
            yield step
            bar.update()

    return wrap
