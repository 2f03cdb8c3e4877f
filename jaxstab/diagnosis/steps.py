"""One small step of gradient descent."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxstab.networks import Probe
from jaxstab.norms import log_norm
from jaxstab.norms.logarithms import floating

# norm of the step over the norm of the parameters
STEP = 1e-2


def stepped(probe: Probe, params: PyTree, d_theta: PyTree) -> PyTree:
    """Move parameters down a gradient, so that a kernel of zeros no longer blocks the gradient.

    Args:
        probe: the model.
        params: parameters of the model.
        d_theta: gradient by the trained parameters.

    Returns:
        Parameters after the step; unchanged where the gradient is zero or not finite.
    """
    theta, rest = probe.model.split(params)
    known = [leaf for leaf in jax.tree.leaves(d_theta) if leaf.dtype != jax.dtypes.float0]
    numbers = [leaf for leaf in jax.tree.leaves(theta) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    size = log_norm([floating(leaf) for leaf in known])
    length = log_norm([floating(leaf) for leaf in numbers])
    if not (jnp.isfinite(size) and jnp.isfinite(length)):
        return params
    rate = STEP * jnp.exp(length - size)

    def moved(leaf: Array, gradient: Array) -> Array:
        if gradient.dtype == jax.dtypes.float0:
            return leaf
        return leaf - (rate.astype(gradient.dtype) * gradient).astype(leaf.dtype)

    return probe.model.join(jax.tree.map(moved, theta, d_theta), rest)
