"""The mean-field counterpart of everything that is measured: the same fold over layers, the same records."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxstab.activations import Activation, get
from jaxstab.checks import Depths, check_depths, check_gains
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile, Spectrum
from jaxstab.theory.features import Features
from jaxstab.theory.maps import AnyActivation, distance_map, flat_share, log_length_map, log_square, log_sum
from jaxstab.theory.moments import log_moments
from jaxstab.theory.precision import compiled

Prediction = tuple[ForwardProfile, CorrelationProfile, BackwardProfile, Spectrum]


@compiled("depths", "width", "d_in")
def _predict(
    phi: Activation,
    about: Features,
    sigma_w: Array,
    sigma_b: Array,
    q0: Array,
    c0: Array,
    depths: tuple[int, ...],
    width: int,
    d_in: int,
) -> Prediction:
    log_w, log_b, log_input = log_square(sigma_w), log_square(sigma_b), jnp.log(q0)
    first = log_sum(log_w + log_input, log_b)
    # two inputs without any signal stay as alike as they were
    weighted = jnp.where(first == -jnp.inf, 1.0, jnp.exp(log_w + log_input - jnp.where(first == -jnp.inf, 0.0, first)))

    def layer(signal: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        log_q, distance = signal
        moments = log_moments(phi, about, log_q)
        length = log_length_map(moments, log_w, log_b, log_q)
        apart = distance_map(phi, about, log_q, length.pair_share, distance).distance
        return (length.log_q, apart), (log_q, distance, log_w + moments.log_slope, moments.log_length)

    # the last layer's step is taken for its moments only
    _, (log_q, distance, log_chi, log_length) = jax.lax.scan(
        layer, (first, weighted * (1.0 - c0)), None, length=max(depths) + 1
    )
    q = jnp.exp(log_q)
    flat = (jax.vmap(lambda q, share=share: flat_share(phi, q, share))(q) for share in (SATURATED, 0.0))
    forward = ForwardProfile(log_q, *flat)

    climbed = jnp.concatenate([jnp.zeros(1), jnp.cumsum(log_chi[:-1])])
    wanted, layers = jnp.asarray(depths)[:, None], jnp.arange(len(q))
    inside = layers[None] <= wanted
    log_grad_h = jnp.where(inside, (climbed[wanted] - climbed[None]) / 2, jnp.nan)
    # one gradient entry per weight, its input times its cotangent, and one per bias
    log_fed = jnp.concatenate([(jnp.log(d_in) + log_input)[None], jnp.log(width) + log_length[:-1]])
    log_entries = jnp.logaddexp(0.0, log_fed)
    backward = BackwardProfile(log_grad_h, log_grad_h + log_entries[None] / 2)

    values = min(width, d_in)
    log_mean_square = log_w + climbed[jnp.asarray(depths)] + jnp.log(width / values)
    missing = jnp.full((len(depths), values), jnp.nan)
    return forward, CorrelationProfile(1.0 - distance), backward, Spectrum(missing, log_mean_square)


def predict(
    activation: AnyActivation,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depths: Depths,
    *,
    width: int,
    d_in: int,
    q0: ArrayLike = 1.0,
    c0: ArrayLike = 0.0,
) -> Prediction:
    """What `propagation` and `spectra` would measure on a plain network of infinite width.

    The fold carries (ln q, 1 - c): q_0 = sigma_w^2 q0 + sigma_b^2, then the length and correlation maps
    (Schoenholz et al. 2017, eqs. 3-5), at every length from e^-5000 to e^5000. Backwards
    |dL/dh_l|^2 = chi_l |dL/dh_{l+1}|^2 with chi_l = sigma_w^2 M(q_l) (their eq. 18 at finite depth). Norms are
    root-mean-square; the typical one of a network of finite width N lies lower by O(depth/N).

    Args:
        activation: name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depths: the depths wanted, each >= 0.
        width: units per layer; sets the size of dL/dtheta and the number of singular values, not the maps.
        d_in: input features.
        q0: mean square of the input, >= 0.
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
    depths = check_depths(depths, max(depths, default=0))
    check_gains(sigma_w, sigma_b)
    wanted = tuple(depths)
    return _predict(get(activation), sigma_w, sigma_b, q0, c0, depths=wanted, width=width, d_in=d_in)
