r"""The largest eigenvalue of the Fisher matrix of a wide network at initialisation.

Let all pairs of n examples be equally correlated, with kernels Theta(x, x) = a and Theta(x, x') =
b. For unit noise the largest eigenvalue is (a + (n - 1) b) / n (Karakida, Akaho & Amari 2019). For
a softmax model it is that of

    (1/n) S^T K S,    S S^T = diag(p) - p p^T at each example,

with logits drawn from the network's Gaussian process, correlated between examples. K couples
outputs too:

    K = Theta_readout (x) 1 + sum_l Theta_l (x) G_l,

G_l the Gram matrix of the outputs' gradients by the state of layer l (`gradient_grams`). G_l = 1
only for width far above C times depth. Two effects of order depth / width are neglected: the
fluctuations of lengths, and those of the correlation of different examples' gradients. For tanh at
sigma_w 1.5, depth 16, 24 examples and 10 outputs, the median over networks exceeds the prediction
by 1.0 nats at width 48, 0.4 at 128 and 256, and 0.0 at 1024 (by 1.7, 0.9 and 0.8 with G = 1). For
relu at sqrt 2 it agrees within 0.6, the difference of two networks.

One network scatters about the median by the draws (gradients, logits) and by its lengths, which the
draws leave out. To leading order ln q_l and ln |dL/dh_l|^2 gain the variance v = -4 `typical_shift`
per layer, and the mean of min(l, m) over pairs of layers is L/3:

    sd^2 = sd_draws^2 + v (1 + L/3),

where the 1 is the embedding's. The form was chosen on relu at width 128. It neglects that tanh
contracts lengths: for tanh the sd is 1.1 to 2.3 times that of networks. The share of 32 networks
(12 examples, depths 2, 6, 16) within 1.645 sd of the prediction, 0.90 for a normal law, is:

    relu, sigma_w sqrt 2    width 128: 0.91, 0.94, 0.88    width 512: 0.97, 0.84, 0.91
    tanh, sigma_w 1         width 128: 0.97, 0.97, 1.00    width 512: 0.94, 0.97, 0.97
    tanh, sigma_w 1.5       width 128: 1.00, 1.00, 0.81    width 512: 0.94, 1.00, 1.00
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation
from jaxstab.arguments import explained
from jaxstab.checks import check_count, check_depths, check_gains
from jaxstab.norms.meshes import varying_like
from jaxstab.theory.features import Features
from jaxstab.theory.finite_width import typical_shift
from jaxstab.theory.gradient_grams import BelowReadout, below_readout
from jaxstab.theory.kernels import kernels
from jaxstab.theory.laws import Law, as_law
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.moments import root
from jaxstab.theory.precision import compiled
from jaxstab.theory.reasons import missing_kernels

# steps of the power iteration, which separate C outlier eigenvalues close to each other
_PRODUCTS = 60
# standard deviations from the median to the 5 % and 95 % quantiles of a normal law
_TAIL = 1.645


class PredictedSharpness(NamedTuple):
    """Prediction of the fields of `records.Sharpness`, with the scatter of one network.

    Attributes:
        log_sharpness: NaN, as theory has no prediction for the Hessian.
        sharpness_error: NaN, for the same reason.
        log_gauss_newton: ln of the Gauss-Newton matrix's largest eigenvalue, median over networks.
        log_gauss_newton_sd: standard deviation of one network's value about the median, nats.
    """

    log_sharpness: Float[Array, " depth"]
    sharpness_error: Float[Array, " depth"]
    log_gauss_newton: Float[Array, " depth"]
    log_gauss_newton_sd: Float[Array, " depth"]


@explained
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
) -> PredictedSharpness:
    """Predict the largest Gauss-Newton eigenvalue of cross-entropy for equally correlated inputs.

    Args:
        block: as in `kernels`.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depths: depths L of the networks, ascending, >= 0.
        width: units per layer.
        d_in: number of input features, whose mean square is 1.
        outputs: number C of classes.
        examples: number n of examples, over which the loss is a mean.
        c0: correlation of any two examples, in [-1, 1].
        draws: number of draws of logits and gradients.

    Returns:
        Median over draws, as a saturated softmax has nearly no curvature, and standard deviation of
        one network. The fields of the Hessian are NaN.

    Raises:
        ValueError: as in `kernels`; or if depths are not ascending, or a count is < 1.

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
    log, sd = _log_largest(
        known.activation, known, *numbers, **sizes, examples=examples, draws=draws
    )
    unknown = jnp.full_like(log, jnp.nan)
    return PredictedSharpness(unknown, unknown, log, sd)


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
) -> tuple[Float[Array, " depth"], Float[Array, " depth"]]:
    both = kernels(law, sigma_w, sigma_b, depths[-1], c0=c0, width=width, d_in=d_in)
    drawn = varying_like(_draws(outputs, examples, draws), both.nngp)
    # a seed of int64 could not be lowered where JAX has float64 switched off
    keys = jax.random.split(jax.random.key(np.uint32(0)), draws)

    def one(drawn: _Draws, below: BelowReadout, nngp: Array, own: Array) -> Float[Array, ""]:
        together = nngp[0, 1]
        apart = nngp[0, 0] - jnp.maximum(together, 0.0)
        p = jax.nn.softmax(root(together) * drawn.shared + root(apart) * drawn.own)

        def mixed(kernel: Array, u: Float[Array, "n out"]) -> Float[Array, "n out"]:
            beyond = kernel[0, 0] - kernel[0, 1]
            return beyond * u + kernel[0, 1] * jnp.sum(u, axis=0, keepdims=True)

        def curved(u: Float[Array, "n out"]) -> Float[Array, "n out"]:
            return p * (u - jnp.sum(p * u, axis=1, keepdims=True))

        def step(u: Float[Array, "n out"], _: None) -> tuple[Array, Array]:
            h = curved(u)
            together = jnp.sum(h, axis=0, keepdims=True)
            new = (mixed(own, h) + h @ below.apart + together @ below.shared) / examples
            # the matrix is symmetric in the inner product of the loss's Hessian
            length = jnp.sum(h * u)
            value = jnp.sum(curved(new) * u) / jnp.where(length > 0, length, 1.0)
            # values do not depend on the scale, and the derivative of a maximum may be 0/0 in XLA
            largest = jax.lax.stop_gradient(jnp.max(jnp.abs(new)))
            return new / jnp.where(largest > 0, largest, 1.0), value

        return jnp.log(jax.lax.scan(step, drawn.start, None, length=_PRODUCTS)[1][-1])

    def typical(depth: Array) -> tuple[Array, Array]:
        kernel = both.readout_nngp[depth], both.readout_own[depth]

        def each(drawn: _Draws, key: Array) -> Float[Array, ""]:
            below = below_readout(phi, about, law, both, depth, key, width, outputs)
            return one(drawn, below, *kernel)

        logs = jnp.sort(jax.vmap(each)(drawn, keys))
        tail = draws // 20
        drawn_sd = (logs[-1 - tail] - logs[tail]) / (2 * _TAIL)
        of_layer = -4 * typical_shift(law, both.nngp[depth, 0, 0], width)
        lengths = of_layer * (1 + depth / 3)
        return jnp.median(logs), root(drawn_sd**2 + lengths)

    return jax.lax.map(typical, jnp.asarray(depths))


class _Draws(NamedTuple):
    """Standard normal draws, the same at every gain and depth.

    Attributes:
        shared: part of the logits that all examples share.
        own: part of the logits that each example has alone.
        start: first vectors of the power iteration.
    """

    shared: Float[Array, "draw 1 out"]
    own: Float[Array, "draw n out"]
    start: Float[Array, "draw n out"]


def _draws(outputs: int, examples: int, draws: int) -> _Draws:
    normal = np.random.default_rng(0).standard_normal
    return _Draws(
        shared=jnp.asarray(normal((draws, 1, outputs))),
        own=jnp.asarray(normal((draws, examples, outputs))),
        start=jnp.asarray(normal((draws, examples, outputs))),
    )
