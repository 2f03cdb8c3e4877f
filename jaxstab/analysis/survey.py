"""Survey of a grid of networks: measurements, predictions and verdicts in one dataset.

The dataset holds the measured variables under their own names, the predicted ones as
`predicted_*`, the fixed points, the phase diagram and the verdicts.
"""

from pathlib import Path

import numpy as np
import xarray as xr

from jaxstab.analysis.assumed import names
from jaxstab.analysis.predictions import (
    depth_scales,
    phase_diagram,
    predict,
    predict_sharpness,
)
from jaxstab.analysis.verdicts import judge
from jaxstab.checks import check_count
from jaxstab.records import CorrelationProfile, Data, ForwardProfile
from jaxstab.sweeps import (
    Grid,
    jacobian,
    run,
    run_into,
    sharpness,
    signal,
)
from jaxstab.sweeps.durable import ProgressBar
from jaxstab.sweeps.examples import classes, samples
from jaxstab.sweeps.measures import Measure
from jaxstab.sweeps.measuring import settings
from jaxstab.sweeps.run import as_attributes

AXES = ("activation", "depth", "seed", "sigma_w")
# fields over layers, which the networks of `networks.mlp` have without an axis of depth
_OF_LAYERS = (*ForwardProfile._fields, *CorrelationProfile._fields)


def survey(
    grid: Grid,
    data: Data,
    *,
    sharp: int | None = None,
    into: str | Path | None = None,
    chunk_size: int | None = None,
    progress: ProgressBar = iter,
) -> xr.Dataset:
    """Measure, predict and judge every cell of a grid.

    A network of the caller's own is predicted by the law of its chains. Profiles over layers alone
    belong to the deepest network.

    Args:
        grid: grid over the axes activation, depth, seed and sigma_w; activation is optional for a
            network of the caller's own.
        data: examples to measure at.
        sharp: number of examples for the sharpness of the loss, >= 2; a grid with a batch uses its
            batch instead. None for no sharpness.
        into: folder that keeps the measurements, in the stores of `parts`; the same call resumes a
            stopped survey. None to keep nothing.
        chunk_size: cells computed at once; None to fit the memory.
        progress: wrapper of each sequence of steps: the groups of every measure, then the
            activations twice.

    Returns:
        Measured profiles over (activation, seed, sigma_w, input, ...), spectra at each seed's first
        input, `predicted_*`, `fixed_point_*`, the phase diagram and the verdicts.

    Raises:
        ValueError: if data or grid do not fit, sharp < 2, or a store belongs to another sweep; the
            message names the difference.
    """
    optional = set() if grid.network is None else {"activation"}
    if set(grid.axes) | optional != set(AXES):
        raise ValueError(
            f"a survey needs a grid over the axes {', '.join(AXES)}, got {', '.join(grid.axes)}"
        )
    wanted = measures(grid, sharp)
    measured = _measured(wanted, data, into, chunk_size, progress)
    batch = grid.fixed["batch"]
    x, other, _ = samples(grid, data, batch)
    q0 = float(np.mean(np.square((x, other))))
    c0 = float(np.mean(x * other)) / q0
    d_in = data.x.shape[-1]
    predicted = predict(grid, d_in, c0, progress, q0=q0)
    beside = predicted.rename({name: f"predicted_{name}" for name in predicted if name in measured})
    plane = phase_diagram(grid, d_in, progress=progress)
    pieces = [measured, beside, plane, depth_scales(grid, d_in)]
    if sharp is not None:
        of_batch = wanted["sharpness"][0]
        pair = samples(of_batch, data, of_batch.fixed["batch"])
        outputs = grid.fixed["outputs"] or classes(data)
        alike = float(np.mean(pair.x * pair.other))
        pieces.append(predict_sharpness(of_batch, d_in, outputs, alike))
    # networks of a batch or with dense skips have more singular values than the predicted network
    dataset = xr.merge(pieces, join="outer", compat="no_conflicts", combine_attrs="override")
    told = as_attributes(settings(grid, data)) | sharp_setting(sharp)
    return dataset.merge(judge(dataset)).assign_attrs(told)


def measures(grid: Grid, sharp: int | None = None) -> dict[str, tuple[Grid, Measure]]:
    """List the measures of a survey.

    Args:
        grid: grid of the survey.
        sharp: number of examples for the sharpness, >= 2; None for no sharpness.

    Returns:
        Grid and measure by the name of their store.

    Raises:
        ValueError: if sharp < 2.
    """
    pairs: dict[str, tuple[Grid, Measure]] = {
        "profiles": (grid, signal),
        "spectra": (grid.but(inputs=1), jacobian),
    }
    if sharp is not None:
        examples = grid.fixed["batch"] or check_count("sharpness", sharp, 2)
        pairs["sharpness"] = (grid.but(inputs=1, batch=examples), sharpness)
    return pairs


def sharp_setting(sharp: int | None) -> dict[str, int]:
    """Return the setting of the sharpness as an attribute of a dataset.

    Args:
        sharp: number of examples for the sharpness; None for no sharpness.

    Returns:
        {"sharpness": sharp}, or {} for None.
    """
    if sharp is None:
        return {}
    return {"sharpness": sharp}


def parts(into: str | Path) -> dict[str, Path]:
    """Return the paths of the stores of a survey.

    Args:
        into: folder of the survey.

    Returns:
        Path of each store by its name in `measures`.
    """
    return {name: Path(into) / f"{name}.zarr" for name in ("profiles", "spectra", "sharpness")}


def _measured(
    wanted: dict[str, tuple[Grid, Measure]],
    data: Data,
    into: str | Path | None,
    chunk_size: int | None,
    progress: ProgressBar,
) -> xr.Dataset:
    """Measure profiles at all inputs, and the other measures at each seed's first input."""
    datasets = []
    for name, (grid, measure) in wanted.items():
        if into is None:
            part = run(grid, measure, data, chunk_size=chunk_size, progress=progress)
        else:
            place = parts(into)[name]
            part = run_into(place, grid, measure, data, chunk_size=chunk_size, progress=progress)
        if name != "profiles":
            part = part.isel(input=0, drop=True)
        # all cells are computed: drop the flag `done`, and the attributes of the store
        datasets.append(_as_ours(grid, part.drop_vars("done", errors="ignore").drop_attrs()))
    return xr.merge(datasets)


def _as_ours(grid: Grid, dataset: xr.Dataset) -> xr.Dataset:
    """Give a dataset of the caller's own networks the axes of the networks of `networks.mlp`."""
    if grid.network is None:
        return dataset
    if "activation" not in grid.axes:
        dataset = dataset.expand_dims(activation=names(grid))
    of_layers = [name for name in _OF_LAYERS if name in dataset]
    return dataset.assign(dataset[of_layers].isel(depth=-1, drop=True, missing_dims="ignore"))
