"""Paths of leaves, and the leaves that are stacked over layers."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

Path = tuple[str, ...]
# rule of grouping leaves: its name, or a function from the path of a leaf to the name of its group
Per = str | Callable[[Path], str]
# leaves with a leading layer axis: leaves at or below these paths, or whose path the function
# accepts
Stacked = str | Sequence[str] | Callable[[Path], bool]
GROUPINGS = ("tree", "leaf", "layer")


class Grouping(NamedTuple):
    """Rule by which leaves are grouped.

    Attributes:
        per: "tree", "leaf", "layer" or a callable, see `jaxstab.norms.group_norms`.
        stacked: leaves with a leading layer axis, see `jaxstab.norms.group_norms`.
    """

    per: Per = "tree"
    stacked: Stacked = ()


def check_grouping(per: Per, stacked: Stacked = ()) -> Grouping:
    """Check the arguments of a grouping.

    Args:
        per: "tree", "leaf", "layer" or a callable.
        stacked: paths, or a callable; for per="layer" only.

    Returns:
        The grouping.

    Raises:
        ValueError: if per is something else, or stacked is given for another per than "layer".
    """
    if not callable(per) and per not in GROUPINGS:
        raise ValueError(
            f"per must be one of {', '.join(GROUPINGS)} or a callable path -> label, got {per!r}"
        )
    if per != "layer" and (callable(stacked) or len(stacked) > 0):
        raise ValueError(
            'stacked needs per="layer", which gives a norm to each layer of a stack, got '
            f"per={per!r}"
        )
    return Grouping(per, stacked)


def _is_box(node: Any) -> bool:
    """Check whether a node is a box of one array: linen's `AxisMetadata` or nnx's `Variable`."""
    kind = type(node)
    return hasattr(kind, "replace_boxed") or (
        hasattr(kind, "get_metadata") and hasattr(kind, "set_metadata")
    )


def _has_stacks(node: Any) -> bool:
    """Check whether a node names its stacked fields, as `jaxstab.networks.Params` does."""
    return hasattr(type(node), "stacked_fields")


def _is_empty(node: Any) -> bool:
    return not jax.tree.leaves(node)


def _names(path: tuple) -> Path:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def named_leaves(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[Path, Any]]:
    """List the leaves of a tree with their paths, in the order of `jax.tree.leaves`.

    Paths leave out Flax's boxes (`nn.Partitioned`, `nnx.Param`), so that a tree has the same paths
    with and without boxes.

    Args:
        tree: any tree.
        is_leaf: function that returns True for nodes to take as leaves.

    Returns:
        Pairs of path and leaf.

    Example:
        >>> [("/".join(path), leaf) for path, leaf in named_leaves({"l": [{"bias": 1.0}, {"bias": 2.0}]})]
        [('l/0/bias', 1.0), ('l/1/bias', 2.0)]
    """
    if is_leaf is None:
        stops = _is_box
    else:
        stops = lambda node: _is_box(node) or is_leaf(node)
    leaves = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops):
        names = _names(path)
        if not _is_box(node):
            leaves.append((names, node))
            continue
        for inside, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
            # inside[0] is the box's own key
            leaves.append((names + _names(inside[1:]), leaf))
    return leaves


def _stacks(tree: PyTree, stacked: Stacked) -> list[str]:
    """List the paths below which every leaf is stacked: the given ones, and those that nodes name."""
    if callable(stacked):
        return []
    if isinstance(stacked, str):
        stacked = [stacked]
    named = list(stacked)
    parts = []
    if named:
        # masked or empty parts are still parts of the tree
        parts = ["/".join(path) for path, _ in named_leaves(tree, is_leaf=_is_empty)]
    for name in named:
        if parts and not any(_within(part, name) or _within(name, part) for part in parts):
            raise ValueError(
                f"stacked must name paths of the tree, {', '.join(parts[:6])}, ..., got {name!r}"
            )
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_has_stacks):
        if _has_stacks(node):
            named += ["/".join([*_names(path), field]) for field in node.stacked_fields]
    return named


def _within(path: str, stack: str) -> bool:
    return path == stack or path.startswith(stack + "/") or stack == ""


def stack_of(tree: PyTree, stacked: Stacked) -> Callable[[Path], bool]:
    """Make the test whether a path is at or below a stack.

    Args:
        tree: tree of the paths.
        stacked: paths at or below which leaves are stacked, or the test itself.

    Returns:
        Function of a path that returns True at or below a stack.

    Raises:
        ValueError: if a path is not in the tree.
    """
    if callable(stacked):
        return stacked
    stacks = _stacks(tree, stacked)
    return lambda path: any(_within("/".join(path), stack) for stack in stacks)


def group_of(
    path: Path, grouping: Grouping, is_stacked: Callable[[Path], bool]
) -> tuple[str, bool]:
    """Return the group of a leaf.

    Args:
        path: path of the leaf.
        grouping: rule of grouping.
        is_stacked: test from `stack_of`.

    Returns:
        Name of the group, and True if each entry of the leaf's leading axis has a norm of its own.
    """
    per = grouping.per
    if callable(per):
        return per(path), False
    if per == "tree":
        return "tree", False
    if per == "leaf":
        return "/".join(path) or "leaf", False
    if not is_stacked(path):
        return "/".join(path[:-1]) or "root", False
    # a stack of a single array is a module of its own
    alone = not callable(grouping.stacked) and not is_stacked(path[:-1])
    return "/".join(path if alone else path[:-1]) or "root", True


def stacked_leaves(tree: PyTree, stacked: Stacked = ()) -> PyTree:
    """Flag the leaves with a leading layer axis.

    Args:
        tree: arrays.
        stacked: see `jaxstab.norms.group_norms`.

    Returns:
        Tree of booleans with the same structure.

    Raises:
        ValueError: if a path is not in the tree.

    Example:
        >>> import jax.numpy as jnp
        >>> stacked_leaves({"blocks": {"bias": jnp.zeros((4, 2))}, "readout": {"bias": jnp.zeros(2)}}, "blocks")
        {'blocks': {'bias': True}, 'readout': {'bias': False}}
    """
    is_stacked = stack_of(tree, stacked)
    flags = [bool(is_stacked(path)) for path, _ in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), flags)
