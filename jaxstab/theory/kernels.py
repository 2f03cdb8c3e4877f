r"""NNGP and NTK kernels of infinitely wide networks, for two inputs of any lengths.

Let K be the covariance of the pre-activations z1 and z2, A = E phi(z1) phi(z2) and
D = E phi'(z1) phi'(z2). One block maps K and the NTK Theta as (Jacot et al. 2018)

    K' = sigma_w^2 A + sigma_b^2,    Theta' = O + sigma_w^2 D Theta.

O is the contribution of the block's own parameters. O = K' in NTK parametrisation, where parameters
have variance 1 and sigma_w / sqrt(n) is a factor; O = n A + 1 for the parameters of our networks
with fan-in n. A residual branch of factor s adds s^2 times its terms to K and Theta. With dense
skips layer l reads all l layers before it: A and D Theta are means over these layers, n A is a sum.
A and D of a mixture are means over its units.

LayerNorm and RMSNorm divide by lengths, which do not fluctuate at large width. A norm before phi
turns K12 into K12 / sqrt((K11 + eps) (K22 + eps)), one after phi does the same to A. D is divided
by the same root; that a norm projects h out of the gradient changes one direction of n and is
neglected. "peri" divides K' and Theta' by the root of the branch's lengths. Dropout divides A and D
by the keep rate; where the inputs have different masks, only on the diagonal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, Mixture
from jaxstab.arguments import explained
from jaxstab.checks import check_count, check_gains, check_inputs, check_one_point
from jaxstab.theory.features import Features
from jaxstab.theory.laws import AnyBlock, Law, as_law
from jaxstab.theory.maps import log_square
from jaxstab.theory.moments import inside, log_moments
from jaxstab.theory.precision import compiled
from jaxstab.theory.quadrature import joint
from jaxstab.theory.ranges import as_correlation
from jaxstab.theory.reasons import missing_kernels

# phi(a z) = a phi(z) for a > 0: kernels of two lengths follow from those of one
_HOMOGENEOUS = ("identity", "relu", "leaky_relu")
# correlation of an input with itself, up to rounding
_AT_END = 1.0 - 8 * np.finfo(np.float64).eps


class Kernels(NamedTuple):
    """Kernels of the pre-activations of layers 0..L, for two inputs.

    Attributes:
        nngp: covariance K of one unit over random networks.
        ntk: Theta of one unit, over all parameters up to this layer.
        readout_nngp: K of one output of a readout after this layer.
        readout_own: Theta of that output, over the readout's own parameters.
        readout_below: Theta of that output, over all parameters below the readout.
    """

    nngp: Float[Array, "layer 2 2"]
    ntk: Float[Array, "layer 2 2"]
    readout_nngp: Float[Array, "layer 2 2"]
    readout_own: Float[Array, "layer 2 2"]
    readout_below: Float[Array, "layer 2 2"]


class _Moments(NamedTuple):
    """A and D of all pairs of the two inputs."""

    values: Float[Array, "2 2"]
    slopes: Float[Array, "2 2"]


def _moments(phi: Activation, about: Features, covariance: Array) -> _Moments:
    lengths = jnp.diagonal(covariance)
    own = log_moments(phi, about, jnp.log(lengths))
    q = jnp.exp(inside(jnp.log(lengths)))
    root = jnp.sqrt(lengths[0] * lengths[1])
    c, change = _correlation(covariance[0, 1] / jnp.where(root > 0, root, 1.0))
    values, slopes = _beside(phi, about, q, root, c)
    # Price's theorem: dA/dc = sqrt(q1 q2) D
    values = values + root * slopes * change
    return _Moments(
        _matrix(jnp.exp(own.log_length), values), _matrix(jnp.exp(own.log_slope), slopes)
    )


def _beside(
    phi: Activation, about: Features, q: Float[Array, "2"], root: Array, c: Array
) -> tuple[Array, Array]:
    """Compute A and D off the diagonal, of lengths q; `root` is their unclipped geometric mean."""
    if isinstance(phi, Mixture):
        parts = zip((phi.first, phi.second), about.parts, strict=True)
        first, second = (_beside(part, own, q, root, c) for part, own in parts)
        return jax.tree.map(lambda a, b: (1.0 - phi.share) * a + phi.share * b, first, second)
    if phi.kernel is not None and phi.name in _HOMOGENEOUS:
        return phi.kernel(root, c)
    return joint(phi, about, (q[0], q[1]), c, about.nodes)


def _correlation(ratio: Array) -> tuple[Array, Array]:
    """Clip a correlation to [-1, 1]; return also a 0 that carries its derivative at the ends."""
    # at c = 1 the slope of D is infinite for kinked phi: rounding of c costs half the digits of D
    held = jax.lax.stop_gradient(ratio)
    at_end = jnp.abs(held) >= _AT_END
    c = jnp.where(at_end, jnp.sign(held), ratio)
    return c, jnp.where(at_end, ratio - held, 0.0)


def _head(phi: Activation, about: Features, law: Law, covariance: Array) -> _Moments:
    """Compute A and D of a = dropout(phi(norm(h))) or dropout(norm(phi(h))) from h's covariance."""
    if law.norm is None:
        known = _moments(phi, about, covariance)
    elif law.norm_after:
        known = _moments(phi, about, covariance)
        if law.norm == "layer":
            lengths = jnp.diagonal(covariance)
            own = log_moments(phi, about, inside(jnp.log(lengths)))
            mean = own.mean * jnp.sqrt(lengths)
            known = known._replace(values=known.values - mean[:, None] * mean[None])
        known = _Moments(*(_per_length(known.values, law) * part for part in known))
    else:
        factor = _per_length(covariance, law)
        known = _moments(phi, about, factor * covariance)
        known = known._replace(slopes=factor * known.slopes)
    # with different masks, E[m1 m2] = keep^2 cancels the factor 1/keep^2 off the diagonal
    if law.shared_masks:
        apart = jnp.ones((2, 2))
    else:
        apart = _matrix(jnp.ones(2), law.keep)
    return _Moments(*(part * apart / law.keep for part in known))


