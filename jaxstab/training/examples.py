"""Examples of a training run: their minibatches, their labels and their checks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.checks import check_batch, check_count, check_floating, check_labels, check_looks
from jaxstab.curvature.objectives import cross_entropy

Loss = Callable[[PyTree, PyTree], Float[Array, ""]]


class Examples(NamedTuple):
    """Inputs and labels.

    Attributes:
        x: inputs [n, ...]; for layers of the user's own a pytree of inputs, tokens included.
        y: class labels from 0, or other targets of the loss.
    """

    x: PyTree
    y: PyTree

    @property
    def size(self) -> int:
        """Number of examples n."""
        return len(jax.tree.leaves(self.x)[0])

    def at(self, index: Int[Array, " batch"] | slice) -> "Examples":
        """Select examples.

        Args:
            index: numbers of the examples.

        Returns:
            Examples with these numbers.
        """
        return jax.tree.map(lambda leaf: leaf[index], self)


def minibatch(
    data: Examples, size: int | None, key: Array, t: Array, order: Array
) -> tuple[Array, Examples]:
    """Select the examples of a step; every epoch has an order of its own.

    Args:
        data: all examples.
        size: examples of a step; None for all.
        key: key of the orders.
        t: number of the step.
        order: order of the epoch of the step before.

    Returns:
        Order of the epoch of step t, and the examples of the step.
    """
    if size is None:
        return order, data
    per_epoch = len(order) // size

    def shuffled() -> Array:
        epoch = jax.random.fold_in(key, t // per_epoch)
        return jax.random.permutation(epoch, jnp.arange(len(order), dtype=jnp.int32))

    order = jax.lax.cond(t % per_epoch == 0, shuffled, lambda: order)
    chosen = jax.lax.dynamic_slice_in_dim(order, t % per_epoch * size, size)
    return order, data.at(chosen)


def accuracy(y: PyTree, labels: PyTree) -> Array:
    """Compute the accuracy of outputs.

    Args:
        y: outputs.
        labels: targets of the loss.

    Returns:
        Share of the outputs that are largest at their label; NaN where labels are not classes.
    """
    if not _are_classes(y, labels):
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(y, -1).astype(labels.dtype) == labels, dtype=y.dtype)


def _are_classes(y: PyTree, labels: PyTree) -> bool:
    """Return True if labels are one integer per row of outputs."""
    if not (isinstance(y, jax.Array) and isinstance(labels, jax.Array | np.ndarray)):
        return False
    return bool(jnp.issubdtype(labels.dtype, jnp.integer)) and y.shape[:-1] == labels.shape


def check_run(
    data: Examples, steps: int, batch: int | None, evaluate: Sequence[int], own: bool
) -> None:
    """Check examples, updates and evaluations of a run.

    Args:
        data: training data.
        steps: updates.
        batch: examples of a step; None for all.
        evaluate: numbers of updates after which all data are evaluated.
        own: True for layers of the user's own, which may take integers.

    Raises:
        ValueError: if a count is out of range, or inputs and labels differ in number.
    """
    check_count("steps", steps, 1)
    if not own:
        check_floating("x", data.x.dtype)
    counts = [len(leaf) for leaf in jax.tree.leaves(data)]
    if 0 in counts or len(set(counts)) > 1:
        raise ValueError(
            "data must have as many labels as inputs, at least one, got "
            f"{counts[-1]} labels and {counts[0]} inputs"
        )
    check_looks(evaluate, steps)
    check_batch(batch, data.size)


def check_outputs(y: PyTree, loss: Loss, batch: int, data: Examples, test: Examples | None) -> None:
    """Check that the chain takes a batch and that labels are classes.

    Args:
        y: shapes of the outputs.
        loss: (outputs, labels) -> scalar.
        batch: number of examples.
        data: training data.
        test: test data; None without.

    Raises:
        ValueError: if an output has no axis of examples, or a label of the cross-entropy is no
            class.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(y)]
    if any(shape[:1] != (batch,) for shape in shapes):
        raise ValueError(
            f"the network must give an output for each of {batch} examples, got shape {shapes[0]}: "
            "use networks.over_batch(chain) for a chain that takes one input"
        )
    if loss is cross_entropy:
        for some in (data, test):
            if some is not None:
                check_labels(some.y, shapes[0][-1])
