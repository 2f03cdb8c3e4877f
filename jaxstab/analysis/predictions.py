"""Predictions of theory over a grid: records, fixed points, depth scales and phase diagrams."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, ArrayLike

from jaxstab import theory
from jaxstab.analysis.assumed import Assumed, assumed, laws, names
from jaxstab.analysis.pointwise import each, fixed_points
from jaxstab.sweeps import Grid
from jaxstab.sweeps.durable import ProgressBar
from jaxstab.sweeps.grid import Kind
from jaxstab.sweeps.measures import Record
from jaxstab.sweeps.run import labelled

# range of ln q for the shift of finite width: beyond, phi' has its value at 0 or at infinity
_LENGTHS = (-25.0, 25.0)
# number of gains along a line of theory
FINE = 65


def gains_of(grid: Grid) -> np.ndarray:
    """Return the weight gains of a grid.

    Args:
        grid: the grid.

    Returns:
        Weight gains, ascending.
    """
    return np.asarray(grid.values("sigma_w"), float)


def predict(
    grid: Grid, d_in: int, c0: float, progress: ProgressBar = iter, *, q0: float = 1.0
) -> xr.Dataset:
    """Predict `signal` and `jacobian` over a grid, and the fixed point of every cell.

    Networks of the caller's own are predicted by the law of their chains. Their sigma_w is the gain
    that the grid applies to weights of the law's variance, and their sigma_b is the grid's.

    The fields that `theory.missing` lists for a law are NaN. Without a law all fields are NaN, and
    `no_theory` holds the reason.

    Args:
        grid: grid with the activation as the axis of kinds; optional for networks of the caller's
            own.
        d_in: input features.
        c0: correlation of the two inputs.
        progress: wrapper of the sequence of activations, such as tqdm.
        q0: mean square of the inputs; 1 for the networks of `networks.mlp`.

    Returns:
        Fields of the records over (activation, sigma_w, ...), `fixed_point_*`, `no_theory` (empty
        with a law) and `finite_width_rate`, the excess of a typical network's rate over the rate at
        infinite width, to the order 1/width. Fields over layers alone belong to the deepest
        network.
    """
    gains = gains_of(grid)
    sigma_b = grid.fixed["sigma_b"]

    def one(kind: Kind) -> xr.Dataset:
        by_depth = laws(grid, kind, d_in)
        why = next((known.why for known in by_depth.values() if known.why), "")
        deepest = by_depth[grid.deepest]

        def profiles(sigma_w: ArrayLike) -> tuple[Record, ...]:
            return _profiles(by_depth, sigma_w, sigma_b, d_in=d_in, c0=c0, q0=q0)

        records = each(profiles, gains.tolist(), not why)
        fixed = fixed_points(deepest.block, gains, sigma_b, not why)
        fixed_point = {
            f"fixed_point_{field}": ("sigma_w", array) for field, array in fixed._asdict().items()
        }
        shift = _typical_shift(deepest, records[0].log_q[:, -1])
        return labelled(records, ("sigma_w",)).assign(
            fixed_point | {"finite_width_rate": ("sigma_w", -shift), "no_theory": why}
        )

    parts = [one(kind) for kind in progress(grid.kinds)]
    whole = xr.concat(parts, "activation")
    known = {name: grid.labels(name) for name in ("sigma_w", "depth")} | {"activation": names(grid)}
    return whole.assign_coords(
        {dim: known.get(str(dim), np.arange(size)) for dim, size in whole.sizes.items()}
    )


def predict_sharpness(grid: Grid, d_in: int, outputs: int, c0: float) -> xr.Dataset:
    """Predict the Gauss-Newton matrix's largest eigenvalue over a grid that `sharpness` measures.

    Args:
        grid: grid with the activation as the axis of kinds.
        d_in: input features.
        outputs: outputs of the network.
        c0: mean correlation of the inputs.

    Returns:
        `predicted_log_gauss_newton`, and with `_sd` the standard deviation of one network about it,
        over (activation, sigma_w, depth); NaN where theory has no kernels.
    """
    gains = gains_of(grid).tolist()
    depths = tuple(grid.values("depth"))

    def one(kind: Kind) -> np.ndarray:
        about = assumed(grid, kind, d_in)
        if about.why or "kernels" in theory.missing(about.block):
            return np.full((len(gains), 2, len(depths)), np.nan)

        def largest(sigma_w: ArrayLike) -> Array:
            sharpness = theory.sharpness(
                about.block,
                sigma_w,
                grid.fixed["sigma_b"],
                depths,
                width=about.width,
                d_in=d_in,
                outputs=outputs,
                examples=kind["batch"] or 1,
                c0=c0,
            )
            return jnp.stack([sharpness.log_gauss_newton, sharpness.log_gauss_newton_sd])

        return each(largest, gains)

    median, sd = np.moveaxis(np.stack([one(kind) for kind in grid.kinds]), 2, 0)
    labels = {"activation": names(grid)} | {n: grid.labels(n) for n in ("sigma_w", "depth")}
    dims = ("activation", "sigma_w", "depth")
    fields = {
        "predicted_log_gauss_newton": (dims, median),
        "predicted_log_gauss_newton_sd": (dims, sd),
    }
    return xr.Dataset(fields, labels)


def _profiles(
    by_depth: Mapping[int, Assumed], sigma_w: ArrayLike, sigma_b: float, **inputs: Any
) -> tuple[Record, ...]:
    """Predict the records of all depths; own networks may have another law at each depth."""
    depths = list(by_depth)
    one_law = len({id(known) for known in by_depth.values()}) == 1
    groups = [depths] if one_law else [[depth] for depth in depths]
    profiles = []
    for group in groups:
        known = by_depth[group[0]]
        profiles.append(
            theory.predict(known.block, sigma_w, sigma_b, group, width=known.width, **inputs)
        )
    forward, correlation, _, _ = profiles[-1]
    gradients = [backward for _, _, backward, _ in profiles]
    spectra = [spectrum for *_, spectrum in profiles]
    return forward, correlation, _joined(gradients), _joined(spectra)


def _joined(records: Sequence[Record]) -> Record:
    """Join records of several depths, with NaN where one has fewer layers or singular values."""

    def along_depths(*leaves: Array) -> Array:
        if leaves[0].ndim == 2:
            leaves = _of_one_length(leaves)
        return jnp.concatenate(leaves)

    return jax.tree.map(along_depths, *records)


def _of_one_length(leaves: Sequence[Array]) -> tuple[Array, ...]:
    """Pad the rows of matrices with NaN to the longest."""
    longest = max(leaf.shape[-1] for leaf in leaves)
    missing = [longest - leaf.shape[-1] for leaf in leaves]
    return tuple(
        jnp.pad(leaf, ((0, 0), (0, count)), constant_values=jnp.nan)
        for leaf, count in zip(leaves, missing, strict=True)
    )


def _typical_shift(known: Assumed, log_q: np.ndarray) -> np.ndarray:
    """Shift of finite width at the deepest layer's length; a skip or a norm makes it no larger."""

    def shift(log_q: float) -> ArrayLike:
        if np.isnan(log_q):
            return np.nan
        return theory.typical_shift(known.block, np.exp(np.clip(log_q, *_LENGTHS)), known.width)

    return np.array([shift(float(value)) for value in log_q], log_q.dtype)


