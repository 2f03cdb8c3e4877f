"""Activations: names, derivatives that hold in the tails, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxstab import activations
from jaxstab.activations import Activation, get

ISSUE = "identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin".split()


def test_all_promised_activations_exist():
    assert set(activations.names()) == set(ISSUE)


@pytest.mark.parametrize("name", ISSUE)
@pytest.mark.kernels
def test_derivative_is_the_central_difference(name):
    phi, z = get(name), np.linspace(-3.05, 3.13, 40)
    step = 1e-5
    reference = (_numpy(name)(z + step) - _numpy(name)(z - step)) / (2 * step)
    found = np.asarray(phi.derivative(jnp.asarray(z)))
    # central differences err by step^2 / 6 and by rounding / step; float32 rounds the derivative itself
    np.testing.assert_allclose(found, reference, atol=max(1e-9, 20 * np.finfo(found.dtype).eps))


def _numpy(name):
    phi = get(name)
    if jax.config.read("jax_enable_x64"):
        return lambda z: np.asarray(phi(jnp.asarray(z)))
    from scipy.special import erf, expit

    smooth = {"tanh": np.tanh, "sigmoid": expit, "erf": erf, "sin": np.sin, "identity": lambda z: z}
    smooth |= {"gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2, "silu": lambda z: z * expit(z)}
    smooth |= {"softplus": lambda z: np.logaddexp(z, 0), "relu": lambda z: np.maximum(z, 0)}
    smooth |= {"leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z), "hard_tanh": lambda z: np.clip(z, -1, 1)}
    smooth |= {"elu": lambda z: np.where(z > 0, z, np.expm1(z))}
    smooth |= {"selu": lambda z: 1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(z))}
    return smooth[name]


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("tanh", lambda z: mp.sech(z) ** 2),
        ("sigmoid", lambda z: mp.sech(z / 2) ** 2 / 4),
        ("elu", lambda z: min(mp.exp(z), 1)),
        ("selu", lambda z: mp.mpf(1.0507009873554805) * (1 if z > 0 else mp.mpf(1.6732632423543772) * mp.exp(z))),
    ],
)
@pytest.mark.kernels
def test_saturating_derivatives_keep_relative_precision_in_the_tails(name, exact):
    # 1 - tanh^2 rounds to 0 from |z| = 9 on in float32: a unit that is merely saturated would count as dead
    for z in (-40.0, -12.0, -1.0, 0.0, 0.5, 9.0, 35.0):
        found = float(get(name).derivative(jnp.asarray(z, jnp.float32)))
        assert found == pytest.approx(float(exact(mp.mpf(z))), rel=1e-5)


def test_second_derivative_goes_through_the_tail_exact_rule():
    curvature = jax.grad(lambda z: get("tanh").derivative(z))(jnp.asarray(0.7))
    assert float(curvature) == pytest.approx(-2 * np.tanh(0.7) / np.cosh(0.7) ** 2, rel=1e-6)


@given(st.floats(-30, 30))
def test_closed_form_kernels_are_consistent_at_c_1(z):
    # at c = 1 the kernel is E phi^2 and its q-derivative E[phi phi' z]/q: both positive and finite for any length
    q = jnp.asarray(np.exp(z / 3))
    for name in ISSUE:
        kernel = get(name).kernel
        if kernel is not None:
            covariance, derivative = kernel(q, jnp.ones_like(q))
            assert np.isfinite(covariance) and covariance >= 0, name
            assert np.isfinite(derivative) and derivative > 0, name


def test_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match=r"unknown activation 'thanh'; did you mean tanh"):
        get("thanh")


@pytest.mark.parametrize(
    "fn", [jax.nn.softmax, lambda z: z.sum(), lambda z: z - z.mean(), lambda z: jnp.cumsum(z), lambda z: z[:2]]
)
def test_callables_that_are_not_elementwise_are_refused(fn):
    with pytest.raises(ValueError, match="elementwise"):
        get(fn)


def test_callable_that_fails_is_named():
    def broken(z):
        raise RuntimeError("no luck")

    with pytest.raises(ValueError, match=r"'broken' fails .* no luck"):
        get(broken)


def test_users_own_activation_is_taken_as_it_is():
    mine = Activation("mine", lambda z: jnp.maximum(z - 1.0, 0.0), kinks=(1.0,))
    assert get(mine) is mine
    assert get(jnp.cos).name == "cos"
    with pytest.raises(ValueError, match="ascend"):
        get(Activation("mine", jnp.abs, kinks=(1.0, 0.0)))


def test_activations_are_hashable_so_they_can_be_static():
    traced = chex.assert_max_traces(lambda z, phi: phi(z), n=1)
    f = jax.jit(traced, static_argnums=1)
    for _ in range(3):
        f(jnp.ones(2), get("gelu"))
