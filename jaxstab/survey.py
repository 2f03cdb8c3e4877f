"""The main job: measure a grid of networks, predict the same, judge both.

One dataset comes out: the measured variables under their own names, the predicted ones as
`predicted_*`, the fixed points, the phase diagram and the verdicts.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab import theory
from jaxstab.activations import Activation
from jaxstab.extras import extra
from jaxstab.records import Data
from jaxstab.sweeps import Grid, ProgressBar, jacobian, run, run_into, samples, signal
from jaxstab.sweeps.grid import with_coordinates
from jaxstab.sweeps.measures import Record
from jaxstab.sweeps.run import as_attributes, labelled, settings
from jaxstab.theory.laws import SMALLEST_BATCH, WEIGHT_VARIANCES
from jaxstab.verdicts import judge

with extra("run"):
    import xarray as xr

# ln of the lengths at which a shift of finite width is taken: beyond, phi' is that at 0 or at
# infinity
_LENGTHS = (-25.0, 25.0)
# gains at which a line of theory is drawn
FINE = 65


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
        grid: the grid.
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
    measured = _measured(grid, data, into, chunk_size, progress)
    x, other, _ = samples(grid, data)
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
    one_input = dataclasses.replace(grid, inputs=1)
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


def predict(grid: Grid, d_in: int, c0: float, progress: ProgressBar = iter) -> xr.Dataset:
    """Mean-field counterpart of `signal` and `jacobian` over a grid, with the fixed point of every cell.

    NaN in what `theory.missing` and `theory.missing_fixed_point` say of the networks' law, and
    throughout where they have none.

    Args:
        grid: the grid.
        d_in: input features.
        c0: correlation of the two inputs.
        progress: wraps the sequence of activations, such as tqdm.

    Returns:
        The records' fields over (activation, sigma_w, ...), `fixed_point_*`, and
        `finite_width_rate`, by which the rate of a typical network exceeds that of infinite width,
        to the order 1/width.
    """
    gains = jnp.asarray(grid.sigma_w, float)

    def one(activation: str | Activation) -> xr.Dataset:
        block = law(grid, activation)

        def profiles(sigma_w: Array) -> tuple[Record, ...]:
            known = activation if block is None else block
            return theory.predict(
                known, sigma_w, grid.sigma_b, grid.depths, width=grid.width, d_in=d_in, c0=c0
            )

        def point(sigma_w: Array) -> Record:
            return theory.fixed_point(activation if block is None else block, sigma_w, grid.sigma_b)

        records = _theory(block is not None, jax.vmap(profiles), gains)
        fixed = _theory(block is not None, jax.vmap(point), gains)
        fixed_point = {
            f"fixed_point_{field}": ("sigma_w", array) for field, array in fixed._asdict().items()
        }
        shifted = -np.asarray(
            _typical_shift(grid, activation, jnp.asarray(records[0].log_q[:, -1]))
        )
        return labelled(records, ("sigma_w",)).assign(
            fixed_point | {"finite_width_rate": ("sigma_w", shifted)}
        )

    parts = [one(activation) for activation in progress(grid.activations)]
    return xr.concat(parts, "activation").pipe(with_coordinates, grid)


def _typical_shift(grid: Grid, activation: str | Activation, log_q: Array) -> Array:
    """The shift of finite width at the deepest layer's length, beside which a skip or a norm makes it no larger."""
    q = jnp.exp(jnp.clip(log_q, *_LENGTHS))
    weights = "orthogonal" if grid.weights == "orthogonal" else "gaussian"
    return jax.vmap(lambda q: theory.typical_shift(activation, q, grid.width, weights))(q)


