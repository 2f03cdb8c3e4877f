"""What a diagnosis says of an optimiser's first update, against quadratics and dense Hessians."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree

from jaxstab import curvature, diagnosis, networks

SCALES = np.asarray([1.0, 4.0, 9.0])
WEIGHTS = {"w": jnp.asarray([1.0, -1.0, 0.5])}
X = jax.random.normal(jax.random.key(0), (8, 5), "float32")


def quadratic(params, x):
    return networks.tag("h", (jnp.sqrt(SCALES) * params["w"])[None] * x)


def half_square(y):
    return jnp.sum(y**2) / 2


def of_quadratic(tx):
    return diagnosis.diagnose(quadratic, WEIGHTS, jnp.ones((1, 3)), half_square, tx=tx)


def crossing(direction):
    """Where sum of scales (w + s u)^2 is what it is at s = 0: -2 u^T H w / u^T H u."""
    w = np.asarray(WEIGHTS["w"])
    return -2 * np.sum(direction * SCALES * w) / np.sum(direction * SCALES * direction)


@pytest.mark.parametrize(
    ("tx", "rate", "direction"),
    [
        (optax.sgd(0.1), 0.1, -0.1 * SCALES * [1, -1, 0.5]),
        (optax.sgd(0.03, momentum=0.9), 0.03, -0.03 * SCALES * [1, -1, 0.5]),
        # the gradient (1, -4, 4.5) has norm sqrt 37.25
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
            0.1 / 37.25**0.5,
            -0.1 / 37.25**0.5 * SCALES * [1, -1, 0.5],
        ),
        (optax.sign_sgd(0.2), np.nan, -0.2 * np.asarray([1.0, -1.0, 1.0])),
    ],
)
def test_quadratic(tx, rate, direction):
    found = of_quadratic(tx).stability
    # three products span the space
    np.testing.assert_allclose(found.sharpness.value, 9, rtol=1e-12)
    assert found.sharpness.low <= 9 <= found.sharpness.high
    np.testing.assert_allclose(found.largest_rate, 2 / 9, rtol=1e-12)
    np.testing.assert_allclose(found.rate, rate, rtol=1e-12)
    # the secant of a quadratic's slope is exact
    np.testing.assert_allclose(found.share.value, crossing(direction), rtol=1e-10)
    assert found.share.low <= found.share.value <= found.share.high
    assert not found.why


def test_too_large_a_rate_is_found():
    # 2 / 9 is stable; a dozen times that is the rule's bound
    (finding,) = of_quadratic(optax.sgd(13 * 2 / 9)).findings
    assert (finding.fault, finding.where) == ("learning rate too large", "the first update")
    np.testing.assert_allclose(finding.measured.value, 13)
    assert "largest stable rate of gradient descent, 0.222" in finding.unit
    assert not of_quadratic(optax.sgd(8 * 2 / 9)).findings
    # sign descent has no such rate: the loss rises from 1 / 16 of the update on
    size = 16 * crossing(-np.sign(np.asarray(WEIGHTS["w"])))
    report = of_quadratic(optax.sign_sgd(size))
    (finding,) = report.findings
    np.testing.assert_allclose(finding.measured.value, 1 / 16, rtol=1e-6)
    assert "divide the learning rate by 16" in finding.change
    assert "steps: largest stable rate of gradient descent 0.222" in str(report)
    assert "the loss falls up to 0.0625 times the first update" in str(report)
    assert json.loads(report.as_json())["stability"]["sharpness"]["value"] == pytest.approx(9)


def test_an_update_of_zero_is_told():
    found = of_quadratic(optax.sgd(optax.linear_schedule(0.0, 1.0, 10)))
    assert not found.findings
    assert np.isnan(found.stability.share.value)
    assert "without its warm-up" in found.stability.why
    np.testing.assert_allclose(found.stability.largest_rate, 2 / 9, rtol=1e-12)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))
        return nn.Dense(2)(nn.tanh(h))


def linen():
    model = Normed()
    variables = jax.jit(model.init)(jax.random.key(1), X)

    def outputs(theta):
        return model.apply({**variables, "params": theta}, X, mutable=["batch_stats"])[0]

    return model, variables, variables["params"], outputs


def of_nnx():
    model = nnx.Sequential(
        nnx.Linear(5, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    )
    graph, theta = nnx.split(model)
    return model, None, theta, lambda theta: nnx.merge(graph, theta)(X)


def nnx_with_statistics():
    model = nnx.Sequential(
        nnx.Linear(5, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(1)),
        nnx.tanh,
        nnx.Linear(4, 2, rngs=nnx.Rngs(2)),
    )
    graph, theta, rest = nnx.split(model, nnx.Param, ...)

    def outputs(theta):
        return nnx.merge(graph, theta, jax.tree.map(lambda leaf: leaf, rest))(X)

    return model, None, theta, outputs


def chain():
    net = networks.over_batch(networks.mlp(depth=1, width=4, activation="tanh", features_out=2))
    params = networks.mlp(depth=1, width=4, activation="tanh", features_out=2).init(
        jax.random.key(2), X[0]
    )
    return net, params, params, lambda theta: net.readout(theta, networks.state(net, theta, X))


@pytest.mark.parametrize("make", [linen, of_nnx, nnx_with_statistics, chain])
def test_models_against_their_dense_hessian(make):
    model, params, theta, outputs = make()

    def loss(y):
        return jnp.mean((y - 1) ** 2)

    tx = optax.adam(0.05)
    found = diagnosis.diagnose(model, params, X, loss, tx=tx).stability
    vector, unravel = ravel_pytree(theta)

    @jax.jit
    def dense(vector):
        return jax.hessian(lambda vector: loss(outputs(unravel(vector))))(vector)

    largest = np.linalg.eigvalsh(dense(vector))[-1]
    assert abs(found.sharpness.value - largest) <= found.sharpness.high - found.sharpness.value
    np.testing.assert_allclose(found.sharpness.value, largest, rtol=1e-3)
    gradient = jax.grad(lambda theta: loss(outputs(theta)))(theta)
    with jax.numpy_dtype_promotion("standard"):
        update = tx.update(gradient, tx.init(theta), theta)[0]
    direction = ravel_pytree(update)[0]
    here, low, high = (
        float(loss(outputs(unravel(vector + share * direction))))
        for share in (0.0, found.share.low, found.share.high)
    )
    assert low <= here < high
    assert np.isnan(found.rate)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_floats_of_two_bytes(dtype):
    """Losses are compared in float32, and so are the Krylov space's sums."""

    def model(params, x):
        return networks.tag("h", (jnp.asarray(np.sqrt(SCALES), dtype) * params["w"])[None] * x)

    def loss(y):
        return half_square(y.astype(jnp.float32))

    weights = {"w": WEIGHTS["w"].astype(dtype)}
    found = diagnosis.diagnose(
        model, weights, jnp.ones((1, 3), dtype), loss, tx=optax.sgd(0.1)
    ).stability
    np.testing.assert_allclose(found.sharpness.value, 9, rtol=1e-2)
    np.testing.assert_allclose(found.rate, 0.1, rtol=1e-2)
    wanted = crossing(-0.1 * SCALES * np.asarray(WEIGHTS["w"]))
    # moved parameters have 8 and 11 bits
    np.testing.assert_allclose(found.share.value, wanted, rtol=0.05)
    assert not found.why


