"""The Jacobian by parameters: kernel, its layers and the Gauss-Newton matrix, against dense twins and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import networks, spectra
from jaxstab.networks import MLP

KEY = jax.random.key(6)
KINDS = {
    "norm and sum": {"norm": "layer", "skip": "sum"},
    "dense and rms": {"skip": "dense", "norm": "rms"},
}

# eager, each small operation compiles by itself: minutes over a test session
kernel = jax.jit(spectra.tangent_kernel, static_argnums=(0, 3))
by_layer = jax.jit(spectra.tangent_kernel_by_layer, static_argnums=(0, 3))
gauss_newton = jax.jit(spectra.gauss_newton_eigenvalues, static_argnums=0)


@functools.cache
def _network(**kind):
    # cached: a chain made again is a new static argument, and compiles again
    mlp = MLP(3, 6, features_out=3, **kind)
    x = jax.random.normal(jax.random.key(5), (3, 4))
    return mlp, networks.chain(mlp), networks.init(mlp, KEY, x, 1.3, 0.2), x


def _jacobian(mlp, params, x):
    """dy/dtheta, [rows, parameters] by name of layer; one matrix per layer for the blocks."""
    tree = jax.jit(jax.jacrev(lambda p: mlp.apply(networks.variables(p), x)))(params)
    rows = tree.embed["dense"]["bias"].shape[0] * tree.embed["dense"]["bias"].shape[1]
    flat = lambda leaves: np.concatenate([np.asarray(leaf).reshape(rows, -1) for leaf in leaves], axis=1)
    blocks = [flat([leaf[:, :, i] for leaf in jax.tree.leaves(tree.blocks)]) for i in range(params.depth)]
    return flat(jax.tree.leaves(tree.embed)), blocks, flat(jax.tree.leaves(tree.readout))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_against_the_dense_jacobian(kind):
    mlp, chain, params, x = _network(**KINDS[kind])
    embed, blocks, readout = _jacobian(mlp, params, x)
    found = by_layer(chain, params, x, None)
    np.testing.assert_allclose(found.embed, embed @ embed.T, atol=1e-12)
    np.testing.assert_allclose(found.blocks, [j @ j.T for j in blocks], atol=1e-12)
    np.testing.assert_allclose(found.readout, readout @ readout.T, atol=1e-12)
    whole = np.concatenate([embed, *blocks, readout], axis=1)
    np.testing.assert_allclose(found.total, whole @ whole.T, atol=1e-12)
    np.testing.assert_allclose(kernel(chain, params, x, 4), found.total, atol=1e-12)
    s = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(spectra.kernel_eigenvalues(found.total), s**2, atol=1e-12 * s[0] ** 2)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_change_nothing(chunk_size):
    _, chain, params, x = _network()
    np.testing.assert_allclose(kernel(chain, params, x, chunk_size), kernel(chain, params, x, None), rtol=1e-13)


def test_chunks_bound_the_memory():
    mlp = MLP(2, 128, features_out=4)
    x = jnp.ones((8, 16), jnp.float32)
    params = networks.init(mlp, KEY, x)
    temporary = [
        kernel.lower(networks.chain(mlp), params, x, size).compile().memory_analysis().temp_size_in_bytes
        for size in (1, 32)
    ]
    # 32 rows of a layer's Jacobian, 4 bytes each, against one
    assert temporary[1] - temporary[0] > 0.8 * 31 * 128 * 128 * 4
    assert temporary[0] < 0.5 * 32 * 128 * 128 * 4


@pytest.mark.kernels
def test_linear_readout_has_a_closed_form():
    # of a readout alone: dy_bk/dW = phi(h_b) e_k^T, so that Theta = (phi(h_b) . phi(h_c) + 1) delta_kl
    mlp = MLP(2, 16, "relu", features_out=3)
    x = jax.random.normal(KEY, (4, 5))
    params = networks.init(mlp, KEY, x, 1.4)
    found = by_layer(networks.chain(mlp), params, x, 2)
    h = jax.nn.relu(jax.vmap(lambda x: _last(mlp, params, x))(x))
    expected = np.kron(np.asarray(h @ h.T, float) + 1, np.eye(3))
    np.testing.assert_allclose(found.readout, expected, rtol=100 * float(jnp.finfo(x.dtype).eps))


def _last(mlp, params, x):
    chain = networks.chain(mlp)
    h = chain.embed(params, x)
    for i in range(params.depth):
        h = chain.block(jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks), h)
    return h


def test_a_small_gradient_step_moves_the_outputs_by_the_kernel():
    mlp, chain, params, x = _network()
    residual = jax.random.normal(jax.random.key(9), (3, 3))
    y = lambda p: mlp.apply(networks.variables(p), x)
    step = 1e-6
    moved = jax.tree.map(lambda p, g: p + step * g, params, jax.vjp(y, params)[1](residual)[0])
    expected = kernel(chain, params, x, None) @ residual.ravel()
    # second order in the step
    np.testing.assert_allclose((y(moved) - y(params)).ravel() / step, expected, rtol=1e-4)


def test_batchnorm_and_dropout():
    mlp = MLP(2, 5, features_out=2, norm="batch", dropout=True)
    x = jax.random.normal(KEY, (4, 3))
    params = networks.bind(mlp, networks.init(mlp, KEY, x, 1.2), key=jax.random.key(2), rate=0.3)
    chain = networks.flatten(networks.chain(mlp), 4)
    bare = networks.Params(params.embed, params.blocks.params, params.readout.params)

    def y(bare):
        bound = networks.bind(mlp, bare, key=jax.random.key(2), rate=0.3)
        return mlp.apply(networks.variables(bound), x, mutable=["batch_stats"])[0].ravel()

    tree = jax.jit(jax.jacrev(y))(bare)
    j = np.concatenate([np.asarray(leaf).reshape(8, -1) for leaf in jax.tree.leaves(tree)], axis=1)
    np.testing.assert_allclose(kernel(chain, params, x.ravel()[None], None), j @ j.T, atol=1e-11)


def test_gauss_newton_against_the_dense_matrix():
    mlp, chain, params, x = _network()
    embed, blocks, readout = _jacobian(mlp, params, x)
    j = np.concatenate([embed, *blocks, readout], axis=1)
    y, labels = mlp.apply(networks.variables(params), x), jnp.zeros(3, int)
    losses = {
        "cross_entropy": lambda y: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(y, labels)),
        "squared": lambda y: jnp.mean(jnp.sum(y**2, axis=1)) / 2,
    }
    layers = by_layer(chain, params, x, None)
    for name, loss in losses.items():
        hessian = np.asarray(jax.jit(jax.hessian(loss))(y)).reshape(9, 9)
        expected = np.linalg.eigvalsh(j.T @ hessian @ j)[::-1][:9]
        gram = spectra.gauss_newton_gram(layers.total, y, name)
        np.testing.assert_allclose(spectra.kernel_eigenvalues(gram), expected, atol=1e-12 * expected[0])
        # a layer's kernel gives the Gauss-Newton matrix's diagonal block
        blocked = spectra.kernel_eigenvalues(spectra.gauss_newton_gram(layers.blocks, y, name))
        top = np.linalg.eigvalsh(blocks[1].T @ hessian @ blocks[1])[-1]
        assert float(blocked[1, 0]) == pytest.approx(top, rel=1e-12)
        if name == "cross_entropy":
            np.testing.assert_allclose(gauss_newton(chain, params, x), expected, atol=1e-12 * expected[0])


def test_vmap_over_draws():
    _, chain, params, x = _network()
    draws = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    many = jax.jit(jax.vmap(lambda params: spectra.tangent_kernel(chain, params, x)))(draws)
    np.testing.assert_allclose(many[0], kernel(chain, params, x, None), rtol=1e-12)
    np.testing.assert_allclose(many[1], kernel(chain, networks.rescale(params, 2.0, 2.0), x, None), rtol=1e-12)


def test_what_makes_no_sense_is_refused():
    _, chain, params, x = _network()
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        spectra.tangent_kernel(chain, params, x, 0)
    with pytest.raises(ValueError, match="one of cross_entropy, squared, got 'hinge'"):
        spectra.gauss_newton_gram(jnp.eye(6), jnp.ones((3, 2)), "hinge")
    with pytest.raises(ValueError, match=r"kernel has 5 rows, outputs \(3, 2\) make 6"):
        spectra.gauss_newton_gram(jnp.eye(5), jnp.ones((3, 2)))
