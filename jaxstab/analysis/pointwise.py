"""Theory at the points of a grid: few one after the other, many by one program for each law.

Concrete numbers cost `jaxstab.theory` milliseconds, a program seconds of compiling.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from jaxstab import theory
from jaxstab.activations.activation import concrete
from jaxstab.records import FixedPoint
from jaxstab.theory.host import quick_options

# points that one call of a program takes: lines and planes of all sizes then share it
_CHUNK = 128


def each(predict: Callable[[float], Any], points: Sequence[float], known: bool = True) -> Any:
    """Predict at one point after the other.

    Args:
        predict: point -> a pytree of arrays.
        points: the points.
        known: whether theory knows the networks.

    Returns:
        The pytree, its leaves with a leading axis of points; NaN where theory does not know them.
    """
    if not known:
        return unknown(jax.eval_shape(predict, jnp.float32(points[0])), (len(points),))
    records = [jax.device_get(predict(float(point))) for point in points]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def unknown(shapes: Any, axes: tuple[int, ...]) -> Any:
    """What stands in place of predictions: NaN, or 0 for what cannot be NaN.

    Args:
        shapes: of a prediction at one point.
        axes: lengths of the leading axes.

    Returns:
        The same pytree of arrays.
    """

    def blank(leaf: Any) -> np.ndarray:
        value = np.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0
        return np.full((*axes, *leaf.shape), value, leaf.dtype)

    return jax.tree.map(blank, shapes)


def fixed_points(
    block: theory.Law, sigma_w: ArrayLike, sigma_b: ArrayLike, known: bool = True
) -> FixedPoint:
    """Find the fixed points at many gains.

    Args:
        block: the law of a block.
        sigma_w: weight gains.
        sigma_b: standard deviations of biases, to be broadcast against them.
        known: whether theory knows the networks.

    Returns:
        The record, its fields over both; NaN where theory does not know the networks.
    """
    dtype = jnp.result_type(float)
    w, b = (
        np.asarray(gains, dtype)
        for gains in np.broadcast_arrays(np.asarray(sigma_w), np.asarray(sigma_b))
    )
    if not known:
        one = jax.ShapeDtypeStruct((), dtype)
        return unknown(
            jax.eval_shape(functools.partial(theory.fixed_point, block), one, one), w.shape
        )
    chunks = -(-w.size // _CHUNK)
    # the last chunk begins anew where it has no more points
    columns = [np.resize(gains.ravel(), (chunks, _CHUNK)) for gains in (w, b)]
    # parameters of an activation may be arrays, which have no hash
    program = _program(dataclasses.replace(block, activation=concrete(block.activation)))
    records = [jax.device_get(program(*some)) for some in zip(*columns, strict=True)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: w.size].reshape(w.shape), *records)


@functools.lru_cache(maxsize=64)
def _program(block: theory.Law) -> Callable[..., FixedPoint]:
    """The program of a law, compiled with few optimisations: it runs for less time than it compiles."""
    over_points = jax.vmap(functools.partial(theory.fixed_point, block))
    return jax.jit(over_points, compiler_options=quick_options())
