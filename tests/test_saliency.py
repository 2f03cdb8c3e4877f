"""Gradients by the input against jax.grad and wide networks' closed form; estimates against their naive twins."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_variables import variables

from jaxstab import networks, propagation
from jaxstab.networks import MLP
from jaxstab.propagation import saliency
from jaxstab.propagation.saliency import InputGradient

KEY = jax.random.key(0)


def _first(y):
    return y[0]


@pytest.mark.slow
@pytest.mark.parametrize("skip", [None, "sum"])
def test_gradients_are_those_of_autodiff(skip):
    mlp = MLP(3, 6, "tanh", skip=skip)
    chain = networks.chain(mlp)
    x1, x2 = jax.random.normal(KEY, (2, 5))
    params = chain.init(KEY, x1, 1.3, 0.2)

    @jax.jit
    def found():
        cosines = saliency.gradient_correlation(chain, params, x1, x2, _first)
        return saliency.input_gradient(chain, params, x1, _first), cosines

    @jax.jit
    def naive():
        network = lambda x: mlp.apply(variables(params), x)[0]
        by_input = [jax.grad(network)(x) for x in (x1, x2)]
        readout = lambda h: chain.readout(params, h)[0]
        by_last = [jax.grad(readout)(networks.state(chain, params, x)) for x in (x1, x2)]
        return by_input, by_last

    gradient, cosines = found()
    by_input, by_last = naive()
    # a handful of small products
    np.testing.assert_allclose(
        gradient.direction * jnp.exp(gradient.log_norm), by_input[0], rtol=1e-9
    )
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosines.shape == (mlp.depth + 2,)
    np.testing.assert_allclose(cosines[0], cosine(*by_input), rtol=1e-9)
    np.testing.assert_allclose(cosines[-1], cosine(*by_last), rtol=1e-9)


@pytest.mark.slow
def test_relu_shatters_as_wide_networks_do():
    mlp = MLP(5, 256, "relu")
    chain = networks.chain(mlp)
    x1, x2 = jax.random.normal(KEY, (2, 64))
    x2 = 0.8 * x1 + 0.6 * x2

    @jax.jit
    @jax.vmap
    def both(key):
        params = chain.init(key, x1, 2**0.5)
        c = propagation.correlation(chain, params, x1, x2).c
        return c, saliency.gradient_correlation(chain, params, x1, x2, _first)

    c, cosines = both(jax.random.split(KEY, 24))
    factors = 1 - np.arccos(c) / np.pi
    # h_l is reached through the slopes of layers l .. L, the input through all
    wanted = np.cumprod(factors[:, ::-1], axis=1)[:, ::-1]
    wanted = np.concatenate([wanted[:, :1], wanted], axis=1)
    off = np.asarray(cosines) - wanted
    error = off.std(axis=0, ddof=1) / np.sqrt(len(off))
    # 4 standard errors, and 1 / width of bias
    assert np.all(np.abs(off.mean(axis=0)) < 4 * error + 1 / 256), (off.mean(axis=0), error)
    assert cosines[:, 0].mean() < 0.6 * cosines[:, -1].mean()


@pytest.mark.slow
def test_gradients_beyond_the_range_of_floats():
    mlp = MLP(300, 4, "identity")
    x = jnp.ones(3, jnp.float32)
    params = networks.chain(mlp).init(KEY, x, 1e-3)
    run = jax.jit(lambda: saliency.input_gradient(networks.chain(mlp), params, x, _first))
    found = run()
    assert found.log_norm < -1500 and np.isclose(np.linalg.norm(found.direction), 1, atol=1e-5)


@pytest.mark.slow
def test_estimates_are_the_means_over_pairs():
    rng = np.random.default_rng(0)
    g = rng.standard_normal((5, 7)) + 0.5
    norms = np.linalg.norm(g, axis=1)
    # the unit of length does not matter
    gradients = InputGradient(jnp.asarray(g / norms[:, None]), jnp.asarray(np.log(norms)) - 2000)

    def cosines(g):
        u = g / np.linalg.norm(g, axis=1, keepdims=True)
        return np.mean([a @ b for a, b in itertools.permutations(u, 2)])

    def ratio(g):
        signal = np.mean([a @ b for a, b in itertools.permutations(g, 2)])
        return signal / (np.mean(np.sum(g**2, axis=1)) - signal)

    for estimate, naive in ((saliency.agreement, cosines), (saliency.signal_to_noise, ratio)):
        without = [naive(np.delete(g, i, axis=0)) for i in range(5)]
        error = np.sqrt(4 / 5 * np.sum((without - np.mean(without)) ** 2))
        found = estimate(gradients)
        np.testing.assert_allclose([*found], [naive(g), error], rtol=1e-9)
    alone = jax.tree.map(lambda leaf: leaf[:1], gradients)
    assert np.isnan(saliency.agreement(alone).value)


def test_equal_gradients_agree_without_error_and_have_derivatives():
    """Their errors are roots of 0 and their noise is 0, of which neither may reach a derivative as NaN."""

    def found(t):
        directions = jnp.stack([jnp.stack([jnp.cos(t), jnp.sin(t)])] * 4)
        gradients = InputGradient(directions, jnp.full(4, t))
        agreement = saliency.agreement(gradients)
        return *agreement, *saliency.signal_to_noise(gradients)

    values, slopes = jax.jit(lambda t: (found(t), jax.jacrev(found)(t)))(0.3)
    assert np.isclose(values[0], 1, rtol=1e-15) and values[1] == 0 and values[2] == np.inf
    np.testing.assert_allclose(slopes[:3], 0, atol=1e-15)


def test_signal_to_noise_is_unbiased():
    """Draws of mean m and unit noise in d dimensions have |m|^2 / d."""
    keys = jax.random.split(KEY, 400)
    mean = jnp.linspace(0, 0.4, 32)
    wanted = float(jnp.sum(mean**2)) / 32

    @jax.jit
    @jax.vmap
    def one(key):
        g = mean[None] + jax.random.normal(key, (12, 32))
        norms = jnp.linalg.norm(g, axis=1)
        return saliency.signal_to_noise(InputGradient(g / norms[:, None], jnp.log(norms)))

    found = one(keys)
    error = np.std(found.value) / np.sqrt(400)
    # a ratio of estimates is biased by about its variance
    assert abs(np.mean(found.value) - wanted) < 4 * error + np.var(found.value)
    # of pairs, the jackknife says between once and sqrt(2) times what the draws scatter
    assert 0.9 < np.mean(found.standard_error) / np.std(found.value) < 1.5


def test_gradients_of_states_that_are_pytrees_are_those_of_vectors():
    """Hold that the layout of a state does not matter, and that tokens have no gradient."""
    w = jax.random.normal(jax.random.key(0), (4, 3, 3), "float32")

    def join(h):
        return jnp.concatenate(h) if isinstance(h, tuple) else h

    def chain(split, x):
        def block(w, h):
            out = jnp.tanh(join(h) if h.shape != () else w[h]) @ w
            return (out[:1], out[1:]) if split else out

        def above(w, h):
            out = jnp.tanh(join(h)) @ w
            return (out[:1], out[1:]) if split else out

        return networks.from_params([block, above, above, lambda w, h: join(h) @ w], list(w), x)

    def cosines(split, x1, x2):
        return saliency.gradient_correlation(*chain(split, x1), x1, x2, jnp.sum)

    x = jnp.ones(3, "float32"), jnp.arange(3, dtype="float32")
    tokens = jnp.asarray(0), jnp.asarray(1)
    found = jax.jit(lambda: [cosines(s, *x) for s in (True, False)] + [cosines(True, *tokens)])()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert np.isnan(found[2][0]) and np.all(np.isfinite(found[2][1:]))
    with pytest.raises(ValueError, match="x must be floating, got dtype int"):
        saliency.input_gradient(*chain(False, tokens[0]), tokens[0], jnp.sum)