def law(grid: Grid, activation: str | Activation) -> theory.Law | None:
    """What theory assumes of the blocks of a grid's networks.

    Args:
        grid: the grid.
        activation: one of its activations.

    Returns:
        The law; None where there is none: weights drawn by a function, a norm without a law, or
        BatchNorm over fewer than four examples.
    """
    if grid.weights not in WEIGHT_VARIANCES or grid.norm not in (None, *theory.NORMS):
        return None
    if grid.norm == "batch" and (grid.batch is None or grid.batch < SMALLEST_BATCH):
        return None
    return theory.law(
        activation,
        norm=grid.norm,
        norm_after=grid.norm_after,
        skip=grid.skip,
        keep=1.0 - grid.dropout,
        weights=grid.weights,
        depth=max(grid.depths),
        batch=grid.batch,
    )


def _theory(known: bool, predict: Callable, *args: Array) -> Any:
    """A prediction, or NaN in its place where theory does not know the networks."""
    if known:
        return jax.device_get(jax.jit(predict)(*args))
    unknown = lambda leaf: np.full(
        leaf.shape, np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0, leaf.dtype
    )
    return jax.tree.map(unknown, jax.eval_shape(predict, *args))


def depth_scales(grid: Grid, points: int = FINE) -> xr.Dataset:
    """Depth scales over the range of the grid's gains, for lines without corners.

    Args:
        grid: its activations, range of gains, and sigma_b.
        points: how many gains.

    Returns:
        `fine_xi_c` and `fine_xi_grad` over (activation, fine_sigma_w); NaN where theory does not
        know the networks.
    """
    gains = np.linspace(min(grid.sigma_w), max(grid.sigma_w), points)
    scales: dict[str, list[np.ndarray]] = {"xi_c": [], "xi_grad": []}
    for activation in grid.activations:
        block = law(grid, activation)
        of_line = jax.vmap(
            lambda w, known=block or activation: theory.fixed_point(known, w, grid.sigma_b)
        )
        found = _theory(block is not None, of_line, jnp.asarray(gains))
        for name, values in scales.items():
            values.append(getattr(found, name))
    return xr.Dataset(
        {
            f"fine_{name}": (("activation", "fine_sigma_w"), np.stack(values))
            for name, values in scales.items()
        },
        {"activation": list(grid.names), "fine_sigma_w": gains},
    )


def phase_diagram(grid: Grid, points: int = 33, progress: ProgressBar = iter) -> xr.Dataset:
    """chi_1 over the plane of (sigma_b, sigma_w), and the critical line in it.

    Args:
        grid: its activations and range of gains.
        points: resolution of either axis.
        progress: wraps the sequence of activations, such as tqdm.

    Returns:
        `phase_chi_1` (activation, phase_sigma_b, phase_sigma_w), `critical_sigma_w` (activation,
        phase_sigma_b), NaN where no usable critical gain exists, and `critical_here`, the same at
        the grid's own sigma_b.
    """
    sigma_w = jnp.linspace(
        min(grid.sigma_w), max(max(grid.sigma_w), min(grid.sigma_w) + 1e-3), points
    )
    sigma_b = jnp.linspace(0.0, max(1.0, 1.5 * grid.sigma_b), points)
    chi = []
    line = []
    here = []
    for activation in progress(grid.activations):
        block = law(grid, activation)
        known = block or activation
        of_line = jax.vmap(
            lambda w, b, known=known: theory.fixed_point(known, w, b).chi_1, (0, None)
        )
        of_plane = jax.vmap(lambda b, of_line=of_line: of_line(sigma_w, b))
        critical_line = jax.vmap(lambda b, known=known: theory.critical_sigma_w(known, b))
        chi.append(_theory(block is not None, of_plane, sigma_b))
        critical = _theory(block is not None, critical_line, jnp.append(sigma_b, grid.sigma_b))
        line.append(critical[:-1])
        here.append(critical[-1])
    return xr.Dataset(
        {
            "phase_chi_1": (("activation", "phase_sigma_b", "phase_sigma_w"), np.stack(chi)),
            "critical_sigma_w": (("activation", "phase_sigma_b"), np.stack(line)),
            "critical_here": ("activation", np.stack(here)),
        },
        {
            "activation": list(grid.names),
            "phase_sigma_b": np.asarray(sigma_b),
            "phase_sigma_w": np.asarray(sigma_w),
        },
    )
