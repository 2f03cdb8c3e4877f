"""Summary of a grid of trainings: accuracies with errors, boundaries, fits, steps and outcomes.

A `kind` is a combination of the axes other than depth, sigma_w, learning rate and seed. The
learning rate is tuned in every cell. Means and standard errors are over seeds.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array

from jaxstab import theory
from jaxstab.activations import Activation
from jaxstab.analysis.boundary import (
    DepthFit,
    deepest_trainable,
    fit_depth_scale,
    halfway,
    sides,
    steps_to,
    tuned,
)
from jaxstab.analysis.edges import over_edge
from jaxstab.analysis.verdicts import standard_error
from jaxstab.records import FixedPoint
from jaxstab.sweeps import Grid
from jaxstab.sweeps.axes import with_variant
from jaxstab.sweeps.settings import label

SIDES = ("both", "ordered", "chaotic")
SCALES = ("xi_c", "xi_grad")
OUTCOMES = (
    "trained",
    "below the threshold",
    "not finite later",
    "not finite from the start",
    "missing",
)
WINDOW = 10
# number of gains along a line of theory
FINE = 65
_TOLD = (
    "train_accuracy",
    "train_accuracy_se",
    "test_accuracy",
    "test_accuracy_se",
    "learning_rate",
    "steps",
    "steps_se",
)
# axes that a summary keeps, tunes or averages over; the other axes form the kinds
_AXES = ("depth", "sigma_w", "learning_rate", "seed")


def summarise(dataset: xr.Dataset, chance: float) -> xr.Dataset:
    """Summarise trainings over (kind, depth, sigma_w) at every evaluation.

    The threshold of an evaluation is half-way between chance and the best mean over seeds, and NaN
    before anything trains. The boundary is the deepest trainable depth. n is its fit in units of
    theory's depth scales, on either side of the critical point and on both together. Runs that are
    not finished in the store are missing, NaN.

    Args:
        dataset: dataset of trainings, from `sweeps.run` or `sweeps.load`.
        chance: accuracy without learning from the inputs, the share of the commonest class.

    Returns:
        Dataset with these variables. Over (kind, depth, sigma_w, evaluation): `train_accuracy` and
        `test_accuracy`, each with `_se`, and `learning_rate`. Over evaluation: `threshold`. Over
        (kind, sigma_w): the fixed point's `xi_c`, `xi_grad`, `chi_1`. Over (kind, sigma_w,
        evaluation): `boundary_low`, `boundary_high`. Over (kind, evaluation, scale, side): the
        fields of `DepthFit` as `fit_n`, ... Over (kind, depth, sigma_w): `steps`, minibatches until
        the mean accuracy of 10 of them reaches the last threshold, `steps_se`, and `steps_reached`,
        the share of seeds that reach it. Over (kind, depth, sigma_w, layer): `log_grad_theta` with
        `_se`, at the first evaluation. Over (kind, fine_sigma_w): `fine_xi_c`, `fine_xi_grad`,
        theory between the gains. Over (kind, depth): `best_sigma_w`, the gain of the highest final
        training accuracy, and `best_*`, the accuracies, learning rate and steps at that gain. Over
        (kind, depth, step): `learning_curve` with `_se`, the loss at that gain. Over (kind, depth,
        record): `sharpness_over_edge` with `_se` at that gain, where recorded. Over (kind,
        outcome): `runs`.

    Raises:
        ValueError: if chance is not in [0, 1).

    Example:
        >>> from jaxstab import datasets, sweeps
        >>> grid = Grid({"norm": (None, "layer"), "depth": (1, 2)}, width=8, batch=32)
        >>> found = summarise(sweeps.run(grid, sweeps.Train(5), datasets.load("digits")), chance=0.1)
        >>> found.kind.values.tolist(), dict(found.train_accuracy.sizes)
        (['none', 'layer'], {'kind': 2, 'depth': 2, 'sigma_w': 1, 'evaluation': 2})
    """
    if not 0 <= chance < 1:
        raise ValueError(f"chance must be in [0, 1), got {chance}")
    grid = Grid.from_json(dataset.attrs["grid"])
    dataset = _whole(dataset, grid)
    told = kind_axes(grid)
    kinds = dataset.stack(kind=told, create_index=False).drop_vars((*told, "learning_rate"))
    best = tuned(kinds.train_accuracy.transpose("learning_rate", ...))
    learned = kinds.train_accuracy.isel(learning_rate=best)
    tested = kinds.test_accuracy.isel(learning_rate=best)
    mean = learned.mean("seed")
    threshold = xr.DataArray(
        [halfway(mean.isel(evaluation=i).values, chance) for i in range(mean.sizes["evaluation"])],
        dims="evaluation",
    )
    gains = tuple(grid.values("sigma_w"))
    between = np.linspace(min(gains), max(gains), FINE)
    # one program for both sets of gains
    theirs = _fixed_points(grid, (*gains, *between))
    points = {name: values[:, : len(gains)] for name, values in theirs.items()}
    fine = {name: values[:, len(gains) :] for name, values in theirs.items()}
    last = kinds.isel(learning_rate=best.isel(evaluation=-1, drop=True))
    gradient = last.log_grad_theta.isel(evaluation=0, drop=True)
    vanished = (gradient == -np.inf).any("seed")
    gradient = gradient.where(np.isfinite(gradient))
    variables = {
        "train_accuracy": mean,
        "train_accuracy_se": standard_error(learned),
        "test_accuracy": tested.mean("seed"),
        "test_accuracy_se": standard_error(tested),
        "learning_rate": dataset.learning_rate.drop_vars("learning_rate")[best].where(
            mean.notnull()
        ),
        "threshold": threshold,
        # a zero gradient of one seed makes the mean logarithm -inf, without a standard error
        "log_grad_theta": gradient.mean("seed").where(~vanished, -np.inf),
        "log_grad_theta_se": standard_error(gradient).where(~vanished),
    } | {name: (("kind", "sigma_w"), values) for name, values in points.items()}
    whole = xr.Dataset(variables).merge(_steps(last.accuracy, float(threshold[-1])))
    whole = whole.merge(_boundaries(learned, threshold, points)).merge(_outcomes(kinds, threshold))
    whole = whole.merge(_best(whole)).merge(_curves(last.loss, whole.train_accuracy))
    if "sharpness" in kinds:
        chosen = _best_gain(whole.train_accuracy)
        rate = whole.learning_rate.isel(evaluation=-1, drop=True)
        at_best = last.sharpness.isel(sigma_w=chosen), rate.isel(sigma_w=chosen)
        whole = whole.merge(over_edge(*at_best, _settings(grid)).drop_vars("sigma_w"))
    lines = {f"fine_{name}": (("kind", "fine_sigma_w"), fine[name]) for name in SCALES}
    whole = whole.merge(xr.Dataset(lines, {"fine_sigma_w": between}))
    attributes = {"grid": grid.to_json(), "chance": chance, "done": float(dataset.done.mean())}
    whole = whole.transpose("kind", "depth", "sigma_w", "evaluation", ..., missing_dims="ignore")
    return whole.assign_coords(kind=list(names(grid))).assign_attrs(dataset.attrs | attributes)


def _whole(dataset: xr.Dataset, grid: Grid) -> xr.Dataset:
    """Add the missing dimensions of a summary's axes, each of one value."""
    if "done" not in dataset:
        # all cells of a run in memory are computed
        dataset = dataset.assign(done=xr.ones_like(dataset.first_nonfinite, bool))
    missing = [name for name in (*_AXES, *kind_axes(grid)) if name not in dataset.dims]
    return dataset.expand_dims({name: grid.labels(name) for name in missing})


