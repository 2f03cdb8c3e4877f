"""What products of lower precision do to a spectrum: the report, and the emulation it rests on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import networks, propagation, spectra
from jaxstab.networks import MLP, Chain, Params

KEY = jax.random.key(8)
DEPTHS = (2, 8)


@functools.cache
def _network():
    # relu kills directions; cached: a chain made again is a new static argument, and compiles again
    mlp = MLP(8, 10, "relu")
    x = jax.random.normal(jax.random.key(5), (2, 6))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, 1.4, 0.1), x


@functools.cache
def _report():
    chain, params, x = _network()
    return jax.jit(jax.vmap(lambda x: spectra.precision_report(chain, params, x, DEPTHS)))(x)


@pytest.mark.slow
@pytest.mark.long
def test_errors_are_ordered_as_the_precisions_are():
    found, double = _report(), jax.config.read("jax_enable_x64")
    assert found.reference.dtype == (jnp.float64 if double else jnp.float32)
    assert set(found.modes) == {"high", "default", "tf32", "bfloat16"} | (
        {"highest"} if double else set()
    )
    alive = np.asarray(found.reference) != -np.inf
    own = {name: np.median(np.asarray(mode.error)[alive]) for name, mode in found.modes.items()}
    # rounding to 7 bits is 8 times as coarse as to 10; the median of few values says so roughly
    assert 2 < own["bfloat16"] / own["tf32"] < 32
    if double:
        assert own["highest"] < 1e-5 < own["tf32"]


@pytest.mark.slow
def test_the_reference_is_the_double_precision_spectrum_of_the_rounded_network():
    chain, params, x = _network()
    as_single = lambda a: a.astype(jnp.float32).astype(float)
    exact = jax.jit(spectra.log_singular_values, static_argnums=(0, 3))
    params, x = jax.tree.map(as_single, (params, x))
    np.testing.assert_allclose(
        _report().reference[1], exact(chain, params, x[1], DEPTHS), atol=1e-12
    )


@pytest.mark.slow
def test_what_is_right_and_what_is_dead():
    found = _report()
    for mode in found.modes.values():
        np.testing.assert_allclose(mode.largest, np.max(mode.error, axis=-1))
        np.testing.assert_allclose(mode.median, np.median(mode.error, axis=-1))
        # counted from the top, up to the first that is wrong
        for right, count in zip(
            (np.asarray(mode.error) <= 0.01).reshape(4, 6), mode.right.ravel(), strict=True
        ):
            assert int(count) == (np.argmin(right) if not right.all() else right.size)
    # directions that are killed are killed in every precision: no error
    dead = np.asarray(found.reference) == -np.inf
    assert dead.any() and all(
        np.all(np.asarray(mode.error)[dead] == 0) for mode in found.modes.values()
    )
    text = jax.tree.map(lambda leaf: leaf[0], found).table(DEPTHS)
    assert "float64" in text and text.count("\n") == 1 + 2 * 5 and "bfloat16" in text


@pytest.mark.slow
def test_dropout_draws_one_mask_in_every_precision():
    mlp, x = MLP(2, 6, "identity", dropout=True), jnp.ones(5, jnp.float32)
    params = networks.chain(mlp).bind(networks.chain(mlp).init(KEY, x), key=KEY, rate=0.3)
    chain = networks.chain(mlp)
    single = propagation.forward(chain, params, x).log_q
    double = propagation.forward(
        chain,
        jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, params),
        x.astype(jnp.float64),
    ).log_q
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.slow
def test_emulated_rounding_is_that_of_the_product_of_rounded_matrices():
    # one block, h -> W h, with W = diag of values between two neighbours of bfloat16: every rounding can be said
    values = jnp.asarray([1 + 2.0**-8 + 2.0**-12, 1.0, 0.5 + 2.0**-12], jnp.float32)
    # within a loop, a branch and a rematerialised call, where products hide
    block = jax.checkpoint(lambda w, h: jax.lax.cond(h[0] > 5, lambda h: h, lambda h: w @ h, h))
    whole = Chain(
        lambda _, x: x, block, lambda _, h: h, networks.chain(MLP(1, 3, "identity")).activation
    )
    report = jax.jit(lambda params, x: spectra.precision_report(whole, params, x, (1,)))
    found = report(Params({}, jnp.diag(values)[None], {}), jnp.ones(3, jnp.float32))
    # 7 bits behind the point: 1 + 2^-8 + 2^-12 goes up to 1 + 2^-7, 0.5 + 2^-12 down to 0.5
    rounded = np.array([1 + 2.0**-7, 1.0, 0.5])
    expected = np.abs(np.log(rounded) - np.log(np.asarray(values, float)))
    np.testing.assert_allclose(found.modes["bfloat16"].error[0], expected, atol=1e-6)
    # 10 bits: 1 + 2^-8 + 2^-12 goes down to 1 + 2^-8, 0.5 + 2^-12 lies half way to the next, goes to even: 0.5
    rounded = np.array([1 + 2.0**-8, 1.0, 0.5])
    expected = np.abs(np.log(rounded) - np.log(np.asarray(values, float)))
    np.testing.assert_allclose(found.modes["tf32"].error[0], expected, atol=1e-6)


@pytest.mark.slow
def test_what_makes_no_sense_is_refused_and_nothing_is_configured():
    chain, params, x = _network()
    before = jax.config.jax_default_matmul_precision
    with pytest.raises(ValueError, match="depths must be ascending"):
        spectra.precision_report(chain, params, x[0], (13,))
    assert jax.config.jax_default_matmul_precision == before
