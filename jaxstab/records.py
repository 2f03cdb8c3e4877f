"""Records: examples, and pytrees that measurement and theory share.

A field's annotation names its axes: `Float[Array, "*depth layer"]` has a last axis `layer`, and
optionally a `depth` axis before it. Labelled datasets take their dimension names from there. A
missing prediction of theory is NaN in the same record, never another type.
"""

import hashlib
import math
from typing import NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# the other names are for the other packages of jaxstab
__all__ = (
    "AttentionProfile",
    "BackwardProfile",
    "CorrelationProfile",
    "CriticalPoint",
    "Data",
    "Estimate",
    "FixedPoint",
    "ForwardProfile",
    "Sharpness",
    "SiteProfile",
    "Spectrum",
    "Training",
)

# a unit counts as saturated where |phi'| is at most this share of its maximum
SATURATED = 0.1


class ForwardProfile(NamedTuple):
    """Signal of one input, or one batch, at every layer 0..L; layer 0 is the embedding's h_0.

    Attributes:
        log_q: ln q_l, q_l = mean of h_l^2 over units, the pre-activation variance per unit; -inf
            for a zero signal.
        saturation: share of units in [0, 1] whose |phi'(h)| is at most SATURATED = 0.1 times max
            |phi'|.
        dead: share of units in [0, 1] with phi'(h) = 0 exactly, for every example where a batch is
            given.
    """

    log_q: Float[Array, " layer"]
    saturation: Float[Array, " layer"]
    dead: Float[Array, " layer"]

    @property
    def q(self) -> Float[Array, " layer"]:
        """Length q_l, which may overflow where ln q_l does not."""
        return jnp.exp(self.log_q)


class SiteProfile(NamedTuple):
    """Signal of one batch at the sites of an unmodified model, over all entries of a value.

    Attributes:
        log_q: ln of the mean square; -inf for a zero signal.
        saturation: share of saturated units, as in `ForwardProfile`, for the activation applied to
            the site; NaN without one.
        dead: share of dead units, as in `ForwardProfile`; NaN without an activation.
        mean: mean of the values.
        nonfinite: share of the values that are NaN or infinite.
    """

    log_q: Float[Array, " row"]
    saturation: Float[Array, " row"]
    dead: Float[Array, " row"]
    mean: Float[Array, " row"]
    nonfinite: Float[Array, " row"]


class AttentionProfile(NamedTuple):
    """Logits and entropies of softmaxes over examples and positions, for each head.

    Attributes:
        max_logit: largest logit.
        entropy: mean entropy of the softmax's weights, in nats.
        uniform: mean entropy of equal weights over unmasked positions, in nats.
    """

    max_logit: Float[Array, "row head"]
    entropy: Float[Array, "row head"]
    uniform: Float[Array, "row head"]


class CorrelationProfile(NamedTuple):
    """Correlation of two inputs at every layer 0..L.

    Attributes:
        c: correlation c_l = h_l . h'_l / (|h_l| |h'_l|) in [-1, 1].
    """

    c: Float[Array, " layer"]


class BackwardProfile(NamedTuple):
    """Gradient of a loss at every layer 0..L, for every wanted depth; NaN beyond that depth.

    Attributes:
        log_grad_h: ln |dL/dh_l|, Euclidean norm; -inf for a gradient that is exactly zero.
        log_grad_theta: ln |dL/dtheta_l|, with theta_l the weights and biases that produce h_l (the
            embedding's for layer 0).
    """

    log_grad_h: Float[Array, "*depth layer"]
    log_grad_theta: Float[Array, "*depth layer"]


class Spectrum(NamedTuple):
    """Singular values s of the Jacobian dh_L/dx, for every wanted depth L.

    Attributes:
        log_s: ln s, descending; -inf for s = 0.
        log_mean_square: ln of the mean of s^2 over all singular values, zeros included.
    """

    log_s: Float[Array, "*depth index"]
    log_mean_square: Float[Array, "*depth"]

    @classmethod
    def of(cls, log_s: Float[Array, "*depth index"]) -> "Spectrum":
        """Make the record of measured singular values, as theory predicts it.

        Args:
            log_s: ln s, from `spectra.log_singular_values`.

        Returns:
            The record.
        """
        return cls(log_s, jax.nn.logsumexp(2 * log_s, axis=-1) - jnp.log(log_s.shape[-1]))


