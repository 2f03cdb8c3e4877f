"""Mean-field predictions of the measured profiles, by a fold over layers, in the same records."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from jaxstab.activations import Activation
from jaxstab.arguments import explained
from jaxstab.checks import Depths, check_depths, check_gains, check_inputs, check_one_point
from jaxstab.records import SATURATED, BackwardProfile, CorrelationProfile, ForwardProfile, Spectrum
from jaxstab.theory.features import Features
from jaxstab.theory.folds import layers
from jaxstab.theory.laws import AnyBlock, Law, as_law
from jaxstab.theory.maps import flat_share
from jaxstab.theory.precision import compiled
from jaxstab.theory.ranges import as_correlation
from jaxstab.theory.reasons import missing_fields
from jaxstab.theory.signals import log
from jaxstab.theory.squashes import unsquashed
from jaxstab.theory.steps import Layers, Variances, first_signal, variances

Prediction = tuple[ForwardProfile, CorrelationProfile, BackwardProfile, Spectrum]


@compiled("depths", "width", "d_in")
def _predict(
    phi: Activation,
    about: Features,
    law: Law,
    sigma_w: Array,
    sigma_b: Array,
    q0: Array,
    c0: Array,
    depths: tuple[int, ...],
    width: int,
    d_in: int,
) -> Prediction:
    block = variances(law, sigma_w, sigma_b, max(depths))
    embed = Variances(
        block.weight + _embedding(law, width, d_in), block.bias, jnp.zeros_like(block.branch)
    )
    log_input = jnp.log(q0)
    c0 = as_correlation(c0)
    known = layers(law, phi, about, block, first_signal(embed, log_input, c0), max(depths))
    forward = _forward(law, phi, known)

    climbed = jnp.concatenate([jnp.zeros(1), jnp.cumsum(known.log_chi[:-1])])
    wanted = jnp.asarray(depths)[:, None]
    places = jnp.arange(len(climbed))
    inside = places[None] <= wanted
    log_grad_h = jnp.where(inside, (climbed[wanted] - climbed[None]) / 2, jnp.nan)
    # a weight's gradient is its input times its cotangent, a bias's gradient its cotangent
    log_entries = jnp.logaddexp(jnp.log(width) + known.log_entries[:-1], known.log_few[:-1])
    log_entries = jnp.concatenate([_embedding_entries(law, d_in, log_input, c0)[None], log_entries])
    backward = BackwardProfile(log_grad_h, log_grad_h + log_entries[None] / 2)

    units = width * (max(depths) + 1 if law.skip == "dense" else 1)
    values = min(units, d_in)
    log_mean_square = (
        embed.weight + known.log_jacobian[jnp.asarray(depths)] + jnp.log(width / values)
    )
    log_s = jnp.full((len(depths), values * (law.batch or 1)), jnp.nan)
    records = (
        forward,
        CorrelationProfile(1.0 - known.distance),
        backward,
        Spectrum(log_s, log_mean_square),
    )
    profile, correlation, gradient, spectrum = (
        _without(record, missing_fields(law)) for record in records
    )
    return profile, correlation, gradient, spectrum


def _embedding(law: Law, width: int, d_in: int) -> float:
    """Compute ln of (variance times fan_in) of the embedding's weights, relative to a block's."""
    return law.log_variance_of(d_in, width) - law.log_variance


def _embedding_entries(law: Law, d_in: int, log_input: Array, c0: Array) -> Array:
    """Compute ln of the embedding's squared parameter gradient over the squared gradient of h_0."""
    log_fed = jnp.log(d_in) + log_input
    if law.norm == "batch":
        return log_fed + log(1.0 - c0)
    return jnp.logaddexp(0.0, log_fed)


def _forward(law: Law, phi: Activation, known: Layers) -> ForwardProfile:
    q = jnp.exp(known.own_log_q)
    own = unsquashed(phi)

    def flat_shares(threshold: float) -> Array:
        return jax.vmap(lambda q: flat_share(own, q, threshold))(q)

    flat = [flat_shares(SATURATED), flat_shares(0.0)]
    if law.skip == "dense":
        # the state concatenates the units of all layers so far
        flat = [jnp.cumsum(share) / jnp.arange(1, len(q) + 1, dtype=q.dtype) for share in flat]
    return ForwardProfile(known.log_q, *flat)


def _without(record: Any, reasons: dict[str, str]) -> Any:
    """Set the fields of a record that have a reason in `reasons` to NaN."""
    unknown = {
        name: jnp.full_like(field, jnp.nan)
        for name, field in record._asdict().items()
        if name in reasons
    }
    return record._replace(**unknown)


@explained
def predict(
    block: AnyBlock,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike,
    depths: Depths,
    *,
    width: int,
    d_in: int,
    q0: ArrayLike = 1.0,
    c0: ArrayLike = 0.0,
) -> Prediction:
    """Predict what `propagation` and `spectra` measure, for a network of infinite width.

    The fold carries (ln q, 1 - c) from q_0 = sigma_w^2 q0 + sigma_b^2 by the length and correlation
    maps (Schoenholz et al. 2017, eqs. 3-5), for any length from e^-5000 to e^5000. Backwards
    |dL/dh_l|^2 = chi_l |dL/dh_{l+1}|^2 with chi_l = sigma_w^2 M(q_l) (their eq. 18 at finite
    depth). Norms are root-mean-square. The typical norm at finite width N is lower by O(depth/N).

    Args:
        block: `law` of a block with norm, skip or dropout, or a chain that carries one; for a plain
            block also the activation, as name, `Activation` or elementwise callable.
        sigma_w: weight gain, >= 0.
        sigma_b: bias standard deviation, >= 0.
        depths: ascending depths L, each >= 0.
        width: units per layer; sets the size of dL/dtheta and the number of singular values, not
            the maps.
        d_in: number of input features.
        q0: mean square of the input, >= 0.
        c0: correlation of the two inputs, in [-1, 1].

    Returns:
        The forward, correlation, backward and spectrum records of the measurement. Gradients are
        those of a loss with |dL/dh_L| = 1 at each depth L. `dead` counts units that are dead for
        one input. log_s is always NaN. `missing` gives the reasons of all fields that are NaN.

    Raises:
        ValueError: if depths are not ascending integers >= 0, a gain is negative or not finite, or
            q0 or c0 is out of range.

    Example:
        >>> forward, _, backward, _ = predict("relu", 2.0, 0.0, [2], width=64, d_in=64)
        >>> forward.q.round(3).tolist(), (backward.log_grad_h / jnp.log(2.0)).round(3).tolist()
        ([4.0, 8.0, 16.0], [[1.0, 0.5, 0.0]])
    """
    depths = check_depths(depths, max(depths, default=0))
    check_one_point(sigma_w=sigma_w, sigma_b=sigma_b)
    check_gains(sigma_w, sigma_b)
    check_inputs(q0, c0)
    known = as_law(block)
    wanted = tuple(depths)
    return _predict(
        known.activation, known, sigma_w, sigma_b, q0, c0, depths=wanted, width=width, d_in=d_in
    )
