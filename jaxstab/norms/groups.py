"""Euclidean norms of groups of leaves, in two factors that hold any magnitude."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from jaxstab.checks import check_floating
from jaxstab.norms.meshes import resplit, split
from jaxstab.norms.paths import (
    Grouping,
    Path,
    Per,
    Stacked,
    check_grouping,
    group_of,
    named_leaves,
    stack_of,
)


class Norm(NamedTuple):
    """Euclidean norm of the finite entries as two factors, |x| = scale * root, against overflow.

    Attributes:
        scale: 1 in the usual case, else the largest finite |entry| or near it; > 0.
        root: norm of x / scale; 0 if every finite entry is zero.
        nonfinite: number of NaN and infinite entries, which the norm leaves out.
    """

    scale: Float[Array, "..."]
    root: Float[Array, "..."]
    nonfinite: Int[Array, "..."]

    @property
    def value(self) -> Float[Array, "..."]:
        """Norm as one float; inf beyond the float range."""
        return self.scale * self.root

    @property
    def log(self) -> Float[Array, "..."]:
        """Natural logarithm of the norm; finite unless the norm is zero."""
        return jnp.log(self.scale) + jnp.log(self.root)


class _Member(NamedTuple):
    label: str
    stacked: bool
    leaf: Array

    def reduce(self, reduction: Callable, x: Array) -> Array:
        return reduction(x, axis=tuple(range(int(self.stacked), x.ndim)))

    def spread(self, value: Array) -> Array:
        """Shape a value of the group so that it broadcasts over the leaf."""
        if not value.ndim:
            return value
        over = split(self.leaf)
        if over is not None:
            # split like the layer axis of the leaf
            value = resplit(value, self.leaf, over[:1])
        return jnp.expand_dims(value, tuple(range(1, self.leaf.ndim)))


def floating_leaves(tree: PyTree) -> PyTree:
    """Convert the leaves of a tree to arrays, and check that they are floating.

    Args:
        tree: floating arrays or Python floats.

    Returns:
        Tree of arrays.

    Raises:
        ValueError: if a leaf is not floating; the message names its path.
    """
    for path, leaf in named_leaves(tree):
        _floating(path, leaf)
    return jax.tree.map(jnp.asarray, tree)


def _floating(path: Path, leaf: ArrayLike) -> Array:
    """Convert a leaf to an array, and check that it is floating."""
    array = jnp.asarray(leaf)
    check_floating("/".join(path) or "the array", array.dtype)
    return array


def _members(tree: PyTree, grouping: Grouping) -> list[_Member]:
    check_grouping(*grouping)
    is_stacked = stack_of(tree, grouping.stacked)
    members = []
    for path, leaf in named_leaves(tree):
        array = _floating(path, leaf)
        label, stacked = group_of(path, grouping, is_stacked)
        if stacked and array.ndim == 0:
            raise ValueError(f"{'/'.join(path)} must have a layer axis to be stacked, got a scalar")
        members.append(_Member(label, stacked, array))
    return members


def _grouped(tree: PyTree, grouping: Grouping) -> dict[str, list[_Member]]:
    groups: dict[str, list[_Member]] = {}
    for member in _members(tree, grouping):
        groups.setdefault(member.label, []).append(member)
    return groups


def accumulator(*dtypes: DTypeLike) -> jnp.dtype:
    """Return the dtype in which squares of leaves are summed: at least float32.

    Args:
        dtypes: floating dtypes of the leaves.

    Returns:
        float64 if a leaf is float64, else float32.
    """
    return jnp.dtype(
        jnp.float64 if any(jnp.dtype(d) == jnp.float64 for d in dtypes) else jnp.float32
    )


def _plain_sum(members: list[_Member], dtype: jnp.dtype) -> Array:
    # the same expression as optax's norm, leaf by leaf, so that XLA computes it once for both
    squares = [
        m.reduce(jnp.sum, jnp.square(m.leaf.astype(accumulator(m.leaf.dtype)))).astype(dtype)
        for m in members
    ]
    shapes = {s.shape for s in squares}
    if len(shapes) > 1:
        raise ValueError(
            f"leaves of group {members[0].label!r} disagree on the number of layers: "
            f"{sorted(shapes)}"
        )
    return functools.reduce(jnp.add, squares)


def _usual(total: Array, size: int) -> Array:
    """Check that a sum of squares has neither over- nor underflown."""
    info = jnp.finfo(total.dtype)
    # squares below `tiny` are lost, and together below the rounding of sums above this bound
    return jnp.isfinite(total) & (total >= size * float(info.tiny) / float(info.eps))


def safe_scale(largest: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return a divisor of entries that keeps their squares from over- and underflow.

    Args:
        largest: magnitude of the largest entry.

    Returns:
        The magnitude itself, 1 for 0, and at most 1 / (4 tiny).

    Example:
        >>> safe_scale(jnp.asarray([0.0, 1e-30, 5.0])).tolist()
        [1.0, ...e-3..., 5.0]
    """
    # XLA may multiply by the reciprocal, and flushes subnormal reciprocals to zero
    return jnp.where(
        largest == 0, 1, jnp.minimum(largest, 1 / (4 * float(jnp.finfo(largest.dtype).tiny)))
    )


