"""Euclidean norms: right for any magnitude a float can hold, with a gradient at zero that is not NaN."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.checks import check_floating

# how leaves are grouped: by name, or by a function from the path of a leaf to the name of its group
Per = str | Callable[[tuple[str, ...]], str]
GROUPINGS = ("tree", "leaf", "layer")


def unit(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """The direction and the logarithm of the length of an array taken as one vector.

    Args:
        v: any shape.

    Returns:
        v / |v| and ln |v|; (0, -inf) where v is zero.

    Example:
        >>> direction, length = unit(jnp.asarray([3e-30, 4e-30], jnp.float32))
        >>> direction.round(3).tolist(), round(float(length / jnp.log(10.0)), 2)
        ([0.6000000238418579, 0.800000011920929], -29.3)
    """
    # the scale cancels: a derivative through it is rounding at best, and NaN where XLA compares recomputed values
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    zero = largest == 0
    scale = jnp.where(zero, 1.0, largest)
    scaled = v / scale
    # the root is taken of 1 where there is nothing, so that its gradient stays finite
    length = jnp.sqrt(jnp.where(zero, 1.0, jnp.sum(scaled**2)))
    return scaled / length, jnp.where(zero, -jnp.inf, jnp.log(scale) + jnp.log(length))


class Product(NamedTuple):
    """A matrix left^T right, not multiplied out: the gradient of a dense layer's kernel.

    Attributes:
        left: what the layer read, one vector per example.
        right: the gradient of what it gave, likewise.
    """

    left: Float[Array, "*batch n_in"]
    right: Float[Array, "*batch n_out"]

    @property
    def full(self) -> Float[Array, "n_in n_out"]:
        """The matrix itself."""
        if self.left.ndim == 1:
            return jnp.outer(self.left, self.right)
        left, right = (side.reshape(-1, side.shape[-1]) for side in self)
        return left.T @ right

    @property
    def log_norm(self) -> Float[Array, ""]:
        """The logarithm of its norm; of a single example |left| |right|, and no matrix is formed."""
        if self.left.ndim == 1:
            return unit(self.left)[1] + unit(self.right)[1]
        (left, in_left), (right, in_right) = (jax.vmap(unit)(side.reshape(-1, side.shape[-1])) for side in self)
        logs = in_left + in_right
        # the largest term has norm 1: what is lost below the float range is below its rounding
        largest = jax.lax.stop_gradient(jnp.max(logs))
        largest = jnp.where(largest == -jnp.inf, 0, largest)
        square = jnp.sum((_transposed(left) @ (right * jnp.exp(logs - largest)[:, None])) ** 2)
        # the logarithm is taken of 1 where there is nothing, so that its gradient stays finite
        return jnp.where(square == 0, -jnp.inf, jnp.log(jnp.where(square == 0, 1, square)) / 2 + largest)


def _transposed(left: Float[Array, "batch n"]) -> Float[Array, "n batch"]:
    # a product that transposes its left factor by itself is half as fast where XLA's pool has threads to spare, as
    # decompositions need
    return jax.lax.optimization_barrier(left.T)


def log_norm(tree: PyTree) -> Float[Array, ""]:
    """The logarithm of the norm of all leaves together.

    Args:
        tree: arrays and `Product`s; leaves that are no numbers, as PRNG keys have in the place of a gradient, do not
            count.

    Returns:
        ln of the norm; -inf where all is zero.

    Example:
        >>> round(float(jnp.exp(log_norm({"w": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}))), 4)
        5.0
    """
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Product))
    logs = [
        leaf.log_norm if isinstance(leaf, Product) else unit(leaf)[1]
        for leaf in leaves
        if isinstance(leaf, Product) or leaf.dtype != jax.dtypes.float0
    ]
    return jax.nn.logsumexp(2 * jnp.stack(logs)) / 2


class Norm(NamedTuple):
    """A Euclidean norm of the finite entries, |x| = scale * root, in two factors so that it cannot overflow.

    Attributes:
        scale: 1 in the usual case, else the largest finite |entry| or near it; > 0.
        root: norm of x / scale; 0 where every finite entry is zero.
        nonfinite: number of NaN and infinite entries, which are left out.
    """

    scale: Float[Array, "..."]
    root: Float[Array, "..."]
    nonfinite: Int[Array, "..."]

    @property
    def value(self) -> Float[Array, "..."]:
        """The norm itself; inf where it exceeds the float range."""
        return self.scale * self.root

    @property
    def log(self) -> Float[Array, "..."]:
        """Its natural logarithm, finite wherever the norm is not zero."""
        return jnp.log(self.scale) + jnp.log(self.root)


def check_per(per: Per) -> None:
    """Refuse a grouping that is none.

    Args:
        per: "tree", "leaf", "layer" or a callable.

    Raises:
        ValueError: if it is something else.
    """
    if not callable(per) and per not in GROUPINGS:
        raise ValueError(f"per must be one of {', '.join(GROUPINGS)} or a callable path -> label, got {per!r}")


def _layered(path: tuple[str, ...], ndim: int) -> bool:
    """Whether the leading axis of a leaf is a layer axis: below a top-level "blocks", of Flax variables too."""
    top = path[1:] if path[:1] == ("params",) else path
    return top[:1] == ("blocks",) and ndim > 0


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _group(path: tuple[str, ...], ndim: int, per: Per) -> tuple[str, bool]:
    """The label of a leaf, and whether its leading axis is a layer axis with one norm per layer."""
    if callable(per):
        return per(path), False
    if per == "tree":
        return "tree", False
    if per == "leaf":
        return "/".join(path) or "leaf", False
    module = path if path[-1:] == ("blocks",) else path[:-1]
    return "/".join(module) or "root", _layered(path, ndim)


class _Member(NamedTuple):
    label: str
    stacked: bool
    leaf: Array

    def reduce(self, reduction: Callable, x: Array) -> Array:
        return reduction(x, axis=tuple(range(int(self.stacked), x.ndim)))

    def spread(self, value: Array) -> Array:
        """A value of the group, shaped to broadcast over the leaf."""
        return value.reshape(value.shape + (1,) * (self.leaf.ndim - 1)) if value.ndim else value


def _members(tree: PyTree, per: Per) -> list[_Member]:
    check_per(per)
    members = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys, array = _keys(path), jnp.asarray(leaf)
        check_floating("/".join(keys) or "the array", array.dtype)
        members.append(_Member(*_group(keys, array.ndim, per), array))
    return members


def accumulator(*dtypes: DTypeLike) -> jnp.dtype:
    """The dtype in which squares of leaves are summed: at least float32.

    Args:
        dtypes: of the leaves, floating.

    Returns:
        float64 if one of them is, else float32.
    """
    return jnp.dtype(jnp.float64 if any(jnp.dtype(d) == jnp.float64 for d in dtypes) else jnp.float32)


def _plain_sum(members: list[_Member], dtype: jnp.dtype) -> Array:
    # the same expression as optax's norm, leaf by leaf, so that XLA computes it once for both
    squares = [m.reduce(jnp.sum, jnp.square(m.leaf.astype(accumulator(m.leaf.dtype)))).astype(dtype) for m in members]
    shapes = {s.shape for s in squares}
    if len(shapes) > 1:
        raise ValueError(f"leaves of group {members[0].label!r} disagree on the number of layers: {sorted(shapes)}")
    return functools.reduce(jnp.add, squares)


def _usual(total: Array, size: int) -> Array:
    """Whether a sum of this many squares is right: neither overflown nor lost below the least float."""
    info = jnp.finfo(total.dtype)
    # a square below `tiny` is lost; all of them together are below rounding where the sum exceeds this
    return jnp.isfinite(total) & (total >= size * float(info.tiny) / float(info.eps))


def safe_scale(largest: Float[Array, "..."]) -> Float[Array, "..."]:
    """What to divide entries by, so that their squares neither overflow nor vanish.

    Args:
        largest: magnitude of the largest entry.

    Returns:
        The magnitude itself, 1 for 0, and at most 1 / (4 tiny).

    Example:
        >>> safe_scale(jnp.asarray([0.0, 1e-30, 5.0])).tolist()
        [1.0, ...e-3..., 5.0]
    """
    # XLA may multiply by the reciprocal, which must not be subnormal: those are flushed to zero
    return jnp.where(largest == 0, 1, jnp.minimum(largest, 1 / (4 * float(jnp.finfo(largest.dtype).tiny))))


def _scaled(members: list[_Member], dtype: jnp.dtype) -> Norm:
    finite = [jnp.isfinite(m.leaf) for m in members]
    kept = [jnp.where(f, m.leaf, 0).astype(dtype) for f, m in zip(finite, members, strict=True)]
    largest = functools.reduce(
        jnp.maximum,
        [m.reduce(functools.partial(jnp.max, initial=0), jnp.abs(x)) for m, x in zip(members, kept, strict=True)],
    )
    scale = jax.lax.stop_gradient(safe_scale(largest))
    total = functools.reduce(
        jnp.add, [m.reduce(jnp.sum, jnp.square(x / m.spread(scale))) for m, x in zip(members, kept, strict=True)]
    )
    # the root is taken of 1 where there is nothing, so that its gradient is zero and not NaN
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    bad = [m.reduce(functools.partial(jnp.sum, dtype=jnp.int32), ~f) for f, m in zip(finite, members, strict=True)]
    return Norm(scale, root, functools.reduce(jnp.add, bad))


def group_norms(tree: PyTree, per: Per = "tree") -> dict[str, Norm]:
    """Norms of groups of leaves, right for every magnitude, at the cost of one pass over the data.

    The usual case is sqrt(sum x^2), squares summed in at least float32. Where a sum overflows, nears underflow or
    meets NaN, all is computed again from entries divided by the largest of them. (Under `jax.vmap` both are.)

    Args:
        tree: floating arrays; empty subtrees are skipped.
        per: "tree" for one norm of all leaves; "leaf" for one of each array; "layer" for one of each module, which is
            the leaves that differ only in the last key of their path. Leaves below a top-level "blocks" (of `Params`
            or of Flax variables) carry a leading layer axis, and "layer" gives one norm per layer there. Or a
            callable that maps a path of keys, ("blocks", "dense", "kernel"), to the name of its group.

    Returns:
        Norms by name of group, each of shape [] or [depth].

    Raises:
        ValueError: if per is unknown, a leaf is not floating, or leaves of one module disagree on the depth.

    Example:
        >>> grads = {"dense": {"kernel": jnp.full(4, 1e25, jnp.float32), "bias": jnp.zeros(2)}}
        >>> {label: float(norm.value) for label, norm in group_norms(grads, "layer").items()}
        {'dense': 1.9...e+25}
    """
    groups: dict[str, list[_Member]] = {}
    for member in _members(tree, per):
        groups.setdefault(member.label, []).append(member)
    if not groups:
        nothing = jnp.zeros((), jnp.float32)
        return {"tree": Norm(nothing + 1, nothing, jnp.zeros((), jnp.int32))} if per == "tree" else {}
    dtypes = {k: accumulator(*(m.leaf.dtype for m in group)) for k, group in groups.items()}
    sums = {label: _plain_sum(group, dtypes[label]) for label, group in groups.items()}
    fits = {label: _usual(sums[label], sum(m.leaf.size for m in group)) for label, group in groups.items()}
    plain = lambda: {
        k: Norm(jnp.ones_like(s), jnp.sqrt(jnp.where(fits[k], s, 1)), jnp.zeros(s.shape, jnp.int32))
        for k, s in sums.items()
    }
    scaled = lambda: {label: _scaled(group, dtypes[label]) for label, group in groups.items()}
    return jax.lax.cond(functools.reduce(jnp.logical_and, [jnp.all(f) for f in fits.values()]), plain, scaled)


def norm(tree: PyTree) -> Norm:
    """The norm of all leaves together; see `group_norms`.

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
    """The norm of all leaves by the plain sum of (x / scale)^2, in one pass and without a conditional.

    A conditional, as in `norm`, makes XLA keep its operand; after this the arrays can be overwritten in place.

    Args:
        tree: floating arrays.
        scale: what to measure in, > 0, with a normal reciprocal: entries far from it by the square root of the float
            range (1e19 in float32) overflow or vanish.

    Returns:
        The norm; inf or NaN where an entry is, and nonfinite = 0 always.

    Example:
        >>> float(quick_norm([jnp.full(4, 1e30, jnp.float32)], jnp.asarray(1e30, jnp.float32)).root)
        2.0
    """
    members = _members(tree, "tree")
    if not members:
        return norm(tree)
    dtype = accumulator(*(m.leaf.dtype for m in members))
    scale = scale.astype(dtype)
    total = _plain_sum([m._replace(leaf=m.leaf.astype(dtype) / scale) for m in members], dtype)
    # the root is taken of 1 where there is nothing, so that its gradient is zero and not NaN
    root = jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total)))
    return Norm(scale, root, jnp.zeros((), jnp.int32))


