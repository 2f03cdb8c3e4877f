"""E phi^2 and E phi'^2 under a Gaussian: references, and the code under test mapped over lengths."""

import functools

import jax
import numpy as np
from scipy import integrate
from scipy.special import erf, erfc, erfcx, expit

from jaxstab import theory

LENGTHS = [1e-6, 1e-3, 0.1, 0.57, 1.0, 4.0, 30.0, 150.0]
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


# ---- references, none of them by the code under test --------------------------------------------------------------


def _negative_exponentials(q):
    """E[e^z; z < 0] and E[e^2z; z < 0] for z ~ N(0, q), through the scaled erfc so that nothing overflows."""
    return erfcx(np.sqrt(q / 2)) / 2, erfcx(np.sqrt(2 * q)) / 2


def _elu(q):
    once, twice = _negative_exponentials(q)
    return q / 2 + twice - 2 * once + 0.5, 0.5 + twice


def _selu(q):
    once, twice = _negative_exponentials(q)
    inner = SELU_ALPHA**2 * (twice - 2 * once + 0.5), SELU_ALPHA**2 * twice
    return SELU_SCALE**2 * (q / 2 + inner[0]), SELU_SCALE**2 * (0.5 + inner[1])


def hard_tanh(q):
    a = 1 / np.sqrt(q)
    inside, tail = erf(a / np.sqrt(2)), erfc(a / np.sqrt(2))
    return q * (inside - 2 * a * np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)) + tail, inside


def _gelu(q):
    # Stein's lemma twice: E[z Phi phi] = q/(1+q) E phi^2 and E[z^2 Phi^2] = q (E Phi^2 + 2 E[z Phi phi])
    squared = 0.25 + np.arcsin(q / (1 + q)) / (2 * np.pi)
    cross = q / (1 + q) / (2 * np.pi * np.sqrt(1 + 2 * q))
    return q * (squared + 2 * cross), squared + 2 * cross + q / (2 * np.pi * (1 + 2 * q) ** 1.5)


CLOSED = {
    "identity": lambda q: (q, 1.0),
    "relu": lambda q: (q / 2, 0.5),
    "leaky_relu": lambda q: (q * (1 + 1e-4) / 2, (1 + 1e-4) / 2),
    "erf": lambda q: (2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)), 4 / np.pi / np.sqrt(1 + 4 * q)),
    "sin": lambda q: (-np.expm1(-2 * q) / 2, (1 + np.exp(-2 * q)) / 2),
    "cos": lambda q: ((1 + np.exp(-2 * q)) / 2, -np.expm1(-2 * q) / 2),
    "abs": lambda q: (q, 1.0),
    "relu_squared": lambda q: (1.5 * q**2, 2 * q),
    "hard_tanh": hard_tanh,
    "elu": _elu,
    "celu": _elu,
    "selu": _selu,
    "gelu": _gelu,
}


def _gelu_tanh_gate(z):
    return np.sqrt(8 / np.pi) * (z + 0.044715 * z**3), np.sqrt(8 / np.pi) * (
        1 + 3 * 0.044715 * z**2
    )


def _gelu_tanh_slope(z):
    gate, steepness = _gelu_tanh_gate(z)
    return expit(gate) * (1 + z * steepness * expit(-gate))


def _mish_slope(z):
    soft = np.logaddexp(z, 0)
    return np.tanh(soft) + z * expit(z) / np.cosh(np.minimum(soft, 300)) ** 2


def _silu_slope(z, beta=1.0):
    return expit(beta * z) * (1 + beta * z * expit(-beta * z))


SMOOTH = {
    "tanh": (np.tanh, lambda z: 1 / np.cosh(np.clip(z, -300, 300)) ** 2),
    "sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "silu": (lambda z: z * expit(z), _silu_slope),
    "softplus": (lambda z: np.logaddexp(z, 0), expit),
    "gelu_tanh": (lambda z: z * expit(_gelu_tanh_gate(z)[0]), _gelu_tanh_slope),
    "log_sigmoid": (lambda z: -np.logaddexp(-z, 0), lambda z: expit(-z)),
    "mish": (lambda z: z * np.tanh(np.logaddexp(z, 0)), _mish_slope),
    "quick_gelu": (lambda z: z * expit(1.702 * z), lambda z: _silu_slope(z, 1.702)),
    "softsign": (lambda z: z / (1 + np.abs(z)), lambda z: (1 + np.abs(z)) ** -2.0),
    "squareplus": (
        lambda z: (z + np.sqrt(z**2 + 4)) / 2,
        lambda z: (1 + z / np.sqrt(z**2 + 4)) / 2,
    ),
    "relu6": (lambda z: np.clip(z, 0, 6), lambda z: 1.0 * ((z > 0) & (z < 6))),
    "hard_sigmoid": (lambda z: np.clip(z / 6 + 0.5, 0, 1), lambda z: (np.abs(z) < 3) / 6),
    "hard_silu": (
        lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
        lambda z: np.where(np.abs(z) < 3, z / 3 + 0.5, 1.0 * (z > 0)),
    ),
}
KINKS = {"relu6": (0.0, 6.0), "hard_sigmoid": (-3.0, 3.0), "hard_silu": (-3.0, 3.0)}


def _adaptive(f, q, kinks=()):
    """E f(sqrt(q) u) by adaptive quadrature, told where the activation bends."""
    density = lambda u: f(np.sqrt(q) * u) * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    bends = sorted(
        {0.0, *(s * w for s in (-1, 1) for w in (0.5, 3.0, min(12.0, 8 / np.sqrt(q)), 12.0))}
    )
    bends = sorted({*bends, *(k / np.sqrt(q) for k in kinks if abs(k) < 12 * np.sqrt(q))})
    pieces = zip(bends[:-1], bends[1:], strict=True)
    return sum(
        integrate.quad(density, a, b, epsabs=1e-15, epsrel=1e-13, limit=200)[0] for a, b in pieces
    )


def reference(name, q):
    if name in CLOSED:
        return CLOSED[name](q)
    phi, slope = SMOOTH[name]
    kinks = KINKS.get(name, ())
    return _adaptive(lambda z: phi(z) ** 2, q, kinks), _adaptive(lambda z: slope(z) ** 2, q, kinks)


@functools.cache
def moments(name):
    return jax.jit(
        jax.vmap(
            lambda q: (
                theory.second_moment(name, q),
                theory.derivative_moment(name, q),
                theory.second_moment_slope(name, q),
            )
        )
    )
