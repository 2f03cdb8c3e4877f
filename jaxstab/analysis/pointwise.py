"""Evaluation of theory at the points of a grid.

Few points are evaluated one by one, which costs milliseconds each. Many points share one compiled
program per law, which costs seconds to compile.
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

# points per call of a program, fixed so that lines and planes of all sizes share it
_CHUNK = 128


def each(predict: Callable[[float], Any], points: Sequence[float], known: bool = True) -> Any:
    """Predict at one point after the other.

    Args:
        predict: function of a point that returns a pytree of arrays.
        points: points to predict at.
        known: False if theory has no law for the networks.

    Returns:
        Pytree of arrays with a leading axis of points; NaN without a law.
    """
    if not known:
        return unknown(jax.eval_shape(predict, jnp.float32(points[0])), (len(points),))
    records = [jax.device_get(predict(float(point))) for point in points]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *records)


def unknown(shapes: Any, axes: tuple[int, ...]) -> Any:
    """Make placeholders of predictions: NaN for floats, 0 for other dtypes.

    Args:
        shapes: pytree of shapes of a prediction at one point.
        axes: lengths of the leading axes.

    Returns:
        Pytree of arrays with these leading axes.
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
        block: law of a block.
        sigma_w: weight gains.
        sigma_b: standard deviations of biases, broadcast against the weight gains.
        known: False if theory has no law for the networks.

    Returns:
        Record with fields of the broadcast shape; NaN without a law.
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
    # np.resize fills the last chunk by repeating the points
    columns = [np.resize(gains.ravel(), (chunks, _CHUNK)) for gains in (w, b)]
    # parameters of an activation may be arrays, which cannot be hashed
    program = _program(dataclasses.replace(block, activation=concrete(block.activation)))
    records = [jax.device_get(program(*some)) for some in zip(*columns, strict=True)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: w.size].reshape(w.shape), *records)


@functools.lru_cache(maxsize=64)
def _program(block: theory.Law) -> Callable[..., FixedPoint]:
    """Make the program of a law, with few optimisations since it compiles longer than it runs."""
    over_points = jax.vmap(functools.partial(theory.fixed_point, block))
    return jax.jit(over_points, compiler_options=quick_options())
