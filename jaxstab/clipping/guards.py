"""What to do when a gradient is not finite: an explicit policy around any transformation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from jaxstab.checks import check_choice
from jaxstab.norms import group_norms

POLICIES = ("skip", "zero", "raise", "propagate")


class GuardState(NamedTuple):
    """State of `guarded`.

    Attributes:
        inner: state of the wrapped transformation.
        calls: updates made so far.
        bad_entries: NaN and infinite entries so far; stops at the largest int32.
        bad_steps: updates with at least one of them.
        first_bad: the first such update, counted from 0; -1 for never.
    """

    inner: PyTree
    calls: Int[Array, ""]
    bad_entries: Int[Array, ""]
    bad_steps: Int[Array, ""]
    first_bad: Int[Array, ""]


def saturating_sum(total: Int[Array, ""], more: Int[Array, ""]) -> Int[Array, ""]:
    """A counter that stops at the largest integer instead of turning negative.

    Args:
        total: so far, >= 0.
        more: to add, >= 0.

    Returns:
        min(total + more, largest integer).
    """
    largest = jnp.iinfo(total.dtype).max
    return jnp.where(more > largest - total, largest, total + more)


def _counts(updates: PyTree) -> dict[tuple, Int[Array, ""]]:
    """Number of entries that are not finite, by path of the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    norms = group_norms([leaf for _, leaf in leaves], "leaf")
    return {tuple(path): norms[str(index)].nonfinite for index, (path, _) in enumerate(leaves)}


def _keep_slices(bad: dict[tuple, Array], updates: PyTree, new: PyTree, old: PyTree) -> PyTree:
    """Of a new state, all but what belongs to bad leaves: those parts as they were."""
    # a part of the state belongs to the leaf whose path its own path ends with, if the shapes agree: state.mu["w"] to
    # params["w"]; of several, the longest path wins
    shapes = {tuple(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)}

    def choose(path: tuple, new: Array, old: Array) -> Array:
        ends = [tuple(path[start:]) for start in range(len(path) + 1)]
        owner = next((end for end in ends if shapes.get(end) == jnp.shape(new)), None)
        return new if owner is None else jnp.where(bad[owner], old, new)

    return jax.tree_util.tree_map_with_path(choose, new, old)


def _where_bad(bad: dict[tuple, Array], then: PyTree, otherwise: PyTree) -> PyTree:
    pick = lambda path, t, o: jnp.where(bad[tuple(path)], t, o)
    return jax.tree_util.tree_map_with_path(pick, then, otherwise)


def _raise_if_concrete(counts: dict[tuple, Array]) -> None:
    if any(isinstance(count, jax.core.Tracer) for count in counts.values()):
        return
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, count in counts.items() if count > 0]
    if names:
        raise FloatingPointError(f"updates are not finite in {', '.join(name or 'the array' for name in names)}")


def guarded(tx: optax.GradientTransformation, policy: str, per: str = "leaf") -> optax.GradientTransformationExtraArgs:
    """Put an explicit policy for gradients that are not finite around a transformation.

    A leaf is bad where it has a NaN or infinite entry; with per="tree", one bad leaf makes all bad.

    - "skip": bad leaves get a zero update and their parts of the state stay as they were; the others go on as if the
      bad ones were zero. With per="tree" the whole update is zero and the whole state stays.
    - "zero": bad leaves enter tx as zeros; momentum goes on.
    - "propagate": bad leaves come out as they came in; the others go on as if the bad ones were zero. With per="tree"
      tx sees everything as it is.
    - "raise": a FloatingPointError that names the bad leaves, where values are concrete. Under `jax.jit` nothing can
      be raised, and it propagates.

    Parts of the state that belong to no leaf, such as step counts, go on unless all is skipped.

    Args:
        tx: any transformation, optax's included.
        policy: "skip", "zero", "raise" or "propagate".
        per: "leaf" or "tree".

    Returns:
        The transformation; its state is a `GuardState`.

    Raises:
        FloatingPointError: from its update, with policy "raise".

    Example:
        >>> tx = guarded(optax.trace(0.9), "skip")
        >>> state = tx.init({"a": jnp.ones(1), "b": jnp.ones(1)})
        >>> updates, state = tx.update({"a": jnp.asarray([jnp.nan]), "b": jnp.asarray([2.0])}, state)
        >>> updates["a"].tolist(), updates["b"].tolist(), int(state.bad_entries)
        ([0.0], [2.0], 1)
    """
    check_choice("policy", policy, POLICIES)
    check_choice("per", per, ("leaf", "tree"))
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> GuardState:
        zero = lambda: jnp.zeros((), jnp.int32)
        return GuardState(tx.init(params), zero(), zero(), zero(), jnp.full((), -1, jnp.int32))

    def act(updates: PyTree, bad: dict[tuple, Array], inner: PyTree, params: PyTree | None, extra: dict) -> tuple:
        """(updates, inner state) by the policy."""
        run = lambda given: tx.update(given, inner, params, **extra)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        if per == "tree" and policy in {"propagate", "raise"}:
            return run(updates)
        if per == "tree" and policy == "skip":
            # under cond nothing is computed, or copied, for the way not taken
            shapes = jax.eval_shape(run, updates)[0]
            nothing = lambda: (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), inner)
            return jax.lax.cond(next(iter(bad.values()), jnp.zeros((), bool)), nothing, lambda: run(updates))
        out, new = run(_where_bad(bad, zeros, updates))
        if policy == "zero":
            return out, new
        if policy == "skip":
            return _where_bad(bad, jax.tree.map(jnp.zeros_like, out), out), _keep_slices(bad, updates, new, inner)
        as_they_came = jax.tree.map(lambda g, u: g.astype(u.dtype), updates, out)
        return _where_bad(bad, as_they_came, out), new

    def update(
        updates: PyTree, state: GuardState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, GuardState]:
        counts = _counts(updates)
        if policy == "raise":
            _raise_if_concrete(counts)
        total = jnp.zeros((), jnp.int32)
        for count in counts.values():
            total = saturating_sum(total, count)
        hit = total > 0
        bad = {path: hit if per == "tree" else count > 0 for path, count in counts.items()}
        out, inner = act(updates, bad, state.inner, params, extra)
        return out, GuardState(
            inner=inner,
            calls=optax.safe_increment(state.calls),
            bad_entries=saturating_sum(state.bad_entries, total),
            bad_steps=jnp.where(hit, optax.safe_increment(state.bad_steps), state.bad_steps),
            first_bad=jnp.where(hit & (state.first_bad < 0), state.calls, state.first_bad),
        )

    return optax.GradientTransformationExtraArgs(init, update)
