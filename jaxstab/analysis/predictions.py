"""What theory predicts of a grid: records, fixed points, depth scales and phase diagrams."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from jaxstab import theory
from jaxstab.activations import Activation
from jaxstab.sweeps import Grid, ProgressBar
from jaxstab.sweeps.grid import Kind
from jaxstab.sweeps.measures import Record
from jaxstab.sweeps.run import labelled
from jaxstab.theory.laws import SMALLEST_BATCH, WEIGHT_VARIANCES

# ln of the lengths at which a shift of finite width is taken: beyond, phi' is that at 0 or at
# infinity
_LENGTHS = (-25.0, 25.0)
# gains at which a line of theory is drawn
FINE = 65


def gains_of(grid: Grid) -> np.ndarray:
    """The weight gains of a grid.

    Args:
        grid: the grid.

    Returns:
        Its gains, ascending.
    """
    return np.asarray(grid.values("sigma_w"), float)


def predict(grid: Grid, d_in: int, c0: float, progress: ProgressBar = iter) -> xr.Dataset:
    """Predict `signal` and `jacobian` over a grid, and the fixed point of every cell.

    NaN in what `theory.missing` and `theory.missing_fixed_point` say of the networks' law, and
    throughout where they have none.

    Args:
        grid: whose axis of kinds is the activation.
        d_in: input features.
        c0: correlation of the two inputs.
        progress: wraps the sequence of activations, such as tqdm.

    Returns:
        The records' fields over (activation, sigma_w, ...), `fixed_point_*`, and
        `finite_width_rate`, by which the rate of a typical network exceeds that of infinite width,
        to the order 1/width.
    """
    gains = jnp.asarray(gains_of(grid))
    sigma_b = grid.fixed["sigma_b"]
    depths = tuple(grid.values("depth"))

    def one(kind: Kind) -> xr.Dataset:
        block = law(grid, kind)
        known = kind["activation"] if block is None else block

        def profiles(sigma_w: Array) -> tuple[Record, ...]:
            return theory.predict(
                known, sigma_w, sigma_b, depths, width=kind["width"], d_in=d_in, c0=c0
            )

        def point(sigma_w: Array) -> Record:
            return theory.fixed_point(known, sigma_w, sigma_b)

        records = _theory(block is not None, jax.vmap(profiles), gains)
        fixed = _theory(block is not None, jax.vmap(point), gains)
        fixed_point = {
            f"fixed_point_{field}": ("sigma_w", array) for field, array in fixed._asdict().items()
        }
        shift = np.asarray(_typical_shift(kind, jnp.asarray(records[0].log_q[:, -1])))
        return labelled(records, ("sigma_w",)).assign(
            fixed_point | {"finite_width_rate": ("sigma_w", -shift)}
        )

    parts = [one(kind) for kind in progress(grid.kinds)]
    whole = xr.concat(parts, "activation")
    known = {name: grid.labels(name) for name in ("activation", "sigma_w", "depth")}
    return whole.assign_coords(
        {dim: known.get(str(dim), np.arange(size)) for dim, size in whole.sizes.items()}
    )


def predict_sharpness(
    grid: Grid, d_in: int, outputs: int, c0: float, progress: ProgressBar = iter
) -> xr.Dataset:
    """Predict the Gauss-Newton matrix's largest eigenvalue over a grid that `sharpness` measures.

    Args:
        grid: whose axis of kinds is the activation.
        d_in: input features.
        outputs: of the network.
        c0: mean correlation of the inputs.
        progress: wraps the sequence of activations, such as tqdm.

    Returns:
        `predicted_log_gauss_newton` over (activation, sigma_w, depth); NaN where theory has no
        kernels.
    """
    gains = jnp.asarray(gains_of(grid))
    depths = tuple(grid.values("depth"))
    parts = []
    for kind in progress(grid.kinds):
        block = law(grid, kind)
        known = block is not None and not theory.missing_kernels(block)
        sizes = {"width": kind["width"], "d_in": d_in, "outputs": outputs}

        def one(sigma_w: Array, block: Any = block, kind: Kind = kind, sizes: Any = sizes) -> Array:
            examples = kind["batch"] or 1
            sigma_b = grid.fixed["sigma_b"]
            found = theory.sharpness(
                block, sigma_w, sigma_b, depths, c0=c0, examples=examples, **sizes
            )
            return found.log_gauss_newton

        if known:
            parts.append(np.asarray(jax.jit(jax.vmap(one))(gains)))
        else:
            parts.append(np.full((len(gains), len(depths)), np.nan))
    labels = {name: grid.labels(name) for name in ("activation", "sigma_w", "depth")}
    dims = ("activation", "sigma_w", "depth")
    return xr.Dataset({"predicted_log_gauss_newton": (dims, np.stack(parts))}, labels)


def _typical_shift(kind: Kind, log_q: Array) -> Array:
    """The shift of finite width at the deepest layer's length, beside which a skip or a norm makes it no larger."""
    q = jnp.exp(jnp.clip(log_q, *_LENGTHS))
    weights = "orthogonal" if kind["weights"] == "orthogonal" else "gaussian"

    def shift(q: Array) -> Array:
        return theory.typical_shift(kind["activation"], q, kind["width"], weights)

    return jax.vmap(shift)(q)