def kind_axes(grid: Grid) -> tuple[str, ...]:
    """Return the axes whose combinations are the kinds of a summary.

    Args:
        grid: the grid.

    Returns:
        Names of all axes but depth, sigma_w, learning rate and seed; "activation" where no other
        axis is left.
    """
    return tuple(name for name in grid.axes if name not in _AXES) or ("activation",)


def names(grid: Grid) -> tuple[str, ...]:
    """Name the kinds by their value on the first axis, and on other axes of several values.

    Args:
        grid: the grid.

    Returns:
        Names in the order of `kind`.

    Example:
        >>> names(Grid({"activation": ("tanh",), "dropout": (0.0, 0.1)}))
        ('tanh, dropout 0', 'tanh, dropout 0.1')
    """
    first, *others = kind_axes(grid)
    several = [axis for axis in others if len(grid.values(axis)) > 1]
    return tuple(
        ", ".join([_text(kind[first]), *(f"{axis} {_text(kind[axis])}" for axis in several)])
        for kind in _kinds(grid)
    )


def _text(value: Any) -> str:
    shown = label(value)
    if isinstance(shown, float):
        return f"{shown:.4g}"
    return str(shown)


def _kinds(grid: Grid) -> list[dict[str, Any]]:
    axes = kind_axes(grid)
    along = [grid.values(axis) for axis in axes]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*along)]


def _settings(grid: Grid) -> list[dict[str, Any]]:
    """List all settings of every kind."""
    return [with_variant(grid.fixed | own) for own in _kinds(grid)]


def _best(whole: xr.Dataset) -> xr.Dataset:
    """Select the final results at the gain of the highest training accuracy, at every depth."""
    end = whole[[*_TOLD]].isel(evaluation=-1, drop=True)
    chosen = end.train_accuracy.fillna(-np.inf).argmax("sigma_w")
    best = end.isel(sigma_w=chosen).reset_coords("sigma_w")
    best["sigma_w"] = best.sigma_w.where(best.train_accuracy.notnull())
    return best.rename({name: f"best_{name}" for name in best.data_vars})


def _best_gain(accuracy: xr.DataArray) -> xr.DataArray:
    """Index of the gain of the highest final training accuracy, for every kind and depth."""
    return accuracy.isel(evaluation=-1, drop=True).fillna(-np.inf).argmax("sigma_w")


