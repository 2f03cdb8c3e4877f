r"""The largest eigenvalue of the Fisher matrix of a wide network at its start.

With n examples that are all equally alike, kernels are Theta(x, x) = a and Theta(x, x') = b, and
the Fisher matrix of unit noise has the largest eigenvalue (a + (n - 1) b) / n (Karakida, Akaho &
Amari 2019). Of a softmax model it is that of

    (1/n) S^T K S,    S S^T = diag(p) - p p^T at each example,

with the logits a draw from the Gaussian process of the network, correlated between examples. K
joins outputs too: with W the readout's weights, [width, C], of variance 1,

    K = Theta_readout (x) 1 + Theta_below (x) W^T W / width,

which is Theta (x) 1 only for width far above C. Masks of the last activation are taken for
independent of W.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation
from jaxstab.checks import check_count, check_depths, check_gains
from jaxstab.records import Sharpness
from jaxstab.theory.features import Features
from jaxstab.theory.kernels import kernels
from jaxstab.theory.laws import Law, as_law, missing_kernels
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.precision import compiled

# products for the largest of the C eigenvalues that lie above all others
_PRODUCTS = 60


def sharpness(
    block: AnyActivation | Law,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depths: tuple[int, ...],
    *,
    width: int,
    d_in: int,
    outputs: int = 10,
    examples: int = 1,
    c0: ArrayLike = 0.0,
    draws: int = 32,
) -> Sharpness:
    """The Gauss-Newton matrix's largest eigenvalue for softmax cross-entropy, of inputs equally alike.

    Args:
        block: as in `kernels`.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depths: blocks of each network, ascending, >= 0.
        width: units per layer.
        d_in: input features, of mean square 1.
        outputs: C, classes.
        examples: n over which the loss is a mean.
        c0: correlation of any two of them.
        draws: of logits and of the readout's weights.

    Returns:
        The median over draws, since a softmax that saturates has next to none; NaN for the Hessian,
        of which no theory is known here.

    Raises:
        ValueError: as `kernels`; or if depths are not ascending, or a count is < 1.

    Example:
        >>> found = sharpness("tanh", 1e-9, 0.0, (3,), width=8, d_in=4, outputs=10)
        >>> round(float(jnp.exp(found.log_gauss_newton[0])), 6)  # of the last biases alone, 1/C
        0.1
    """
    known = as_law(block)
    check_gains(sigma_w, sigma_b)
    for name, count in {"outputs": outputs, "examples": examples, "draws": draws}.items():
        check_count(name, count, 1)
    depths = check_depths(depths, max(depths))
    if reason := missing_kernels(known):
        raise ValueError(f"no kernels of {known.activation.name}: {reason}")
    sizes = {"depths": depths, "width": width, "d_in": d_in, "outputs": outputs}
    numbers = (sigma_w, sigma_b, c0)
    log = _log_largest(known.activation, known, *numbers, **sizes, examples=examples, draws=draws)
    unknown = jnp.full_like(log, jnp.nan)
    return Sharpness(unknown, unknown, log)


@compiled("depths", "width", "d_in", "outputs", "examples", "draws")
def _log_largest(
    phi: Activation,
    about: Features,
    law: Law,
    sigma_w: Array,
    sigma_b: Array,
    c0: Array,
    depths: tuple[int, ...],
    width: int,
    d_in: int,
    outputs: int,
    examples: int,
    draws: int,
) -> Float[Array, " depth"]:
    found = kernels(law, sigma_w, sigma_b, depths[-1], c0=c0, width=width, d_in=d_in)
    drawn = _draws(width, outputs, examples, draws)

    def one(drawn: _Draws, nngp: Array, own: Array, below: Array) -> Float[Array, ""]:
        together = nngp[0, 1]
        apart = nngp[0, 0] - jnp.maximum(together, 0.0)
        p = jax.nn.softmax(_root(together) * drawn.shared + _root(apart) * drawn.own)

        def mixed(kernel: Array, u: Float[Array, "n out"]) -> Float[Array, "n out"]:
            beyond = kernel[0, 0] - kernel[0, 1]
            return beyond * u + kernel[0, 1] * jnp.sum(u, axis=0, keepdims=True)

        def curved(u: Float[Array, "n out"]) -> Float[Array, "n out"]:
            return p * (u - jnp.sum(p * u, axis=1, keepdims=True))

        def step(u: Float[Array, "n out"], _: None) -> tuple[Array, Array]:
            h = curved(u)
            new = (mixed(own, h) + mixed(below, h) @ drawn.gram) / examples
            # in the norm of the loss's Hessian the matrix is symmetric
            length = jnp.sum(h * u)
            value = jnp.sum(curved(new) * u) / jnp.where(length > 0, length, 1.0)
            largest = jnp.max(jnp.abs(new))
            return new / jnp.where(largest > 0, largest, 1.0), value

        return jnp.log(jax.lax.scan(step, drawn.start, None, length=_PRODUCTS)[1][-1])

    def typical(kernel: tuple[Array, Array, Array]) -> Float[Array, ""]:
        return jnp.median(jax.vmap(lambda drawn: one(drawn, *kernel))(drawn))

    at = jnp.asarray(depths)
    kernel = (found.readout_nngp[at], found.readout_own[at], found.readout_below[at])
    return jax.lax.map(typical, kernel)


def _root(square: Array) -> Array:
    """The root of a number, 0 with derivative 0 where it is not positive."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


class _Draws(NamedTuple):
    """Standard normal draws, the same at every gain and depth.

    Attributes:
        shared: what logits of all examples share.
        own: what each has of its own.
        gram: W^T W / width of the readout's weights.
        start: of the power iteration.
    """

    shared: Float[Array, "draw 1 out"]
    own: Float[Array, "draw n out"]
    gram: Float[Array, "draw out out"]
    start: Float[Array, "draw n out"]


def _draws(width: int, outputs: int, examples: int, draws: int) -> _Draws:
    normal = np.random.default_rng(0).standard_normal
    weights = normal((draws, width, outputs))
    return _Draws(
        shared=jnp.asarray(normal((draws, 1, outputs))),
        own=jnp.asarray(normal((draws, examples, outputs))),
        gram=jnp.asarray(weights.swapaxes(1, 2) @ weights / width),
        start=jnp.asarray(normal((draws, examples, outputs))),
    )
