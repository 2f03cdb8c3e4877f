"""Largest value of a layer's map over all subnetworks (Zhang et al. 2022, appendix)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import scipy

from jaxstab.checks import check_count

Layer = Callable[[float], float]


class ResidualStages(NamedTuple):
    """A residual network of blocks with the C-map x -> w^2 shortcut(x) + (1 - w^2) branch(x).

    The first block of each stage has one nonlinear layer in its shortcut, and one nonlinear layer
    follows the last stage, as in the modified ResNet of Martens et al. 2021.

    Attributes:
        blocks: number of blocks in each stage.
        branch: number of nonlinear layers in a residual branch.
        shortcut: weight w of the shortcut, in [0, 1); the branch has the weight sqrt(1 - w^2).
    """

    blocks: tuple[int, ...]
    branch: int = 3
    shortcut: float = 0.6


# depth of a plain chain, residual stages, or a function (x, layer) that returns the largest value
Layers = int | ResidualStages | Callable[[float, Layer], float]


def checked_layers(layers: Layers) -> Layers:
    """Check a description of a network.

    Args:
        layers: description of the network.

    Returns:
        The description, with counts as Python integers.

    Raises:
        ValueError: if a count is not an integer >= 1, or the shortcut's weight is out of range.
    """
    if isinstance(layers, ResidualStages):
        if not isinstance(layers.blocks, tuple | list):
            raise ValueError(f"blocks must be a tuple, one count a stage, got {layers.blocks!r}")
        blocks = tuple(check_count("blocks", count, 1) for count in layers.blocks)
        branch = check_count("branch", layers.branch, 1)
        if not blocks or not 0.0 <= layers.shortcut < 1.0:
            raise ValueError(
                f"residual stages need a block and a shortcut's weight in [0, 1), got {layers}"
            )
        return ResidualStages(blocks, branch, layers.shortcut)
    if callable(layers):
        return layers
    return check_count("layers", layers, 1)


def largest(layers: Layers, x: float, layer: Layer) -> float:
    """Compute the largest output value over subnetworks.

    Args:
        layers: description of the network.
        x: value at the input.
        layer: map of one nonlinear layer, increasing and >= its argument.

    Returns:
        Largest value at the output of a subnetwork.
    """
    if isinstance(layers, ResidualStages):
        # a branch alone is a subnetwork too
        return max(_through_stages(layers, x, layer), _repeated(layers.branch, x, layer))
    if isinstance(layers, int):
        return _repeated(layers, x, layer)
    return layers(x, layer)


def _repeated(count: int, x: float, layer: Layer) -> float:
    for _ in range(count):
        x = layer(x)
    return x


def _through_stages(stages: ResidualStages, x: float, layer: Layer) -> float:
    kept = stages.shortcut**2
    for count in stages.blocks:
        for block in range(count):
            shortcut = layer(x) if block == 0 else x
            x = kept * shortcut + (1.0 - kept) * _repeated(stages.branch, x, layer)
    return layer(x)


def solved(
    layers: Layers,
    target: float,
    start: float,
    layer: Callable[[float, float], float],
    ends: tuple[float, float],
) -> float:
    """Solve for the parameter of a layer at which the largest value over subnetworks is the target.

    Args:
        layers: description of the network.
        target: largest value to reach.
        start: value at the network's input.
        layer: map (parameter, x) -> value after one layer.
        ends: interval of the parameter, on which the largest value is monotone.

    Returns:
        Parameter of the layer.

    Raises:
        ValueError: if the target is not between the values at both ends.
    """

    def excess(parameter: float) -> float:
        value = largest(layers, start, lambda x: layer(parameter, x))
        return min(value, 1e300) - target

    reached = [excess(end) + target for end in ends]
    if not min(reached) <= target <= max(reached):
        low, high = sorted(reached)
        raise ValueError(
            f"subnetworks of these layers reach values in [{low:.6g}, {high:.6g}], got {target:g}"
        )
    smallest = 4 * math.ulp(1.0)
    return float(scipy.optimize.brentq(excess, *ends, xtol=1e-18, rtol=smallest, maxiter=200))