def depth_scales(grid: Grid, d_in: int, points: int = FINE) -> xr.Dataset:
    """Predict depth scales over the range of the grid's gains, for lines without corners.

    Args:
        grid: grid that gives the activations, the range of gains and sigma_b.
        d_in: input features.
        points: number of gains.

    Returns:
        `fine_xi_c` and `fine_xi_grad` over (activation, fine_sigma_w); NaN without a law.
    """
    own = gains_of(grid)
    gains = np.linspace(own[0], own[-1], points)
    scales: dict[str, list[np.ndarray]] = {"xi_c": [], "xi_grad": []}
    for kind in grid.kinds:
        known = assumed(grid, kind, d_in)
        fixed = fixed_points(known.block, gains, grid.fixed["sigma_b"], not known.why)
        for name, values in scales.items():
            values.append(getattr(fixed, name))
    return xr.Dataset(
        {
            f"fine_{name}": (("activation", "fine_sigma_w"), np.stack(values))
            for name, values in scales.items()
        },
        {"activation": names(grid), "fine_sigma_w": gains},
    )


def phase_diagram(
    grid: Grid, d_in: int, points: int = 33, progress: ProgressBar = iter
) -> xr.Dataset:
    """Predict chi_1 over the plane of (sigma_b, sigma_w), and the critical line in it.

    Args:
        grid: grid that gives the activations and the range of gains.
        d_in: input features.
        points: number of points along either axis.
        progress: wrapper of the sequence of activations, such as tqdm.

    Returns:
        `phase_chi_1` (activation, phase_sigma_b, phase_sigma_w), `critical_sigma_w` (activation,
        phase_sigma_b), NaN where no usable critical gain exists, and `critical_here` (activation),
        the critical gain at the grid's own sigma_b.
    """
    own = gains_of(grid)
    sigma_b_of_slice = grid.fixed["sigma_b"]
    sigma_w = np.linspace(own[0], max(own[-1], own[0] + 1e-3), points)
    sigma_b = np.linspace(0.0, max(1.0, 1.5 * sigma_b_of_slice), points)
    chi = []
    line = []
    here = []
    for kind in progress(grid.kinds):
        known = assumed(grid, kind, d_in)
        plane = fixed_points(known.block, sigma_w, sigma_b[:, None], not known.why)
        chi.append(plane.chi_1)
        critical = functools.partial(theory.critical_sigma_w, known.block)
        lines = each(critical, [*sigma_b, sigma_b_of_slice], not known.why)
        line.append(lines[:-1])
        here.append(lines[-1])
    return xr.Dataset(
        {
            "phase_chi_1": (("activation", "phase_sigma_b", "phase_sigma_w"), np.stack(chi)),
            "critical_sigma_w": (("activation", "phase_sigma_b"), np.stack(line)),
            "critical_here": ("activation", np.stack(here)),
        },
        {
            "activation": names(grid),
            "phase_sigma_b": sigma_b,
            "phase_sigma_w": sigma_w,
        },
    )
