"""A right call of every public function of seven rooms and of two methods, by name: its arguments, small."""

import inspect

import jax
import jax.numpy as jnp
import optax
import public_calls_of_theory
from flax import linen as nn

from jaxstab import clipping, curvature, initializers, networks, propagation, spectra, theory

ROOMS = {
    "networks": networks, "propagation": propagation, "spectra": spectra, "curvature": curvature, "theory": theory,
    "initializers": initializers, "clipping": clipping,
}  # fmt: skip
# these take no arrays that could be wrong, or are called in tests of their own
UNCALLED = {
    "networks.probe": "checks model and inputs itself",
    "networks.tag": "takes any tree",
    "networks.from_nnx": "as from_linen",
    "theory.design": "a search, with checks of its own",
}

key = jax.random.key(0)
mlp = networks.MLP(3, 4, features_out=2)
chain = networks.chain(mlp)
x = jnp.ones(4) / 2
params = chain.init(key, x)
X = jnp.stack([x, -x, 2 * x])
y = jnp.array([0, 1, 1])
goal = curvature.objective(chain)
model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
mp = model.init(key, X)
probe = networks.probe(model, mp, X)
states = networks.states(chain, params, x)
op = spectra.jacobian(chain, params, x)
hess = curvature.hessian(goal, params, (X, y))
unit = jax.tree.map(jnp.ones_like, params)
relus = networks.MLP(3, 4, activation="relu", features_out=2)


def up(carry, here):
    return carry + 1, jnp.sum(here.h)


def down(carry, here):
    return here.pull(carry), jnp.sum(carry)


def loss(y):
    return jnp.sum(y**2)


def slopes(params):
    return jax.tree.map(jnp.tanh, params)


