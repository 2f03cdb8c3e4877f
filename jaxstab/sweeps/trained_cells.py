"""Training of one cell, for a program of a sweep."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from jaxstab import networks, training
from jaxstab.networks.family import init
from jaxstab.sweeps.grid import Grid, Kind
from jaxstab.sweeps.measures import Train
from jaxstab.sweeps.settings import traced
from jaxstab.sweeps.training_plan import fields
from jaxstab.training import Examples

# traced settings by name
Cell = dict[str, Any]


def trained_cell(
    grid: Grid, kind: Kind, bound: int, measure: Train, classes: int
) -> Callable[[Cell, Array, tuple[Examples, Examples]], list[Array]]:
    """Make the function that trains one cell.

    Args:
        grid: grid of trainings.
        kind: static settings of network and optimiser.
        bound: largest depth of the program.
        measure: settings of the trainings.
        classes: number of outputs of the network.

    Returns:
        (traced settings by name, depth, examples to train and to test on) -> the stored fields of
        the record.
    """
    network: networks.MLP | networks.Chain
    if grid.network is None:
        network = grid.mlp(kind, bound, classes)
        of_one_depth = network.of_one_depth
    else:
        network = grid.chain(kind, bound)
        of_one_depth = True
    blank = dict.fromkeys(traced())
    kept = fields(grid, measure)

    def draw(cell: Cell, key: Array, x: Array) -> networks.Params:
        if isinstance(network, networks.MLP):
            return init(network, key, x, cell["sigma_w"], cell["sigma_b"])
        assert network.init is not None
        params = network.init(key, x)
        if tuple(grid.values("sigma_w")) == (1.0,):
            return params
        return networks.rescale(params, cell["sigma_w"], kernels=grid.kernels)

    def one(cell: Cell, depth: Array, examples: tuple[Examples, Examples]) -> list[Array]:
        drawn, key = jax.random.split(jax.random.key(cell["seed"]))
        training_record, _ = training.train(
            network,
            draw(cell, drawn, examples[0].x[:2]),
            grid.optimise(kind, blank | cell),
            examples[0],
            key=key,
            steps=measure.steps,
            batch=kind["batch"],
            test=examples[1],
            loss=measure.loss,
            rate=cell["dropout"] if grid.network is None else 0.0,
            depth=None if of_one_depth else depth,
            evaluate=measure.evaluate,
            curvature_every=measure.curvature_every,
        )
        return [getattr(training_record, name) for name in kept]

    return one
