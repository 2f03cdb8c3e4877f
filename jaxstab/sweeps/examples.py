"""Examples for the cells of a grid: pairs of inputs for measures, and data to train and test on."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxstab.checks import check_labels
from jaxstab.records import Data
from jaxstab.sweeps.grid import Grid


class Sample(NamedTuple):
    """Inputs of one measurement.

    Attributes:
        x: input of mean square 1, or a batch of inputs if the grid sets `batch`.
        other: second input, or batch of inputs, for correlations.
        label: class of x.
    """

    x: Float[Array, "*cells d_in"]
    other: Float[Array, "*cells d_in"]
    label: Int[Array, "*cells"]


def samples(grid: Grid, data: Data, batch: int | None = None) -> Sample:
    """Draw pairs of different examples for every seed, without replacement.

    Inputs have mean square 1 and the grid's dtype; inputs of a user's own network are not
    changed.

    Args:
        grid: grid with the seeds and the number of inputs.
        data: examples.
        batch: examples of an input; None for inputs of one example.

    Returns:
        A sample with leading axes [seeds, inputs], or [seeds, inputs, batch] for batches.

    Raises:
        ValueError: if there are fewer examples than one seed needs, or a label has no output.
    """
    own = grid.network is not None
    inputs = grid.fixed["inputs"]
    if not own:
        check_labels(data.y, grid.fixed["outputs"] or classes(data))
    shape: tuple[int, ...] = (2, inputs)
    if batch is not None:
        shape = (*shape, batch)
    needed = math.prod(shape)
    if len(data.x) < needed:
        raise ValueError(
            f"{needed // 2} inputs need {needed} examples, {data.name} has {len(data.x)}"
        )
    draws = [
        np.random.default_rng(seed).choice(len(data.x), needed, replace=False)
        for seed in grid.values("seed")
    ]
    pairs = np.stack(draws).reshape(len(draws), *shape)
    first = pairs[:, 0]
    second = pairs[:, 1]
    if own:
        x = data.x
    else:
        x = data.normalised().x.astype(grid.fixed["dtype"])
    return Sample(jnp.asarray(x[first]), jnp.asarray(x[second]), jnp.asarray(data.y[first]))


def classes(data: Data) -> int:
    """Count the classes of data.

    Args:
        data: examples with labels from 0.

    Returns:
        The largest label plus one.
    """
    return int(data.y.max()) + 1


class Split(NamedTuple):
    """Training data and test data.

    Attributes:
        train: training data.
        test: test data.
    """

    train: Data
    test: Data

    @classmethod
    def of(cls, data: Data) -> "Split":
        """Split data at random with a fixed seed: a fifth for testing, the rest for training.

        Args:
            data: at least two examples.

        Returns:
            The split.

        Raises:
            ValueError: if there are fewer than two examples.
        """
        if len(data.x) < 2:
            raise ValueError(
                f"{data.name}: at least two examples are needed, to train and to test on, got "
                f"{len(data.x)}"
            )
        order = np.random.default_rng(0).permutation(len(data.x))
        cut = max(1, len(order) // 5)
        train = order[cut:]
        test = order[:cut]
        return cls(
            Data(data.x[train], data.y[train], f"{data.name}, training"),
            Data(data.x[test], data.y[test], f"{data.name}, test"),
        )

    @property
    def features(self) -> int:
        """Number of input features."""
        return self.train.x.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(map(classes, self))

    @property
    def chance(self) -> float:
        """Accuracy on the training data of always predicting the most frequent class."""
        return float(np.bincount(self.train.y).max() / len(self.train.y))
