"""The mean-field counterpart of everything that is measured: the same fold over layers, the same records."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxstab.activations import get
from jaxstab.checks import check_depths, check_gains
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile, Spectrum
from jaxstab.theory.maps import (
    AnyActivation,
    _float,
    correlation_map,
    derivative_moment,
    length_map,
    saturation,
    second_moment,
)


def predict(
    activation: AnyActivation,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depths: Sequence[int],
    *,
    width: int,
    d_in: int,
    q0: ArrayLike = 1.0,
    c0: ArrayLike = 0.0,
) -> tuple[ForwardProfile, CorrelationProfile, BackwardProfile, Spectrum]:
    """What `propagation` and `spectra` would measure on a plain network of infinite width.

    The fold carries (q, c): q_0 = sigma_w^2 q0 + sigma_b^2, then the length and correlation maps
    (Schoenholz et al. 2017, eqs. 3-5). Backwards |dL/dh_l|^2 = chi_l |dL/dh_{l+1}|^2 with
    chi_l = sigma_w^2 M(q_l) (their eq. 18 at finite depth). Norms are root-mean-square; the typical one of a
    network of finite width N lies lower by O(depth/N).

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depths: the depths wanted, each >= 0.
        width: units per layer; sets the size of dL/dtheta and the number of singular values, not the maps.
        d_in: input features.
        q0: mean square of the input.
        c0: correlation of the two inputs.

    Returns:
        The records of the measurement. Gradients are those of a loss with |dL/dh_L| = 1 at each depth L. log_s
        and the share of units dead on a whole batch are not predicted: NaN, and for one input, respectively.

    Raises:
        ValueError: if depths are not ascending integers >= 0, or a gain is negative or not finite.

    Example:
        >>> forward, _, backward, _ = predict("relu", 2.0, 0.0, [2], width=64, d_in=64)
        >>> forward.q.round(3).tolist(), (backward.log_grad_h / jnp.log(2.0)).round(3).tolist()
        ([4.0, 8.0, 16.0], [[1.0, 0.5, 0.0]])
    """
    check_depths(depths, max(depths, default=0))
    check_gains(sigma_w, sigma_b)
    phi, w, b = get(activation), _float(sigma_w), _float(sigma_b)
    q_first = w**2 * _float(q0) + b**2
    c_first = (w**2 * _float(q0) * _float(c0) + b**2) / q_first

    def layer(signal: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        q, c = signal
        return (length_map(phi, w, b, q), correlation_map(phi, w, b, q, c)), signal

    last, before = jax.lax.scan(layer, (q_first, c_first), None, length=max(depths))
    q, c = (jnp.append(start, end) for start, end in zip(before, last, strict=True))
    forward = ForwardProfile(
        jnp.log(q),
        jax.vmap(lambda q: saturation(phi, q, SATURATED))(q),
        jax.vmap(lambda q: saturation(phi, q, 0.0))(q),
    )

    log_chi = jnp.log(w**2 * jax.vmap(lambda q: derivative_moment(phi, q))(q[:-1]))
    climbed = jnp.append(0.0, jnp.cumsum(log_chi)).astype(q.dtype)
    wanted, layers = jnp.asarray(depths)[:, None], jnp.arange(len(q))
    inside = layers[None] <= wanted
    log_grad_h = jnp.where(inside, (climbed[wanted] - climbed[None]) / 2, jnp.nan)
    # one gradient entry per weight, its input times its cotangent, and one per bias
    fed = jnp.append(d_in * _float(q0), width * jax.vmap(lambda q: second_moment(phi, q))(q[:-1]))
    backward = BackwardProfile(log_grad_h, log_grad_h + jnp.log1p(fed)[None] / 2)

    values = min(width, d_in)
    log_mean_square = 2 * jnp.log(w) + climbed[jnp.asarray(depths)] + jnp.log(width / values)
    return (
        forward,
        CorrelationProfile(c),
        backward,
        Spectrum(jnp.full((len(depths), values), jnp.nan, q.dtype), log_mean_square.astype(q.dtype)),
    )
