"""What is taken of each network of a grid, and the memory that takes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import networks, propagation, spectra, training
from jaxstab.sweeps.grid import Grid, Sample

# layers' worth of weights that are there a second time, in random bits on their way to weights and
# in slices
LAYERS = 8

Record = Any
Measure = Callable[
    [networks.Chain, networks.Params, Sample, Sequence[int]], Record | tuple[Record, ...]
]


def signal(
    chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]
) -> tuple[Record, ...]:
    """Measure: forward, correlation and backward profiles, the loss being (mean) softmax cross-entropy.

    Args:
        chain: the network.
        params: its parameters.
        sample: inputs and label.
        depths: depths at which the loss is attached.

    Returns:
        ForwardProfile, CorrelationProfile, BackwardProfile.
    """
    loss = lambda y: training.cross_entropy(y, sample.label)
    return (
        propagation.forward(chain, params, sample.x),
        propagation.correlation(chain, params, sample.x, sample.other),
        propagation.backward(chain, params, sample.x, loss, depths),
    )


def jacobian(
    chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]
) -> Record:
    """Measure: log singular values of the input-output Jacobian at every depth; of all of a batch at once.

    Args:
        chain: the network.
        params: its parameters.
        sample: inputs and label.
        depths: depths wanted.

    Returns:
        Spectrum.
    """
    if isinstance(chain.block, tuple):
        return spectra.spectrum(chain, params, sample.x, depths)
    if sample.x.ndim == 2:
        chain = networks.flatten(chain, len(sample.x))
    return spectra.spectrum(chain, params, sample.x.ravel(), depths)


class Memory(NamedTuple):
    """Bytes of a grid's cells that are computed at once, on a CPU; of the two measures within 25 % of what XLA says.

    Attributes:
        seed: of all cells of one seed together: their weights, and what drawing and slicing a few
            layers takes.
        cell: of each network besides, at all its inputs.
    """

    seed: int
    cell: int

    def of(self, seeds: int, cells: int) -> int:
        """Bytes that so many take together.

        Args:
            seeds: draws of weights.
            cells: networks, over all seeds.

        Returns:
            The bytes.
        """
        return seeds * self.seed + cells * self.cell


def memory(grid: Grid, d_in: int, measure: Measure | None = None) -> Memory:
    """What the cells of a grid take of memory at their peak.

    Args:
        grid: the grid.
        d_in: input features.
        measure: `signal` or `jacobian`; None for the larger of the two, which any other is taken
            for.

    Returns:
        The bytes.
    """
    mlp = grid.network(grid.activations[0])
    shapes = jax.eval_shape(
        lambda: networks.init(mlp, jax.random.key(0), jnp.ones(d_in, jnp.float32))
    )
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(grid.dtype)), shapes
    )
    size = grid.width * mlp.sources
    examples = grid.batch or 1
    of_signal = propagation.backward_memory(params, size, grid.depths, grid.inputs, grid.batch)
    of_jacobian = spectra.log_spectrum_memory(
        size * examples, grid.depths, grid.inputs, d_in * examples, grid.dtype
    )
    cell = (
        of_signal
        if measure is signal
        else of_jacobian
        if measure is jacobian
        else max(of_signal, of_jacobian)
    )
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return Memory(weights + LAYERS * weights // (mlp.depth + 2), cell)
