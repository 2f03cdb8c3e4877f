"""The main job: measure a grid of networks, predict the same, judge both.

One dataset comes out: the measured variables under their own names, the predicted ones as
`predicted_*`, the fixed points, the phase diagram and the verdicts.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from jaxstab.analysis.predictions import depth_scales, phase_diagram, predict
from jaxstab.analysis.verdicts import judge
from jaxstab.records import Data
from jaxstab.sweeps import Grid, ProgressBar, jacobian, run, run_into, samples, signal
from jaxstab.sweeps.measuring import settings
from jaxstab.sweeps.run import as_attributes

AXES = ("activation", "depth", "seed", "sigma_w")


def survey(
    grid: Grid,
    data: Data,
    *,
    into: str | Path | None = None,
    chunk_size: int | None = None,
    progress: ProgressBar = iter,
) -> xr.Dataset:
    """Measure, predict and judge every cell of a grid.

    Args:
        grid: over the axes activation, depth, seed and sigma_w.
        data: examples to measure at.
        into: a folder that keeps what is measured, in the stores `parts`: the same call goes on
            where a stopped one stood. None to keep nothing.
        chunk_size: cells computed at once; None to fit them into memory.
        progress: wraps each sequence of steps: the groups of two measures, then the activations
            twice.

    Returns:
        Measured profiles over (activation, seed, sigma_w, input, ...) and spectra at each seed's
        first input, with `predicted_*`, `fixed_point_*`, the phase diagram and the verdicts beside
        them.

    Raises:
        ValueError: if data or grid do not fit, or a store is of another sweep; says what differs.
    """
    if set(grid.axes) != set(AXES) or grid.network is not None:
        raise ValueError(
            f"a survey needs a grid over the axes {', '.join(AXES)}, got {', '.join(grid.axes)}"
        )
    measured = _measured(grid, data, into, chunk_size, progress)
    batch = grid.fixed["batch"]
    x, other, _ = samples(grid, data, batch)
    predicted = predict(grid, data.x.shape[1], float(np.mean(x * other)), progress)
    beside = predicted.rename({name: f"predicted_{name}" for name in predicted if name in measured})
    pieces = [measured, beside, phase_diagram(grid, progress=progress), depth_scales(grid)]
    # a network of a batch, or one with dense skips, has more singular values than the plain one
    # that theory sees
    dataset = xr.merge(pieces, join="outer", compat="no_conflicts", combine_attrs="override")
    return dataset.merge(judge(dataset)).assign_attrs(as_attributes(settings(grid, data)))


def parts(into: str | Path) -> tuple[Path, Path]:
    """Where a survey keeps what it has measured.

    Args:
        into: the folder.

    Returns:
        The stores of the profiles and of the spectra.
    """
    return Path(into) / "profiles.zarr", Path(into) / "spectra.zarr"


def _measured(
    grid: Grid, data: Data, into: str | Path | None, chunk_size: int | None, progress: ProgressBar
) -> xr.Dataset:
    """Profiles at all inputs, and spectra at each seed's first."""
    one_input = grid.but(inputs=1)
    if into is None:
        signals = run(grid, signal, data, chunk_size=chunk_size, progress=progress)
        spectra = run(one_input, jacobian, data, chunk_size=chunk_size, progress=progress)
    else:
        profiles, values = parts(into)
        signals = run_into(profiles, grid, signal, data, chunk_size=chunk_size, progress=progress)
        spectra = run_into(
            values, one_input, jacobian, data, chunk_size=chunk_size, progress=progress
        )
    measured = [signals, spectra.isel(input=0, drop=True)]
    # all cells are computed: what says so, and attributes that a store adds, are left out
    return xr.merge([part.drop_vars("done", errors="ignore").drop_attrs() for part in measured])
