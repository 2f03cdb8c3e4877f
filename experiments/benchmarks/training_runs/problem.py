"""The trainings: every side starts from the same weights and sees the same minibatches, given as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab import networks
from jaxstab.records import Data

SIGMA_B, LEARNING_RATE, CLASSES = 0.05**0.5, 0.01, 10


class Weights(NamedTuple):
    """Kernels [n_in, n_out] and biases [n_out] behind an axis of networks; the blocks with one of layers after it."""

    embed: tuple[Any, Any]
    blocks: tuple[Any, Any]
    readout: tuple[Any, Any]


class Problem(NamedTuple):
    """SGD on the mean cross-entropy of tanh networks, for every depth and "cell": a seed and a gain.

    Attributes:
        depths: numbers of blocks, ascending.
        gains: sigma_w, the faster axis of the cells.
        unit: weights of gain 1 and biases of the deepest networks, one per seed; others have the first of their blocks.
        x: inputs [example, d_in].
        y: classes [example].
        batches: examples [step, batch].
    """

    depths: tuple[int, ...]
    gains: tuple[float, ...]
    unit: Weights
    x: np.ndarray
    y: np.ndarray
    batches: np.ndarray

    @property
    def seeds(self) -> int:
        """Draws of the weights."""
        return len(self.unit.embed[0])

    @property
    def cells(self) -> int:
        """Seeds times gains."""
        return self.seeds * len(self.gains)

    @property
    def trainings(self) -> int:
        """Cells times depths."""
        return self.cells * len(self.depths)

    @property
    def width(self) -> int:
        """Units per layer."""
        return self.unit.embed[0].shape[-1]

    @property
    def flops(self) -> float:
        """Of the matrix products.

        Per step 3 for each layer, forwards, for the gradient of its input and for that of its weights; no one wants the
        gradient of the data.
        """
        (steps, batch), n, d_in = self.batches.shape, self.width, self.x.shape[1]
        each = [3 * depth * n * n + 2 * d_in * n + 3 * n * CLASSES for depth in self.depths]
        return 2.0 * batch * steps * self.cells * sum(each)

    def weights(self, depth: int) -> Weights:
        """To start from: [cell, ...]."""
        blocks = tuple(a[:, :depth] for a in self.unit.blocks)
        gains = np.tile(np.asarray(self.gains, np.float32), self.seeds)
        again = lambda a: np.repeat(a, len(self.gains), axis=0)
        scaled = lambda a: again(a) * gains.reshape(-1, *[1] * (a.ndim - 1))
        return Weights(*((scaled(k), again(b)) for k, b in self.unit._replace(blocks=blocks)))

    def first(self, steps: int) -> "Problem":
        """The same, stopped early."""
        return self._replace(batches=self.batches[:steps])

    def only(self, depths: Sequence[int] | None = None, every: int = 1) -> "Problem":
        """The first seed's, of some depths and every so many gains."""
        unit = jax.tree.map(lambda leaf: leaf[:1], self.unit)
        return self._replace(depths=tuple(depths or self.depths), gains=self.gains[every // 2 :: every], unit=unit)


class Result(NamedTuple):
    """Of all trainings: loss on each minibatch, before its step [depth, cell, step]; share right in the last one."""

    losses: np.ndarray
    right: np.ndarray


def gains(count: int) -> tuple[float, ...]:
    """sigma_w from ordered to chaotic."""
    return tuple(np.linspace(0.5, 2.5, count).tolist())


def draw(
    data: Data, depths: Sequence[int], sigma_w: Sequence[float], seeds: int, steps: int, width: int, batch: int
) -> Problem:
    """Gaussian weights; minibatches without replacement within an epoch."""
    mlp = networks.MLP(max(depths), width, features_out=CLASSES)
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(len(data.x))[: len(data.x) // batch * batch].reshape(-1, batch) for _ in range(steps)]
    one = jax.jit(lambda key: networks.init(mlp, key, np.asarray(data.x[0], np.float32), 1.0, SIGMA_B))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        drawn = [jax.tree.map(np.asarray, one(jax.random.key(seed))) for seed in range(seeds)]
    stack = lambda part, name: np.stack([getattr(params, part)["dense"][name] for params in drawn])
    unit = Weights(*((stack(part, "kernel"), stack(part, "bias")) for part in Weights._fields))
    batches = np.concatenate(epochs)[:steps].astype(np.int32)
    return Problem(tuple(depths), tuple(sigma_w), unit, np.asarray(data.x, np.float32), data.y, batches)
