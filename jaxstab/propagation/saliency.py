r"""Gradient by the input, its correlation between inputs or networks, and its noise.

A saliency map is the gradient of an output by the input (Simonyan, Vedaldi & Zisserman 2014). A
gradient is shattered if two nearby inputs have gradients as different as noise (Balduzzi et al.
2017); its map explains nothing. In a wide network with the signals of two inputs at correlation
c_l,

    cos(dy/dx, dy/dx') = prod_l M(c_l) / M(1),    M(c) = E phi'(u) phi'(v),  corr(u, v) = c.

For relu this is a product of 1 - arccos(c_l) / pi, since M is (pi - arccos c) / (2 pi) (Cho & Saul
2009).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from jaxstab import networks
from jaxstab.checks import check_floating
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.views import pair, vector_states
from jaxstab.norms.logarithms import unit
from jaxstab.records import Estimate


class InputGradient(NamedTuple):
    """Gradient by the input in two parts, since deep networks leave the range of floats.

    Attributes:
        direction: direction of unit norm, in the shape of the input; zero for a zero gradient.
        log_norm: ln of the gradient's norm; -inf for a zero gradient.
    """

    direction: Float[Array, "..."]
    log_norm: Float[Array, "*sample"]


@with_network
def input_gradient(
    chain: Chain, params: Params, x: Array, output: Callable[[PyTree], Float[Array, ""]]
) -> InputGradient:
    """Compute dL/dx, the gradient of a scalar of the output by the input.

    Args:
        chain: the network; `Chain.inference` for a trained network with BatchNorm.
        params: parameters of the network.
        x: one input, or a batch where blocks mix examples.
        output: scalar function of the network's output, such as a logit or a loss.

    Returns:
        Direction and logarithmic norm of the gradient.

    Raises:
        ValueError: if x is not floating.

    Example:
        >>> net = networks.mlp(depth=2, width=8, activation="identity")
        >>> params = net.init(jax.random.key(0), jnp.ones(3))
        >>> found = input_gradient(net, params, jnp.ones(3), lambda y: y[0])
        >>> found.direction.shape, round(float(jnp.linalg.norm(found.direction)), 4)
        ((3,), 1.0)
    """
    check_floating("x", jnp.result_type(x))
    if isinstance(chain.block, tuple):
        chain = vector_states(chain, params, x)
    states = networks.states(chain, params, x)

    def step(above: InputGradient, here: Here) -> tuple[InputGradient, None]:
        direction, grown = unit(here.pull(above.direction))
        return InputGradient(direction, above.log_norm + grown), None

    y = chain.readout(params, states.last)
    start = InputGradient(*unit(jax.grad(output)(y)))
    return networks.downwards(chain, params, states, step, start, readout=True)[0]


@with_network
def gradient_correlation(
    chain: Chain,
    params: Params,
    x1: Array,
    x2: Array,
    output: Callable[[PyTree], Float[Array, ""]],
) -> Float[Array, " state"]:
    """Compute the cosine of the gradients at two inputs, by the input and by every state.

    Args:
        chain: the network.
        params: parameters of the network, of depth L.
        x1: first input, or a batch taken as one long input.
        x2: second, nearby input.
        output: scalar function of the network's output.

    Returns:
        Cosines [L + 2] of dL/dx, dL/dh_0, ..., dL/dh_L; NaN where a gradient is zero or not finite.

    Example:
        >>> net = networks.mlp(depth=2, width=8, activation="identity")
        >>> params = net.init(jax.random.key(0), jnp.ones(3))
        >>> gradient_correlation(net, params, jnp.ones(3), jnp.arange(3.0), jnp.sum).round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    if isinstance(chain.block, tuple):
        chain = vector_states(chain, params, x1)
    both, weights = pair(chain, params, params)
    states = networks.states(both, weights, (x1, x2))

    def step(above: tuple[Array, Array], here: Here) -> tuple[tuple[Array, Array], Array]:
        first, second = here.pull(above)
        if first.dtype == jax.dtypes.float0:
            # tokens have no gradient
            return above, jnp.full((), jnp.nan, above[0].dtype)
        u1, log_1 = unit(first)
        u2, log_2 = unit(second)
        defined = jnp.isfinite(log_1) & jnp.isfinite(log_2)
        # this form keeps the relative precision of 1 - cosine
        cosine = 1 - jnp.sum((u1 - u2) ** 2) / 2
        return (u1, u2), jnp.where(defined, cosine, jnp.nan)

    outputs = both.readout(weights, states.last)
    start = tuple(jax.grad(output)(y) for y in outputs)
    return networks.downwards(both, weights, states, step, start, readout=True)[1]


