"""Policies for gradients that are not finite, around any transformation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_choice
from jaxstab.clipping.adaptive import AdaptiveState
from jaxstab.clipping.spikes import SpikeState
from jaxstab.norms import group_norms
from jaxstab.norms.groups import zero_norms
from jaxstab.norms.paths import named_leaves

POLICIES = ("skip", "zero", "raise", "propagate")
# states with statistics of gradients, which a zero in place of a non-finite gradient would bias
STATISTICS = (AdaptiveState, SpikeState)


class GuardState(NamedTuple):
    """State of `guarded`.

    Attributes:
        inner: state of the wrapped transformation.
        calls: number of updates so far.
        bad_entries: number of NaN and infinite entries so far; stops at the largest int32.
        bad_steps: number of updates with at least one such entry.
        first_bad: the first such update, counted from 0; -1 for never.
    """

    inner: PyTree
    calls: Int[Array, ""]
    bad_entries: Int[Array, ""]
    bad_steps: Int[Array, ""]
    first_bad: Int[Array, ""]


def saturating_sum(total: Int[Array, ""], more: Int[Array, ""]) -> Int[Array, ""]:
    """Add to a counter, which stops at the largest integer.

    Args:
        total: count so far, >= 0.
        more: number to add, >= 0.

    Returns:
        min(total + more, largest integer).
    """
    largest = jnp.iinfo(total.dtype).max
    return jnp.where(more > largest - total, largest, total + more)


def _counts(leaves: list[Array]) -> list[Int[Array, ""]]:
    """Count the entries of each leaf that are not finite."""
    norms = group_norms(leaves, "leaf")
    return [norms[str(index)].nonfinite for index in range(len(leaves))]


def _paths(state: PyTree) -> list[tuple[str, ...]]:
    return [path for path, _ in named_leaves(state)]


def _owners(init: Callable, updates: PyTree) -> dict[tuple[str, ...], list[int]]:
    """Find the leaves to which each part of a state belongs, by path of the part."""
    # a part belongs to a leaf if init makes the part for that leaf alone and not without leaves:
    # moments of the leaf and statistics of its groups do, a step count does not
    leaves, structure = jax.tree.flatten(updates)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]

    def parts(kept: int | None) -> set[tuple[str, ...]]:
        # optax.masked replaces a leaf by a MaskedNode
        some: list[Any] = [optax.MaskedNode()] * len(shapes)
        if kept is not None:
            some[kept] = shapes[kept]
        try:
            return set(_paths(jax.eval_shape(init, jax.tree.unflatten(structure, some))))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            message = f'guarded with policy "skip" needs per="tree": init fails for a part of the leaves ({reason})'
            raise ValueError(message) from error

    always = parts(None)
    owners: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(leaves)):
        for path in parts(index) - always:
            owners.setdefault(path, []).append(index)
    return owners


def _leaves_within(state: PyTree, kinds: tuple[type, ...]) -> list[bool]:
    """Flag the leaves of a state that are in a node of one of these kinds."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [isinstance(node, kinds) for node in nodes for _ in jax.tree.leaves(node)]


def _keep_parts(
    owners: dict[tuple[str, ...], list[int]],
    bad: list[Array],
    new: PyTree,
    old: PyTree,
    kinds: tuple[type, ...],
) -> PyTree:
    """Return the new state, with the old parts of bad leaves within nodes of these kinds."""
    within = _leaves_within(new, kinds)
    learnt = _leaves_within(new, (AdaptiveState,))
    leaves, structure = jax.tree.flatten(new)
    kept = []
    for index, (path, now, before) in enumerate(
        zip(_paths(new), leaves, jax.tree.leaves(old), strict=True)
    ):
        owning = owners.get(path, [])
        if path not in owners and learnt[index] and path[-1] != "calls":
            # statistics of the norm of all leaves belong to each leaf
            owning = list(range(len(bad)))
        if within[index] and owning:
            hit = functools.reduce(jnp.logical_or, [bad[owner] for owner in owning])
            now = jnp.where(hit, jnp.asarray(before, now.dtype), now)
        kept.append(now)
    return jax.tree.unflatten(structure, kept)


def _depending(tree: PyTree, on: Bool[Array, ""]) -> PyTree:
    """Mark values as varying over devices, within shard_map, like a scalar."""
    return jax.tree.map(lambda x: jnp.where(on, x, x) if isinstance(x, jax.Array) else x, tree)


def _unless(
    hit: Array, run: Callable, updates: PyTree, inner: PyTree, others: PyTree
) -> tuple[PyTree, PyTree]:
    """Return zero updates and the old state where `hit` is True, else the result of `run`."""
    shapes, states = jax.eval_shape(run, updates)
    # within shard_map both branches must vary over the same devices, so each depends on the inputs
    # of the other
    arrays = [x for x in jax.tree.leaves((updates, inner, others)) if isinstance(x, jax.Array)]
    either = functools.reduce(
        jnp.logical_or, [jnp.zeros_like(x, bool, shape=()) for x in arrays], hit
    )

    def nothing() -> tuple[PyTree, PyTree]:
        # hit is True in this branch; the other argument sets the place of the zeros on a mesh
        zeros = jax.tree.map(
            lambda g, s: jnp.where(hit, jnp.zeros((), s.dtype), g.astype(s.dtype)), updates, shapes
        )
        return zeros, jax.tree.map(lambda old, s: jnp.asarray(old, s.dtype), inner, states)

    return jax.lax.cond(
        hit, lambda: _depending(nothing(), either), lambda: _depending(run(updates), either)
    )