def test_what_has_no_second_derivative_says_so():
    @jax.custom_vjp
    def called(w):
        return jax.pure_callback(lambda w: np.asarray(w), jax.ShapeDtypeStruct((3,), w.dtype), w)

    called.defvjp(lambda w: (called(w), None), lambda _, cotangent: (cotangent,))

    def model(params, x):
        return networks.tag("h", called(params["w"])[None] * x)

    found = diagnosis.diagnose(
        model, WEIGHTS, jnp.ones((1, 3)), half_square, tx=optax.sgd(0.1)
    ).stability
    assert np.isnan(found.sharpness.value) and found.why.startswith("no sharpness: ")
    # of |w|^2 / 2 by gradient descent at 0.1
    np.testing.assert_allclose(found.share.value, 20, rtol=1e-10)


def test_an_optimiser_of_something_else_is_refused():
    tx = optax.multi_transform({"all": optax.sgd(0.1)}, {"kernel": "all"})
    with pytest.raises(ValueError, match="tx fails on the trained parameters: "):
        of_quadratic(tx)


def test_a_probe_gives_curvature_its_function():
    model, params, theta, outputs = linen()
    probe = networks.probe(model, params, X)
    function, trained = probe.function(params)
    kernel = curvature.tangent_kernel(function, trained, X)
    rows = ravel_rows(jax.jacobian(outputs)(theta))
    np.testing.assert_allclose(kernel, rows @ rows.T, atol=1e-5 * np.abs(rows @ rows.T).max())
    # other shapes than those of the probe
    assert function(trained, X[:3]).shape == (3, 2)


def ravel_rows(jacobian):
    """Rows by output, columns by parameter."""
    leaves = [np.asarray(leaf).reshape(X.shape[0] * 2, -1) for leaf in jax.tree.leaves(jacobian)]
    return np.concatenate(leaves, axis=1)