def agreement(gradients: InputGradient) -> Estimate:
    """Compute the mean cosine between pairs of gradients: 1 if all agree, 0 for noise.

    Over nearby inputs the mean cosine measures shattering. Over seeds it measures how well the
    explanations of networks agree.

    Args:
        gradients: gradients of `input_gradient` under `jax.vmap`, n >= 2 along the first axis.

    Returns:
        Mean over pairs, in which a zero gradient counts as cosine 0, with its jackknife standard
        error, up to sqrt(2) too large where gradients do not agree. The mean is NaN for fewer than
        two gradients, the error for fewer than three.

    Example:
        >>> three = InputGradient(jnp.eye(2)[jnp.asarray([0, 0, 1])], jnp.zeros(3))
        >>> round(float(agreement(three).value), 4)
        0.3333
    """
    return _jackknifed(_rows(gradients.direction), _signal)


def signal_to_noise(gradients: InputGradient) -> Estimate:
    r"""Compute the signal-to-noise ratio of a saliency map over draws, such as noisy inputs.

        SNR = |E g|^2 / E |g - E g|^2

    |E g|^2 is estimated from pairs of draws, so that noise does not count as signal.

    Args:
        gradients: gradients of `input_gradient` under `jax.vmap`, n >= 2 along the first axis.

    Returns:
        Ratio with its jackknife standard error, see `agreement`; may be negative where there is no
        signal.

    Example:
        >>> two = InputGradient(jnp.ones((2, 1)), jnp.log(jnp.asarray([1.0, 3.0])))
        >>> round(float(signal_to_noise(two).value), 3)  # |E g|^2 is 1 x 3, E |g|^2 is 5
        1.5
    """
    log_norm = gradients.log_norm
    # the ratio does not depend on the scale, so that the longest gradient can have norm 1
    longest = jax.lax.stop_gradient(jnp.max(log_norm))
    g = _rows(gradients.direction) * jnp.exp(log_norm - longest)[:, None]

    def ratio(power: Array, spread: Array, count: int) -> Array:
        if count < 2:
            return power * jnp.nan
        noise = spread / (count - 1)
        signal = _signal(power, spread, count)
        silent = noise == 0
        # without noise the derivative is undefined, and set to 0
        held = jnp.where(signal == 0, jnp.nan, jnp.sign(signal) * jnp.inf)
        return jnp.where(silent, held, signal / jnp.where(silent, 1.0, noise))

    return _jackknifed(g, ratio)


def _rows(directions: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    return jax.vmap(lambda direction: ravel_pytree(direction)[0])(directions)


def _signal(power: Array, spread: Array, count: int) -> Array:
    """Compute the mean of g_i . g_j over i != j from |m|^2 and sum_i |g_i - m|^2, m the mean."""
    if count > 1:
        return power - spread / (count * (count - 1))
    return power * jnp.nan


def _jackknifed(
    draws: Float[Array, "n d"], statistic: Callable[[Array, Array, int], Array]
) -> Estimate:
    """Evaluate a function of |m|^2 and sum_i |g_i - m|^2, with its jackknife error."""
    count = len(draws)
    # differences from the mean m keep precision where all draws are nearly equal
    mean = jnp.mean(draws, axis=0)
    off = draws - mean[None]
    power = jnp.sum(mean**2)
    squares = jnp.sum(off**2, axis=1)
    spread = jnp.sum(squares)
    value = statistic(power, spread, count)
    if count < 3:
        return Estimate(value, jnp.full_like(value, jnp.nan))
    # without g_i the mean is m - (g_i - m) / (n - 1)
    powers = power - 2 * (off @ mean) / (count - 1) + squares / (count - 1) ** 2
    spreads = spread - squares * count / (count - 1)
    without = statistic(powers, spreads, count - 1)
    variance = jnp.sum((without - jnp.mean(without)) ** 2)
    # the root of 1 replaces the root of 0, whose gradient is infinite
    nothing = variance == 0
    error = jnp.where(nothing, 0.0, jnp.sqrt(jnp.where(nothing, 1.0, variance)))
    return Estimate(value, error * math.sqrt((count - 1) / count))
