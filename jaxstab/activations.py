"""Activations by name: the function, where it has kinks, and its Gaussian kernel where one is known in closed form.

Everything that jaxstab predicts about an activation phi is a Gaussian expectation of phi and phi'. The kinks tell
the quadrature where to split its panels; a closed-form kernel, where one exists, replaces the quadrature.
"""

import difflib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Kernel = Callable[[Array, Array], tuple[Array, Array]]


class Activation(NamedTuple):
    r"""An elementwise activation phi and what the theory must know about it.

    Attributes:
        name: how tables, stores and error messages call it.
        fn: phi, elementwise and differentiable by JAX.
        kinks: ascending points z where phi or one of its derivatives jumps. A kink left out costs the theory
            accuracy (algebraic instead of exponential convergence), not the measurements.
        kernel: closed form of (E phi(z1) phi(z2), E phi'(z1) phi'(z2)) as a function of (q, c) for jointly normal
            z1, z2 of mean 0, variance q and correlation c; None where none is known.

    Example:
        >>> shifted = Activation("shifted_relu", lambda z: jax.nn.relu(z - 1.0), kinks=(1.0,))
        >>> float(shifted(jnp.asarray(3.0)))
        2.0
    """

    name: str
    fn: Callable[[Array], Array]
    kinks: tuple[float, ...] = ()
    kernel: Kernel | None = None

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """phi(z), elementwise."""
        return self.fn(z)

    def derivative(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """phi'(z), elementwise, by forward differentiation."""
        return jax.jvp(self.fn, (z,), (jnp.ones_like(z),))[1]

    def steepest(self, dtype: DTypeLike) -> Float[Array, ""]:
        """The largest |phi'(z)| over z in [-20, 20], what saturation is measured against."""
        return jnp.max(jnp.abs(self.derivative(probe(dtype))))


def probe(dtype: DTypeLike) -> Float[Array, " n"]:
    """Points 1/800 apart over [-20, 20], half a step off the integers: usual kinks fall in the middle of a step.

    Args:
        dtype: of the points.

    Returns:
        The points, ascending.
    """
    return (jnp.arange(32_000, dtype=dtype) - 15_999.5) / 800


def _with_derivative(phi: Callable[[Array], Array], derivative: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """phi, with a derivative that keeps its digits in the tails."""
    known = jax.custom_jvp(phi)
    known.defjvps(lambda dz, _, z: derivative(z) * dz)
    return known


def _bell(z: Array) -> Array:
    # the derivative of the sigmoid, from exponentials
    decay = jnp.exp(-jnp.abs(z))
    return decay / (1.0 + decay) ** 2


# 1 - tanh^2 rounds to 0 from |z| = 9 on in float32 and would feign dead units
_tanh = _with_derivative(jnp.tanh, lambda z: 4.0 * _bell(2.0 * z))
_sigmoid = _with_derivative(jax.nn.sigmoid, _bell)
# JAX's expm1(z) + 1 rounds to 0 from z = -17 on
_expm1 = _with_derivative(jnp.expm1, jnp.exp)


def _elu(alpha: float, scale: float) -> Callable[[Array], Array]:
    # Clevert et al. 2016; selu: Klambauer et al. 2017
    return lambda z: scale * jnp.where(z > 0, z, alpha * _expm1(jnp.where(z > 0, 0.0, z)))


def _identity_kernel(q: Array, c: Array) -> tuple[Array, Array]:
    return q * c, jnp.ones_like(q * c)


def _relu_kernel(q: Array, c: Array) -> tuple[Array, Array]:
    # the arc-cosine kernels of degree 1 and 0, Cho & Saul 2009, eq. 6
    angle = jnp.arccos(jnp.clip(c, -1.0, 1.0))
    sine = jnp.sqrt(jnp.maximum(1.0 - c**2, 0.0))
    return q * (sine + (np.pi - angle) * c) / (2 * np.pi), (np.pi - angle) / (2 * np.pi) * jnp.ones_like(q)


def _leaky_relu_kernel(slope: float) -> Kernel:
    # leaky(z) = slope z + (1 - slope) relu(z), and E z1 relu(z2) = q c / 2
    def kernel(q: Array, c: Array) -> tuple[Array, Array]:
        covariance, derivative = _relu_kernel(q, c)
        return slope * q * c + (1 - slope) ** 2 * covariance, slope + (1 - slope) ** 2 * derivative

    return kernel


def _erf_kernel(q: Array, c: Array) -> tuple[Array, Array]:
    # Williams 1997, eq. 11, with unit weights
    scale = 1.0 + 2.0 * q
    covariance = 2.0 / np.pi * jnp.arcsin(2.0 * q * c / scale)
    # scale^2 - (2 q c)^2 factored: the difference of squares cancels at large q
    return covariance, 4.0 / np.pi / jnp.sqrt((scale - 2.0 * q * c) * (scale + 2.0 * q * c))


def _sin_kernel(q: Array, c: Array) -> tuple[Array, Array]:
    near, far = jnp.exp(-q * (1.0 - c)), jnp.exp(-q * (1.0 + c))
    return (near - far) / 2.0, (near + far) / 2.0


_LEAK = 0.01

_BUILT_IN = {
    a.name: a
    for a in (
        Activation("identity", lambda z: z, (), _identity_kernel),
        Activation("relu", jax.nn.relu, (0.0,), _relu_kernel),
        Activation("leaky_relu", lambda z: jax.nn.leaky_relu(z, _LEAK), (0.0,), _leaky_relu_kernel(_LEAK)),
        Activation("tanh", _tanh),
        Activation("sigmoid", _sigmoid),
        Activation("erf", jax.lax.erf, (), _erf_kernel),
        Activation("hard_tanh", jax.nn.hard_tanh, (-1.0, 1.0)),
        Activation("gelu", lambda z: jax.nn.gelu(z, approximate=False)),
        Activation("silu", jax.nn.silu),
        Activation("softplus", jax.nn.softplus),
        Activation("elu", _elu(1.0, 1.0), (0.0,)),
        Activation("selu", _elu(1.6732632423543772, 1.0507009873554805), (0.0,)),
        Activation("sin", jnp.sin, (), _sin_kernel),
    )
}


def names() -> tuple[str, ...]:
    """The names of the built-in activations.

    Returns:
        Names that `get` accepts.

    Example:
        >>> "tanh" in names()
        True
    """
    return tuple(_BUILT_IN)


def get(activation: str | Activation | Callable[[Array], Array]) -> Activation:
    """The `Activation` behind a name or a callable of the user's own.

    Args:
        activation: a built-in name, an `Activation`, or an elementwise callable. A bare callable counts as smooth;
            give an `Activation` with `kinks` if it is not.

    Returns:
        The activation.

    Raises:
        ValueError: if the name is unknown (the near ones are suggested), or the callable is not elementwise.
        TypeError: if it is neither a name nor callable.

    Example:
        >>> get("relu").kinks
        (0.0,)
        >>> get("rely")
        Traceback (most recent call last):
        ...
        ValueError: unknown activation 'rely'; did you mean relu, elu or selu? ...
    """
    if isinstance(activation, str):
        if activation not in _BUILT_IN:
            near = difflib.get_close_matches(activation, _BUILT_IN, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(', '.join(near).rsplit(', ', 1))}? " if near else ""
            raise ValueError(f"unknown activation {activation!r}; {hint}built in are {', '.join(_BUILT_IN)}")
        return _BUILT_IN[activation]
    if isinstance(activation, Activation):
        found = activation
    elif callable(activation):
        found = Activation(getattr(activation, "__name__", type(activation).__name__), activation)
    else:
        raise TypeError(f"an activation is a name or a callable, got {type(activation).__name__}")
    if found.name in _BUILT_IN and found == _BUILT_IN[found.name]:
        return found
    if list(found.kinks) != sorted(found.kinks):
        raise ValueError(f"kinks of activation {found.name!r} must ascend, got {found.kinks}")
    _check_elementwise(found)
    return found


@functools.cache
def _check_elementwise(activation: Activation) -> None:
    # off the integers, so that no probe sits on a usual kink
    probe = np.array([-2.3, -0.7, 0.4, 1.6])
    try:
        # at once, also where a network is built while something around it is traced
        with jax.ensure_compile_time_eval():
            whole, reordered, part = (
                np.asarray(activation.fn(jnp.asarray(z))) for z in (probe, probe[::-1], probe[1:2])
            )
    except Exception as error:
        raise ValueError(f"activation {activation.name!r} fails on a vector of four floats: {error}") from error
    same = whole.shape == (4,) and part.shape == (1,)
    if not (same and np.allclose(whole[::-1], reordered, 1e-5) and np.allclose(whole[1:2], part, 1e-5)):
        raise ValueError(
            f"activation {activation.name!r} is not elementwise: each output must depend on its own input alone "
            f"and keep its shape (softmax, for one, is not an activation here)"
        )
