"""The Jacobian by parameters: kernel, its layers and the Gauss-Newton matrix, against dense twins and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_variables import variables
from jax.flatten_util import ravel_pytree

from jaxstab import curvature, decompositions, devices, networks, spectra
from jaxstab.curvature.kernels import gauss_newton_gram
from jaxstab.networks import MLP
from jaxstab.norms import logarithms

KEY = jax.random.key(6)
KINDS = {
    "norm and sum": {"norm": "layer", "skip": "sum"},
    "dense and rms": {"skip": "dense", "norm": "rms"},
}

# eager, each small operation compiles by itself: minutes over a test session
kernel = jax.jit(curvature.tangent_kernel, static_argnums=(0, 3))
by_layer = jax.jit(
    functools.partial(curvature.tangent_kernel, by_layer=True), static_argnums=(0, 3)
)
gauss_newton = jax.jit(curvature.gauss_newton_eigenvalues, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def matrices(chain, params, x, settings):
    """The operators as matrices, from products forwards and backwards; settings are loss, layer and chunk_size."""

    def both(loss, layer, chunk_size):
        op = curvature.parameter_jacobian(chain, params, x, loss, layer, chunk_size)
        eye = lambda n: jnp.eye(n, dtype=x.dtype)
        values = lambda product: jnp.ldexp(product[0], product[1][:, None])
        return values(op.apply(eye(op.columns))).T, values(op.adjoint(eye(op.rows)))

    return [both(*setting) for setting in settings]


@functools.cache
def _network(**kind):
    # cached: a chain made again is a new static argument, and compiles again
    mlp = MLP(3, 6, features_out=3, **kind)
    x = jax.random.normal(jax.random.key(5), (3, 4))
    chain = networks.chain(mlp)
    return mlp, chain, chain.init(KEY, x, 1.3, 0.2), x


@functools.cache
def _dense(kind=None):
    mlp, _, params, x = _network(**KINDS[kind] if kind else {})
    return _jacobian(mlp, params, x)


def _jacobian(mlp, params, x):
    """dy/dtheta, [rows, parameters] by name of layer; one matrix per layer for the blocks."""
    tree = jax.jit(jax.jacrev(lambda p: mlp.apply(variables(p), x)))(params)
    rows = tree.embed["dense"]["bias"].shape[0] * tree.embed["dense"]["bias"].shape[1]
    flat = lambda leaves: np.concatenate(
        [np.asarray(leaf).reshape(rows, -1) for leaf in leaves], axis=1
    )
    blocks = [
        flat([leaf[:, :, i] for leaf in jax.tree.leaves(tree.blocks)]) for i in range(params.depth)
    ]
    return flat(jax.tree.leaves(tree.embed)), blocks, flat(jax.tree.leaves(tree.readout))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_against_the_dense_jacobian(kind):
    _, chain, params, x = _network(**KINDS[kind])
    embed, blocks, readout = _dense(kind)
    found = by_layer(chain, params, x, None)
    np.testing.assert_allclose(found.embed, embed @ embed.T, atol=1e-12)
    np.testing.assert_allclose(found.blocks, [j @ j.T for j in blocks], atol=1e-12)
    np.testing.assert_allclose(found.readout, readout @ readout.T, atol=1e-12)
    whole = np.concatenate([embed, *blocks, readout], axis=1)
    np.testing.assert_allclose(found.total, whole @ whole.T, atol=1e-12)
    np.testing.assert_allclose(kernel(chain, params, x, 4), found.total, atol=1e-12)
    s = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(
        decompositions.eigenvalues(found.total)[::-1], s**2, atol=1e-12 * s[0] ** 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_chunks_change_nothing(chunk_size):
    _, chain, params, x = _network()
    np.testing.assert_allclose(
        kernel(chain, params, x, chunk_size), kernel(chain, params, x, None), rtol=1e-13
    )


@pytest.mark.slow
def test_chunks_bound_the_memory():
    net = networks.mlp(2, 128, features_out=4)
    x = jnp.ones((8, 16), jnp.float32)
    params = net.init(KEY, x)
    one, many = (
        devices.memory(lambda params, x, size=size: kernel(net, params, x, size), params, x)
        for size in (1, 32)
    )
    # 32 rows of a layer's Jacobian, 4 bytes each, against one
    assert many - one > 0.8 * 31 * 128 * 128 * 4
    assert one < 0.5 * 32 * 128 * 128 * 4


@pytest.mark.slow
@pytest.mark.kernels
def test_linear_readout_has_a_closed_form():
    # of a readout alone: dy_bk/dW = phi(h_b) e_k^T, so that Theta = (phi(h_b) . phi(h_c) + 1) delta_kl
    mlp = MLP(2, 16, "relu", features_out=3)
    x = jax.random.normal(KEY, (4, 5))
    params = networks.chain(mlp).init(KEY, x, 1.4)
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


@pytest.mark.slow
def test_a_small_gradient_step_moves_the_outputs_by_the_kernel():
    mlp, chain, params, x = _network()
    residual = jax.random.normal(jax.random.key(9), (3, 3))
    y = lambda p: mlp.apply(variables(p), x)
    step = 1e-6
    moved = jax.tree.map(lambda p, g: p + step * g, params, jax.vjp(y, params)[1](residual)[0])
    expected = kernel(chain, params, x, None) @ residual.ravel()
    # second order in the step
    np.testing.assert_allclose((y(moved) - y(params)).ravel() / step, expected, rtol=1e-4)


@pytest.mark.slow
def test_batchnorm_and_dropout():
    mlp = MLP(2, 5, features_out=2, norm="batch", dropout=True)
    x = jax.random.normal(KEY, (4, 3))
    params = networks.chain(mlp).bind(
        networks.chain(mlp).init(KEY, x, 1.2), key=jax.random.key(2), rate=0.3
    )
    chain = networks.flatten(networks.chain(mlp), 4)
    bare = networks.Params(params.embed, params.blocks.params, params.readout.params)

    def y(bare):
        bound = networks.chain(mlp).bind(bare, key=jax.random.key(2), rate=0.3)
        return mlp.apply(variables(bound), x, mutable=["batch_stats"])[0].ravel()

    tree = jax.jit(jax.jacrev(y))(bare)
    j = np.concatenate([np.asarray(leaf).reshape(8, -1) for leaf in jax.tree.leaves(tree)], axis=1)
    np.testing.assert_allclose(kernel(chain, params, x.ravel()[None], None), j @ j.T, atol=1e-11)
    apply, adjoint = matrices(chain, params, x.ravel()[None], ((None, None, None),))[0]
    np.testing.assert_allclose(apply, j, atol=1e-12)
    np.testing.assert_allclose(adjoint, j, atol=1e-12)


@pytest.mark.slow
def test_gauss_newton_against_the_dense_matrix():
    mlp, chain, params, x = _network()
    embed, blocks, readout = _dense()
    j = np.concatenate([embed, *blocks, readout], axis=1)
    y, labels = mlp.apply(variables(params), x), jnp.zeros(3, int)
    losses = {
        "cross_entropy": lambda y: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(y, labels)
        ),
        "squared": lambda y: jnp.mean(jnp.sum(y**2, axis=1)) / 2,
    }
    layers = by_layer(chain, params, x, None)
    for name, loss in losses.items():
        hessian = np.asarray(jax.jit(jax.hessian(loss))(y)).reshape(9, 9)
        expected = np.linalg.eigvalsh(j.T @ hessian @ j)[::-1][:9]
        gram = gauss_newton_gram(layers.total, y, name)
        np.testing.assert_allclose(
            decompositions.eigenvalues(gram)[::-1], expected, atol=1e-12 * expected[0]
        )
        # a layer's kernel gives the Gauss-Newton matrix's diagonal block
        blocked = decompositions.eigenvalues(gauss_newton_gram(layers.blocks, y, name))
        top = np.linalg.eigvalsh(blocks[1].T @ hessian @ blocks[1])[-1]
        assert float(blocked[1, -1]) == pytest.approx(top, rel=1e-12)
        if name == "cross_entropy":
            np.testing.assert_allclose(
                gauss_newton(chain, params, x), expected, atol=1e-12 * expected[0]
            )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_operator_against_the_dense_jacobian(kind):
    mlp, chain, params, x = _network(**KINDS[kind])
    flat, unravel = ravel_pytree(params)
    whole = jax.jit(jax.jacrev(lambda flat: mlp.apply(variables(unravel(flat)), x).ravel()))(flat)
    # one by one; or with a last chunk to fill up. All at once in the tests below
    (products,) = matrices(chain, params, x, ((None, None, 1 if kind == "dense and rms" else 2),))
    for product in products:
        np.testing.assert_allclose(product, whole, atol=1e-13)


@pytest.mark.slow
def test_operator_by_layer():
    _, chain, params, x = _network()
    embed, blocks, readout = _dense()
    found = matrices(chain, params, x, tuple((None, layer, 2) for layer in (0, 2, 4)))
    for products, expected in zip(found, [embed, blocks[1], readout], strict=True):
        for product in products:
            np.testing.assert_allclose(product, expected, atol=1e-13)


@pytest.mark.slow
def test_roots_of_the_gauss_newton_matrix():
    mlp, chain, params, x = _network()
    y, theta = mlp.apply(variables(params), x), by_layer(chain, params, x, None)
    settings = (("squared", None, None), ("cross_entropy", 2, 2))
    kernels = (theta.total, theta.blocks[1])
    for (loss, *_), whole, products in zip(
        settings, kernels, matrices(chain, params, x, settings), strict=True
    ):
        gram = gauss_newton_gram(whole, y, loss)
        for root in products:
            np.testing.assert_allclose(root @ root.T, gram, atol=1e-13)


@pytest.mark.slow
def test_matrix_free_spectra_of_parameters():
    _, chain, params, x = _network()

    @jax.jit
    def measure(params, key):
        root = curvature.parameter_jacobian(chain, params, x, loss="cross_entropy", chunk_size=2)
        return (
            spectra.extremes(root, key, top=3, steps=2, block=4),
            spectra.moments(root, key, 64),
            spectra.density(root, key, 64, 4),
        )

    extremes, moments, density = measure(params, jax.random.key(1))
    eigenvalues = np.asarray(gauss_newton(chain, params, x))
    top, bound = np.exp(extremes.log_s), np.asarray(extremes.relative_error)
    s = np.sqrt(np.maximum(eigenvalues, 0))
    assert np.all(np.min(np.abs(s[:, None] - top[None]), axis=0) <= bound * top)
    assert np.all(top <= s[:3] * (1 + bound))
    trace = 9 * np.exp(moments.log_mean[0])
    assert abs(trace / eigenvalues.sum() - 1) <= 4 * moments.relative_error[0]
    mean = np.sum(np.exp(2 * density.log_s) * density.weights, axis=1)
    assert abs(mean.mean() - eigenvalues.mean()) <= 4 * mean.std(ddof=1) / 8
    # the first right vector is a direction in parameters; the loss's curvature there is the top eigenvalue
    direction = ravel_pytree(params)[1](extremes.right[0])
    y = lambda params: jax.vmap(lambda x: chain.readout(params, networks.state(chain, params, x)))(
        x
    )
    logits, moved = jax.jit(lambda: jax.jvp(y, (params,), (direction,)))()
    p = jax.nn.softmax(logits)
    along = jnp.mean(jnp.sum(p * moved**2, axis=1) - jnp.sum(p * moved, axis=1) ** 2)
    assert float(along) == pytest.approx(eigenvalues[0], rel=2 * bound[0])


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_parameter_products_beyond_any_float(layer):
    # linear: what the first block's parameters do shrinks with every later weight, 200 times 1e-3, and with h_0
    mlp = MLP(200, 4, "identity", features_out=4, weights="orthogonal")
    chain, x = networks.chain(mlp), jax.random.normal(KEY, (2, 4))
    unit = networks.chain(mlp).init(KEY, x)
    params = networks.rescale(unit, 1e-3, 0.0)

    @jax.jit
    def product(params, v):
        op = curvature.parameter_jacobian(chain, params, x, layer=layer)
        return op.apply(v), op.adjoint(op.apply(v)[0])

    if layer is None:
        # only the first block's weights move
        move = params._replace(
            **jax.tree.map(jnp.zeros_like, params)._asdict()
            | {
                "blocks": jax.tree.map(
                    lambda leaf: jnp.zeros_like(leaf).at[0].set(1.0), params.blocks
                )
            }
        )
        move.blocks["dense"]["bias"] = jnp.zeros_like(move.blocks["dense"]["bias"])
        v = ravel_pytree(move)[0]
    else:
        v = ravel_pytree({"bias": jnp.zeros(4), "kernel": jnp.ones((4, 4))})[0]
    (y, exponent), (back, back_exponent) = product(params, v[None])
    (y_1, exponent_1), _ = product(unit, v[None])
    shift = (float(exponent[0] - exponent_1[0])) * np.log(2) + np.log(
        np.linalg.norm(y) / np.linalg.norm(y_1)
    )
    assert shift == pytest.approx(201 * np.log(1e-3), rel=1e-12)
    np.testing.assert_allclose(logarithms.unit(y)[0], logarithms.unit(y_1)[0], rtol=1e-9)
    assert np.all(np.isfinite(back)) and (int(back_exponent[0]) < -1000) == (layer == 1)


def test_vmap_over_draws():
    _, chain, params, x = _network()
    draws = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    many = jax.jit(jax.vmap(lambda params: curvature.tangent_kernel(chain, params, x)))(draws)
    np.testing.assert_allclose(many[0], kernel(chain, params, x, None), rtol=1e-12)
    np.testing.assert_allclose(
        many[1], kernel(chain, networks.rescale(params, 2.0, 2.0), x, None), rtol=1e-12
    )


def test_what_makes_no_sense_is_refused():
    _, chain, params, x = _network()
    with pytest.raises(ValueError, match="chunk_size must be an integer >= 1, got 0"):
        curvature.tangent_kernel(chain, params, x, 0)
    with pytest.raises(ValueError, match="one of cross_entropy, squared, got 'hinge'"):
        gauss_newton_gram(jnp.eye(6), jnp.ones((3, 2)), "hinge")
    with pytest.raises(ValueError, match=r"kernel must have 6 rows for outputs \(3, 2\), got 5"):
        gauss_newton_gram(jnp.eye(5), jnp.ones((3, 2)))
    for settings, match in [
        ({"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
        ({"loss": "hinge"}, "one of cross_entropy, squared, got 'hinge'"),
        ({"layer": 5}, r"layer must be None or an integer in \[0, 4\], got 5"),
        ({"layer": -1}, "got -1"),
        ({"layer": True}, "got True"),
    ]:
        with pytest.raises(ValueError, match=match):
            curvature.parameter_jacobian(chain, params, x, **settings)
    with pytest.raises((ValueError, TypeError)):
        curvature.parameter_jacobian(chain, params, x[0])