def _per_length(covariance: Array, law: Law) -> Float[Array, "2 2"]:
    """Compute the matrix of 1 / sqrt((Kii + epsilon) (Kjj + epsilon))."""
    factor = jax.lax.rsqrt(jnp.diagonal(covariance) + law.epsilon)
    return factor[:, None] * factor[None]


def _matrix(diagonal: Array, beside: Array) -> Float[Array, "2 2"]:
    return jnp.stack([jnp.stack([diagonal[0], beside]), jnp.stack([beside, diagonal[1]])])


@compiled("depth", "width", "d_in")
def _kernels(
    phi: Activation,
    about: Features,
    law: Law,
    sigma_w: Array,
    sigma_b: Array,
    first: Array,
    second: Array,
    c0: Array,
    depth: int,
    width: int | None,
    d_in: int | None,
) -> Kernels:
    w2 = sigma_w**2 * jnp.exp(law.log_variance)
    b2 = sigma_b**2
    square = jnp.ones_like(w2)
    if law.skip == "scaled":
        square = square / max(law.depth or depth, 1)
    if law.skip == "rezero":
        square = jnp.exp(log_square(jnp.abs(law.alpha)))
    kept = 1.0 if law.residual else 0.0

    def grown(values: Array, fed: Array, count: ArrayLike) -> tuple[Array, Array, Array]:
        """Compute K, O and sigma_w^2 D Theta of W a + b that reads `count` layers."""
        branch = w2 * values / count + b2
        own = branch if width is None else width * values + 1.0
        return branch, own, w2 * fed / count

    def layer(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Kernels]:
        nngp, ntk = carry
        known = _head(phi, about, law, nngp)
        branch, own, below = grown(known.values, known.slopes * ntk, 1)
        scale = square * (_per_length(branch, law) if law.branch_norm else 1.0)
        new = kept * nngp + scale * branch, kept * ntk + scale * (own + below)
        return new, Kernels(nngp, ntk, branch, own, below)

    def dense(
        carry: tuple[Array, Array, Array, Array], count: Array
    ) -> tuple[tuple[Array, Array, Array, Array], Kernels]:
        nngp, ntk, values, fed = carry
        known = _head(phi, about, law, nngp)
        values = values + known.values
        fed = fed + known.slopes * ntk
        branch, own, below = grown(values, fed, count)
        return (branch, own + below, values, fed), Kernels(nngp, ntk, branch, own, below)

    given = _matrix(jnp.stack([first, second]), as_correlation(c0) * jnp.sqrt(first * second))
    nngp = w2 * given + b2
    ntk = nngp if d_in is None else d_in * given + 1.0
    if law.skip == "dense":
        none = jnp.zeros_like(nngp)
        counts = jnp.arange(1, depth + 2).astype(nngp.dtype)
        return jax.lax.scan(dense, (nngp, ntk, none, none), counts)[1]
    return jax.lax.scan(layer, (nngp, ntk), None, length=depth + 1)[1]


@explained
def kernels(
    block: AnyBlock,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depth: int,
    *,
    q0: tuple[ArrayLike, ArrayLike] = (1.0, 1.0),
    c0: ArrayLike = 0.0,
    width: int | None = None,
    d_in: int | None = None,
) -> Kernels:
    """Compute the NNGP and NTK kernels of two inputs at every layer, at infinite width.

    Args:
        block: `law` of a block without BatchNorm and highway, or an activation. With dropout the
            NTK is that of fixed masks.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depth: number of blocks L, >= 0.
        q0: mean squares of the two inputs, > 0.
        c0: correlation of the two inputs, in [-1, 1].
        width: units per layer, for the NTK of our networks' parameters, which grows with width;
            None for NTK parametrisation.
        d_in: number of input features, given with `width`.

    Returns:
        Kernels of one pre-activation, for layers 0..L. The NTK leaves out a multiplier alpha and
        the scale and bias of a norm.

    Raises:
        ValueError: if the law has no kernels, or a number is out of range.

    Example:
        >>> found = kernels("relu", 2**0.5, 0.0, 400)
        >>> ntk = found.ntk[-1]
        >>> print(f"off-diagonal over diagonal: {ntk[0, 1] / ntk[0, 0]:.2f}, which tends to 1/4")
        off-diagonal over diagonal: 0.26, which tends to 1/4
    """
    known = as_law(block)
    check_one_point(sigma_w=sigma_w, sigma_b=sigma_b)
    check_gains(sigma_w, sigma_b)
    try:
        first, second = q0
    except (TypeError, ValueError):
        message = f"q0 must be two numbers, one for each input, got {q0!r}"
        raise ValueError(message) from None
    check_inputs(first, c0)
    check_inputs(second, c0)
    depth = check_count("depth", depth, 0)
    if reason := missing_kernels(known):
        raise ValueError(f"no kernels of {known.activation.name}: {reason}")
    if (width is None) != (d_in is None):
        raise ValueError(f"width and d_in must be given together, got {width} and {d_in}")
    numbers = (sigma_w, sigma_b, first, second, c0)
    return _kernels(known.activation, known, *numbers, depth=depth, width=width, d_in=d_in)
