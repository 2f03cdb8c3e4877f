"""Each workload: compile, run, and how many floating-point operations and bytes it needs at least."""

import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from jaxstab import networks, propagation, spectra, training

REPEATS = 3
SIGMA_W, SIGMA_B = 1.5, 0.2


def rates(small: bool) -> dict[str, Any]:
    """Rates of a large float32 product and of copying memory, and what the device is."""
    size = 1024 if small else 8192
    square = jnp.ones((size, size), "float32")
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    _, seconds, _ = timed(product, square)
    long = jnp.ones(1 << (24 if small else 30), "float32")
    _, copying, _ = timed(jax.jit(lambda a: a + 1), long)
    device = jax.devices()[0]
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    return {
        "device": f"{device.device_kind} ({device.platform}), {versions}",
        "flops": 2 * size**3 / seconds,
        "bytes": 2 * long.nbytes / copying,
    }


def dense_spectra(small: bool) -> dict[str, Any]:
    """All singular values at seven depths of many networks."""
    return _spectra(small, spectra.singular_values, nets=2048, products=1)


def log_spectra(small: bool) -> dict[str, Any]:
    """Their logarithms, which no float range limits: a QR decomposition a layer."""
    # a product and a Householder QR of as many rows as columns, 4 n^3 / 3 and as much for Q
    return _spectra(small, spectra.log_singular_values, nets=64, products=1 + 4 / 3)


def _spectra(small: bool, measure: Callable, nets: int, products: float) -> dict[str, Any]:
    width = 32 if small else 128
    nets = nets // 32 if small else nets
    depths = (1, 2, 4, 8, 16, 32, 64)
    mlp = networks.MLP(depth=depths[-1], width=width)
    chain = networks.chain(mlp)
    x = unit_input(width)

    def one(params: networks.Params) -> Array:
        return measure(chain, params, x, depths)

    compiling, running, values = timed(jax.jit(jax.vmap(one)), drawn(mlp, x, nets))
    assert bool(jnp.isfinite(values[:, 0]).all())
    values_flops = 8 / 3 * width**3 * len(depths)
    layers_flops = 2 * width**3 * depths[-1] * products
    return {
        "what": f"{nets} networks of width {width}, depths to {depths[-1]}",
        "compile": compiling,
        "run": running,
        "flops": nets * (layers_flops + values_flops),
        "bytes": nets * 4 * width**2 * depths[-1],
    }


def gradients(small: bool) -> dict[str, Any]:
    """Gradient norms of all layers, for four depths of every network."""
    width, batch, nets = (32, 8, 4) if small else (512, 64, 128)
    depths = (16, 32, 64, 128)
    mlp = networks.MLP(depth=depths[-1], width=width)
    chain = networks.chain(mlp)
    x = jnp.broadcast_to(unit_input(width), (batch, width))
    labels = jnp.arange(batch) % 10

    def one(params: networks.Params) -> PyTree:
        return propagation.backward(
            chain, params, x, lambda y: training.cross_entropy(y, labels), depths
        )

    compiling, running, found = timed(jax.jit(jax.vmap(one)), drawn(mlp, x, nets))
    assert bool(jnp.isfinite(found.log_grad_h[:, 0, 0]).all())
    # a product forwards, and backwards two for each depth that reaches the layer
    products = depths[-1] + 2 * sum(depths)
    return {
        "what": f"{nets} networks of width {width}, batch {batch}, depths {depths}",
        "compile": compiling,
        "run": running,
        "flops": nets * 2 * batch * width**2 * products,
        "bytes": nets * 4 * width**2 * products,
    }


def trainings(small: bool) -> dict[str, Any]:
    """Networks trained side by side, a learning rate each."""
    width, depth, batch, steps, nets = (32, 8, 16, 20, 4) if small else (256, 32, 128, 100, 128)
    mlp = networks.MLP(depth=depth, width=width)
    xs = jax.random.normal(jax.random.key(1), (4 * batch, width), "float32")
    data = training.Examples(xs, (xs[:, 0] > 0).astype("int32"))

    def one(key: Array, rate: ArrayLike) -> Array:
        params = networks.chain(mlp).init(key, xs, SIGMA_W, SIGMA_B)
        seen, _ = training.train(
            mlp, params, optax.sgd(rate), data, key=key, steps=steps, batch=batch
        )
        return seen.loss

    keys = jax.random.split(jax.random.key(0), nets)
    learning_rates = jnp.geomspace(1e-3, 1e-1, nets)
    compiling, running, losses = timed(jax.jit(jax.vmap(one)), keys, learning_rates)
    assert bool(jnp.isfinite(losses[0]).all())
    # three products a layer and step
    products = 3 * (depth + 1) * steps
    return {
        "what": f"{nets} networks of width {width}, depth {depth}, batch {batch}, {steps} steps",
        "compile": compiling,
        "run": running,
        "flops": nets * 2 * batch * width**2 * products,
        "bytes": nets * 4 * width**2 * products,
    }


def matrix_free(small: bool) -> dict[str, Any]:
    """The ten largest singular values of one wide Jacobian."""
    width, depth = (256, 4) if small else (8192, 16)
    steps, block = 4, 24
    mlp = networks.MLP(depth=depth, width=width)
    chain = networks.chain(mlp)
    x = unit_input(width)
    params = jax.jit(lambda key: chain.init(key, x, SIGMA_W, SIGMA_B))(jax.random.key(0))

    def largest(params: networks.Params, key: Array) -> Array:
        operator = spectra.jacobian(chain, params, x)
        return spectra.extremes(operator, key, 10, steps, block).log_s

    compiling, running, values = timed(jax.jit(largest), params, jax.random.key(2))
    assert bool(jnp.isfinite(values).all())
    passes = 2 * steps
    return {
        "what": f"ten largest, width {width}, depth {depth}, {steps} blocks of {block}",
        "compile": compiling,
        "run": running,
        "flops": passes * block * 2 * width**2 * (depth + 1),
        "bytes": passes * 4 * width**2 * (depth + 1),
    }


def drawn(mlp: networks.MLP, x: Array, nets: int) -> networks.Params:
    """Parameters of many networks."""
    keys = jax.random.split(jax.random.key(0), nets)
    return jax.jit(jax.vmap(lambda key: networks.chain(mlp).init(key, x, SIGMA_W, SIGMA_B)))(keys)


def unit_input(size: int) -> Array:
    """An input of mean square 1."""
    x = jax.random.normal(jax.random.key(3), (size,), "float32")
    return x / jnp.sqrt(jnp.mean(x**2))


def timed(function: jax.stages.Wrapped, *arguments: Any) -> tuple[float, float, Any]:
    """Seconds to compile, the least seconds of some runs, and the result."""
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    compiling = time.perf_counter() - start
    result = jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return compiling, min(seconds), result


PARTS = {
    "rates": rates,
    "spectra": dense_spectra,
    "log": log_spectra,
    "gradients": gradients,
    "trainings": trainings,
    "matrix-free": matrix_free,
}