class Sharpness(NamedTuple):
    """Largest curvature of a loss by the parameters, for networks of every wanted depth.

    Attributes:
        log_sharpness: ln of the largest eigenvalue of the Hessian; -inf where it is not positive.
        sharpness_error: bound on the relative distance of that estimate from an eigenvalue of the
            Hessian.
        log_gauss_newton: ln of the largest eigenvalue of the Gauss-Newton matrix, which is the
            Fisher matrix for cross-entropy.
    """

    log_sharpness: Float[Array, "*depth"]
    sharpness_error: Float[Array, "*depth"]
    log_gauss_newton: Float[Array, "*depth"]


class Training(NamedTuple):
    """Record of one training run.

    The network is frozen from the first step whose loss or gradient is not finite.

    Attributes:
        loss: loss of each step's minibatch, before its update; NaN after the first step that is not
            finite.
        accuracy: accuracy on that minibatch, before its update; NaN after the same step.
        norm_before: norm of the gradient before `clipping.monitored`; NaN without it.
        coefficient: factor of the gradient in `clipping.monitored`; NaN without it.
        train_accuracy: accuracy on all training examples, in inference mode.
        test_accuracy: accuracy on the test examples, in inference mode; NaN without any.
        log_grad_theta: ln |dL/dtheta_l| of embed and blocks, from the step after the evaluation (at
            the end, the last step); NaN beyond the depth.
        log_grad_readout: ln |dL/dtheta| of the readout, from the same step.
        sharpness: largest eigenvalue of the Hessian of the loss over all training examples, before
            every k-th update; NaN from the first step that is not finite, empty if not measured.
        sharpness_error: bound on the distance of the sharpness from an eigenvalue.
        first_nonfinite: first step, counted from 0, whose loss or gradient is not finite; -1 for
            none.
    """

    loss: Float[Array, "*cell step"]
    accuracy: Float[Array, "*cell step"]
    norm_before: Float[Array, "*cell step"]
    coefficient: Float[Array, "*cell step"]
    train_accuracy: Float[Array, "*cell evaluation"]
    test_accuracy: Float[Array, "*cell evaluation"]
    log_grad_theta: Float[Array, "*cell evaluation layer"]
    log_grad_readout: Float[Array, "*cell evaluation"]
    sharpness: Float[Array, "*cell record"]
    sharpness_error: Float[Array, "*cell record"]
    first_nonfinite: Int[Array, "*cell"]


class FixedPoint(NamedTuple):
    """Length fixed point of the mean-field maps, with the rates of signal and gradient around it.

    Attributes:
        q: length q* = sigma_w^2 E phi(sqrt(q*) z)^2 + sigma_b^2; inf where the length grows without
            bound.
        c: stable correlation c* of two inputs of length q*, in [0, 1].
        chi_1: factor of the mean squared gradient per layer, sigma_w^2 E phi'(sqrt(q*) z)^2.
        chi_c: slope of the correlation map at c*.
        xi_q: depth scale of the length, layers; negative where the fixed point repels, inf where it
            is marginal.
        xi_c: depth scale of the correlation, layers; inf where it decays slower than exponentially.
        xi_grad: depth scale of the gradient, 1/|ln chi_1|, layers.
        stable: True where lengths near q* converge to q* (|dq'/dq| < 1).
        log_q: ln q*, finite also where q* over- or underflows.
        distance: 1 - c*, accurate also where c* is nearly 1.
    """

    q: Float[Array, "..."]
    c: Float[Array, "..."]
    chi_1: Float[Array, "..."]
    chi_c: Float[Array, "..."]
    xi_q: Float[Array, "..."]
    xi_c: Float[Array, "..."]
    xi_grad: Float[Array, "..."]
    stable: Bool[Array, "..."]
    log_q: Float[Array, "..."]
    distance: Float[Array, "..."]