CALLS = {
    "Chain.bind": (chain.bind, {"params": params, "key": None, "rate": 0.0, "sigma_w": 1.0}),
    "Chain.init": (chain.init, {"key": key, "x": x, "sigma_w": 1.0, "sigma_b": 0.0}),
    "networks.chain": (networks.chain, {"mlp": mlp}),
    "networks.downwards": (
        networks.downwards,
        {"chain": chain, "params": params, "states": states, "step": down, "carry": jnp.ones(4)},
    ),
    "networks.upwards": (
        networks.upwards,
        {
            "chain": chain,
            "params": params,
            "start": chain.embed(params, x),
            "step": up,
            "carry": jnp.zeros(()),
        },
    ),
    "networks.flatten": (networks.flatten, {"whole": chain, "batch": 2}),
    "networks.from_functions": (
        networks.from_functions,
        {"layers": [(lambda k, x: {}, lambda p, x: x)] * 3},
    ),
    "networks.from_linen": (networks.from_linen, {"modules": [nn.Dense(4)] * 3}),
    "networks.from_params": (
        networks.from_params,
        {"applies": [lambda p, x: x] * 3, "params": [{}, {}, {}]},
    ),
    "networks.mlp": (
        networks.mlp,
        {
            "depth": 2,
            "width": 3,
            "activation": "tanh",
            "features_out": 2,
            "epsilon": 1e-6,
            "momentum": 0.9,
            "gate_bias": 0.0,
            "precision": "highest",
        },
    ),
    "networks.over_batch": (networks.over_batch, {"chain": chain}),
    "networks.rescale": (networks.rescale, {"params": params, "sigma_w": 1.0, "sigma_b": 1.0}),
    "networks.state": (networks.state, {"chain": chain, "params": params, "x": x, "depth": 2}),
    "networks.states": (networks.states, {"chain": chain, "params": params, "x": x, "depth": 2}),
    "propagation.backward": (
        propagation.backward,
        {"model": chain, "params": params, "x": x, "loss": loss, "depths": [2]},
    ),
    "propagation.correlation": (
        propagation.correlation,
        {"model": chain, "params": params, "x1": x, "x2": -x},
    ),
    "propagation.forward": (propagation.forward, {"model": chain, "params": params, "x": x}),
    "spectra.alignment": (spectra.alignment, {"chain": chain, "params": params, "x": x}),
    "spectra.density": (spectra.density, {"operator": op, "key": key, "probes": 2, "steps": 3}),
    "spectra.extremes": (
        spectra.extremes,
        {"operator": op, "key": key, "top": 1, "steps": 2, "block": 2},
    ),
    "spectra.jacobian": (
        spectra.jacobian,
        {
            "model": chain,
            "params": params,
            "x": x,
            "from_layer": 0,
            "to_layer": 2,
            "readout": False,
        },
    ),
    "spectra.local_log_singular_values": (
        spectra.local_log_singular_values,
        {"chain": chain, "params": params, "x": x},
    ),
    "spectra.log_apjn": (
        spectra.log_apjn,
        {"chain": chain, "params": params, "x": x, "first": 0, "key": key, "probes": 2},
    ),
    "spectra.log_singular_values": (
        spectra.log_singular_values,
        {"chain": chain, "params": params, "x": x, "depths": [2], "from_layer": 0, "errors": True},
    ),
    "spectra.moments": (spectra.moments, {"operator": op, "key": key, "probes": 2, "orders": 2}),
    "spectra.precision_report": (
        spectra.precision_report,
        {"chain": chain, "params": params, "x": x, "depths": [2]},
    ),
    "spectra.product_log_singular_values": (
        spectra.product_log_singular_values,
        {"factors": jnp.ones((2, 3, 3))},
    ),
    "spectra.singular_values": (
        spectra.singular_values,
        {"chain": chain, "params": params, "x": x, "depths": [2]},
    ),
    "curvature.adam_preconditioner": (
        curvature.adam_preconditioner,
        {"state": optax.ScaleByAdamState(jnp.asarray(3), unit, unit)},
    ),
    "curvature.critical_sharpness": (
        curvature.critical_sharpness,
        {"loss": goal, "params": params, "update": unit, "examples": (X, y), "passes": 2},
    ),
    "curvature.density": (
        curvature.density,
        {"operator": hess, "key": key, "probes": 2, "steps": 3},
    ),
    "curvature.directional_sharpness": (
        curvature.directional_sharpness,
        {"operator": hess, "direction": unit},
    ),
    "curvature.empirical_fisher": (
        curvature.empirical_fisher,
        {"objective": goal, "params": params, "examples": (X, y)},
    ),
    "curvature.extremes": (
        curvature.extremes,
        {"operator": hess, "key": key, "top": 1, "bottom": 1, "steps": 2, "block": 2},
    ),
    "curvature.gauss_newton": (
        curvature.gauss_newton,
        {"objective": goal, "params": params, "examples": (X, y)},
    ),
    "curvature.gauss_newton_eigenvalues": (
        curvature.gauss_newton_eigenvalues,
        {"chain": chain, "params": params, "x": X},
    ),
    "curvature.hessian": (curvature.hessian, {"loss": goal, "params": params, "examples": (X, y)}),
    "curvature.hessian_by_gradient": (
        curvature.hessian_by_gradient,
        {"gradient": slopes, "params": params},
    ),
    "curvature.largest": (curvature.largest, {"operator": hess, "key": key, "steps": 2}),
    "curvature.largest_stable_rate": (
        curvature.largest_stable_rate,
        {"largest": 2.0, "optimiser": "momentum", "beta": 0.9},
    ),
    "curvature.monitor_sharpness": (
        curvature.monitor_sharpness,
        {"operator": lambda p: hess, "steps": 2, "products": 2},
    ),
    "curvature.objective": (curvature.objective, {"model": chain}),
    "curvature.parameter_jacobian": (
        curvature.parameter_jacobian,
        {"chain": chain, "params": params, "x": X},
    ),
    "curvature.preconditioned": (
        curvature.preconditioned,
        {"operator": hess, "preconditioner": unit},
    ),
    "curvature.ravel": (curvature.ravel, {"params": params}),
    "curvature.tangent_kernel": (
        curvature.tangent_kernel,
        {"chain": chain, "params": params, "x": X},
    ),
    "curvature.trace": (curvature.trace, {"operator": hess, "key": key, "probes": 3}),
    "initializers.auto_init": (
        initializers.auto_init,
        {"network": chain, "params": params, "x": X, "key": key, "steps": 1, "samples": 1},
    ),
    "initializers.critical": (initializers.critical, {"activation": "tanh", "sigma_b": 0.1}),
    "initializers.fixup": (initializers.fixup, {"network": mlp, "params": params}),
    "initializers.gain": (initializers.gain, {"activation": "tanh", "sigma_b": 0.1}),
    "initializers.looks_linear": (
        initializers.looks_linear,
        {"network": relus, "key": key, "x": x, "sigma_w": 1.0, "sigma_b": 0.0},
    ),
    "initializers.lsuv": (
        initializers.lsuv,
        {"network": chain, "params": params, "x": X, "target": 1.0, "steps": 1},
    ),
    "initializers.skip_init": (initializers.skip_init, {"params": params, "alpha": 0.0}),
    "clipping.auto_clip": (clipping.auto_clip, {"percentile": 50.0, "history": 3}),
    "clipping.clip_by_norm": (clipping.clip_by_norm, {"max_norm": 1.0}),
    "clipping.clip_by_running_mean": (
        clipping.clip_by_running_mean,
        {"multiple": 2.0, "decay": 0.9},
    ),
    "clipping.clip_by_spectral_norm": (
        clipping.clip_by_spectral_norm,
        {"max_norm": 1.0, "iterations": 2},
    ),
    "clipping.clip_spikes": (clipping.clip_spikes, {"threshold": 3.0, "decay": 0.9}),
    "clipping.clip_updates": (clipping.clip_updates, {"max_rms": 1.0, "least": 1e-3}),
    "clipping.guarded": (clipping.guarded, {"tx": optax.sgd(0.1), "policy": "skip"}),
    "clipping.monitored": (clipping.monitored, {"tx": optax.sgd(0.1), "decay": 0.9}),
    "clipping.normalize": (clipping.normalize, {"norm": 1.0}),
    "clipping.with_momentum_reset": (
        clipping.with_momentum_reset,
        {"inner": optax.sgd(0.1), "every": 3, "warmup": 1},
    ),
    "clipping.z_clip": (
        clipping.z_clip,
        {"z": 2.0, "decay": 0.9, "factor": 0.5, "warmup": 2, "max_norm": 1.0},
    ),
    "propagation.attention": (propagation.attention, {"probe": probe, "params": mp, "x": X}),
    "spectra.lyapunov_exponents": (
        spectra.lyapunov_exponents,
        {"chain": chain, "params": params, "x": x, "key": key, "groups": 2},
    ),
    **public_calls_of_theory.CALLS,
}


def public():
    """Names of the public functions of the rooms."""
    return {
        f"{room}.{name}"
        for room, module in ROOMS.items()
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