def _scaled(members: list[_Member], dtype: jnp.dtype) -> Norm:
    finite = [jnp.isfinite(m.leaf) for m in members]
    kept = [jnp.where(f, m.leaf, 0).astype(dtype) for f, m in zip(finite, members, strict=True)]
    largest = functools.reduce(
        jnp.maximum,
        [
            m.reduce(functools.partial(jnp.max, initial=0), jnp.abs(x))
            for m, x in zip(members, kept, strict=True)
        ],
    )
    scale = jax.lax.stop_gradient(safe_scale(largest))
    total = functools.reduce(
        jnp.add,
        [
            m.reduce(jnp.sum, jnp.square(x / m.spread(scale)))
            for m, x in zip(members, kept, strict=True)
        ],
    )
    # the root of 1 in place of 0 has a zero gradient instead of NaN
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    bad = [
        m.reduce(functools.partial(jnp.sum, dtype=jnp.int32), ~f)
        for f, m in zip(finite, members, strict=True)
    ]
    return Norm(scale, root, functools.reduce(jnp.add, bad))


def group_norms(tree: PyTree, per: Per = "tree", stacked: Stacked = ()) -> dict[str, Norm]:
    """Compute norms of groups of leaves, of any magnitude, in one pass over the data.

    The usual case is sqrt(sum x^2), with squares summed in at least float32. If a sum overflows,
    nears underflow or is NaN, all norms are computed again from entries divided by the largest
    entry. (Under `jax.vmap` both cases are computed.) Within `jax.shard_map` a norm is that of each
    device's shard.

    Args:
        tree: floating arrays; empty subtrees are skipped.
        per: "tree" for one norm of all leaves; "leaf" for a norm of each array; "layer" for a norm
            of each module, whose leaves differ only in the last key of their path. Or a callable
            that maps a path of keys, ("dense", "kernel"), to the name of its group.
        stacked: leaves with a leading layer axis, for which "layer" gives one norm per layer:
            leaves at or below a path, such as "blocks" or ["params/encoder", "params/decoder"], or
            leaves whose path a callable accepts. The blocks of a chain's `Params` are always
            stacked.

    Returns:
        Norms by name of group, each of shape [] or [depth]. Names are paths such as "l/0/bias",
        without the keys of Flax's boxes around arrays.

    Raises:
        ValueError: if per is unknown, a leaf is not floating, a path of stacked is not in the tree,
            or leaves of one module disagree on the depth.

    Example:
        >>> grads = {"dense": {"kernel": jnp.full(4, 1e25, jnp.float32), "bias": jnp.zeros(2)}}
        >>> {label: float(norm.value) for label, norm in group_norms(grads, "layer").items()}
        {'dense': 1.9...e+25}
        >>> group_norms({"encoder": {"kernel": jnp.ones((3, 4))}}, "layer", "encoder")["encoder"].value.tolist()
        [2.0, 2.0, 2.0]
    """
    groups = _grouped(tree, Grouping(per, stacked))
    if not groups:
        nothing = jnp.zeros((), jnp.float32)
        if per == "tree":
            return {"tree": Norm(nothing + 1, nothing, jnp.zeros((), jnp.int32))}
        return {}
    dtypes = {k: accumulator(*(m.leaf.dtype for m in group)) for k, group in groups.items()}
    sums = {label: _plain_sum(group, dtypes[label]) for label, group in groups.items()}
    fits = {
        label: _usual(sums[label], sum(m.leaf.size for m in group))
        for label, group in groups.items()
    }

    def plain() -> dict[str, Norm]:
        roots = {k: jnp.sqrt(jnp.where(fits[k], s, 1)) for k, s in sums.items()}
        # `zeros_like` keeps the axes along which devices differ within `shard_map`, which must agree
        # in both branches
        return {
            k: Norm(jnp.ones_like(s), roots[k], jnp.zeros_like(s, jnp.int32))
            for k, s in sums.items()
        }

    def scaled() -> dict[str, Norm]:
        return {label: _scaled(group, dtypes[label]) for label, group in groups.items()}

    return jax.lax.cond(
        functools.reduce(jnp.logical_and, [jnp.all(f) for f in fits.values()]), plain, scaled
    )


