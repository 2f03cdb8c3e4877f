"""Measurement of all gains and inputs of one draw of weights, for a program of a sweep."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab import activations, networks
from jaxstab.networks.family import init
from jaxstab.precision import at_precision_of
from jaxstab.records import dimensions
from jaxstab.sweeps.examples import Sample
from jaxstab.sweeps.grid import Grid, Kind
from jaxstab.sweeps.measures import Measure, Record

# traced setting: index of a group's activation among those that share its program
CHOICE = "activation"


def measured_cell(
    grid: Grid, kind: Kind, choices: Sequence[Any], measure: Measure, outputs: int
) -> Callable[..., Record]:
    """Make the function that measures the cells of one seed, all of one draw of weights.

    Args:
        grid: grid of the sweep.
        kind: static settings of the network.
        choices: activations that share the program.
        measure: measure of every cell.
        outputs: number of outputs of the readout.

    Returns:
        (seed, gains [g], other traced settings by name, samples [i]) -> records [g, i], of all
        depths.
    """
    depths = tuple(grid.values("depth"))
    known = {name: grid.fixed[name] for name in ("sigma_b", "dropout") if name in grid.fixed}

    def measured(seed: Array, gains: Array, others: dict[str, Array], samples: Sample) -> Record:
        cell = known | others
        own = dict(kind)
        if CHOICE in others:
            own |= {"activation": activations.one_of(choices, others[CHOICE])}
        mlp = grid.mlp(own, grid.deepest, outputs)
        chain = networks.chain(mlp)
        key = jax.random.key(seed)
        unit = init(mlp, key, samples.x[0], 1.0, cell["sigma_b"])
        masks = jax.random.split(jax.random.fold_in(key, 1), grid.fixed["inputs"])

        def one(sigma_w: Array, sample: Sample, mask: Array) -> Record:
            wet = mask if mlp.dropout else None
            # a gain apart from the weights lets all gains share one copy of the weights
            params = chain.bind(unit, key=wet, rate=cell["dropout"], sigma_w=sigma_w)
            with at_precision_of(chain):
                return measure(chain, params, sample, depths)

        return _over(one, gains, samples, masks)

    return measured


def measured_own_cell(
    grid: Grid, kind: Kind, depth: int, measure: Measure
) -> Callable[..., Record]:
    """Make the function that measures a user's own network of one depth, all cells of one seed.

    Args:
        grid: grid of the sweep.
        kind: static settings of the network.
        depth: depth of the network.
        measure: measure of every cell.

    Returns:
        (seed, gains [g], other traced settings by name, samples [i]) -> records [g, i].
    """
    chain = grid.chain(kind, depth)
    scales = tuple(grid.values("sigma_w")) != (1.0,)

    def measured(seed: Array, gains: Array, others: dict[str, Array], samples: Sample) -> Record:
        key = jax.random.key(seed)
        assert chain.init is not None
        unit = chain.init(key, jax.tree.map(lambda leaf: leaf[0], samples.x))
        masks = jax.random.split(jax.random.fold_in(key, 1), grid.fixed["inputs"])

        def one(sigma_w: Array, sample: Sample, mask: Array) -> Record:
            params = unit
            if scales:
                params = networks.rescale(unit, sigma_w, kernels=grid.kernels)
            with at_precision_of(chain):
                record = measure(chain, chain.bind(params, key=mask), sample, (depth,))
            return jax.tree.map(
                _without_depth, record, is_leaf=lambda node: hasattr(node, "_fields")
            )

        return _over(one, gains, samples, masks)

    return measured


def _over(one: Callable[..., Record], gains: Array, samples: Sample, masks: Array) -> Record:
    """Vectorise a measure over gains and inputs: records [g, i]."""
    over_inputs = jax.vmap(one, (None, 0, 0))
    return jax.vmap(over_inputs, (0, None, None))(gains, samples, masks)


def _without_depth(record: Any) -> Any:
    """Drop the axis of depths, of length one, from the fields of a record."""

    def field(name: str, leaf: Array) -> Array:
        of_depth = dimensions(type(record), name, jnp.ndim(leaf))[:1] == ("depth",)
        if of_depth:
            return leaf[0]
        return leaf

    return type(record)(*(field(name, leaf) for name, leaf in record._asdict().items()))
