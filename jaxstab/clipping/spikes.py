"""Parts of SPAM: spike-aware clipping of single entries, and momentum reset."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.clipping.settings import Setting, check_integer, check_setting, setting_at
from jaxstab.norms.groups import accumulator, floating_leaves

# first factor of the warm-up after a reset, as in the authors' code
FIRST_SHARE = 0.01


class SpikeState(NamedTuple):
    """State of `clip_spikes`.

    Attributes:
        calls: number of updates so far, the argument of schedules.
        entered: number of updates in the statistics, for each leaf.
        rms: root of the exponential mean of squared entries, not bias-corrected, at least float32.
    """

    calls: Int[Array, ""]
    entered: PyTree
    rms: PyTree


class ResetState(NamedTuple):
    """State of `with_momentum_reset`.

    Attributes:
        inner: state of the wrapped transformation.
        calls: number of updates so far.
    """

    inner: PyTree
    calls: Int[Array, ""]


@explained
def clip_spikes(
    threshold: Setting = 5000.0, decay: Setting = 0.999
) -> optax.GradientTransformationExtraArgs:
    """Clip single entries that are far above their own running root mean square.

    SPAM's spike-aware clipping (Huang et al. 2025, arXiv:2501.06842): entries with g^2 > threshold
    * v become sign(g) sqrt(threshold * v), where v is the bias-corrected exponential mean of the
    squares of the clipped entries of earlier updates. An entry that was always zero passes, since
    v = 0 would keep it at zero. The state holds the square root of v, so that squares neither
    overflow nor vanish. The authors use Adam's own uncorrected v and clip nothing for 20 steps
    after a reset; bias correction makes the wait unnecessary.

    A leaf with an entry that is not finite is clipped, and its v stays unchanged.

    Args:
        threshold: threshold of g^2 / v, >= 0; a number, a traced array or a schedule.
        decay: decay of v, in [0, 1); a number, a traced array or a schedule.

    Returns:
        The transformation; its state is a `SpikeState`.

    Example:
        >>> tx = clip_spikes(threshold=4.0)
        >>> state = tx.init(jnp.zeros(2))
        >>> _, state = tx.update(jnp.asarray([1.0, 1.0]), state)
        >>> tx.update(jnp.asarray([-1.5, -100.0]), state)[0].round(3).tolist()
        [-1.5..., -2.0...]
    """
    check_setting("threshold", threshold)
    check_setting("decay", decay, high=1.0, below=True)

    def init(params: PyTree) -> SpikeState:
        return SpikeState(
            calls=jnp.zeros((), jnp.int32),
            entered=jax.tree.map(lambda p: jnp.zeros_like(p, jnp.int32, shape=()), params),
            rms=jax.tree.map(lambda p: jnp.zeros_like(p, accumulator(jnp.result_type(p))), params),
        )

    def update(
        updates: PyTree, state: SpikeState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, SpikeState]:
        del params, extra
        updates = floating_leaves(updates)

        def clip(g: Array, entered: Array, rms: Array) -> Array:
            kept = setting_at(decay, state.calls, rms.dtype)
            # 1 - kept^n by expm1, exact for decays near 1; 1 for n = 0
            share = jnp.where(
                entered == 0, 1, -jnp.expm1(entered.astype(rms.dtype) * jnp.log(kept))
            )
            limit = jnp.sqrt(setting_at(threshold, state.calls, rms.dtype)) * (
                rms / jnp.sqrt(share)
            )
            spike = jnp.isfinite(g) & (rms > 0) & (jnp.abs(g).astype(rms.dtype) > limit)
            return jnp.where(spike, (jnp.sign(g).astype(rms.dtype) * limit).astype(g.dtype), g)

        def remember(g: Array, enters: Array, rms: Array) -> Array:
            kept = setting_at(decay, state.calls, rms.dtype)
            new = jnp.hypot(jnp.sqrt(kept) * rms, jnp.sqrt(1 - kept) * g.astype(rms.dtype))
            return jnp.where(enters, new, rms)

        clipped = jax.tree.map(clip, updates, state.entered, state.rms)
        enters = jax.tree.map(lambda g: jnp.all(jnp.isfinite(g)), updates)
        rms = jax.tree.map(remember, clipped, enters, state.rms)
        entered = jax.tree.map(
            lambda e, n: jnp.where(e, optax.safe_increment(n), n), enters, state.entered
        )
        return clipped, SpikeState(optax.safe_increment(state.calls), entered, rms)

    return optax.GradientTransformationExtraArgs(init, update)


@explained
def with_momentum_reset(
    inner: optax.GradientTransformation, every: ArrayLike = 500, warmup: ArrayLike = 150
) -> optax.GradientTransformationExtraArgs:
    """Reset a transformation's state at intervals, with a warm-up after each reset.

    SPAM's momentum reset (Huang et al. 2025, arXiv:2501.06842). Before updates every, 2 every, ...
    (counted from 0) the inner state is initialised again. Update k after a reset is multiplied by
    1 - 0.99 (1 + cos(pi k / (warmup + 1))) / 2 while k < warmup, as in the authors' code. There is
    no warm-up before the first reset. The initial state is that of the parameters, or of the
    updates if no parameters are given.

    Args:
        inner: the transformation with momentum.
        every: updates between resets, >= 1; an integer, which may be traced.
        warmup: updates of reduced size after each reset, >= 0; an integer, which may be traced.

    Returns:
        The transformation; its state is a `ResetState`.

    Example:
        SPAM, which is Adam behind spike-aware clipping, with a reset of both; then momentum with a
        reset:

        >>> spam = with_momentum_reset(optax.chain(clip_spikes(), optax.adam(1e-3)), every=500, warmup=150)
        >>> tx = with_momentum_reset(optax.trace(0.5), every=3, warmup=0)
        >>> state = tx.init(jnp.zeros(1))
        >>> for _ in range(4):
        ...     updates, state = tx.update(jnp.ones(1), state)
        ...     print(updates.tolist())
        [1.0]
        [1.5]
        [1.75]
        [1.0]
    """
    check_integer("every", every, 1)
    check_integer("warmup", warmup, 0)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> ResetState:
        return ResetState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: ResetState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, ResetState]:
        period = jnp.asarray(every).astype(jnp.int32)
        wait = jnp.asarray(warmup).astype(jnp.int32)
        since = state.calls % period
        reset = (state.calls > 0) & (since == 0)
        fresh = inner.init(updates if params is None else params)
        start = jax.tree.map(
            lambda new, old: jnp.where(reset, jnp.asarray(new, old.dtype), old), fresh, state.inner
        )
        updates, after = inner.update(updates, start, params, **extra)
        cosine = jnp.cos(math.pi * since.astype(jnp.float32) / (wait + 1).astype(jnp.float32))
        warming = (state.calls >= period) & (since < wait)
        share = jnp.where(warming, 1 - (1 - FIRST_SHARE) * (1 + cosine) / 2, 1)
        updates = jax.tree.map(lambda u: u * share.astype(u.dtype), updates)
        return updates, ResetState(after, optax.safe_increment(state.calls))

    return optax.GradientTransformationExtraArgs(init, update)
