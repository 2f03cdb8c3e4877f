r"""Gram matrices of the gradients of several outputs, layer by layer at finite width.

The gradients of C outputs by the state of layer l are C vectors of n units. For weights independent
of the slopes, the rows of W^T g are n draws of N(0, G / n), G the Gram matrix of the vectors one
layer above, so that

    G_{l-1} = (1/n) sum_i phi'(h_i)^2 / (E phi'^2) z_i z_i^T,    z_i ~ N(0, G_l).

E G is constant. G itself is constant at infinite width; at finite width its eigenvalues spread with
depth / width, as if C outputs shared n / (1 + depth) units instead of n.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxstab.activations import Activation
from jaxstab.theory.features import Features
from jaxstab.theory.kernels import Kernels
from jaxstab.theory.laws import Law
from jaxstab.theory.moments import log_moments, root

# Newton-Schulz steps, enough for singular values in [1/2, 3/2]
_ORTHOGONALISING = 10


class BelowReadout(NamedTuple):
    """Kernel of all parameters below the readout, for equally correlated inputs.

    Attributes:
        apart: sum_l (Theta_l(x, x) - Theta_l(x, x')) G_l.
        shared: sum_l Theta_l(x, x') G_l.
    """

    apart: Float[Array, "out out"]
    shared: Float[Array, "out out"]


class _Step(NamedTuple):
    """Carry of the downward scan: gradients, factor of a layer's kernel at the output, and sums."""

    rows: Float[Array, "width out"]
    factor: Float[Array, "2 2"]
    sums: BelowReadout


def below_readout(
    phi: Activation,
    about: Features,
    law: Law,
    found: Kernels,
    depth: Int[Array, ""],
    key: Key[Array, ""],
    width: int,
    outputs: int,
) -> BelowReadout:
    """Draw the kernel of all parameters below a readout after layer `depth`.

    Args:
        phi: activation.
        about: features of the activation.
        law: law of the block.
        found: kernels of layers 0..L, of two inputs of equal length.
        depth: layer, in [0, L], may be traced.
        key: random key.
        width: number n of units per layer.
        outputs: number C of outputs.

    Returns:
        One draw of the kernel.
    """
    deepest = len(found.nngp) - 1
    kept = 1.0 if law.residual else 0.0
    branch = found.readout_below / found.ntk
    own = found.readout_own + found.readout_below
    square = (found.ntk[1:] - kept * found.ntk[:-1])[:, 0, 0] / own[:-1, 0, 0]
    growth = kept + square[:, None, None] * branch[:-1]
    parameters = jnp.concatenate([found.ntk[:1], square[:, None, None] * found.readout_own[:-1]])

    def added(step: _Step, layer: Array) -> BelowReadout:
        kernel = parameters[layer] * step.factor
        gram = step.rows.T @ step.rows
        apart = (kernel[0, 0] - kernel[0, 1]) * gram
        return BelowReadout(step.sums.apart + apart, step.sums.shared + kernel[0, 1] * gram)

    def slopes(layer: Array, key: Array) -> Float[Array, "width 1"]:
        return _slopes(phi, about, law, found.nngp[layer, 0, 0], key, width)[:, None]

    first, last, rest = jax.random.split(key, 3)
    readout = _normal(first, (width, outputs)) / jnp.sqrt(width)
    empty = jnp.zeros((outputs, outputs))
    top = _Step(slopes(depth, last) * readout, branch[depth], BelowReadout(empty, empty))
    top = top._replace(sums=added(top, depth))

    def down(step: _Step, distance: Array) -> tuple[_Step, None]:
        layer = jnp.maximum(depth - distance, 0)
        drawn, own_slopes = jax.random.split(jax.random.fold_in(rest, distance))
        grown = growth[layer]
        by_branch = slopes(layer, own_slopes) * _pulled(step.rows, law, drawn)
        past = kept / grown[0, 0]
        rows = root(past) * step.rows + root(1 - past) * by_branch
        new = _Step(rows, step.factor * grown, step.sums)
        new = new._replace(sums=added(new, layer))
        there = distance <= depth
        return jax.tree.map(lambda new, old: jnp.where(there, new, old), new, step), None

    return jax.lax.scan(down, top, jnp.arange(1, deepest + 1))[0].sums


def _slopes(
    phi: Activation, about: Features, law: Law, q: Array, key: Array, width: int
) -> Float[Array, " width"]:
    """Draw phi'(h) of each unit with dropout masks, normalised to mean square 1."""
    if law.norm is not None and not law.norm_after:
        q = q / (q + law.epsilon)
    unit, mask = jax.random.split(key)
    slope = phi.derivative(root(q) * _normal(unit, (width,)))
    kept = jax.random.uniform(mask, (width,), jnp.float32).astype(float) < law.keep
    mean_square = jnp.exp(log_moments(phi, about, jnp.log(q)).log_slope) * law.keep
    return jnp.where(kept, slope, 0.0) / jnp.sqrt(mean_square)


def _pulled(rows: Float[Array, "n out"], law: Law, key: Array) -> Float[Array, "n out"]:
    """Draw W^T rows for square weights of mean square 1/n, Gaussian or orthogonal."""
    width, outputs = rows.shape
    if outputs > width:
        return _normal(key, (width, width)) @ rows / jnp.sqrt(width)
    z = _normal(key, (width, outputs)) / jnp.sqrt(width)
    if law.weights == "orthogonal" and 4 * outputs <= width:

        def nearer(_: int, z: Array) -> Array:
            return 1.5 * z - 0.5 * z @ (z.T @ z)

        z = jax.lax.fori_loop(0, _ORTHOGONALISING, nearer, z)
    return z @ _factor(rows.T @ rows).T


def _normal(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    # float64 draws cannot be lowered where JAX has float64 switched off
    return jax.random.normal(key, shape, jnp.float32).astype(float)


def _factor(gram: Float[Array, "out out"]) -> Float[Array, "out out"]:
    """Compute the lower Cholesky factor; columns of dependent rows are zero."""
    places = jnp.arange(len(gram))
    least = jnp.finfo(gram.dtype).eps * jnp.max(jnp.diagonal(gram))

    def column(lower: Array, j: Array) -> tuple[Array, None]:
        rest = gram[:, j] - lower @ lower[j]
        there = rest[j] > least
        scale = jnp.where(there, jax.lax.rsqrt(jnp.where(there, rest[j], 1.0)), 0.0)
        return lower.at[:, j].set(jnp.where(places >= j, rest * scale, 0.0)), None

    return jax.lax.scan(column, jnp.zeros_like(gram), places)[0]
