r"""Finite-width corrections: exact for piecewise linear units, of leading order for others.

Let phi(z) = a_+ z above 0 and a_- z below, with weights N(0, sigma^2) and any u. Given the squares
of W u, the units' signs are still independent fair coins. So S = |D W u|^2 / (sigma |u|)^2
= sum_i m_i^2 g_i^2 is independent from layer to layer, m_i = a_+ or a_-, g_i standard normal, and

    E e^(-t S) = M(t)^n,    M(t) = ((1 + 2 a_+^2 t)^(-1/2) + (1 + 2 a_-^2 t)^(-1/2)) / 2.

With E ~ Exp(1), X = ln(E/S) has P(X > x) = M(e^x)^n. Mean and variance of ln S follow from those of
X and those of ln E, -gamma and pi^2/6. For Haar weights S lacks the factor |g|^2 ~ chi^2_n, which
is independent of the rest.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, Mixture, get
from jaxstab.arguments import explained
from jaxstab.checks import check_choice, check_count
from jaxstab.theory import host
from jaxstab.theory.free_products import squared_slopes
from jaxstab.theory.laws import AnyBlock, as_law
from jaxstab.theory.maps import AnyActivation

_STEP = 0.05
# nats beyond which densities are negligible
_END = 45.0


class LogGrowth(NamedTuple):
    """Law of ln (|J u| / |u|) of one layer; over L layers mean and variance are L times as large.

    Attributes:
        mean: mean, nats; for relu given that at least one unit is alive.
        variance: variance under the same condition.
        survival: probability that at least one unit of the layer is alive: 1 - 2^-n for relu, 1
            for others.
        fourth_moment: E |J u|^4 / (E |J u|^2)^2 of one layer, at any gain: 1 + (k - 1)/n with k = 3
            E phi'^4 / (E phi'^2)^2 for Gaussian weights (1 + 5/n for relu, Hanin 2018), and n / (n
            + 2) times that for orthogonal ones. Over layers the ratios multiply.
    """

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    survival: float
    fourth_moment: float


@explained
def log_growth(
    activation: AnyActivation, width: int, sigma_w: ArrayLike = 1.0, weights: str = "gaussian"
) -> LogGrowth:
    """Compute the exact mean and variance of ln |J u| of one layer, u any unit vector.

    Args:
        activation: identity, relu, leaky_relu or another that is linear on either side of 0.
        width: number n of inputs and of units of the layer, >= 1.
        sigma_w: weight gain, > 0; the scale of orthogonal weights.
        weights: "gaussian" or "orthogonal".

    Returns:
        Law of ln |J u|. Biases that are symmetric about 0 do not change the law.

    Raises:
        ValueError: if the activation is not linear on either side of 0, or width or weights are not
            as above.

    Example:
        >>> from jaxstab.activations import leaky_relu
        >>> layer = log_growth(leaky_relu(0.1), 100, (2 / 1.01) ** 0.5)
        >>> f"a hundred layers lose {-100 * layer.mean:.2f} +- {(100 * layer.variance) ** 0.5:.2f} nats"
        'a hundred layers lose 1.24 +- 1.12 nats'
    """
    check_choice("weights", weights, ("gaussian", "orthogonal"))
    width = check_count("width", width, 1)
    slopes = _two_slopes(activation)
    mean, variance = _of_square(slopes, width)
    squares = np.square(slopes)
    kurtosis = 3 * float(np.mean(squares**2) / np.mean(squares) ** 2)
    fourth = 1 + (kurtosis - 1) / width
    if weights == "gaussian":
        mean -= math.log(width)
    else:
        mean -= float(scipy.special.digamma(width / 2)) + math.log(2)
        variance -= float(scipy.special.polygamma(1, width / 2))
        fourth *= width / (width + 2)
    survival = 1.0 - 0.5**width if min(slopes) == 0 else 1.0
    return LogGrowth(mean / 2 + jnp.log(sigma_w), jnp.asarray(variance / 4), survival, fourth)


def critical_width_gain(activation: AnyActivation, width: int, weights: str = "gaussian") -> float:
    """Compute the gain at which the mean of ln |J u| is 0 at a finite width.

    At this gain typical gradients neither vanish nor explode.

    Args:
        activation: as in `log_growth`.
        width: number n of inputs and of units of each layer, >= 1.
        weights: "gaussian" or "orthogonal".

    Returns:
        Gain sigma_w; it exceeds the gain that keeps the mean of |J u|^2.

    Example:
        >>> print(f"{critical_width_gain('relu', 100):.4f} at width 100, {2**0.5:.4f} at infinite width")
        1.4323 at width 100, 1.4142 at infinite width
    """
    return math.exp(-float(log_growth(activation, width, 1.0, weights).mean))


@explained
def lyapunov_exponents(
    width: int, sigma_w: float = 1.0, *, alive: float = 1.0, weights: str = "gaussian"
) -> Float[np.ndarray, " n"]:
    """Compute the Lyapunov exponents of products of sigma_w D W with random masks D and weights W.

    The exponents are the rates of the log singular values of a deep network with fixed gates (Haas
    et al. 2026, arXiv 2602.12384; without masks Newman 1986). With k ~ Binomial(n, alive) units
    alive,

        lambda_i = ln sigma_w + E[psi((k - i + 1)/2) - s_i | k >= i] / 2,

    s_i = ln(n/2) for Gaussian W and psi((n - i + 1)/2) for Haar W: an i-volume grows by a product
    of chi^2 or Beta variables. The Jacobian of a relu network at initialisation has the law of such
    a product with alive = 1/2, at any sigma_b, as the weights are symmetric. Singular values of a
    product of L layers are exp(L lambda_i) up to factors bounded in L.

    Args:
        width: number n of units per layer, >= 1.
        sigma_w: weight gain, > 0.
        alive: probability that a unit passes the signal, in (0, 1].
        weights: "gaussian" or "orthogonal".

    Returns:
        Exponents lambda_i, nats per layer, descending, given that every layer has at least i units
        alive. L layers satisfy the condition with probability P(k >= i)^L.

    Raises:
        ValueError: if a number is out of range, or weights is another name.

    Example:
        >>> lyapunov_exponents(2).round(4).tolist()
        [-0.2886, -0.9818]
        >>> lyapunov_exponents(64, 2**0.5, alive=0.5)[:2].round(4).tolist()
        [-0.0201, -0.0367]
    """
    n = check_count("width", width, 1)
    check_choice("weights", weights, ("gaussian", "orthogonal"))
    if not sigma_w > 0:
        raise ValueError(f"sigma_w must be > 0, got {sigma_w}")
    if not 0 < alive <= 1:
        raise ValueError(f"alive must be in (0, 1], got {alive}")
    counts = np.arange(n + 1)
    free = counts - np.arange(n)[:, None]
    # written out, as scipy.stats takes a second to import
    choices = -scipy.special.betaln(n - counts + 1, counts + 1) - math.log(n + 1)
    log_share = (
        choices + scipy.special.xlogy(counts, alive) + scipy.special.xlog1py(n - counts, -alive)
    )
    shares = np.where(free > 0, np.exp(log_share), 0.0)
    grown = np.where(free > 0, scipy.special.digamma(np.maximum(free, 1) / 2), 0.0)
    mean = np.sum(shares * grown, axis=1) / np.sum(shares, axis=1)
    whole = np.full(n, math.log(n / 2))
    if weights == "orthogonal":
        whole = scipy.special.digamma(np.arange(n, 0, -1) / 2)
    return math.log(sigma_w) + (mean - whole) / 2


@explained
def typical_shift(
    block: AnyBlock, q: ArrayLike, width: ArrayLike, weights: str | None = None
) -> Float[Array, ""]:
    """Compute the mean of ln |J u| minus ln of the root-mean-square of |J u|, per layer.

    To order 1/n this shift is -(k - 1)/(4 n) for Gaussian and -(k - 3)/(4 n) for orthogonal
    weights, k = 3 E phi'^4 / (E phi'^2)^2.

    Args:
        block: activation, `law` or a chain that carries one. Norm and skip are ignored, as they do
            not enlarge the shift.
        q: length of the pre-activations, > 0.
        width: number n of units per layer.
        weights: law of the weights; all but "orthogonal" count as Gaussian. None for the block's.

    Returns:
        Shift in nats per layer, <= 0.

    Example:
        >>> print(f"{typical_shift('relu', 1.0, 100):.4f}")
        -0.0125
    """
    known = as_law(block)
    weights = known.weights if weights is None else weights
    squares, shares = squared_slopes(known.activation, 1.0, q)
    kurtosis = 3 * jnp.sum(shares * squares**2) / jnp.sum(shares * squares) ** 2
    return -(kurtosis - (3.0 if weights == "orthogonal" else 1.0)) / (
        4 * jnp.asarray(width, kurtosis.dtype)
    )


class Comparison(NamedTuple):
    """Difference of a measurement and its prediction.

    Attributes:
        z: measured - predicted, in standard errors.
        band: largest shift that finite width explains, in the units of the measurement.
        beyond: part of the difference that exceeds the band, in standard errors; 0 within the band.
    """

    z: Float[Array, "..."]
    band: Float[Array, "..."]
    beyond: Float[Array, "..."]


@explained
def compare(
    measured: ArrayLike,
    predicted: ArrayLike,
    standard_error: ArrayLike,
    *,
    depth: ArrayLike,
    width: ArrayLike,
    size: ArrayLike | None = None,
    block: AnyBlock | None = None,
    q: ArrayLike = 1.0,
) -> Comparison:
    """Compare a measurement with a prediction for infinite width.

    Args:
        measured: mean over networks, of a logarithm or another quantity of order 1.
        predicted: prediction at infinite width.
        standard_error: standard error of the mean.
        depth: number L of layers that the quantity depends on.
        width: number n of units per layer.
        size: factor of the band size * L/n; None for that of `block`, or 1 without a block.
        block: activation, `law` or a chain that carries one, whose `typical_shift` of ln |J u| is
            the band. The size of relu is 1.25.
        q: length of the pre-activations of `block`, > 0.

    Returns:
        z score of the difference, the band, and the z score beyond the band.

    Raises:
        ValueError: if both size and block are given.

    Example:
        >>> lost = compare(-1.24, 0.0, 0.1, depth=100, width=100, size=1.25)
        >>> print(f"z = {lost.z:.1f}, beyond finite width {abs(lost.beyond):.1f}")
        z = -12.4, beyond finite width 0.0
    """
    if size is not None and block is not None:
        raise ValueError(f"size must be None if block is given, which sets it, got {size}")
    if block is not None:
        size = -typical_shift(block, q, 1.0)
    elif size is None:
        size = 1.0
    difference = jnp.asarray(measured) - jnp.asarray(predicted)
    error = jnp.asarray(standard_error, difference.dtype)
    band = jnp.asarray(size) * jnp.asarray(depth) / jnp.asarray(width, difference.dtype)
    excess = jnp.sign(difference) * jnp.maximum(jnp.abs(difference) - band, 0.0)
    return Comparison(difference / error, band, excess / error)


def _two_slopes(activation: AnyActivation) -> tuple[float, float]:
    """Compute |a_+| and |a_-| of an activation that is linear on either side of 0."""
    phi = get(activation)
    z = np.array([0.1, 1.0, 10.0])
    if not (isinstance(phi, Mixture) or host.is_traced(phi)):
        above, below = (_slope(phi, side * z) for side in (1.0, -1.0))
        if above is not None and below is not None and max(above, below) > 0:
            return above, below
    raise ValueError(
        "exact laws of finite width need phi linear on either side of 0, such as relu and "
        f"leaky_relu, got {phi.name}; typical_shift gives the order 1/width of other activations"
    )


def _slope(phi: Activation, z: Float[np.ndarray, " n"]) -> float | None:
    values = host.value_and_slope(phi)(z)[0]
    slopes = np.abs(values / z)
    if np.allclose(slopes, slopes[0], rtol=1e-12, atol=0.0):
        return float(slopes[0])
    return None


@functools.lru_cache(maxsize=1024)
def _of_square(slopes: tuple[float, float], width: int) -> tuple[float, float]:
    """Compute the mean and variance of ln S."""
    if min(slopes) == 0:
        return _alive(max(slopes), width)
    squares = np.square(slopes)
    last = 2 * _END / width + 2 * abs(math.log(min(slopes))) + 10.0
    x = np.arange(-_END - 2 * abs(math.log(max(slopes))), last, _STEP)
    t = np.exp(x)[:, None]
    transform = np.mean((1 + 2 * squares * t) ** -0.5, 1)
    rate = np.mean(squares * t * (1 + 2 * squares * t) ** -1.5, 1) / transform
    density = width * rate * np.exp(width * np.log(transform)) * _STEP
    mean = float(np.sum(density * x))
    variance = float(np.sum(density * (x - mean) ** 2))
    return -np.euler_gamma - mean, variance - math.pi**2 / 6


def _alive(slope: float, width: int) -> tuple[float, float]:
    """Compute the mean and variance of ln S, S = slope^2 chi^2_k with k > 0 units alive."""
    k = np.arange(1, width + 1)
    log_share = (
        scipy.special.gammaln(width + 1)
        - scipy.special.gammaln(k + 1)
        - scipy.special.gammaln(width - k + 1)
    )
    share = np.exp(log_share - width * math.log(2))
    share = share / np.sum(share)
    centre = scipy.special.digamma(k / 2) + math.log(2) + 2 * math.log(slope)
    mean = float(np.sum(share * centre))
    return mean, float(np.sum(share * (scipy.special.polygamma(1, k / 2) + (centre - mean) ** 2)))
