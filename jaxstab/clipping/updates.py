"""Clip the updates of an optimiser by their root mean square, or relative to the parameters."""

import math
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_choice
from jaxstab.clipping.by_norm import CallState, clip_to
from jaxstab.clipping.settings import Setting, check_setting, setting_like
from jaxstab.norms import group_norms
from jaxstab.norms.groups import group_sizes
from jaxstab.norms.paths import Per, Stacked, check_grouping


@explained
def clip_updates(
    max_rms: Setting = 1.0,
    relative_to: str | None = None,
    least: Setting = 1e-3,
    per: Per = "leaf",
    stacked: Stacked = (),
) -> optax.GradientTransformationExtraArgs:
    """Clip the root mean square of an optimiser's updates.

    u_k -> u_k min(1, limit_k / RMS(u_k)) for each group k of leaves, with RMS(u)^2 = mean u^2 and

        limit_k = max_rms                              by default;
        limit_k = max_rms max(RMS(theta_k), least)     with relative_to="parameters".

    The first limit is the update clipping of Adafactor (Shazeer & Stern 2018, arXiv:1804.04235,
    section 6, max_rms = 1). It belongs after `optax.scale_by_adam` and before the learning rate: an
    update of Adam with RMS above 1 comes from a gradient that has outgrown its second moment, which
    precedes spikes of the loss (Wortsman et al. 2023, arXiv:2304.13013). The second limit bounds
    the relative change of the parameters (the update-to-weight ratio) and belongs at the end, after
    the learning rate. Entries that are not finite stay unchanged and do not count.

    Args:
        max_rms: threshold, >= 0; a number, a traced array or a schedule.
        relative_to: "parameters" for a threshold in units of the parameters' RMS, in which case
            `update` needs the parameters; None for an absolute threshold.
        least: lower bound on the RMS of parameters, >= 0, so that parameters at zero can move.
        per: groups; "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, for per="layer"; see `jaxstab.norms.group_norms`.

    Returns:
        The transformation; its state is a `CallState`.

    Raises:
        ValueError: from the update, with relative_to="parameters" but no parameters.

    Example:
        >>> tx = optax.chain(optax.scale_by_adam(), clip_updates(1.0), optax.scale_by_learning_rate(1e-3))
        >>> tx = clip_updates(0.1, relative_to="parameters")
        >>> theta = {"kernel": jnp.full(4, 2.0), "bias": jnp.zeros(2)}
        >>> updates = {"kernel": jnp.full(4, 0.5), "bias": jnp.full(2, 0.5)}
        >>> clipped, _ = tx.update(updates, tx.init(theta), theta)
        >>> (clipped["kernel"] / theta["kernel"]).round(4).tolist(), clipped["bias"].round(4).tolist()
        ([0.1..., 0.1..., 0.1..., 0.1...], [0.0001, 0.0001])
    """
    check_setting("max_rms", max_rms)
    check_setting("least", least)
    if relative_to is not None:
        check_choice("relative_to", relative_to, ("parameters",))
    grouping = check_grouping(per, stacked)

    def init(params: PyTree) -> CallState:
        del params
        return CallState(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: CallState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, CallState]:
        del extra
        if relative_to and params is None:
            raise ValueError(
                'clip_updates(relative_to="parameters") needs the parameters: tx.update(updates, '
                "state, params)"
            )
        norms = group_norms(updates, *grouping)
        sizes = group_sizes(updates, *grouping)
        weights = {}
        if relative_to:
            weights = group_norms(params, *grouping)

        def limit(label: str) -> Array:
            """Compute the largest norm of a group: the largest RMS times the root of the size."""
            root = norms[label].root
            scale = math.sqrt(sizes.get(label, 0))
            largest = setting_like(max_rms, state.calls, root)
            if not relative_to:
                return largest * scale
            least_norm = setting_like(least, state.calls, root) * scale
            return largest * jnp.maximum(weights[label].value.astype(root.dtype), least_norm)

        limits = {label: limit(label) for label in norms}
        clipped = clip_to(updates, grouping, norms, limits)
        return clipped, CallState(optax.safe_increment(state.calls))

    return optax.GradientTransformationExtraArgs(init, update)
