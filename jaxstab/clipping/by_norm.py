"""Clip or normalise by the Euclidean norm of the tree, or of each leaf, layer or other group."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.clipping.settings import Setting, check_setting, setting_like
from jaxstab.norms import Norm, group_norms
from jaxstab.norms.groups import map_groups
from jaxstab.norms.paths import Grouping, Per, Stacked, check_grouping


class CallState(NamedTuple):
    """State of a transformation without statistics.

    Attributes:
        calls: number of updates so far, the argument of schedules.
    """

    calls: Int[Array, ""]


def with_lengths(
    updates: PyTree,
    grouping: Grouping,
    norms: dict[str, Norm],
    lengths: dict[str, Array],
    keep: dict[str, Array],
) -> PyTree:
    """Scale every group to a given norm.

    x -> x length / |x|, computed as (x / scale) (length / root) where length / |x| leaves the float
    range. NaN and infinite entries stay as they are; zero stays zero.

    Args:
        updates: the updates.
        grouping: grouping of the norms.
        norms: norms of the groups.
        lengths: new norms of the groups.
        keep: booleans by group, True for groups that stay unchanged.

    Returns:
        Scaled updates of the same dtypes.
    """
    one = lambda k: jnp.ones_like(norms[k].scale)
    dead = {k: keep[k] | (norms[k].root == 0) for k in norms}
    scales = {k: jnp.where(dead[k], one(k), norms[k].scale) for k in norms}
    factors = {
        k: jnp.where(dead[k], one(k), lengths[k] / jnp.where(dead[k], one(k), norms[k].root))
        for k in norms
    }

    def rescale(x: Array, keep: Array, scale: Array, factor: Array) -> Array:
        wide = x.astype(scale.dtype)
        ratio = factor / scale
        # two steps would lose small entries beside large ones
        at_once = jnp.isfinite(ratio) & (jnp.abs(ratio) >= jnp.finfo(ratio.dtype).tiny)
        scaled = jnp.where(at_once, wide * ratio, wide / scale * factor).astype(x.dtype)
        return jnp.where(keep | ~jnp.isfinite(x), x, scaled)

    return map_groups(rescale, updates, grouping, dead, scales, factors)


def clip_to(
    updates: PyTree, grouping: Grouping, norms: dict[str, Norm], limits: dict[str, Array]
) -> PyTree:
    """Shorten every group that is longer than its limit to the limit.

    Args:
        updates: the updates.
        grouping: grouping of the norms.
        norms: norms of the groups.
        limits: limits of the groups; a NaN limit gives NaN updates.

    Returns:
        Clipped updates of the same dtypes; a group within its limit is unchanged bit for bit.
    """
    return with_lengths(
        updates, grouping, norms, limits, {k: norms[k].value <= limits[k] for k in norms}
    )


def _stateless(update: Any) -> optax.GradientTransformationExtraArgs:
    """Make a transformation from a function (updates, calls) -> updates."""

    def init(params: PyTree) -> CallState:
        del params
        return CallState(jnp.zeros((), jnp.int32))

    def whole(
        updates: PyTree, state: CallState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, CallState]:
        del params, extra
        return update(updates, state.calls), CallState(optax.safe_increment(state.calls))

    return optax.GradientTransformationExtraArgs(init, whole)


@explained
def clip_by_norm(
    max_norm: Setting, per: Per = "tree", stacked: Stacked = ()
) -> optax.GradientTransformationExtraArgs:
    """Clip the norm of every group of leaves.

    g_k -> g_k min(1, max_norm / |g_k|) for each group k (Pascanu et al. 2013, arXiv:1211.5063,
    algorithm 1). With per="tree" this is `optax.clip_by_global_norm` for any magnitude: a float32
    gradient with entries of 1e25 is clipped where optax returns zeros. Entries that are not finite
    stay as they are and do not count.

    Args:
        max_norm: threshold, >= 0; a number, a traced array or a schedule.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is a `CallState`.

    Example:
        >>> grads = {"wide": {"w": jnp.asarray([3e25, 4e25], jnp.float32)}, "small": {"w": jnp.asarray([0.1])}}
        >>> tx = clip_by_norm(1.0, per="layer")
        >>> updates, _ = tx.update(grads, tx.init(grads))
        >>> updates["wide"]["w"].round(3).tolist(), updates["small"]["w"].tolist()
        ([0.6..., 0.8...], [0.1...])
    """
    check_setting("max_norm", max_norm)
    grouping = check_grouping(per, stacked)

    def update(updates: PyTree, calls: Array) -> PyTree:
        norms = group_norms(updates, *grouping)
        limits = {k: setting_like(max_norm, calls, n.root) for k, n in norms.items()}
        return clip_to(updates, grouping, norms, limits)

    return _stateless(update)


@explained
def normalize(
    norm: Setting = 1.0, per: Per = "tree", stacked: Stacked = ()
) -> optax.GradientTransformationExtraArgs:
    """Scale every group of leaves to one norm.

    g_k -> norm * g_k / |g_k|; a zero gradient stays zero. per="tree" is the normalised update,
    per="layer" the layer-wise one (block-normalised gradient, Yu et al. 2017, arXiv:1707.04822).

    Args:
        norm: new norm, >= 0; a number, a traced array or a schedule.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is a `CallState`.

    Example:
        >>> tx = normalize(10.0, per="leaf")
        >>> updates, _ = tx.update([jnp.asarray([3e-30, 4e-30]), jnp.zeros(2)], tx.init(None))
        >>> [u.round(3).tolist() for u in updates]
        [[6.0..., 8.0...], [0.0, 0.0]]
    """
    check_setting("norm", norm)
    grouping = check_grouping(per, stacked)

    def update(updates: PyTree, calls: Array) -> PyTree:
        norms = group_norms(updates, *grouping)
        lengths = {k: setting_like(norm, calls, n.root) for k, n in norms.items()}
        keep = {k: jnp.zeros_like(n.root, bool) for k, n in norms.items()}
        return with_lengths(updates, grouping, norms, lengths, keep)

    return _stateless(update)
