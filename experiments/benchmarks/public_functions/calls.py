"""Calls of public functions on one small network, by name: what `hangs.py` batches in every way."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from jaxstab import activations, curvature, initializers, networks, propagation, spectra, theory
from public_functions import of_curvature

Call = Callable[[networks.Params, jax.Array, jax.Array], Any]

ROOMS = (spectra, curvature, networks, propagation, initializers, theory)
# public functions that no call needs
UNCALLED = {
    "theory.missing": "answers in words and computes nothing",
}
# these take and give Python numbers, so that there is nothing to batch: they are called plain
PLAIN = (
    "initializers.gain",
    "theory.design",
    "theory.doubly_critical",
    "theory.lyapunov_exponents",
    "theory.shaped",
)


def public() -> list[str]:
    """Name every public function of the rooms, such as "spectra.extremes"."""
    return sorted(
        f"{room.__name__.split('.')[1]}.{name}"
        for room in ROOMS
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
    )


def mlp(width: int, depth: int) -> networks.MLP:
    """The network whose parameters the calls are given: `width` inputs, 2 outputs."""
    return networks.MLP(depth, width, features_out=2, weights="orthogonal")


@functools.cache
def calls(width: int, depth: int) -> dict[str, Call]:
    """Make the calls.

    Args:
        width: of the layers, and of the inputs; at least 6.
        depth: number of blocks, at least 4.

    Returns:
        Functions of (params, x [width], key) of one network, by the name of the public one, with
        "(probe)" for those that take a probe, too.
    """
    return {
        **of_spectra(width, depth),
        **of_curvature.calls(mlp(width, depth)),
        **of_networks(width, depth),
        **of_sites(width),
        **of_propagation(width, depth),
        **of_initializers(width, depth),
        **of_theory(depth),
    }


def batch(x: jax.Array) -> jax.Array:
    """Two inputs."""
    return jnp.stack([x, -x])


def gain(x: jax.Array) -> jax.Array:
    """A weight gain about 1, which differs from network to network."""
    return 1 + 0.1 * x[0]


def of_spectra(width: int, depth: int) -> dict[str, Call]:
    """Calls of `spectra`."""
    chain = networks.chain(mlp(width, depth))
    depths = [2, depth]

    def jacobian(p: networks.Params, x: jax.Array) -> spectra.Operator:
        return spectra.jacobian(chain, p, x)

    def density(p: networks.Params, x: jax.Array, key: jax.Array) -> Any:
        found = spectra.density(jacobian(p, x), key, 2, 3)
        return found, found.quantile(found.cdf(x).value)

    return {
        "spectra.alignment": lambda p, x, key: spectra.alignment(chain, p, x),
        "spectra.density": density,
        "spectra.extremes": lambda p, x, key: spectra.extremes(jacobian(p, x), key, 2, 2, 2),
        "spectra.jacobian": lambda p, x, key: (jacobian(p, x).matvec(x), jacobian(p, x).matrix()),
        "spectra.local_log_singular_values": lambda p, x, key: spectra.local_log_singular_values(
            chain, p, x
        ),
        "spectra.log_apjn": lambda p, x, key: (
            spectra.log_apjn(chain, p, x),
            spectra.log_apjn(chain, p, x, key=key),
        ),
        "spectra.log_singular_values": lambda p, x, key: (
            spectra.log_singular_values(chain, p, x, depths),
            spectra.log_singular_values(chain, p, x, depths, 1, True, errors=True),
        ),
        "spectra.lyapunov_exponents": lambda p, x, key: spectra.lyapunov_exponents(
            chain, p, x, key, groups=2
        ),
        "spectra.moments": lambda p, x, key: spectra.moments(jacobian(p, x), key),
        "spectra.precision_report": lambda p, x, key: spectra.precision_report(chain, p, x, depths),
        "spectra.product_log_singular_values": lambda p, x, key: (
            spectra.product_log_singular_values(p.blocks["dense"]["kernel"])
        ),
        "spectra.singular_values": lambda p, x, key: spectra.singular_values(chain, p, x, depths),
    }


def of_networks(width: int, depth: int) -> dict[str, Call]:
    """Calls of `networks`, but for those of sites."""
    ours = mlp(width, depth)
    chain = networks.chain(ours)
    normed = networks.MLP(depth, width, norm="batch")
    long = networks.flatten(networks.chain(normed), 2)
    net = networks.mlp(depth, width, norm="layer", skip="sum", weights="orthogonal")

    def lengths(carry: jax.Array, here: networks.Here) -> tuple[jax.Array, jax.Array]:
        return carry + 1, jnp.sum(here.h**2)

    def pulled(cotangent: jax.Array, here: networks.Here) -> tuple[jax.Array, jax.Array]:
        return here.pull(cotangent), jnp.sum(cotangent**2)

    def upwards(p: networks.Params, x: jax.Array) -> Any:
        return networks.upwards(chain, p, chain.embed(p, x), lengths, jnp.zeros(()))

    def downwards(p: networks.Params, x: jax.Array) -> Any:
        states = networks.states(chain, p, x)
        return networks.downwards(chain, p, states, pulled, jnp.ones(width))

    def of_long(x: jax.Array, key: jax.Array) -> jax.Array:
        params = networks.chain(normed).init(key, batch(x))
        return long.apply(params, batch(x).ravel())

    def draw(key: jax.Array, h: jax.Array) -> dict[str, jax.Array]:
        return {"w": jax.random.normal(key, (h.size, width)) / h.size**0.5}

    def apply(theta: dict[str, jax.Array], h: jax.Array) -> jax.Array:
        return jnp.tanh(h) @ theta["w"]

    functions = networks.from_functions([(draw, apply)] * 4)
    block = nn.Sequential([nn.tanh, nn.Dense(width)])
    linen = networks.from_linen([nn.Dense(width), block, block, nn.Dense(2)])
    rngs = nnx.Rngs(0)
    linears = [nnx.Linear(width, width, rngs=rngs) for _ in range(4)]
    of_nnx, held = networks.from_nnx(linears, jnp.ones(width, jnp.float32))
    thetas = [{"w": jnp.eye(width)}] * 4
    of_params, given = networks.from_params([apply] * 4, thetas, jnp.ones(width))
    return {
        "networks.chain": lambda p, x, key: (
            chain.apply(p, x),
            chain.init(key, x[: width // 2]),
        ),
        "networks.downwards": lambda p, x, key: downwards(p, x),
        "networks.flatten": lambda p, x, key: of_long(x, key),
        "networks.from_functions": lambda p, x, key: functions.apply(functions.init(key, x), x),
        "networks.from_linen": lambda p, x, key: linen.apply(linen.init(key, x), x),
        "networks.from_nnx": lambda p, x, key: of_nnx.apply(held, x),
        "networks.from_params": lambda p, x, key: of_params.apply(given, x),
        "networks.mlp": lambda p, x, key: net.apply(net.init(key, x), x),
        "networks.over_batch": lambda p, x, key: networks.over_batch(chain).apply(p, batch(x)),
        "networks.rescale": lambda p, x, key: (
            networks.rescale(p, gain(x), 1.0),
            networks.rescale(chain.bind(p, sigma_w=2.0), 1.0),
        ),
        "networks.state": lambda p, x, key: networks.state(chain, p, x),
        "networks.states": lambda p, x, key: networks.states(chain, p, x),
        "networks.upwards": lambda p, x, key: upwards(p, x),
    }


def of_sites(width: int) -> dict[str, Call]:
    """Calls of what reads a model that is not taken apart."""

    def model(w: jax.Array, x: jax.Array) -> jax.Array:
        h = networks.tag("hidden", jnp.tanh(x @ w))
        shares = jax.nn.softmax(h @ h.T)
        return networks.tag("output", shares @ h)

    def weights(p: networks.Params) -> jax.Array:
        return p.blocks["dense"]["kernel"][0]

    example = (jnp.ones((width, width)), jnp.ones((2, width)))
    probe = networks.probe(model, *example)
    heads = networks.probe(model, *example, kind="softmax")

    return {
        "networks.probe": lambda p, x, key: probe.read(weights(p), batch(x)).output,
        "networks.tag": lambda p, x, key: model(weights(p), batch(x)),
        "propagation.attention": lambda p, x, key: propagation.attention(
            heads, weights(p), batch(x)
        ),
        "propagation.backward(probe)": lambda p, x, key: propagation.backward(
            probe, weights(p), batch(x), jnp.sum
        ),
        "propagation.correlation(probe)": lambda p, x, key: propagation.correlation(
            probe, weights(p), batch(x), batch(x[::-1])
        ),
        "propagation.forward(probe)": lambda p, x, key: propagation.forward(
            probe, weights(p), batch(x)
        ),
        "spectra.jacobian(probe)": lambda p, x, key: spectra.jacobian(
            probe, weights(p), batch(x), "hidden", "output"
        ).matvec(jnp.tile(x, 2)),
    }


def of_propagation(width: int, depth: int) -> dict[str, Call]:
    """Calls of `propagation`, but for those of sites."""
    chain = networks.chain(mlp(width, depth))
    return {
        "propagation.backward": lambda p, x, key: propagation.backward(
            chain, p, x, jnp.sum, [2, depth]
        ),
        "propagation.correlation": lambda p, x, key: propagation.correlation(chain, p, x, x[::-1]),
        "propagation.forward": lambda p, x, key: propagation.forward(chain, p, x),
    }


def of_initializers(width: int, depth: int) -> dict[str, Call]:
    """Calls of `initializers`."""
    ours = mlp(width, depth)
    relu = networks.MLP(depth, width, "relu", skip="rezero", weights="orthogonal")
    critical = initializers.critical("tanh", weights="orthogonal")

    def drawn(x: jax.Array, key: jax.Array) -> networks.Params:
        return networks.chain(relu).init(key, x)

    return {
        "initializers.auto_init": lambda p, x, key: initializers.auto_init(
            ours, p, batch(x), key, steps=2, samples=2
        ),
        "initializers.critical": lambda p, x, key: critical(key, (width, width), jnp.float32),
        "initializers.fixup": lambda p, x, key: initializers.fixup(relu, drawn(x, key)),
        "initializers.gain": lambda p, x, key: initializers.gain("tanh").sigma_w,
        "initializers.looks_linear": lambda p, x, key: initializers.looks_linear(relu, key, x),
        "initializers.lsuv": lambda p, x, key: initializers.lsuv(ours, p, batch(x)),
        "initializers.skip_init": lambda p, x, key: initializers.skip_init(drawn(x, key)),
    }


def of_theory(depth: int) -> dict[str, Call]:
    """Calls of `theory`, of which none needs a network."""

    def law(x: jax.Array) -> theory.JacobianLaw:
        return theory.jacobian_law("tanh", gain(x), 0.1, 8, points=32)

    def slopes(x: jax.Array) -> jax.Array:
        return gain(x) * jnp.asarray([0.0, 1.25])

    def normed(x: jax.Array) -> Any:
        block = theory.law("tanh", norm="layer", skip="sum", keep=0.9 * gain(x))
        return theory.predict(block, gain(x), 0.1, [2], width=8, d_in=8)

    shares = jnp.asarray([0.2, 0.8])
    return {
        "theory.compare": lambda p, x, key: theory.compare(gain(x), 1.0, 0.1, depth=8, width=8),
        "theory.correlation_map": lambda p, x, key: theory.correlation_map(
            "tanh", gain(x), 0.1, 1.0, 0.5
        ),
        "theory.correlation_slope": lambda p, x, key: theory.correlation_slope(
            "tanh", gain(x), 0.1, 1.0, 0.5
        ),
        "theory.critical_points": lambda p, x, key: theory.critical_points("tanh", 0.1 * gain(x)),
        "theory.critical_sigma_w": lambda p, x, key: theory.critical_sigma_w("tanh", 0.1 * gain(x)),
        "theory.derivative_moment": lambda p, x, key: theory.derivative_moment("tanh", gain(x)),
        "theory.design": lambda p, x, key: theory.design(
            activations.leaky_relu, {"slope": 0.5}, 8, sigma_w=1.3, steps=3
        ),
        "theory.doubly_critical": lambda p, x, key: theory.doubly_critical("gelu"),
        "theory.fixed_point": lambda p, x, key: theory.fixed_point("tanh", gain(x), 0.1),
        "theory.fixed_points": lambda p, x, key: theory.fixed_points("tanh", gain(x), 0.1),
        "theory.hermite_coefficients": lambda p, x, key: theory.hermite_coefficients(
            "tanh", 4, gain(x)
        ),
        "theory.jacobian_law": lambda p, x, key: law(x).cdf(x),
        "theory.jacobian_moments": lambda p, x, key: theory.jacobian_moments(
            "tanh", gain(x), 0.1, 8
        ),
        "theory.kernel_map": lambda p, x, key: theory.kernel_map("tanh", gain(x)),
        "theory.kernels": lambda p, x, key: theory.kernels("tanh", gain(x), 0.1, 8),
        "theory.law": lambda p, x, key: normed(x),
        "theory.length_map": lambda p, x, key: theory.length_map("tanh", gain(x), 0.1, 1.0),
        "theory.log_growth": lambda p, x, key: theory.log_growth("relu", 8, gain(x)),
        "theory.lyapunov_exponents": lambda p, x, key: theory.lyapunov_exponents(8),
        "theory.predict": lambda p, x, key: theory.predict(
            "tanh", gain(x), 0.1, [2, depth], width=8, d_in=8
        ),
        "theory.product_law": lambda p, x, key: theory.product_law(
            slopes(x), shares, 3, "orthogonal", points=32
        ),
        "theory.saturation": lambda p, x, key: theory.saturation("tanh", gain(x), 0.1),
        "theory.second_moment": lambda p, x, key: theory.second_moment("tanh", gain(x)),
        "theory.second_moment_slope": lambda p, x, key: theory.second_moment_slope("tanh", gain(x)),
        "theory.shaped": lambda p, x, key: theory.shaped("tanh", 50),
        "theory.sharpness": lambda p, x, key: theory.sharpness(
            "tanh", gain(x), 0.1, (2,), width=8, d_in=4, draws=4
        ),
        "theory.squared_slopes": lambda p, x, key: theory.squared_slopes("tanh", gain(x), 1.0),
        "theory.typical_shift": lambda p, x, key: theory.typical_shift("relu", gain(x), 8),
    }