def _where_bad(bad: list[Array], then: PyTree, otherwise: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(otherwise)
    pairs = zip(bad, jax.tree.leaves(then), leaves, strict=True)
    return jax.tree.unflatten(structure, [jnp.where(hit, one, other) for hit, one, other in pairs])


def _raise_if_concrete(updates: PyTree, counts: list[Array]) -> None:
    if any(isinstance(count, jax.core.Tracer) for count in counts):
        return
    paths = ["/".join(path) or "the array" for path, _ in named_leaves(updates)]
    names = [name for name, count in zip(paths, counts, strict=True) if count > 0]
    if names:
        raise FloatingPointError(f"updates are not finite in {', '.join(names)}")


@explained
def guarded(
    tx: optax.GradientTransformation, policy: str, per: str = "leaf"
) -> optax.GradientTransformationExtraArgs:
    """Apply a policy for gradients that are not finite around a transformation.

    A leaf with a NaN or infinite entry is bad. With per="tree", one bad leaf makes all leaves bad.

    - "skip": bad leaves get a zero update, and their parts of the state stay unchanged; other
      leaves are updated as if bad leaves were zero. With per="tree" the whole update is zero and
      the whole state stays unchanged.
    - "zero": bad leaves enter tx as zeros, so that momentum goes on. Statistics of this package's
      clippers stay unchanged.
    - "propagate": bad leaves are returned unchanged; other leaves are updated as if bad leaves were
      zero. With per="tree" tx gets all leaves unchanged.
    - "raise": raises a FloatingPointError that names the bad leaves, if values are concrete. Under
      `jax.jit`, where nothing can be raised, the policy is "propagate".

    A part of the state belongs to a leaf if `tx.init` makes it for that leaf: moments of the leaf,
    and statistics of every group of the leaf. Parts that belong to no leaf, such as step counts,
    are updated unless the whole update is skipped.

    Args:
        tx: any transformation, optax's included.
        policy: "skip", "zero", "raise" or "propagate".
        per: "leaf" or "tree".

    Returns:
        The transformation; its state is a `GuardState`.

    Raises:
        FloatingPointError: from its update, with policy "raise".
        ValueError: from its update, with policy "skip" and per="leaf", if `tx.init` fails for a
            part of the leaves.

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
    act = _acting(tx, policy, per)

    def init(params: PyTree) -> GuardState:
        zero = zero_norms(params)["tree"]
        inner = tx.init(params)
        if policy == "skip" and per == "tree":
            # within shard_map a device whose update is skipped keeps its whole state, step counts
            # included
            inner = _depending(inner, zero > 0)
        return GuardState(
            inner=inner,
            calls=jnp.zeros((), jnp.int32),
            bad_entries=jnp.zeros_like(zero, jnp.int32),
            bad_steps=jnp.zeros_like(zero, jnp.int32),
            first_bad=jnp.full_like(zero, -1, jnp.int32),
        )

    def update(
        updates: PyTree, state: GuardState, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, GuardState]:
        counts = _counts(jax.tree.leaves(updates))
        if policy == "raise":
            _raise_if_concrete(updates, counts)
        total = functools.reduce(saturating_sum, counts, jnp.zeros((), jnp.int32))
        hit = total > 0
        bad = [count > 0 for count in counts]
        if per == "tree":
            bad = [hit] * len(counts)
        out, inner = act(updates, bad, state.inner, params, extra)
        return out, GuardState(
            inner=inner,
            calls=optax.safe_increment(state.calls),
            bad_entries=saturating_sum(state.bad_entries, total),
            bad_steps=jnp.where(hit, optax.safe_increment(state.bad_steps), state.bad_steps),
            first_bad=jnp.where(hit & (state.first_bad < 0), state.calls, state.first_bad),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _acting(tx: optax.GradientTransformationExtraArgs, policy: str, per: str) -> Callable:
    """Make the function of a policy.

    Returns:
        (updates, flags of bad leaves, inner state, params, extra) -> (updates, inner state).
    """
    kinds: tuple[type, ...] = STATISTICS
    if policy == "skip":
        kinds = (object,)
    keep = _keeping(tx.init, kinds)

    def act(
        updates: PyTree, bad: list[Array], inner: PyTree, params: PyTree | None, extra: dict
    ) -> tuple[PyTree, PyTree]:
        run = lambda given: tx.update(given, inner, params, **extra)
        zeros = jax.tree.map(jnp.zeros_like, updates)
        if per == "tree" and policy in {"propagate", "raise"}:
            return run(updates)
        if per == "tree" and policy == "skip":
            if bad:
                return _unless(bad[0], run, updates, inner, (params, extra))
            return run(updates)
        out, new = run(_where_bad(bad, zeros, updates))
        new = keep(updates, bad, new, inner)
        if policy == "zero":
            return out, new
        if policy == "skip":
            return _where_bad(bad, jax.tree.map(jnp.zeros_like, out), out), new
        as_they_came = jax.tree.map(lambda g, u: g.astype(u.dtype), updates, out)
        return _where_bad(bad, as_they_came, out), new

    return act


def _keeping(init: Callable, kinds: tuple[type, ...]) -> Callable:
    """Make the function that keeps the state of bad leaves.

    Returns:
        (updates, flags of bad leaves, new state, old state) -> merged state. Owners of its parts
        are computed once for each structure of updates.
    """
    known: dict[Any, dict[tuple[str, ...], list[int]]] = {}

    def keep(updates: PyTree, bad: list[Array], new: PyTree, old: PyTree) -> PyTree:
        if not any(
            isinstance(node, kinds)
            for node in jax.tree.leaves(new, is_leaf=lambda n: isinstance(n, kinds))
        ):
            return new
        shapes = tuple(
            (jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(updates)
        )
        key = (jax.tree.structure(updates), shapes)
        if key not in known:
            known[key] = _owners(init, updates)
        return _keep_parts(known[key], bad, new, old, kinds)

    return keep
