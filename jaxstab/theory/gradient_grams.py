r"""Gram matrices of the gradients of several outputs, as they wander from layer to layer at finite width.

The gradients of C outputs by the state of layer l are C vectors of n units. With weights that are
independent of the slopes, the rows of W^T g are n draws of N(0, G / n), G the Gram matrix of the
vectors above them, so that

    G_{l-1} = (1/n) sum_i phi'(h_i)^2 / (E phi'^2) z_i z_i^T,    z_i ~ N(0, G_l),

where E G stays what it is. At infinite width G does too. At finite width its eigenvalues spread
with depth over width: C outputs share what counts as about n / (1 + depth) units, not n.
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

# of Newton and Schulz, for singular values within 1/2 and 3/2
_ORTHOGONALISING = 10


class BelowReadout(NamedTuple):
    """The kernel of all parameters below the readout, of inputs that are equally alike.

    Attributes:
        apart: sum_l (Theta_l(x, x) - Theta_l(x, x')) G_l.
        shared: sum_l Theta_l(x, x') G_l.
    """

    apart: Float[Array, "out out"]
    shared: Float[Array, "out out"]


class _Step(NamedTuple):
    """Carry of the way down: gradients, and what the kernel of a layer counts for at the output."""

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
    """Draw the kernel below a readout behind layer `depth`.

    Args:
        phi: the activation.
        about: its features.
        law: of the block.
        found: kernels of layers 0..L of two inputs of one length.
        depth: layer, in [0, L], may be traced.
        key: of the draw.
        width: units n per layer.
        outputs: C.

    Returns:
        The draw.
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
    """Draw |phi'(h)| of each unit, of mean square 1, with dropout's masks."""
    if law.norm is not None and not law.norm_after:
        q = q / (q + law.epsilon)
    unit, mask = jax.random.split(key)
    slope = phi.derivative(root(q) * _normal(unit, (width,)))
    kept = jax.random.uniform(mask, (width,), jnp.float32).astype(float) < law.keep
    mean_square = jnp.exp(log_moments(phi, about, jnp.log(q)).log_slope) * law.keep
    return jnp.where(kept, slope, 0.0) / jnp.sqrt(mean_square)


def _pulled(rows: Float[Array, "n out"], law: Law, key: Array) -> Float[Array, "n out"]:
    """W^T rows for square weights of mean square 1/n, Gaussian unless they are orthogonal."""
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
    # of 32 bits: those of 64 cannot be lowered where JAX has float64 switched off
    return jax.random.normal(key, shape, jnp.float32).astype(float)


def _factor(gram: Float[Array, "out out"]) -> Float[Array, "out out"]:
    """Compute the lower Cholesky factor; columns of what is dependent are zero."""
    places = jnp.arange(len(gram))
    least = jnp.finfo(gram.dtype).eps * jnp.max(jnp.diagonal(gram))

    def column(lower: Array, j: Array) -> tuple[Array, None]:
        rest = gram[:, j] - lower @ lower[j]
        there = rest[j] > least
        scale = jnp.where(there, jax.lax.rsqrt(jnp.where(there, rest[j], 1.0)), 0.0)
        return lower.at[:, j].set(jnp.where(places >= j, rest * scale, 0.0)), None

    return jax.lax.scan(column, jnp.zeros_like(gram), places)[0]
