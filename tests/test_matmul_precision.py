"""Products of matrices: at full precision unless a chain says otherwise, forward and in every derivative."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxstab import (
    curvature,
    datasets,
    initializers,
    networks,
    propagation,
    spectra,
    sweeps,
    training,
)
from jaxstab.sweeps.run import job_of

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 5))
LABELS = jnp.arange(4)
GOAL = curvature.objective


def LOSS(y):
    return jnp.sum(y**2)


def _log_s(net, params):
    return jnp.sum(spectra.log_singular_values(net, params, X[0], [3]))


def _extremes(net, params):
    return jnp.sum(spectra.extremes(spectra.jacobian(net, params, X[0]), KEY, top=2).log_s)


# (chain, params) -> anything, some compiled inside, so that derivative rules are traced outside of the function
CASES = {
    "apply": lambda net, p: jax.grad(lambda p: LOSS(net.apply(p, X[0])))(p),
    "forward": lambda net, p: propagation.forward(net, p, X[0]),
    "backward": lambda net, p: propagation.backward(net, p, X[0], LOSS),
    "log_singular_values": lambda net, p: jax.grad(jax.jit(lambda p: _log_s(net, p)))(p),
    "log_singular_values with errors": lambda net, p: spectra.log_singular_values(
        net, p, X[0], [1, 3], errors=True
    ),
    "singular_values": lambda net, p: spectra.singular_values(net, p, X[0], [1, 3]),
    "extremes": lambda net, p: jax.grad(jax.jit(lambda p: _extremes(net, p)))(p),
    "density": lambda net, p: spectra.density(spectra.jacobian(net, p, X[0]), KEY),
    "lyapunov": lambda net, p: spectra.lyapunov_exponents(net, p, X[0], KEY, groups=2),
    "tangent_kernel": lambda net, p: curvature.gauss_newton_eigenvalues(net, p, X),
    "hessian": lambda net, p: curvature.extremes(
        curvature.hessian(GOAL(net, "cross_entropy"), p, (X, LABELS)), KEY
    ),
    "trace": lambda net, p: curvature.trace(
        curvature.gauss_newton(GOAL(net, "cross_entropy"), p, (X, LABELS)), KEY
    ),
    "parameter_jacobian": lambda net, p: spectra.extremes(
        curvature.parameter_jacobian(net, p, X), KEY
    ),
    "train": lambda net, p: training.train(
        net, p, optax.sgd(0.1), training.Examples(X, LABELS), key=KEY, steps=2, curvature_every=1
    ),
    "lsuv": lambda net, p: initializers.lsuv(net, p, X),
}


def _products(lowered):
    """Precisions of the products of a traced program, which is not compiled."""
    lines = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert lines
    return [("HIGHEST" in line) for line in lines]


def _lowered(case, precision):
    net = networks.mlp(3, 6, features_out=4, precision=precision)
    params = net.init(KEY, X[0], 1.2)
    return jax.jit(lambda params: CASES[case](net, params)).lower(params)


@pytest.fixture
def _as_on_a_device():
    """JAX's own setting, which the tests' references do not have."""
    with jax.default_matmul_precision("default"):
        yield


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("_as_on_a_device")
@pytest.mark.parametrize("case", CASES)
def test_every_product_is_at_full_precision(case):
    assert all(_products(_lowered(case, "highest")))


@pytest.mark.usefixtures("_as_on_a_device")
@pytest.mark.parametrize("case", ["apply", "backward", "extremes", "train"])
def test_layers_multiply_as_their_chain_says(case):
    assert not all(_products(_lowered(case, "default")))


@pytest.mark.slow
def test_none_leaves_the_setting_of_jax():
    with jax.default_matmul_precision("default"):
        assert not any(_products(_lowered("backward", None)))
    with jax.default_matmul_precision("highest"):
        assert all(_products(_lowered("backward", None)))


@pytest.mark.slow
@pytest.mark.usefixtures("_as_on_a_device")
@pytest.mark.parametrize("measure", [sweeps.signal, sweeps.Train(steps=2)])
def test_precision_is_an_axis_of_a_grid(measure):
    grid = sweeps.Grid({"precision": ("highest", "default")}, depth=2, width=6, batch=8)
    job = job_of(grid, measure, datasets.load("digits"))
    keys = sorted({job.program(group) for group in range(job.plan.groups)})
    assert len(keys) == 2
    if isinstance(measure, sweeps.Train):
        keys = [(*key, job.lanes) for key in keys]
    full, fast = (_products(job._lowered(key)) for key in keys)
    assert all(full)
    assert not any(fast)


@pytest.mark.usefixtures("_as_on_a_device")
@pytest.mark.parametrize(("precision", "full"), [("highest", True), ("default", False)])
def test_layers_of_your_own_have_a_precision(precision, full):
    def dense(w, h):
        return jnp.tanh(h) @ w

    weights = [jnp.ones((5, 4)), jnp.eye(4), jnp.ones((4, 2))]
    net, params = networks.from_params([dense] * 3, weights, X[0], precision=precision)
    traced = jax.jit(lambda params: propagation.backward(net, params, X[0], LOSS)).lower(params)
    assert set(_products(traced)) == {full}


def test_what_jax_does_not_know_is_refused():
    with pytest.raises(ValueError, match="precision must be None or one that jax.* got 'double'"):
        networks.mlp(2, 4, precision="double")
    with pytest.raises(ValueError, match="precision must be None or one that jax"):
        sweeps.Grid({"depth": (2,)}, precision=64)
