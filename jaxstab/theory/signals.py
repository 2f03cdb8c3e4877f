"""Records of the fold over blocks: pre-activations of two inputs, and moments of a block's head."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxstab.theory import host
from jaxstab.theory.host import AnyArray


class Signal(NamedTuple):
    """Pre-activations of two inputs.

    Attributes:
        log_q: ln q, the common length of both inputs.
        distance: 1 - c of the two inputs.
        within: 1 - c of two examples of one batch; unused without BatchNorm.
    """

    log_q: Float[Array, ""]
    distance: Float[Array, ""]
    within: Float[Array, ""]


class Head(NamedTuple):
    """Moments of a, the weights' input, and factors that pull gradients back from a to h.

    Attributes:
        log_power: ln E a^2.
        log_gain: ln (E a^2 / q).
        log_unit: ln of the unit of `gap` and `within`, which are per q.
        gap: E a^2 - E a a' of the two inputs.
        within: E a^2 - E a a' of two examples of one batch.
        log_slope: ln of the factor from the mean squared gradient with respect to a to that with
            respect to h.
        log_isotropic: the same factor where gradients of different examples are independent, as for
            a Jacobian at its last layer.
        log_own: ln of the squared gradient of the norm's own scale and bias, over that with respect
            to a.
    """

    log_power: Float[Array, ""]
    log_gain: Float[Array, ""]
    log_unit: Float[Array, ""]
    gap: Float[Array, ""]
    within: Float[Array, ""]
    log_slope: Float[Array, ""]
    log_isotropic: Float[Array, ""]
    log_own: Float[Array, ""]


def log(number: Float[AnyArray, "*n"]) -> Float[AnyArray, "*n"]:
    """Compute ln of a number >= 0, which is -inf with derivative 0 at 0.

    Args:
        number: number >= 0.

    Returns:
        Logarithm.
    """
    xp = host.namespace(number)
    positive = number > 0
    return xp.where(positive, xp.log(xp.where(positive, number, 1.0)), -np.inf)
