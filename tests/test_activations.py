"""Activations: names, derivatives that hold in the tails, parameters that are traced, and what is refused."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from flax_variables import variables

from jaxstab import activations, networks, propagation, theory
from jaxstab.activations import Activation, get

PROMISED = (
    "identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin cos abs celu "
    "gelu_tanh hard_sigmoid hard_silu log_sigmoid mish quick_gelu relu6 relu_squared softsign squareplus"
).split()
OTHER_NAMES = {
    "swish": "silu",
    "hard_swish": "hard_silu",
    "HardSwish": "hard_silu",
    "hardtanh": "hard_tanh",
    "soft_sign": "softsign",
    "ReLU6": "relu6",
    "squared_relu": "relu_squared",
    "linear": "identity",
    "LeakyReLU": "leaky_relu",
    "log-sigmoid": "log_sigmoid",
}


def test_all_promised_activations_exist():
    assert set(activations.names()) == set(PROMISED)
    for other, name in OTHER_NAMES.items():
        assert get(other) is get(name)


# ---- derivatives --------------------------------------------------------------------------------


def _sigmoid(z):
    return 1 / (1 + mp.exp(-z))


def _exponential(z, alpha=1):
    return z if z > 0 else alpha * mp.expm1(z)


EXACT = {
    "identity": lambda z: z,
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: max(z, z / 100),
    "tanh": mp.tanh,
    "sigmoid": _sigmoid,
    "erf": mp.erf,
    "hard_tanh": lambda z: min(max(z, -1), 1),
    "gelu": lambda z: z * mp.ncdf(z),
    "silu": lambda z: z * _sigmoid(z),
    "softplus": lambda z: mp.log1p(mp.exp(z)),
    "elu": _exponential,
    "selu": lambda z: mp.mpf(1.0507009873554805) * _exponential(z, mp.mpf(1.6732632423543772)),
    "sin": mp.sin,
    "cos": mp.cos,
    "abs": abs,
    "celu": _exponential,
    "gelu_tanh": lambda z: z * _sigmoid(mp.sqrt(8 / mp.pi) * (z + mp.mpf("0.044715") * z**3)),
    "hard_sigmoid": lambda z: min(max(z / 6 + mp.mpf(1) / 2, 0), 1),
    "hard_silu": lambda z: z * min(max(z / 6 + mp.mpf(1) / 2, 0), 1),
    "log_sigmoid": lambda z: -mp.log1p(mp.exp(-z)),
    "mish": lambda z: z * mp.tanh(mp.log1p(mp.exp(z))),
    "quick_gelu": lambda z: z * _sigmoid(mp.mpf("1.702") * z),
    "relu6": lambda z: min(max(z, 0), 6),
    "relu_squared": lambda z: max(z, 0) ** 2,
    "softsign": lambda z: z / (1 + abs(z)),
    "squareplus": lambda z: (z + mp.sqrt(z**2 + 4)) / 2,
}
# off kinks and off zeros of any derivative
POINTS = [-40.0, -12.0, -4.5, -0.7, 0.4, 5.0, 9.0, 35.0]


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.kernels
def test_first_and_second_derivative_keep_their_digits_in_the_tails(name):
    # 1 - tanh^2 rounds to 0 from |z| = 9 on in float32: a unit that is merely saturated would count as dead
    phi, z = get(name), jnp.asarray(POINTS)
    slope = phi.derivative(z)
    curvature = jax.jvp(phi.derivative, (z,), (jnp.ones_like(z),))[1]
    eps, tiny = np.finfo(z.dtype).eps, np.finfo(z.dtype).tiny
    with mp.workdps(60):
        for i, at in enumerate(POINTS):
            for order, found in ((1, slope[i]), (2, curvature[i])):
                exact = float(mp.diff(EXACT[name], mp.mpf(at), order))
                # an exponential's relative error is its exponent's absolute one, here up to |z|^2 eps / 2
                tolerance = (20 + at**2) * eps * abs(exact)
                # below the smallest normal number all is 0 on a CPU; mp.diff errs by 1e-25
                assert abs(float(found) - exact) <= tolerance + 4e3 * tiny + 1e-25, (
                    order,
                    at,
                    float(found),
                    exact,
                )


def test_derivatives_of_tanh_at_zero_to_the_third_order():
    # a rule with |z| in it has the third derivative 0 there
    third = jax.grad(jax.grad(get("tanh").derivative))(jnp.asarray(0.0))
    assert float(third) == pytest.approx(-2.0, rel=1e-12)


@pytest.mark.parametrize(
    "make", [activations.swish, activations.elu, activations.celu, activations.leaky_relu]
)
def test_derivative_by_a_parameter_is_the_central_difference(make):
    z = jnp.linspace(-3.05, 3.13, 9)
    phi = make(0.7)
    found = jax.jacfwd(lambda value: make(value)(z))(0.7)
    step = 1e-5
    difference = (make(0.7 + step)(z) - make(0.7 - step)(z)) / (2 * step)
    # central differences err by step^2 / 6 and by rounding / step
    np.testing.assert_allclose(found, difference, atol=1e-9)
    (name,) = phi.parameters
    as_leaf = jax.grad(lambda phi: jnp.sum(phi(z)))(phi).parameters[name]
    np.testing.assert_allclose(as_leaf, jnp.sum(found), rtol=1e-12)


# ---- kernels ------------------------------------------------------------------------------------


def _relu_exact(q, c):
    angle = mp.acos(c)
    return q * (mp.sin(angle) + (mp.pi - angle) * c) / (2 * mp.pi), (mp.pi - angle) / (2 * mp.pi)


def _relu_squared_exact(q, c):
    angle = mp.acos(c)
    squares = 3 * mp.sin(angle) * c + (mp.pi - angle) * (1 + 2 * c**2)
    return q**2 * squares / (2 * mp.pi), 4 * _relu_exact(q, c)[0]


def _erf_exact(q, c):
    scale = 1 + 2 * q
    slope = 4 / mp.pi / mp.sqrt(scale**2 - (2 * q * c) ** 2)
    return 2 / mp.pi * mp.asin(2 * q * c / scale), slope


KERNELS = {
    "relu": _relu_exact,
    "relu_squared": _relu_squared_exact,
    "erf": _erf_exact,
    "sin": lambda q, c: (mp.exp(-q) * mp.sinh(q * c), mp.exp(-q) * mp.cosh(q * c)),
    "cos": lambda q, c: (mp.exp(-q) * mp.cosh(q * c), mp.exp(-q) * mp.sinh(q * c)),
}
CORRELATIONS = [-1.0, -1 + 2.0**-20, -0.999, -0.5, 0.0, 0.3, 0.96875, 1 - 2.0**-20, 1.0]
FAR = [1e-17, 1e-3, 1.0, 40.0, 1e7]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.kernels
def test_kernels_keep_their_digits_at_all_lengths_and_correlations(name):
    q, c = (axis.ravel() for axis in np.meshgrid(FAR, CORRELATIONS))
    found = jax.jit(get(name).kernel)(jnp.asarray(q), jnp.asarray(c))
    dtype = found[0].dtype
    with mp.workdps(60):
        exact = [
            KERNELS[name](mp.mpf(float(a)), mp.mpf(float(b)))
            for a, b in zip(q.astype(dtype), c.astype(dtype), strict=True)
        ]
    for got, want in zip(found, zip(*exact, strict=True), strict=True):
        want = np.asarray([float(value) for value in want])
        # the exponents q (1 - c) of sin and cos are rounded at their own size
        exponent = np.minimum(q * (1 - np.abs(c)), 100) if name in ("sin", "cos") else 0
        # beyond e^-80 float32 has no number; the reference's terms cancel to 1e-60 q^2 at c = -1
        floor = 1e-34 if dtype == np.float32 else 1e-40
        assert np.all(
            np.abs(got - want) <= (30 + exponent) * np.finfo(dtype).eps * np.abs(want) + floor
        )


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "abs", "relu_squared", "erf", "sin", "cos", "identity"]
)
@pytest.mark.kernels
def test_slope_of_a_kernel_is_prices_theorem_everywhere(name):
    kernel = get(name).kernel
    q, c = (jnp.asarray(axis.ravel()) for axis in np.meshgrid([1e-3, 1.0, 40.0], CORRELATIONS))
    covariance = lambda q, c: kernel(q, c)[0]
    by_q, by_c = jax.jit(jax.vmap(jax.grad(covariance, (0, 1))))(q, c)
    # at c = 1 and -1 too, where 1/sqrt(1 - c^2) is infinite
    np.testing.assert_allclose(
        by_c, q * kernel(q, c)[1], rtol=100 * np.finfo(q.dtype).eps, atol=1e-30
    )
    second = jax.jit(jax.vmap(jax.grad(jax.grad(covariance, 1), 1)))(q, c)
    assert not np.any(np.isnan(second))
    if name in ("relu", "leaky_relu", "abs"):
        # q / (2 pi sin): infinite at the ends, which the largest numbers stand for
        edge = np.abs(c) == 1
        assert np.all(second[edge] > 1e30)
        bend = {"relu": 1.0, "leaky_relu": 0.99**2, "abs": 4.0}[name]
        want = (bend * q / (2 * np.pi) / np.sqrt((1 - c) * (1 + c)))[~edge]
        np.testing.assert_allclose(second[~edge], want, rtol=1e3 * np.finfo(q.dtype).eps)
    assert np.all(np.isfinite(by_q))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "erf", "sin"])
@pytest.mark.parametrize("c", [1.0, -1.0])
def test_slope_of_the_correlation_map_at_its_ends(name, c):
    sigma_w = 2**0.5
    found = jax.grad(lambda c: theory.correlation_map(name, sigma_w, 0.0, 1.0, c))(c)
    q = mp.mpf(1)
    slope = {
        "relu": 0.0 if c < 0 else 0.5,
        "leaky_relu": 0.01 if c < 0 else (1 + 1e-4) / 2,
        "abs": c,
        "erf": 4 / np.pi / 5**0.5,
        "sin": float(mp.exp(-q) * mp.cosh(q)),
    }[name]
    second_moment = {
        "relu": 0.5,
        "leaky_relu": (1 + 1e-4) / 2,
        "abs": 1.0,
        "erf": 2 / np.pi * np.arcsin(2 / 3),
        "sin": float(-mp.expm1(-2 * q) / 2),
    }[name]
    # normalised by the next length: relu's is 1 at c = 1
    assert float(found) == pytest.approx(slope / second_moment, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in PROMISED if get(name).kernel is not None])
def test_closed_form_kernels_are_consistent_at_c_1(name):
    # at c = 1 the kernel is E phi^2 and E phi'^2: both positive and finite for any length
    q = jnp.asarray(np.exp(np.linspace(-10, 10, 41)))
    covariance, derivative = jax.jit(get(name).kernel)(q, jnp.ones_like(q))
    assert np.all(np.isfinite(covariance)) and np.all(covariance >= 0)
    assert np.all(np.isfinite(derivative)) and np.all(derivative > 0)


# ---- parameters ---------------------------------------------------------------------------------


def _closing_over(slope):
    """A leaky relu that closes over its slope, with its kink declared."""

    def leaky(z):
        return jnp.where(z > 0, z, slope * z)

    return Activation("mine", leaky, [0.0])


LEAKY = {"parameter": activations.leaky_relu, "closure": _closing_over}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEAKY)
def test_moments_differentiate_map_and_compile_over_a_slope(kind):
    moments = lambda slope: jnp.stack(
        [
            theory.second_moment(LEAKY[kind](slope), 2.0),
            theory.derivative_moment(LEAKY[kind](slope), 2.0),
        ]
    )
    slopes = jnp.asarray([0.1, 0.5, -1.0])
    # E phi^2 = q (1 + slope^2) / 2 and E phi'^2 = (1 + slope^2) / 2
    want = (1 + slopes[:, None] ** 2) * jnp.asarray([[1.0, 0.5]])
    np.testing.assert_allclose(jax.jit(jax.vmap(moments))(slopes), want, rtol=1e-12)
    with jax.checking_leaks():
        slope_of = jax.jacfwd(moments)(0.3)
    np.testing.assert_allclose(slope_of, [0.6, 0.3], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEAKY)
def test_networks_differentiate_map_and_compile_over_a_slope(kind):
    x = jnp.linspace(-1.0, 1.0, 5)
    plain = networks.MLP(3, 6, "leaky_relu")
    params = networks.chain(plain).init(jax.random.key(0), x)

    def gradient(slope):
        chain = networks.chain(networks.MLP(3, 6, LEAKY[kind](slope)))
        return propagation.backward(chain, params, x, lambda y: y[0]).log_grad_h[0]

    slopes = jnp.asarray([0.1, 0.1 - 1e-6, 0.1 + 1e-6])
    values, slope_of = jax.jit(jax.vmap(jax.value_and_grad(gradient)))(slopes)
    # central difference: rounding over step
    np.testing.assert_allclose(slope_of[0], (values[2] - values[1]) / 2e-6, rtol=1e-7)


def test_an_activation_is_a_pytree_of_its_parameters():
    phi = activations.swish(jnp.asarray([0.5, 1.0, 2.0]))
    found = jax.jit(jax.vmap(lambda phi: phi(jnp.asarray(1.0))))(phi)
    np.testing.assert_allclose(found, 1 / (1 + np.exp([-0.5, -1.0, -2.0])), rtol=1e-12)
    assert jax.tree.leaves(get("tanh")) == []
    # equal where all is equal, so that caches and Flax modules recognise it
    assert activations.swish(1.5) == activations.swish(1.5) != activations.swish(2.0)
    assert hash(networks.MLP(2, 3, activations.elu(0.5))) == hash(
        networks.MLP(2, 3, activations.elu(0.5))
    )
    with pytest.raises(
        TypeError, match="'swish' has arrays as parameters and no hash: pass it as a pytree"
    ):
        hash(phi)


def test_parameters_take_the_dtype_of_the_signal():
    slope = jnp.asarray(0.25, jnp.float64)
    for phi in (activations.leaky_relu(slope), activations.leaky_relu(0.25)):
        assert phi(jnp.ones(2, jnp.float32)).dtype == jnp.float32
        assert phi.derivative(jnp.ones(2, jnp.float32)).dtype == jnp.float32


def test_a_function_of_traced_values_is_freed_of_them():
    @jax.jit
    def both(slope):
        phi = get(_closing_over(slope))
        hash(jax.tree.structure(phi))
        return (
            phi(-jnp.ones((2, 1, 3))),
            phi.derivative(-jnp.ones((), jnp.float32)),
            len(jax.tree.leaves(phi)),
        )

    value, derivative, count = both(0.5)
    np.testing.assert_array_equal(value, -0.5 * np.ones((2, 1, 3)))
    # a program for each floating dtype, each with the slope
    assert float(derivative) == 0.5 and derivative.dtype == jnp.float32 and count == 2


@pytest.mark.slow
def test_activations_without_a_hash():
    @dataclasses.dataclass
    class Bent:
        steepness: float

        def __call__(self, z):
            return jnp.arctan(self.steepness * z)

    bent, x = Bent(2.0), jnp.ones(4)
    assert get(bent) == get(bent) != get(Bent(2.0))
    assert hash(get(bent)) == hash(get(bent))
    assert get(Activation("bent", bent, kinks=[np.float32(0.0)])).kinks == (0.0,)
    mlp = networks.MLP(2, 3, bent)
    assert mlp.apply(variables(networks.chain(mlp).init(jax.random.key(0), x)), x).shape == (10,)
    assert float(theory.derivative_moment(bent, 1e-12)) == pytest.approx(4.0, rel=1e-9)


def test_activations_are_hashable_so_they_can_be_static():
    traced = chex.assert_max_traces(lambda z, phi: phi(z), n=1)
    f = jax.jit(traced, static_argnums=1)
    for _ in range(3):
        f(jnp.ones(2), get("gelu"))


# ---- what is refused ----------------------------------------------------------------------------


def test_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match=r"unknown activation 'thanh'; did you mean tanh"):
        get("thanh")


@pytest.mark.parametrize(
    "fn",
    [
        jax.nn.softmax,
        lambda z: z.sum(),
        lambda z: z - z.mean(),
        lambda z: jnp.cumsum(z),
        lambda z: z[:2],
    ],
)
def test_callables_that_are_not_elementwise_are_refused(fn):
    with pytest.raises(ValueError, match="elementwise"):
        get(fn)


@pytest.mark.parametrize(
    "fn",
    [
        np.tanh,
        lambda z: np.maximum(np.asarray(z), 0),
        lambda z: jnp.asarray([float(entry) for entry in z]),
    ],
)
def test_callables_that_jax_cannot_trace_are_refused(fn):
    with pytest.raises(ValueError, match=r"cannot be traced by JAX: write it with jax\.numpy"):
        get(fn)


def test_callables_undefined_somewhere_are_elementwise():
    assert get(jnp.sqrt).name == "sqrt"


def test_callable_that_fails_is_named():
    def broken(z):
        raise RuntimeError("no luck")

    with pytest.raises(ValueError, match=r"'broken' fails .* no luck"):
        get(broken)


def test_the_function_of_a_built_in_activation_keeps_its_kinks_and_its_kernel():
    # jax.nn.relu6 itself had xi_c 26.9: it went as built in, and so unprobed, without its kinks
    w, b = 2.5**0.5, 0.1**0.5
    clipped = theory.fixed_point(lambda z: jnp.clip(z, 0.0, 6.0), w, b)
    for phi in (jax.nn.relu6, Activation("relu6", jax.nn.relu6), "relu6"):
        point = theory.fixed_point(phi, w, b)
        chex.assert_trees_all_close(point.xi_c, clipped.xi_c, rtol=1e-9)
    np.testing.assert_allclose(point.xi_c, 20.28239127, rtol=1e-9)
    for name in activations.names():
        known = get(name)
        if not known.parameters:
            assert get(known.fn) is known
            assert get(Activation(name, known.fn)) is known


def test_users_own_activation_is_taken_as_it_is():
    mine = Activation("mine", lambda z: jnp.maximum(z - 1.0, 0.0), kinks=(1.0,))
    assert get(mine) is mine
    assert get(jnp.cos).name == "cos"
    for kinks in ((1.0, 0.0), (0.0, 0.0), (np.nan,), (0.0, np.inf)):
        with pytest.raises(ValueError, match="ascend and be finite"):
            Activation("mine", jnp.abs, kinks=kinks)
    with pytest.raises(
        ValueError, match="kinks of activation 'mine' must be numbers known before tracing"
    ):
        jax.jit(lambda kink: Activation("mine", jnp.abs, kinks=[kink])(kink))(1.0)
