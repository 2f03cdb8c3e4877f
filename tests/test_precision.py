"""What products of lower precision do to a spectrum: the report, and the emulation it rests on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import networks, spectra
from jaxstab.networks import MLP, Chain, Params

KEY = jax.random.key(8)
DEPTHS = (2, 12)

report = jax.jit(spectra.precision_report, static_argnums=(0, 3))


@functools.cache
def _network():
    # cached: a chain made again is a new static argument, and compiles again
    mlp = MLP(12, 10)
    x = jax.random.normal(jax.random.key(5), (6,))
    return networks.chain(mlp), networks.init(mlp, KEY, x, 1.2, 0.1), x


@pytest.mark.kernels
def test_errors_are_ordered_as_the_precisions_are():
    chain, params, x = _network()
    found = report(chain, params, x, DEPTHS)
    double = jax.config.read("jax_enable_x64")
    assert found.reference.dtype == (jnp.float64 if double else jnp.float32)
    assert set(found.modes) == {"high", "default", "tf32", "bfloat16"} | ({"highest"} if double else set())
    own = {name: float(np.max(mode.median)) for name, mode in found.modes.items()}
    # rounding to 7 bits is 8 times as coarse as to 10; the medians of few values say so roughly
    assert 2 < own["bfloat16"] / own["tf32"] < 32
    assert own["bfloat16"] > 2**-9
    if double:
        assert own["highest"] < 1e-5 < own["tf32"]
        largest = found.modes["highest"].largest
        np.testing.assert_allclose(largest, np.max(found.modes["highest"].error, axis=1))


def test_the_reference_is_the_double_precision_spectrum_of_the_rounded_network():
    chain, params, x = _network()
    found = report(chain, params, x, DEPTHS)
    there_and_back = jax.tree.map(lambda leaf: leaf.astype(jnp.float32).astype(float), (params, x))
    exact = jax.jit(spectra.log_singular_values, static_argnums=(0, 3))(chain, *there_and_back, DEPTHS)
    np.testing.assert_allclose(found.reference, exact, atol=1e-12)


def test_vmap_relu_dropout_and_how_many_are_right():
    mlp = MLP(6, 8, "relu", dropout=True)
    x = jax.random.normal(KEY, (2, 5))
    params = networks.bind(mlp, networks.init(mlp, KEY, x, 1.5), key=jax.random.key(1), rate=0.2)
    chain = networks.chain(mlp)
    many = jax.jit(jax.vmap(lambda x: spectra.precision_report(chain, params, x, (6,))))(x)
    for mode in many.modes.values():
        # counted from the top, up to the first that is wrong
        for error, right in zip(np.asarray(mode.error[:, 0]) <= 0.01, mode.right[:, 0], strict=True):
            assert int(right) == (np.argmin(error) if not error.all() else error.size)
    # directions that relu kills are killed in every precision: no error
    dead = np.asarray(many.reference) == -np.inf
    assert dead.any() and np.all(np.asarray(many.modes["highest"].error)[dead] == 0)
    text = jax.tree.map(lambda leaf: leaf[0], many).table((6,))
    assert "float64" in text and text.count("\n") == 6 and "bfloat16" in text


def test_emulated_rounding_is_that_of_the_product_of_rounded_matrices():
    # one block, h -> W h, with W = diag of values between two neighbours of bfloat16: every rounding can be said
    values = jnp.asarray([1 + 2.0**-8 + 2.0**-12, 1.0, 0.5 + 2.0**-12], jnp.float32)
    # within a loop, a branch and a rematerialised call, where products hide
    block = jax.checkpoint(lambda w, h: jax.lax.cond(h[0] > 5, lambda h: h, lambda h: w @ h, h))
    whole = Chain(lambda _, x: x, block, lambda _, h: h, networks.chain(MLP(1, 3, "identity")).activation)
    found = report(whole, Params({}, jnp.diag(values)[None], {}), jnp.ones(3, jnp.float32), (1,))
    # 7 bits behind the point: 1 + 2^-8 + 2^-12 goes up to 1 + 2^-7, 0.5 + 2^-12 down to 0.5
    rounded = np.array([1 + 2.0**-7, 1.0, 0.5])
    expected = np.abs(np.log(rounded) - np.log(np.asarray(values, float)))
    np.testing.assert_allclose(found.modes["bfloat16"].error[0], expected, atol=1e-6)
    # 10 bits: 1 + 2^-8 + 2^-12 goes down to 1 + 2^-8, 0.5 + 2^-12 lies half way to the next, goes to even: 0.5
    rounded = np.array([1 + 2.0**-8, 1.0, 0.5])
    expected = np.abs(np.log(rounded) - np.log(np.asarray(values, float)))
    np.testing.assert_allclose(found.modes["tf32"].error[0], expected, atol=1e-6)


def test_what_makes_no_sense_is_refused_and_nothing_is_configured():
    chain, params, x = _network()
    before = jax.config.jax_default_matmul_precision
    with pytest.raises(ValueError, match="depths must be ascending"):
        spectra.precision_report(chain, params, x, (13,))
    assert jax.config.jax_default_matmul_precision == before
