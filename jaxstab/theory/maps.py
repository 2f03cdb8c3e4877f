"""Mean-field maps of length q and correlation c through one layer of an infinitely wide network.

Poole et al. 2016 (arXiv:1606.05340) and Schoenholz et al. 2017 (arXiv:1611.01232), with V(q) = E
phi(sqrt(q) u)^2 and M(q) = E phi'(sqrt(q) u)^2. Gains sigma_w and sigma_b are standard deviations.
Every function takes scalars; `jax.vmap` maps them over grids. A moment is NaN or inf where it is
infinite, or where quadrature misses a relative accuracy of 1e-8; `missing` gives the reason.

`log_length_map` and `distance_map` map ln q and 1 - c, and hold at every length.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, Mixture, get
from jaxstab.activations.activation import probe
from jaxstab.arguments import explained
from jaxstab.theory import host
from jaxstab.theory.features import Features, with_checked_pairs
from jaxstab.theory.host import AnyArray
from jaxstab.theory.moments import LogMoments, inside, log_moments, log_pair
from jaxstab.theory.precision import compiled
from jaxstab.theory.quadrature import ACCURACY, CLOSEST, LONGEST, SHORTEST, rule
from jaxstab.theory.ranges import as_correlation, in_range

AnyActivation = str | Activation | Callable[[Array], Array]


def _float(x: ArrayLike) -> Array:
    return jnp.asarray(x, jnp.result_type(x, float))


def _inside(q: Array) -> Array:
    return jnp.clip(q, SHORTEST, LONGEST)


def log_square(x: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """Compute ln x^2, which is -inf with derivative 0 at x = 0.

    Args:
        x: number >= 0.

    Returns:
        ln x^2.
    """
    xp = host.namespace(x)
    positive = x > 0
    return xp.where(positive, 2 * xp.log(xp.where(positive, x, 1.0)), -np.inf)


def log_sum(a: Float[AnyArray, "..."], b: Float[AnyArray, "..."]) -> Float[AnyArray, "..."]:
    """Compute ln (e^a + e^b), with finite derivatives also where a or b is -inf.

    Args:
        a: logarithm of the first term.
        b: logarithm of the second term.

    Returns:
        Logarithm of the sum.
    """
    xp = host.namespace(a, b)
    top = xp.maximum(a, b)
    finite = xp.isfinite(top)
    safe = xp.where(finite, top, 0.0)
    return xp.where(finite, safe + xp.log(xp.exp(a - safe) + xp.exp(b - safe)), host.held(top))


class Length(NamedTuple):
    """Result of one layer's length map, in logarithms.

    Attributes:
        log_q: ln q', the next layer's length.
        log_ratio: ln (q'/q).
        log_share: ln (sigma_w^2 q/q'), the factor from moments per q to the next layer's
            correlation.
        pair_share: the same factor, not its logarithm, for moments of `log_pair`, whose q is
            clipped to the range of quadrature.
    """

    log_q: Float[AnyArray, "..."]
    log_ratio: Float[AnyArray, "..."]
    log_share: Float[AnyArray, "..."]
    pair_share: Float[AnyArray, "..."]


def log_length_map(
    moments: LogMoments,
    log_w: Float[AnyArray, "..."],
    log_b: Float[AnyArray, "..."],
    log_q: Float[AnyArray, "..."],
) -> Length:
    """Map ln q through one layer, q' = sigma_w^2 V(q) + sigma_b^2.

    Args:
        moments: moments of the activation at q.
        log_w: ln sigma_w^2.
        log_b: ln sigma_b^2.
        log_q: ln q; -inf and inf are allowed.

    Returns:
        The next layer's length, its ratio to q and the factors for correlations.
    """
    xp = host.namespace(log_w, log_b, log_q)
    finite = xp.where(xp.isfinite(log_q), log_q, inside(log_q))
    ratio = log_sum(log_w + moments.log_growth, log_b - finite)
    share = xp.where(xp.isfinite(log_w), log_w - xp.where(xp.isfinite(ratio), ratio, 0.0), -np.inf)
    pair_share = xp.exp(share + moments.log_growth - moments.near_growth)
    return Length(log_sum(log_w + moments.log_length, log_b), ratio, share, pair_share)


# correlation evaluated instead of 0: sqrt(c) keeps half of its digits, c^2 is below rounding
_BESIDE_ZERO = 1e-12


class Distance(NamedTuple):
    """Result of one layer's map of 1 - c.

    Attributes:
        distance: 1 - c' of the next layer.
        slope: dc'/dc.
    """

    distance: Float[AnyArray, "..."]
    slope: Float[AnyArray, "..."]


def distance_map(
    phi: Activation,
    about: Features,
    log_q: Float[AnyArray, "..."],
    share: Float[AnyArray, "..."],
    distance: Float[AnyArray, "..."],
) -> Distance:
    """Map 1 - c through one layer, with full relative accuracy as c tends to 1.

    1 - c' = sigma_w^2 (V - E phi(z1) phi(z2)) / q'.

    Args:
        phi: activation.
        about: features of the activation.
        log_q: ln q.
        share: `pair_share` of the length map.
        distance: 1 - c, in [0, 2].

    Returns:
        1 - c' and dc'/dc; NaN where two rules of quadrature disagree.
    """
    xp = host.namespace(log_q, share, distance)
    opposite = distance > 1.0
    apart = xp.where(opposite, 2.0 - distance, distance)
    if phi.kernel is None:
        # sqrt(c) has no derivative at c = 0: extrapolate by the slope from a point beside 0
        shift = host.held(xp.maximum(apart - (1.0 - _BESIDE_ZERO), 0.0))
        apart = apart - shift
    mapped = log_pair(phi, about, log_q, apart, rule(about), opposite)
    if phi.kernel is None:
        shift = xp.where(opposite, -shift, shift)
        mapped = mapped._replace(gap=mapped.gap + mapped.slope * shift)
        # at c = +-1 the nodes do not move with c, so autodiff needs the slope added
        ends = xp.where(apart <= CLOSEST, distance - host.held(distance), 0.0)
        mapped = mapped._replace(gap=mapped.gap + mapped.slope * ends)
    if about.check is not None:
        other = log_pair(phi, about, log_q, apart, rule(about, check=True), opposite)
        size = xp.exp(log_moments(phi, about, log_q).log_growth)
        long = log_q > about.check_from
        unsure = long & (xp.abs(mapped.gap - other.gap) > ACCURACY * size)
        mapped = mapped._replace(gap=xp.where(unsure, np.nan, mapped.gap))
        # the slope of a step function is as small as V/q, so the tolerance has a floor of its size
        floor = ACCURACY / 100 * xp.minimum(size, 1.0)
        off = xp.abs(mapped.slope - other.slope)
        unsure = long & (off > ACCURACY * xp.abs(mapped.slope) + floor)
        mapped = mapped._replace(slope=xp.where(unsure, np.nan, mapped.slope))
    return Distance(share * mapped.gap, share * mapped.slope)


@compiled(at_once=True)
def _second_moment(phi: Activation, about: Features, q: AnyArray) -> AnyArray:
    xp = host.namespace(q)
    return xp.exp(log_moments(phi, about, xp.log(q)).log_length)


@explained
def second_moment(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """Compute V(q) = E phi(sqrt(q) u)^2, u standard normal.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        V(q).

    Example:
        >>> print(f"{second_moment('relu', 3.0):.4f}")
        1.5000
    """
    return _second_moment(get(activation), q)


@compiled(at_once=True)
def _second_moment_slope(phi: Activation, about: Features, q: AnyArray) -> AnyArray:
    xp = host.namespace(q)
    moments = log_moments(phi, about, xp.log(q))
    return xp.exp(moments.log_growth) * moments.length_power


@explained
def second_moment_slope(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """Compute V'(q) = E[phi(z) phi'(z) z] / q with z = sqrt(q) u.

    This equals M(q) + E[phi phi''] only for smooth phi; this form includes kinks (hard_tanh).

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        dV/dq.

    Example:
        >>> print(f"{second_moment_slope('relu', 3.0):.4f}")
        0.5000
    """
    return _second_moment_slope(get(activation), q)


@compiled(at_once=True)
def _derivative_moment(phi: Activation, about: Features, q: AnyArray) -> AnyArray:
    xp = host.namespace(q)
    return xp.exp(log_moments(phi, about, xp.log(q)).log_slope)


@explained
def derivative_moment(activation: AnyActivation, q: ArrayLike) -> Float[Array, ""]:
    """Compute M(q) = E phi'(sqrt(q) u)^2, u standard normal.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].

    Returns:
        M(q); sigma_w^2 M(q) is the factor of the mean squared gradient per layer.

    Example:
        >>> print(f"{derivative_moment('relu', 3.0):.4f}")
        0.5000
    """
    return _derivative_moment(get(activation), q)


@compiled(at_once=True)
def _length_map(
    phi: Activation, about: Features, sigma_w: AnyArray, sigma_b: AnyArray, q: AnyArray
) -> AnyArray:
    xp = host.namespace(sigma_w, sigma_b, q)
    length = sigma_w**2 * xp.exp(log_moments(phi, about, xp.log(q)).log_length) + sigma_b**2
    return in_range(length, sigma_w, sigma_b)


@explained
def length_map(
    activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike
) -> Float[Array, ""]:
    """Compute one layer's length map q' = sigma_w^2 V(q) + sigma_b^2 (Poole et al. 2016, eq. 3).

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].

    Returns:
        Length q' of the next layer; NaN where a gain or q is negative.

    Example:
        >>> print(f"{length_map('relu', 2**0.5, 0.0, 3.0):.4f}")
        3.0000
    """
    return _length_map(get(activation), sigma_w, sigma_b, q)


@compiled(at_once=True)
def _correlation(
    phi: Activation, about: Features, sigma_w: AnyArray, sigma_b: AnyArray, q: AnyArray, c: AnyArray
) -> tuple[AnyArray, AnyArray]:
    xp = host.namespace(sigma_w, sigma_b, q, c)
    if phi.kernel is None:
        about = with_checked_pairs(about)
    c = as_correlation(c)
    log_q = xp.log(q)
    moments = log_moments(phi, about, log_q)
    length = log_length_map(moments, log_square(sigma_w), log_square(sigma_b), log_q)
    share = in_range(length.pair_share, sigma_w, sigma_b)
    mapped = distance_map(phi, about, log_q, share, 1.0 - c)
    slope = xp.where(c >= 1.0, xp.exp(length.log_share + moments.log_slope), mapped.slope)
    return 1.0 - mapped.distance, in_range(slope, sigma_w, sigma_b)


@explained
def correlation_map(
    activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike, c: ArrayLike
) -> Float[Array, ""]:
    """Compute the correlation map of one layer, for two inputs of equal length q.

    c' = (sigma_w^2 E phi(z1) phi(z2) + sigma_b^2) / q', with q' the length map at q (Poole et al.
    2016, eq. 5). At a length fixed point q' = q.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].
        c: correlation, in [-1, 1].

    Returns:
        Correlation c' of the next layer. NaN where an argument is out of its range, or where two
        rules of quadrature differ by more than 1e-8: for q > 1e4, steps and kinks without a closed
        form may do so. `predict` keeps those values: its c is accurate to 1e-5 at q = 1e12 and to
        1e-3 at q = 1e24.

    Example:
        >>> print(f"{correlation_map('relu', 2**0.5, 0.0, 1.0, 0.0):.4f}")
        0.3183
    """
    return _correlation(get(activation), sigma_w, sigma_b, q, c)[0]


@explained
def correlation_slope(
    activation: AnyActivation, sigma_w: ArrayLike, sigma_b: ArrayLike, q: ArrayLike, c: ArrayLike
) -> Float[Array, ""]:
    """Compute the slope of the correlation map, dc'/dc = sigma_w^2 q E[phi'(z1) phi'(z2)] / q'.

    At a length fixed point the slope is sigma_w^2 E[phi' phi'], which is chi_1 at c = 1. Where the
    length still grows (relu, sigma_w^2 > 2) the slope stays below the gradient's factor.

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        q: length, in [0, inf].
        c: correlation, in [-1, 1].

    Returns:
        dc'/dc; NaN as in `correlation_map`.

    Example:
        >>> print(f"{correlation_slope('relu', 2.0, 0.0, 1.0, 1.0):.4f}")
        1.0000
    """
    return _correlation(get(activation), sigma_w, sigma_b, q, c)[1]


@compiled("threshold")
def _saturation(phi: Activation, about: Features, q: Array, threshold: float) -> Array:
    return flat_share(phi, q, threshold)


def flat_share(phi: Activation, q: Float[Array, ""], threshold: float) -> Float[Array, ""]:
    """Compute `saturation` inside a trace.

    Args:
        phi: activation.
        q: length.
        threshold: fraction of max |phi'|.

    Returns:
        Share of units, in [0, 1].
    """
    limit = threshold * phi.steepest(q.dtype)
    if isinstance(phi, Mixture):
        return phi.average(lambda part: _share_below(part, q, limit))
    return _share_below(phi, q, limit)


def _share_below(phi: Activation, q: Float[Array, ""], limit: Float[Array, ""]) -> Float[Array, ""]:
    """Compute the share of units with |phi'| <= limit."""
    z = probe(q.dtype)
    flat = (jnp.abs(phi.derivative(z)) <= limit).astype(q.dtype)
    # each edge switches the indicator to its right; 64 suffice, as sin has 50 edges within +-20
    change = flat[1:] - flat[:-1]
    _, edges = jax.lax.top_k(jnp.abs(change), 64)
    places = (z[edges] + z[edges + 1]) / 2
    beyond = 1 - jax.scipy.stats.norm.cdf(places / jnp.sqrt(_inside(q)))
    return flat[0] + jnp.sum(change[edges] * beyond)


@explained
def saturation(activation: AnyActivation, q: ArrayLike, threshold: float) -> Float[Array, ""]:
    """Compute the share of units h ~ N(0, q) with |phi'(h)| <= `threshold` max |phi'|.

    Args:
        activation: name, `Activation` or elementwise callable.
        q: length, in [0, inf].
        threshold: fraction in [0, 1) of max |phi'|; 0 counts units that are exactly dead.

    Returns:
        Share of units, in [0, 1]. The error is 3e-4 / sqrt(q) for each point where |phi'| crosses
        the threshold, and 0 where phi has a kink there.

    Example:
        >>> print(f"{saturation('hard_tanh', 1.0, 0.0):.3f}")
        0.317
    """
    return _saturation(get(activation), q, threshold=threshold)