def layered_leaves(tree: PyTree) -> PyTree:
    """Which leaves carry a leading layer axis.

    Args:
        tree: arrays.

    Returns:
        The same tree of bools: True below a top-level "blocks".

    Example:
        >>> layered_leaves({"blocks": {"bias": jnp.zeros((4, 2))}, "readout": {"bias": jnp.zeros(2)}})
        {'blocks': {'bias': True}, 'readout': {'bias': False}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _layered(_keys(path), jnp.ndim(leaf)), tree)


def map_groups(f: Callable, tree: PyTree, per: Per, *values: dict[str, Array]) -> PyTree:
    """Apply a function to every leaf with the values of its group.

    Args:
        f: (leaf, value of its group from each of values) -> leaf; a value per layer comes shaped [depth, 1, ..., 1].
        tree: floating arrays.
        per: the grouping of `group_norms`.
        values: by name of group, each of shape [] or [depth].

    Returns:
        The tree of results.

    Example:
        >>> grads = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([6.0, 8.0])}
        >>> scales = {"a": jnp.asarray(1.0), "b": jnp.asarray(0.5)}
        >>> map_groups(lambda x, s: s * x, grads, "leaf", scales)["b"].tolist()
        [3.0, 4.0]
    """
    leaves = [f(m.leaf, *(m.spread(v[m.label]) for v in values)) for m in _members(tree, per)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