def zero_norms(
    tree: PyTree, per: Per = "tree", stacked: Stacked = ()
) -> dict[str, Float[Array, "*depth"]]:
    """Make zeros of the shapes, dtypes and devices of the norms of groups.

    Args:
        tree: floating arrays.
        per: see `group_norms`.
        stacked: see `group_norms`.

    Returns:
        Zeros by name of group; for an empty tree only "tree".
    """
    groups = _grouped(tree, Grouping(per, stacked))
    if not groups and per == "tree":
        return {"tree": jnp.zeros((), jnp.float32)}
    return {
        label: jnp.zeros_like(_plain_sum(group, accumulator(*(m.leaf.dtype for m in group))))
        for label, group in groups.items()
    }


def group_sizes(tree: PyTree, per: Per = "tree", stacked: Stacked = ()) -> dict[str, int]:
    """Count the entries of each group.

    Args:
        tree: floating arrays.
        per: see `group_norms`.
        stacked: see `group_norms`.

    Returns:
        Number of entries by name of group; entries of one layer for groups with a norm per layer.

    Example:
        >>> group_sizes({"encoder": {"kernel": jnp.ones((3, 4))}}, "layer", "encoder")
        {'encoder': 4}
    """
    sizes = {}
    for label, group in _grouped(tree, Grouping(per, stacked)).items():
        shapes = [m.leaf.shape[int(m.stacked) :] for m in group]
        sizes[label] = sum(math.prod(shape) for shape in shapes)
    return sizes


def norm(tree: PyTree) -> Norm:
    """Compute the norm of all leaves together; see `group_norms`.

    Args:
        tree: floating arrays.

    Returns:
        One norm, of shape [].

    Example:
        >>> n = norm([jnp.asarray([3e25, jnp.nan], jnp.float32), jnp.asarray([4e25], jnp.float32)])
        >>> round(float(n.value) / 1e25, 5), int(n.nonfinite)
        (5.0, 1)
    """
    return group_norms(tree, "tree")["tree"]


def quick_norm(tree: PyTree, scale: Float[Array, ""]) -> Norm:
    """Compute the norm of all leaves by the plain sum of (x / scale)^2, without a conditional.

    A conditional, as in `norm`, makes XLA keep its operand; after this function the arrays can be
    overwritten in place.

    Args:
        tree: floating arrays.
        scale: unit of the norm, > 0, with a normal reciprocal. Entries that differ from the scale
            by the square root of the float range (1e19 in float32) overflow or vanish.

    Returns:
        The norm; inf or NaN if an entry is, and nonfinite = 0 always.

    Example:
        >>> float(quick_norm([jnp.full(4, 1e30, jnp.float32)], jnp.asarray(1e30, jnp.float32)).root)
        2.0
    """
    members = _members(tree, Grouping())
    if not members:
        return norm(tree)
    dtype = accumulator(*(m.leaf.dtype for m in members))
    scale = scale.astype(dtype)
    total = _plain_sum([m._replace(leaf=m.leaf.astype(dtype) / scale) for m in members], dtype)
    # the root of 1 in place of 0 has a zero gradient instead of NaN
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    return Norm(scale, root, jnp.zeros((), jnp.int32))


def map_groups(f: Callable, tree: PyTree, grouping: Grouping, *values: dict[str, Array]) -> PyTree:
    """Apply a function to every leaf with the values of its group.

    Args:
        f: (leaf, value of its group from each of values) -> leaf; a value per layer has shape
            [depth, 1, ..., 1].
        tree: floating arrays.
        grouping: arguments of `group_norms`.
        values: values by name of group, each of shape [] or [depth].

    Returns:
        The tree of results.

    Example:
        >>> grads = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([6.0, 8.0])}
        >>> scales = {"a": jnp.asarray(1.0), "b": jnp.asarray(0.5)}
        >>> map_groups(lambda x, s: s * x, grads, Grouping("leaf"), scales)["b"].tolist()
        [3.0, 4.0]
    """
    leaves = [f(m.leaf, *(m.spread(v[m.label]) for v in values)) for m in _members(tree, grouping)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
