"""Records: examples, and pytrees that measurement and theory share.

A field's annotation is its meaning to the rest of the house: `Float[Array, "*depth layer"]` says
that its last axis is named `layer` and that a `depth` axis may stand before it; labelled datasets
take their dimension names from there. A prediction that theory does not make is NaN in the same
record, never another type.
"""

import hashlib
import math
from typing import NamedTuple, get_type_hints

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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
        """q_l itself, which may overflow where ln q_l does not."""
        return jnp.exp(self.log_q)


class SiteProfile(NamedTuple):
    """Signal of one batch at the sites of an unmodified model, over all entries of a value.

    Attributes:
        log_q: ln of the mean of squares; -inf for a zero signal.
        saturation: as in `ForwardProfile`, of the activation that reads the site; NaN where none is
            known.
        dead: likewise.
        mean: of the values.
        nonfinite: share of the values that are NaN or infinite.
    """

    log_q: Float[Array, " row"]
    saturation: Float[Array, " row"]
    dead: Float[Array, " row"]
    mean: Float[Array, " row"]
    nonfinite: Float[Array, " row"]


class AttentionProfile(NamedTuple):
    """What softmaxes read and give, over examples and positions, for each head.

    Attributes:
        max_logit: the largest of what the softmax reads.
        entropy: mean entropy of its weights, nats.
        uniform: that of equal weights of all that no mask takes away, nats.
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
        log_grad_theta: ln |dL/dtheta_l|, theta_l the weights and biases that produce h_l (layer 0:
            the embedding's).
    """

    log_grad_h: Float[Array, "*depth layer"]
    log_grad_theta: Float[Array, "*depth layer"]


class Spectrum(NamedTuple):
    """Singular values s of the Jacobian dh_L/dx, for every wanted depth L.

    Attributes:
        log_s: ln s, descending; -inf for a direction that is killed exactly.
        log_mean_square: ln of the mean of s^2 over all singular values, zeros included.
    """

    log_s: Float[Array, "*depth index"]
    log_mean_square: Float[Array, "*depth"]


class Sharpness(NamedTuple):
    """Largest curvature of a loss by the parameters, for networks of every wanted depth.

    Attributes:
        log_sharpness: ln of the largest eigenvalue of the Hessian; -inf where it is not positive.
        sharpness_error: bound on the relative distance of that eigenvalue to one of the Hessian's.
        log_gauss_newton: ln of the largest eigenvalue of the Gauss-Newton matrix, for cross-entropy
            the Fisher matrix.
    """

    log_sharpness: Float[Array, "*depth"]
    sharpness_error: Float[Array, "*depth"]
    log_gauss_newton: Float[Array, "*depth"]


class Training(NamedTuple):
    """One training run.

    The network is frozen from the first step on whose loss or gradient is not finite.

    Attributes:
        loss: of each step's minibatch, before its update; NaN after the first that is not finite.
        accuracy: share of that minibatch classified right, likewise.
        norm_before: of the gradient as it came to `clipping.monitored`; NaN without.
        coefficient: what clipping multiplied it by, from the same source; NaN without.
        train_accuracy: share of all training examples classified right, in inference.
        test_accuracy: of the test examples; NaN without any.
        log_grad_theta: ln |dL/dtheta_l| of the gradient that the next step saw (at the end: the
            last step), embed and blocks; NaN beyond the depth.
        log_grad_readout: that of the readout.
        sharpness: largest eigenvalue of the Hessian of the loss over all training examples, before
            every so many updates; NaN from the first step that is not finite on, empty where it is
            not measured.
        sharpness_error: bound on its distance to an eigenvalue, likewise.
        first_nonfinite: the step, counted from 0, whose loss or gradient was the first not finite;
            -1 for none.
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
        stable: whether lengths near q* are drawn to it (|dq'/dq| < 1).
        log_q: ln q*, where q* itself may overflow or vanish.
        distance: 1 - c*, which keeps its digits where c* is nearly 1.
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
        sigma_w: the gain.
        q: the length fixed point there; inf where chi_1 = 1 is reached as the length grows without
            bound.
        usable: whether a network stays there: the length map does not repel from q, and for an
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
        value: the mean of the samples, unbiased.
        standard_error: of that mean; NaN from a single sample. A constant under differentiation.
    """

    value: Float[Array, "..."]
    standard_error: Float[Array, "..."]


def standard_error(samples: Float[Array, "*rows sample"]) -> Float[Array, "*rows"]:
    """Compute the standard error of the mean of independent samples.

    Args:
        samples: along the last axis.

    Returns:
        Standard deviation (n - 1) over the square root of n; NaN for a single sample, which does
        not tell.
    """
    count = samples.shape[-1]
    if count == 1:
        return jnp.full(samples.shape[:-1], jnp.nan, samples.dtype)
    variance = jnp.var(samples, axis=-1, ddof=1)
    # the root is taken of 1 where samples are equal, so that its gradient stays finite
    equal = variance == 0
    deviation = jnp.where(equal, 0.0, jnp.sqrt(jnp.where(equal, 1.0, variance)))
    return deviation / math.sqrt(count)


class Data(NamedTuple):
    """Examples: inputs and labels.

    Attributes:
        x: inputs.
        y: class labels from 0.
        name: where they come from, for the provenance of results.
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
            q0: mean square wanted, > 0.

        Returns:
            The data, x of the same dtype.

        Raises:
            ValueError: if an input is zero, or q0 is not positive.

        Example:
            >>> data = Data(np.array([[3.0, 4.0]]), np.array([0]), "one example")
            >>> float((data.normalised().x ** 2).mean().round(6))
            1.0
        """
        if not q0 > 0:
            raise ValueError(f"q0 must be > 0, got {q0}")
        # a power of two, so that no bit changes, after which no square of an input over- or
        # underflows
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
        record: a record type of this module, or one of the user's own written the same way.
        field: the field's name.
        ndim: how many axes the array at hand has.

    Returns:
        The names, for use as labels.

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
