"""Clip by thresholds learnt from earlier norms: a running mean, a percentile, a z-score.

A rule maps the norm of a group and its statistics to a threshold and new statistics. `_adaptive`
applies a rule to every group and keeps non-finite norms out of the statistics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_choice
from jaxstab.clipping.by_norm import clip_to
from jaxstab.clipping.settings import (
    Setting,
    check_integer,
    check_setting,
    setting_at,
    static_integer,
)
from jaxstab.norms import group_norms
from jaxstab.norms.groups import zero_norms
from jaxstab.norms.paths import Per, Stacked, check_grouping

# largest multiple of the range that Pascanu et al. recommend
LARGEST_MULTIPLE = 10.0


class AdaptiveState(NamedTuple):
    """State of a clipper that learns its thresholds.

    Attributes:
        calls: number of updates so far, the argument of schedules.
        thresholds: thresholds of the last update by name of group, shape [] or [depth]; inf for no
            threshold.
        statistics: `RunningMean`, `History` or `Moments` by name of group; see
            `jaxstab.norms.group_norms`.
    """

    calls: Int[Array, ""]
    thresholds: dict[str, Float[Array, "*depth"]]
    statistics: dict[str, Any]


class RunningMean(NamedTuple):
    """Statistics of `clip_by_running_mean`.

    Attributes:
        mean: running mean of the norms.
        entered: number of norms in the mean.
    """

    mean: Float[Array, "*depth"]
    entered: Int[Array, "*depth"]


class History(NamedTuple):
    """Statistics of `auto_clip`.

    Attributes:
        norms: ring buffer of the last norms; inf in unused slots.
        entered: number of norms so far.
    """

    norms: Float[Array, "history ..."]
    entered: Int[Array, "*depth"]


class Moments(NamedTuple):
    """Statistics of `z_clip`.

    Attributes:
        mean: mean of the norms.
        deviation: standard deviation of the norms.
        entered: number of norms so far.
    """

    mean: Float[Array, "*depth"]
    deviation: Float[Array, "*depth"]
    entered: Int[Array, "*depth"]


def _enter(enters: Bool[Array, "*depth"], new: Any, old: Any) -> Any:
    """Select the new statistics for a finite norm, the old ones otherwise."""
    return jax.tree.map(lambda n, o: jnp.where(jnp.broadcast_to(enters, o.shape), n, o), new, old)


def _adaptive(
    per: Per, stacked: Stacked, first: Callable, rule: Callable
) -> optax.GradientTransformationExtraArgs:
    # first: zeros of the norm's shape and dtype -> statistics before any norm
    # rule: (statistics, norm, True if the norm is finite, calls) -> (threshold, statistics)
    grouping = check_grouping(per, stacked)

    def init(params: PyTree) -> AdaptiveState:
        zeros = zero_norms(params, *grouping)
        return AdaptiveState(
            calls=jnp.zeros((), jnp.int32),
            thresholds={k: jnp.full_like(z, jnp.inf) for k, z in zeros.items()},
            statistics={k: first(z) for k, z in zeros.items()},
        )

    def update(
        updates: PyTree, state: AdaptiveState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, AdaptiveState]:
        del params, extra
        norms = group_norms(updates, *grouping)
        thresholds = {}
        statistics = {}
        for label, norm in norms.items():
            value = norm.value.astype(state.thresholds[label].dtype)
            enters = (norm.nonfinite == 0) & jnp.isfinite(value)
            thresholds[label], statistics[label] = rule(
                state.statistics[label], value, enters, state.calls
            )
        limits = {label: thresholds[label].astype(norm.root.dtype) for label, norm in norms.items()}
        clipped = clip_to(updates, grouping, norms, limits)
        return clipped, AdaptiveState(optax.safe_increment(state.calls), thresholds, statistics)

    return optax.GradientTransformationExtraArgs(init, update)


@explained
def clip_by_running_mean(
    multiple: Setting = 2.0, decay: Setting = 0.99, per: Per = "tree", stacked: Stacked = ()
) -> optax.GradientTransformationExtraArgs:
    """Clip at a multiple of the mean norm seen so far.

    |g| <= multiple * mean, the heuristic of Pascanu et al. 2013 (arXiv:1211.5063, section 3.2), who
    found 0.5 to 10 times the average norm to work. The mean is that of norms before clipping: the
    plain mean of the first 1 / (1 - decay) norms, then an exponential mean. Each norm counts as at
    most 10 means, so that one spike of any size cannot lift the threshold for long. Updates pass
    up to and including the first with a norm other than 0.

    Args:
        multiple: threshold in units of the mean, >= 0; a number, a traced array or a schedule.
        decay: decay of the exponential mean, in [0, 1); a number, a traced array or a schedule.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is an `AdaptiveState` with `RunningMean` statistics.

    Example:
        >>> tx = clip_by_running_mean(multiple=2.0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for norm in [1.0, 1.0, 1.0, 100.0]:
        ...     updates, state = tx.update(jnp.asarray([norm]), state)
        >>> updates.tolist(), state.statistics["tree"].mean.tolist()
        ([2.0], 3.25)
    """
    check_setting("multiple", multiple)
    check_setting("decay", decay, high=1.0, below=True)

    def rule(
        seen: RunningMean, norm: Array, enters: Array, calls: Array
    ) -> tuple[Array, RunningMean]:
        nothing = seen.mean == 0
        limit = jnp.where(nothing, jnp.inf, setting_at(multiple, calls, norm.dtype) * seen.mean)
        capped = jnp.where(nothing, norm, jnp.minimum(norm, LARGEST_MULTIPLE * seen.mean))
        entered = optax.safe_increment(seen.entered)
        weight = jnp.maximum(
            1 - setting_at(decay, calls, norm.dtype), 1 / entered.astype(norm.dtype)
        )
        return limit, _enter(
            enters, RunningMean(seen.mean + weight * (capped - seen.mean), entered), seen
        )

    return _adaptive(
        per, stacked, lambda zero: RunningMean(zero, jnp.zeros_like(zero, jnp.int32)), rule
    )


@explained
def auto_clip(
    percentile: Setting = 10.0, history: int | None = None, per: Per = "tree", stacked: Stacked = ()
) -> optax.GradientTransformationExtraArgs:
    """Clip at a percentile of all norms so far, the current norm included.

    AutoClip (Seetharaman et al. 2020, arXiv:2007.14469): threshold = percentile of |g_1|, ...,
    |g_t| with linear interpolation, as in NumPy. The paper keeps every norm; this function keeps
    the last `history` norms. There is no threshold before the first finite norm.

    Args:
        percentile: percentile in [0, 100]; a number, a traced array or a schedule.
        history: number of norms kept, >= 1; None for 1000.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is an `AdaptiveState` with `History` statistics.

    Example:
        >>> tx = auto_clip(percentile=50.0, history=3)
        >>> state = tx.init(jnp.zeros(1))
        >>> for norm in [9.0, 1.0, 2.0, 100.0]:
        ...     updates, state = tx.update(jnp.asarray([norm]), state)
        >>> updates.tolist()
        [2.0]
    """
    check_setting("percentile", percentile, high=100.0)
    slots: ArrayLike = 1000
    if history is not None:
        slots = history
    check_integer("history", slots, 1)

    def rule(seen: History, norm: Array, enters: Array, calls: Array) -> tuple[Array, History]:
        history = seen.norms.shape[0]
        slots = jnp.arange(history, dtype=jnp.int32).reshape((history,) + (1,) * norm.ndim)
        slot = slots == (seen.entered % history)[None]
        # the order of norms in a full ring does not matter
        pushed = History(
            jnp.where(slot, norm[None], seen.norms), optax.safe_increment(seen.entered)
        )
        seen = _enter(enters, pushed, seen)
        known = jnp.minimum(seen.entered, history)
        position = setting_at(percentile, calls, norm.dtype) / 100 * (known - 1).astype(norm.dtype)
        lower = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, history - 1)
        ordered = jnp.sort(seen.norms, axis=0)
        take = lambda index: jnp.take_along_axis(ordered, index[None], axis=0)[0]
        below = take(lower)
        above = take(jnp.minimum(lower + 1, jnp.maximum(known - 1, 0)))
        between = jnp.where(
            below == above, below, below + (above - below) * (position - lower.astype(norm.dtype))
        )
        return jnp.where(known == 0, jnp.inf, between), seen

    def first(zero: Array) -> History:
        rows = static_integer("history", slots)
        return History(
            jnp.repeat(jnp.full_like(zero, jnp.inf)[None], rows, axis=0),
            jnp.zeros_like(zero, jnp.int32),
        )

    return _adaptive(per, stacked, first, rule)


def _warmed(seen: Moments, norm: Array) -> Moments:
    """Update the plain mean and the population deviation by one norm, without overflowing squares."""
    n = seen.entered.astype(norm.dtype)
    off = norm - seen.mean
    return Moments(
        mean=seen.mean + off / (n + 1),
        deviation=jnp.hypot(seen.deviation * jnp.sqrt(n / (n + 1)), off * (jnp.sqrt(n) / (n + 1))),
        entered=optax.safe_increment(seen.entered),
    )


@explained
def z_clip(
    z: Setting = 2.5,
    decay: Setting = 0.97,
    mode: str = "zscore",
    option: str = "adaptive_scaling",
    factor: Setting = 1.0,
    warmup: ArrayLike = 25,
    max_norm: Setting | None = None,
    per: Per = "tree",
    stacked: Stacked = (),
) -> optax.GradientTransformationExtraArgs:
    """Clip norms that are outliers of their exponential mean and variance.

    ZClip (Kumar et al. 2025, arXiv:2504.02507, and the authors' code). With mean mu and deviation s
    of the norms so far, z_t = (|g_t| - mu) / s, a norm with z_t > z is clipped to

        mu + s z^2 / z_t    mode "zscore", option "adaptive_scaling": the larger the spike, the lower the threshold;
        mu                  mode "zscore", option "mean";
        mu + z s            mode "percentile".

    Then, with the clipped norm g, mu' = decay mu + (1 - decay) g, s'^2 = decay s^2 + (1 - decay) (g
    - mu')^2. The first `warmup` norms are not clipped; their plain mean and population variance
    initialise mu and s. The authors add 1e-6 to s, which sets a scale; here s = 0 needs no guard,
    since mu + z^2 s^2 / (|g| - mu) is finite.

    Args:
        z: z-score above which a norm is an outlier, >= 0; a number, a traced array or a schedule.
        decay: decay of mean and variance, in [0, 1); a number, a traced array or a schedule.
        mode: "zscore" or "percentile".
        option: "adaptive_scaling" or "mean"; for mode "zscore".
        factor: factor of the adaptive_scaling threshold, >= 0; the authors use 0.3 to 1.
        warmup: number of norms that only initialise the statistics, >= 1; an integer, which may be
            traced.
        max_norm: further limit, >= 0, also during warm-up; None for none. It does not affect the
            statistics.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is an `AdaptiveState` with `Moments` statistics.

    Example:
        >>> tx = z_clip(z=2.0, warmup=2, mode="percentile")
        >>> state = tx.init(jnp.zeros(1))
        >>> for norm in [1.0, 3.0, 50.0]:
        ...     updates, state = tx.update(jnp.asarray([norm]), state)
        >>> updates.tolist()
        [4.0]
    """
    check_setting("z", z)
    check_setting("factor", factor)
    if max_norm is not None:
        check_setting("max_norm", max_norm)
    check_setting("decay", decay, high=1.0, below=True)
    check_choice("mode", mode, ("zscore", "percentile"))
    check_choice("option", option, ("adaptive_scaling", "mean"))
    check_integer("warmup", warmup, 1)

    def target(seen: Moments, norm: Array, calls: Array) -> Array:
        """Compute the norm to which an outlier is clipped."""
        band = setting_at(z, calls, norm.dtype) * seen.deviation
        if mode == "percentile":
            return seen.mean + band
        if option == "mean":
            return seen.mean
        share = band / jnp.where(norm - seen.mean > band, norm - seen.mean, 1)
        return setting_at(factor, calls, norm.dtype) * (seen.mean + share * band)

    def rule(seen: Moments, norm: Array, enters: Array, calls: Array) -> tuple[Array, Moments]:
        outlier = norm - seen.mean > setting_at(z, calls, norm.dtype) * seen.deviation
        limit = jnp.where(outlier & (seen.entered >= warmup), target(seen, norm, calls), jnp.inf)
        kept = setting_at(decay, calls, norm.dtype)
        clipped = jnp.minimum(norm, limit)
        mean = kept * seen.mean + (1 - kept) * clipped
        deviation = jnp.hypot(
            jnp.sqrt(kept) * seen.deviation, jnp.sqrt(1 - kept) * (clipped - mean)
        )
        running = Moments(mean, deviation, optax.safe_increment(seen.entered))
        new = _enter(seen.entered >= warmup, running, _warmed(seen, norm))
        if max_norm is not None:
            limit = jnp.minimum(limit, setting_at(max_norm, calls, norm.dtype))
        return limit, _enter(enters, new, seen)

    def first(zero: Array) -> Moments:
        return Moments(
            mean=zero, deviation=jnp.zeros_like(zero), entered=jnp.zeros_like(zero, jnp.int32)
        )

    return _adaptive(per, stacked, first, rule)