def _curves(loss: xr.DataArray, accuracy: xr.DataArray) -> xr.Dataset:
    """Loss of every step at the gain of the highest final training accuracy, at every depth."""
    best = loss.isel(sigma_w=_best_gain(accuracy)).drop_vars("sigma_w")
    # zero times infinity is NaN, so that this finds infinite losses too
    known = (best * 0).notnull().all("seed")
    return xr.Dataset(
        {
            "learning_curve": best.mean("seed").where(known),
            "learning_curve_se": standard_error(best.where(known)),
        }
    )


@functools.partial(jax.jit, static_argnums=0)
def _fixed_point(activation: str | Activation, sigma_w: Array, sigma_b: Array) -> FixedPoint:
    """Find the fixed point at every gain; one program serves all biases."""
    return jax.vmap(lambda w: theory.fixed_point(activation, w, sigma_b))(sigma_w)


def _fixed_points(grid: Grid, at: Sequence[float]) -> dict[str, np.ndarray]:
    """Depth scales and chi_1, [kind, gain]; NaN for kinds that are not plain or have dropout."""
    fields = (*SCALES, "chi_1")
    unknown = np.full((len(fields), len(at)), np.nan)

    @functools.cache
    def of(activation: Activation, sigma_b: float) -> np.ndarray:
        gains = jnp.asarray(at, float), jnp.asarray(sigma_b, float)
        point = jax.device_get(_fixed_point(activation, *gains))
        return np.array([getattr(point, field) for field in fields], float)

    def one(kind: Mapping[str, Any]) -> np.ndarray:
        if not grid.is_plain(kind) or kind["dropout"]:
            return unknown
        return of(kind["activation"], kind["sigma_b"])

    points = [one(kind) for kind in _settings(grid)]
    return dict(zip(fields, np.stack(points, axis=1), strict=True))


def _steps(accuracy: xr.DataArray, threshold: float) -> xr.Dataset:
    """Mean steps to the threshold over seeds, known where all seeds reach it."""
    accuracy = accuracy.transpose(..., "step")
    first = accuracy.isel(step=0, drop=True).copy(data=steps_to(accuracy.values, threshold, WINDOW))
    # a run without any accuracy is missing, and does not count
    passed = accuracy.notnull().any("step")
    reached = (first.notnull() & passed).sum("seed") / passed.sum("seed").where(passed.any("seed"))
    return xr.Dataset(
        {
            "steps": first.mean("seed").where(reached == 1),
            "steps_se": standard_error(first).where(reached == 1),
            "steps_reached": reached,
        }
    )


def _boundaries(
    learned: xr.DataArray, threshold: xr.DataArray, points: dict[str, np.ndarray]
) -> xr.Dataset:
    """Compute the deepest trainable depth of every gain, and the fits of n."""
    values = learned.transpose("kind", "evaluation", "depth", "sigma_w", "seed").values.astype(
        float
    )
    mean = (
        learned.mean("seed")
        .transpose("kind", "evaluation", "depth", "sigma_w")
        .values.astype(float)
    )
    depths = learned.depth.values
    limits = threshold.values
    looks = range(values.shape[1])
    kinds = range(values.shape[0])
    bounds = [[deepest_trainable(mean[k, e], depths, limits[e]) for e in looks] for k in kinds]
    fits = [
        [
            [list(_fits(values[k, e], depths, points, k, scale, limits[e])) for scale in SCALES]
            for e in looks
        ]
        for k in kinds
    ]
    numbers = np.array(fits, float)
    variables = {
        f"fit_{name}": (("kind", "evaluation", "scale", "side"), numbers[..., i])
        for i, name in enumerate(DepthFit._fields)
    } | {
        f"boundary_{name}": (
            ("kind", "evaluation", "sigma_w"),
            np.array([[getattr(b, name) for b in row] for row in bounds]),
        )
        for name in ("low", "high")
    }
    return xr.Dataset(variables, {"scale": list(SCALES), "side": list(SIDES)})


def _fits(
    values: np.ndarray,
    depths: np.ndarray,
    points: dict[str, np.ndarray],
    kind: int,
    scale: str,
    threshold: float,
) -> list[DepthFit]:
    """Fit n on every side of the critical point."""
    xi = points[scale][kind]
    masks = sides(points["chi_1"][kind])
    return [
        fit_depth_scale(values[:, masks[side]], depths, xi[masks[side]], threshold)
        for side in SIDES
    ]


def _outcomes(kinds: xr.Dataset, threshold: xr.DataArray) -> xr.Dataset:
    """Count the runs of each kind by outcome, over all learning rates."""
    first = kinds.first_nonfinite
    last = kinds.train_accuracy.isel(evaluation=-1, drop=True)
    finite = kinds.done & (first < 0)
    over = last >= float(threshold[-1])
    each = (
        finite & over,
        finite & ~over,
        kinds.done & (first > 0),
        kinds.done & (first == 0),
        ~kinds.done,
    )
    counts = [one.sum([dim for dim in one.dims if dim != "kind"]) for one in each]
    return xr.Dataset({"runs": xr.concat(counts, "outcome")}, {"outcome": list(OUTCOMES)})
