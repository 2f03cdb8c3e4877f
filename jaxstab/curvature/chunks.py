"""Means over examples, one chunk at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxstab.norms.meshes import varying_like


def mean_over_chunks(
    function: Callable[[PyTree], Array], examples: PyTree, chunk_size: int
) -> Array:
    """Average over examples, one chunk at a time.

    Args:
        function: chunk -> array, a mean over the chunk.
        examples: a pytree whose leaves have a leading axis of examples; a pytree without leaves is
            one chunk.
        chunk_size: number of examples in a chunk; the last chunk may be smaller.

    Returns:
        The mean over all examples.
    """
    if not jax.tree.leaves(examples):
        return function(examples)
    count = examples_of(examples)
    if chunk_size >= count:
        return function(examples)
    chunks, rest = divmod(count, chunk_size)

    def chunked(leaf: Array) -> Array:
        return leaf[: chunks * chunk_size].reshape(chunks, chunk_size, *leaf.shape[1:])

    def step(total: Array, chunk: PyTree) -> tuple[Array, None]:
        return total + function(chunk), None

    stacked = jax.tree.map(chunked, examples)
    of_one = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], stacked))
    nothing = varying_like(jnp.zeros(of_one.shape, of_one.dtype), of_one)
    total, _ = jax.lax.scan(step, nothing, stacked)
    mean = total * (chunk_size / count)
    if rest:
        mean = mean + function(jax.tree.map(lambda leaf: leaf[-rest:], examples)) * (rest / count)
    return mean


def examples_of(examples: PyTree) -> int:
    """Count examples.

    Args:
        examples: a pytree whose leaves have a leading axis of examples.

    Returns:
        Number of examples.

    Raises:
        ValueError: if there are no examples, or leaves differ in their number.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(examples)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            f"examples must share a leading axis of at least one example, got shapes {shapes}"
        )
    return counts.pop()