class CriticalPoint(NamedTuple):
    """Point (sigma_w, q) at which chi_1 = 1 for a given sigma_b.

    Attributes:
        sigma_w: weight gain.
        q: length fixed point at that gain; inf where chi_1 tends to 1 as the length grows without
            bound.
        usable: True where a network stays at q: the length map does not repel from q, and for an
            infinite q the activation has chi_1 = 1 at every length (relu), not only in the limit
            (gelu).
        log_q: ln q.
    """

    sigma_w: Float[Array, "..."]
    q: Float[Array, "..."]
    usable: Bool[Array, "..."]
    log_q: Float[Array, "..."]


class Estimate(NamedTuple):
    """Monte-Carlo mean with its standard error.

    Attributes:
        value: mean of the samples, unbiased.
        standard_error: standard error of that mean; NaN for a single sample. A constant under
            differentiation.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def standard_error(samples: Float[Array, "*rows sample"]) -> Float[Array, "*rows"]:
    """Compute the standard error of the mean of independent samples.

    Args:
        samples: independent samples along the last axis.

    Returns:
        Standard deviation (n - 1) over the square root of n; NaN for a single sample.
    """
    count = samples.shape[-1]
    if count == 1:
        return jnp.full(samples.shape[:-1], jnp.nan, samples.dtype)
    variance = jnp.var(samples, axis=-1, ddof=1)
    # for equal samples the root of 1 replaces the root of 0, whose gradient is infinite
    equal = variance == 0
    deviation = jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, variance)))
    return deviation / math.sqrt(count)


class Data(NamedTuple):
    """Examples: inputs and labels.

    Attributes:
        x: inputs.
        y: class labels from 0.
        name: source of the examples, for the provenance of results.
    """

    x: Float[np.ndarray, "n d_in"]
    y: Int[np.ndarray, " n"]
    name: str

    @property
    def sha256(self) -> str:
        """Compute the checksum of x and y, for the provenance of results."""
        return hashlib.sha256(np.ascontiguousarray(self.x).tobytes() + self.y.tobytes()).hexdigest()

    def normalised(self, q0: float = 1.0) -> "Data":
        """Scale each input to mean square q0, the length that theory starts from.

        Args:
            q0: mean square of each scaled input, > 0.

        Returns:
            Data with scaled inputs x of the same dtype.

        Raises:
            ValueError: if an input is zero, or q0 is not positive.

        Example:
            >>> data = Data(np.array([[3.0, 4.0]]), np.array([0]), "one example")
            >>> float((data.normalised().x ** 2).mean().round(6))
            1.0
        """
        if not q0 > 0:
            raise ValueError(f"q0 must be > 0, got {q0}")
        # scaling by a power of two is exact, and keeps squares from over- and underflow
        largest = np.abs(self.x).max(axis=1, keepdims=True)
        if not np.all(largest > 0):
            bad = int(np.argmin(largest))
            raise ValueError(f"{self.name}: input {bad} is zero and has no length to normalise")
        relative = np.ldexp(self.x, -np.frexp(largest)[1])
        mean_square = np.mean(np.square(relative), axis=1, keepdims=True)
        return self._replace(x=(relative * np.sqrt(q0 / mean_square)).astype(self.x.dtype))


def dimensions(record: type, field: str, ndim: int) -> tuple[str, ...]:
    """Read the names of the last `ndim` axes of a record's field from its annotation.

    Args:
        record: record type of this module, or one of the user's own with such annotations.
        field: name of the field.
        ndim: number of axes of the array.

    Returns:
        Names of the axes.

    Raises:
        ValueError: if the array has more axes than the annotation names.

    Example:
        >>> dimensions(BackwardProfile, "log_grad_h", 2), dimensions(BackwardProfile, "log_grad_h", 1)
        (('depth', 'layer'), ('layer',))
    """
    named = tuple(get_type_hints(record)[field].dim_str.replace("*", "").split())
    if ndim > len(named):
        raise ValueError(
            f"{record.__name__}.{field} has {ndim} axes, its annotation names only {named}"
        )
    return named[len(named) - ndim :]