def law(grid: Grid, kind: Kind) -> theory.Law | None:
    """Say what theory assumes of the blocks of a kind of network.

    Args:
        grid: the grid.
        kind: one of its kinds.

    Returns:
        The law; None where there is none: weights drawn by a function, a norm without a law, or
        BatchNorm over fewer than four examples.
    """
    if kind["weights"] not in WEIGHT_VARIANCES or kind["norm"] not in (None, *theory.NORMS):
        return None
    if kind["skip"] not in (None, *theory.SKIPS):
        return None
    if kind["norm"] == "batch" and (kind["batch"] is None or kind["batch"] < SMALLEST_BATCH):
        return None
    return theory.law(
        kind["activation"],
        norm=kind["norm"],
        norm_after=kind["norm_after"],
        skip=kind["skip"],
        keep=1.0 - grid.fixed["dropout"],
        weights=kind["weights"],
        depth=grid.deepest,
        batch=kind["batch"],
    )


def _theory(known: bool, predict: Callable, *args: Array) -> Any:
    """A prediction, or NaN in its place where theory does not know the networks."""
    if known:
        return jax.device_get(jax.jit(predict)(*args))

    def unknown(leaf: Any) -> np.ndarray:
        blank = np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
        return np.full(leaf.shape, blank, leaf.dtype)

    return jax.tree.map(unknown, jax.eval_shape(predict, *args))


def depth_scales(grid: Grid, points: int = FINE) -> xr.Dataset:
    """Predict depth scales over the range of the grid's gains, for lines without corners.

    Args:
        grid: its activations, range of gains, and sigma_b.
        points: how many gains.

    Returns:
        `fine_xi_c` and `fine_xi_grad` over (activation, fine_sigma_w); NaN where theory does not
        know the networks.
    """
    own = gains_of(grid)
    gains = np.linspace(own[0], own[-1], points)
    scales: dict[str, list[np.ndarray]] = {"xi_c": [], "xi_grad": []}
    for kind in grid.kinds:
        block = law(grid, kind)
        found = _theory(
            block is not None, _along(grid, block or kind["activation"]), jnp.asarray(gains)
        )
        for name, values in scales.items():
            values.append(getattr(found, name))
    return xr.Dataset(
        {
            f"fine_{name}": (("activation", "fine_sigma_w"), np.stack(values))
            for name, values in scales.items()
        },
        {"activation": grid.labels("activation"), "fine_sigma_w": gains},
    )


def _along(grid: Grid, block: theory.Law | Activation) -> Callable[[Array], Record]:
    """Fixed points along gains."""
    return jax.vmap(lambda sigma_w: theory.fixed_point(block, sigma_w, grid.fixed["sigma_b"]))


def phase_diagram(grid: Grid, points: int = 33, progress: ProgressBar = iter) -> xr.Dataset:
    """Predict chi_1 over the plane of (sigma_b, sigma_w), and the critical line in it.

    Args:
        grid: its activations and range of gains.
        points: resolution of either axis.
        progress: wraps the sequence of activations, such as tqdm.

    Returns:
        `phase_chi_1` (activation, phase_sigma_b, phase_sigma_w), `critical_sigma_w` (activation,
        phase_sigma_b), NaN where no usable critical gain exists, and `critical_here`, the same at
        the grid's own sigma_b.
    """
    own = gains_of(grid)
    at = grid.fixed["sigma_b"]
    sigma_w = jnp.linspace(own[0], max(own[-1], own[0] + 1e-3), points)
    sigma_b = jnp.linspace(0.0, max(1.0, 1.5 * at), points)
    chi = []
    line = []
    here = []
    for kind in progress(grid.kinds):
        block = law(grid, kind)
        plane, critical = _phase(block or kind["activation"], sigma_w)
        chi.append(_theory(block is not None, plane, sigma_b))
        found = _theory(block is not None, critical, jnp.append(sigma_b, at))
        line.append(found[:-1])
        here.append(found[-1])
    return xr.Dataset(
        {
            "phase_chi_1": (("activation", "phase_sigma_b", "phase_sigma_w"), np.stack(chi)),
            "critical_sigma_w": (("activation", "phase_sigma_b"), np.stack(line)),
            "critical_here": ("activation", np.stack(here)),
        },
        {
            "activation": grid.labels("activation"),
            "phase_sigma_b": np.asarray(sigma_b),
            "phase_sigma_w": np.asarray(sigma_w),
        },
    )


def _phase(
    block: theory.Law | Activation, sigma_w: Array
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """chi_1 and the critical gain, as functions of sigma_b."""

    def chi_1(w: Array, b: Array) -> Array:
        return theory.fixed_point(block, w, b).chi_1

    def plane(sigma_b: Array) -> Array:
        return jax.vmap(lambda b: jax.vmap(chi_1, (0, None))(sigma_w, b))(sigma_b)

    def line(sigma_b: Array) -> Array:
        return jax.vmap(lambda b: theory.critical_sigma_w(block, b))(sigma_b)

    return plane, line
