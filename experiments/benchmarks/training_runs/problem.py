"""The trainings: every side starts from the same weights and sees the same minibatches, given as arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import networks
from jaxstab.records import Data
from jaxstab.sweeps import Grid, Split

LEARNING_RATE = 0.01


class Weights(NamedTuple):
    """Kernels [n_in, n_out] and biases [n_out], of blocks behind an axis of layers; of cells all behind one more."""

    embed: tuple[Any, Any]
    blocks: Any
    readout: tuple[Any, Any]

    def listed(self) -> "Weights":
        """The blocks as a list of (kernel, bias), one per layer; of arrays that have an axis of cells."""
        kernels, biases = self.blocks
        return self._replace(
            blocks=[(kernels[:, layer], biases[:, layer]) for layer in range(kernels.shape[1])]
        )


class Result(NamedTuple):
    """Of all trainings, over depth and cell.

    Attributes:
        losses: on each minibatch, before its step [depth, cell, step].
        accuracy: share right of all training and of all test examples after the last step [depth, cell, 2].
        compiling: seconds that the call says it spent compiling.
    """

    losses: np.ndarray
    accuracy: np.ndarray
    compiling: float = 0.0


class Problem(NamedTuple):
    """SGD on the mean cross-entropy of tanh networks, for every depth and gain; a gain is called a cell.

    Attributes:
        grid: what to train.
        split: data, normalised.
        unit: weights of gain 1 and biases of the deepest network; the others have the first of its blocks.
        batches: training examples [step, batch].
    """

    grid: Grid
    split: Split
    unit: Weights
    batches: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """Inputs, those to train on first."""
        return np.concatenate([part.x for part in self.split])

    @property
    def y(self) -> np.ndarray:
        """Their classes."""
        return np.concatenate([part.y for part in self.split])

    @property
    def cells(self) -> int:
        """Networks of a depth."""
        return len(self.grid.values("sigma_w"))

    @property
    def depths(self) -> tuple[int, ...]:
        """Their depths."""
        return tuple(self.grid.values("depth"))

    @property
    def width(self) -> int:
        """Units of a layer."""
        return self.grid.fixed["width"]

    @property
    def steps(self) -> int:
        """Updates."""
        return len(self.batches)

    @property
    def trainings(self) -> int:
        """Networks in all."""
        return self.cells * len(self.depths)

    @property
    def flops(self) -> float:
        """Of the matrix products.

        In a step 3 for each layer: forwards, for the gradient of its input and for that of its weights; no one wants
        the gradient of the data. At the end one for each layer, over all examples.
        """
        d_in, n, classes = (
            self.unit.embed[0].shape[0],
            self.width,
            self.unit.readout[1].shape[0],
        )
        updates = sum(3 * depth * n * n + 2 * d_in * n + 3 * n * classes for depth in self.depths)
        looks = sum(depth * n * n + d_in * n + n * classes for depth in self.depths)
        return 2.0 * self.cells * (self.batches.size * updates + len(self.x) * looks)

    def weights(self, depth: int, gain: float | None = None) -> Weights:
        """To start from [cell, ...], all at one gain if it is given."""
        gains = (
            np.full(self.cells, gain, np.float32)
            if gain
            else np.asarray(self.grid.values("sigma_w"), np.float32)
        )
        kernels, biases = self.unit.blocks
        cut = self.unit._replace(blocks=(kernels[:depth], biases[:depth]))
        return Weights(
            *((np.multiply.outer(gains, k), np.repeat(b[None], len(gains), axis=0)) for k, b in cut)
        )

    def accuracy(self, hits: np.ndarray) -> np.ndarray:
        """Shares of training and of test examples [..., 2], of which are right [..., example]."""
        ends = len(self.split.train.x)
        return np.stack([hits[..., :ends].mean(-1), hits[..., ends:].mean(-1)], axis=-1)

    def first(self, steps: int) -> "Problem":
        """The same, stopped early."""
        return self._replace(batches=self.batches[:steps])

    def only(self, cells: slice) -> "Problem":
        """Some of the gains."""
        return self._replace(grid=self.grid.but(sigma_w=self.grid.values("sigma_w")[cells]))


def halves(data: Data, share: float = 0.8) -> Split:
    """Training and test data, mixed."""
    order, ends = np.random.default_rng(0).permutation(len(data.x)), round(share * len(data.x))
    data = data.normalised()
    return Split(*(Data(data.x[at], data.y[at], data.name) for at in (order[:ends], order[ends:])))


def draw(grid: Grid, steps: int, split: Split) -> Problem:
    """The weights and minibatches that `jaxstab.sweeps` draws for the grid's first seed."""
    mlp = grid.mlp(grid.kinds[0], grid.deepest, split.classes)
    many = len(split.train.x)
    batch = grid.fixed["batch"]
    sigma_b = grid.fixed["sigma_b"]
    epochs = -(-steps // (many // batch))

    def drawn(key: jax.Array) -> tuple[networks.Params, jax.Array]:
        weights, run = jax.random.split(key)
        orders, _ = jax.random.split(run)
        examples = jnp.arange(many, dtype=jnp.int32)
        shuffled = lambda epoch: jax.random.permutation(jax.random.fold_in(orders, epoch), examples)
        params = networks.chain(mlp).init(weights, jnp.asarray(split.train.x[:2]), 1.0, sigma_b)
        return params, jax.vmap(shuffled)(jnp.arange(epochs, dtype=jnp.int32))

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params, orders = jax.tree.map(np.asarray, jax.jit(drawn)(jax.random.key(0)))
    unit = Weights(*((part["dense"]["kernel"], part["dense"]["bias"]) for part in params))
    batches = orders[:, : many // batch * batch].reshape(-1, batch)[:steps]
    return Problem(grid, split, unit, batches)
