"""Parameter kernels and Jacobians of chains of a user's own layers, against dense ones of the same modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxstab import curvature, networks
from jaxstab.curvature.vectors import ravel

KEY = jax.random.key(0)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, h):
        return h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h))


def images():
    """Shapes that change, a scanned segment, and a block without parameters."""
    shrink = nn.Sequential([nn.tanh, nn.Conv(3, (3, 3), strides=(2, 2))])
    same = [nn.Sequential([nn.tanh, nn.Conv(2, (3, 3))]) for _ in range(2)]
    head = nn.Sequential([lambda h: jnp.mean(h, (0, 1)), nn.Dense(2)])
    chain = networks.from_linen([nn.Conv(2, (3, 3)), *same, nn.Sequential([nn.tanh]), shrink, head])
    return chain, jax.random.normal(KEY, (3, 4, 4, 1), jnp.float32)


def tokens():
    chain = networks.from_linen([nn.Embed(5, 4), *[Attention() for _ in range(3)], nn.Dense(2)])
    return chain, jnp.asarray([[1, 3], [0, 2]])


@pytest.fixture(scope="module", params=[images, tokens])
def model(request):
    chain, x = request.param()
    params = chain.init(KEY, x[0])
    vector, unravel = ravel(params)

    def outputs(vector):
        params = unravel(vector)
        many = networks.over_batch(chain)
        return many.readout(params, networks.state(many, params, x)).reshape(len(x), -1)

    y, jacobian = jax.jit(lambda v: (outputs(v), jax.jacobian(outputs)(v)))(vector)
    return chain, params, x, np.asarray(y), np.asarray(jacobian)


@pytest.mark.slow
def test_kernels(model):
    chain, params, x, y, jacobian = model
    rows = jacobian.reshape(y.size, -1)

    @jax.jit
    def measured(params):
        whole = curvature.tangent_kernel(chain, params, x)
        return whole, curvature.tangent_kernel(chain, params, x, by_layer=True)

    kernel, by_layer = measured(params)
    wanted = rows @ rows.T
    largest = np.abs(wanted).max()
    # float32, sums of some hundred terms
    np.testing.assert_allclose(kernel, wanted, atol=1e-5 * largest)
    np.testing.assert_allclose(by_layer.total, wanted, atol=1e-5 * largest)
    size = sum(leaf.size for leaf in jax.tree.leaves(params.readout))
    np.testing.assert_allclose(
        by_layer.readout, rows[:, -size:] @ rows[:, -size:].T, atol=1e-5 * largest
    )
    assert by_layer.blocks.shape == (params.depth, y.size, y.size)


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 2])
def test_products(model, layer):
    chain, params, x, y, jacobian = model
    rows = jacobian.reshape(y.size, -1)
    if layer is not None:
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(params.embed))]
        part = params.blocks.parts[0]
        # the columns of leaves of a stack lie leaf by leaf, and in each layer by layer
        columns = []
        start = sizes[0]
        for leaf in jax.tree.leaves(part):
            one = leaf.size // len(leaf)
            columns += range(start + (layer - 1) * one, start + layer * one)
            start += leaf.size
        rows = rows[:, columns]

    @jax.jit
    def measured(params):
        operator = curvature.parameter_jacobian(chain, params, x, layer=layer, chunk_size=2)
        v = jnp.cos(jnp.arange(operator.columns, dtype=jnp.float32))
        u = jnp.cos(jnp.arange(operator.rows, dtype=jnp.float32))
        return operator.matvec(v), operator.rmatvec(u)

    product, transposed = measured(params)
    scale = np.linalg.norm(rows)
    np.testing.assert_allclose(product, rows @ np.cos(np.arange(rows.shape[1])), atol=1e-5 * scale)
    np.testing.assert_allclose(
        transposed, rows.T @ np.cos(np.arange(rows.shape[0])), atol=1e-5 * scale
    )


@pytest.mark.slow
def test_gauss_newton(model):
    chain, params, x, y, jacobian = model
    found = jax.jit(lambda params: curvature.gauss_newton_eigenvalues(chain, params, x, "squared"))(
        params
    )
    rows = jacobian.reshape(y.size, -1)
    wanted = np.linalg.eigvalsh(rows @ rows.T)[::-1] / len(y)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted[0])
    # the products of the objective take such a chain too
    goal = curvature.objective(chain, "squared")
    targets = jnp.zeros_like(
        networks.over_batch(chain).readout(
            params, networks.state(networks.over_batch(chain), params, x)
        )
    )
    operator = curvature.gauss_newton(goal, params, (x, targets))
    v = jnp.cos(jnp.arange(operator.columns, dtype=jnp.float32))
    product = jax.jit(operator.matvec)(v)
    np.testing.assert_allclose(
        product, rows.T @ (rows @ np.asarray(v)) / len(y), atol=2e-5 * wanted[0] * len(v) ** 0.5
    )


def test_what_is_no_batch_is_said():
    chain, x = images()
    params = chain.init(KEY, x[0])
    with pytest.raises(
        ValueError, match=r"layer 0 fails with these parameters on an input float32\[4, 1\]"
    ):
        curvature.tangent_kernel(chain, params, x[0])
