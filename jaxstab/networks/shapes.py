"""Shapes of a pytree's leaves, and whether another pytree has the same."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and precision of an array or a number.

    Args:
        leaf: the array.

    Returns:
        Both.
    """
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def text_of(leaf: jax.ShapeDtypeStruct) -> str:
    """Write a shape as float32[2, 3].

    Args:
        leaf: shape and precision.

    Returns:
        The text.
    """
    return f"{leaf.dtype}{list(leaf.shape)}"


def check_alike(made_with: PyTree, given: PyTree) -> None:
    """Check that parameters and inputs have the structure and shapes that a probe was made with.

    Args:
        made_with: shapes of parameters, other variables, inputs and keys.
        given: the values.

    Raises:
        ValueError: if they differ; names the first leaf that does.
    """
    parts = ("parameters", "other variables", "inputs", "rngs")
    for part, made, now in zip(parts, made_with, given, strict=True):
        structures = [str(jax.tree.structure(tree)) for tree in (made, now)]
        if structures[0] != structures[1]:
            raise ValueError(
                f"{part} must have the structure with which the probe was made, {structures[0]}, "
                f"got {structures[1]}"
            )
        paths = jax.tree_util.tree_leaves_with_path(made)
        for (where, leaf), value in zip(paths, jax.tree.leaves(now), strict=True):
            if leaf != shape_of(value):
                place = jax.tree_util.keystr(where)
                raise ValueError(
                    f"{part}{place} must be {text_of(leaf)}, as when the probe was made, got "
                    f"{text_of(shape_of(value))}; make another probe for other shapes"
                )
