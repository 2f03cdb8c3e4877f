"""Telemetry of a transformation: norms before and after, firing rate, non-finite entries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.clipping.guards import saturating_sum
from jaxstab.clipping.settings import Setting, check_setting, setting_at
from jaxstab.norms import Norm, group_norms, norm
from jaxstab.norms.groups import quick_norm, zero_norms
from jaxstab.norms.paths import Per, Stacked, check_grouping

# smaller changes of the norm, in units of the coarsest dtype's rounding, count as none
ROUNDINGS = 4


class TelemetryState(NamedTuple):
    """State of `monitored`: records of the last update, and counts since the first.

    Attributes:
        inner: state of the wrapped transformation.
        step: number of updates so far.
        norm_before: norm of the finite entries of the last input; inf beyond the float range.
        norm_after: norm of the transformed updates; inf or NaN if they are not finite. Entries that
            differ from 1 and from the input by more than the root of the float range (1e19)
            overflow or vanish.
        coefficient: norm_after / norm_before; 1 for 0 / 0 and for an empty input.
        fired: True if the coefficient differs from 1 by more than rounding.
        firing_rate: share of updates that fired, in [0, 1]: the plain mean of the first
            1 / (1 - decay) updates, then an exponential mean, unbiased from the first update on.
        update_ratio: norm_after / norm of the parameters; NaN without parameters.
        nonfinite_count: number of NaN and infinite entries of all inputs; stops at the largest
            int32.
        first_nonfinite: the first update with such an entry, counted from 0; -1 for never.
        log_norms: ln of norms of the input by name of group; -inf for zero. Empty unless `per` is
            given.
    """

    inner: PyTree
    step: Int[Array, ""]
    norm_before: Float[Array, ""]
    norm_after: Float[Array, ""]
    coefficient: Float[Array, ""]
    fired: Bool[Array, ""]
    firing_rate: Float[Array, ""]
    update_ratio: Float[Array, ""]
    nonfinite_count: Int[Array, ""]
    first_nonfinite: Int[Array, ""]
    log_norms: dict[str, Float[Array, "*depth"]]


def _ratio(above: Norm, below: Norm, dtype: jnp.dtype, empty: float) -> Float[Array, ""]:
    """Compute |above| / |below|, also for norms beyond the float range."""
    nothing = below.root == 0
    roots = above.root.astype(dtype) / jnp.where(nothing, 1, below.root).astype(dtype)
    return jnp.where(nothing, empty, above.scale.astype(dtype) / below.scale.astype(dtype) * roots)


def _before_any_step(
    inner: PyTree, zero: Float[Array, ""], groups: dict[str, Float[Array, "*depth"]]
) -> TelemetryState:
    """Make the state before the first update, with norms of the dtype and shapes of `zero` and `groups`."""
    return TelemetryState(
        inner=inner,
        step=jnp.zeros((), jnp.int32),
        norm_before=zero,
        norm_after=jnp.zeros_like(zero),
        coefficient=jnp.ones_like(zero),
        fired=jnp.zeros_like(zero, bool),
        firing_rate=jnp.zeros_like(zero),
        update_ratio=jnp.full_like(zero, jnp.nan),
        nonfinite_count=jnp.zeros_like(zero, jnp.int32),
        first_nonfinite=jnp.full_like(zero, -1, jnp.int32),
        log_norms={k: jnp.full_like(n, -jnp.inf) for k, n in groups.items()},
    )


@explained
def monitored(
    tx: optax.GradientTransformation,
    per: Per | None = None,
    decay: Setting = 0.99,
    stacked: Stacked = (),
) -> optax.GradientTransformationExtraArgs:
    """Record norms before and after a transformation, and how often the transformation acts.

    Updates are those of tx. The state has a fixed structure and fixed dtypes, so that
    `jax.lax.scan` can carry it. `optax.tree.get(state, "norm_before")` reads the state anywhere in
    a chain.

    The cost is one read of the input (shared with tx if tx computes the same norm), one read of the
    output, and one read of the parameters if given. XLA keeps a copy of updates that it would
    otherwise overwrite in place, because norms that overflow are recomputed in a conditional.

    Args:
        tx: any transformation, optax's included.
        per: grouping of `log_norms`: "tree", "leaf", "layer" or a callable, see
            `jaxstab.norms.group_norms`; None for no such record.
        decay: decay of the firing rate, in [0, 1); a number, a traced array or a schedule.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is a `TelemetryState`.

    Example:
        >>> tx = optax.chain(monitored(optax.clip_by_global_norm(1.0)), optax.sgd(0.1))
        >>> state = tx.init(jnp.zeros(2))
        >>> _, state = tx.update(jnp.asarray([3.0, 4.0]), state)
        >>> float(optax.tree.get(state, "norm_before")), round(float(optax.tree.get(state, "coefficient")), 4)
        (5.0, 0.2)
    """
    grouping = check_grouping("tree" if per is None else per, stacked)
    check_setting("decay", decay, high=1.0, below=True)
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> TelemetryState:
        groups = {} if per is None else zero_norms(params, *grouping)
        return _before_any_step(tx.init(params), zero_norms(params)["tree"], groups)

    def update(
        updates: PyTree, state: TelemetryState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, TelemetryState]:
        out, inner = tx.update(updates, state.inner, params, **extra)
        dtype = state.norm_before.dtype
        before = norm(updates)
        # scale between the norm before and 1, whose squares are then within the float range
        after = quick_norm(out, jnp.sqrt(before.scale))
        # taking the norm before any use lets XLA overwrite updates in place: 15 % of an update on CPU
        out, after = jax.lax.optimization_barrier((out, after))
        groups = {} if per is None else group_norms(updates, *grouping)
        coefficient = _ratio(after, before, dtype, 1.0)
        rounding = max(
            (float(jnp.finfo(jnp.result_type(u)).eps) for u in jax.tree.leaves(out)), default=0.0
        )
        fired = jnp.abs(coefficient - 1) > ROUNDINGS * rounding
        step = optax.safe_increment(state.step)
        weight = jnp.maximum(1 - setting_at(decay, state.step, dtype), 1 / step.astype(dtype))
        if params is None:
            sizes = norm(())
        else:
            sizes = quick_norm(params, jnp.ones((), dtype))
        newly_bad = (before.nonfinite > 0) & (state.first_nonfinite < 0)
        return out, TelemetryState(
            inner=inner,
            step=step,
            norm_before=before.value.astype(dtype),
            norm_after=after.value.astype(dtype),
            coefficient=coefficient,
            fired=fired,
            firing_rate=state.firing_rate + weight * (fired.astype(dtype) - state.firing_rate),
            update_ratio=_ratio(after, sizes, dtype, jnp.nan),
            nonfinite_count=saturating_sum(state.nonfinite_count, before.nonfinite),
            first_nonfinite=jnp.where(newly_bad, state.step, state.first_nonfinite),
            log_norms={k: groups[k].log.astype(old.dtype) for k, old in state.log_norms.items()},
        )

    return optax.GradientTransformationExtraArgs(init, update)
