"""Every public function that has a derivative has the right one: `jax.jacrev` against central differences.

A table for each room: a function of one number t, of every kind of public function there, at a degenerate point, beside
it, and at a generic one. What `test_derivatives` holds is not held again. A public function that neither file calls is
named below with the reason.
"""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import (
    activations,
    clipping,
    curvature,
    initializers,
    networks,
    norms,
    propagation,
    records,
    regularizers,
    spectra,
    theory,
    training,
)
from jaxstab.propagation import saliency

KEY = jax.random.key(3)
DEPTH = 3
WIDTH = 4


def _network(t, activation="tanh"):
    """A net of orthogonal layers, the second of which t turns, and one input; the same in either precision."""
    rng = np.random.default_rng(0)
    bases = jnp.asarray(np.linalg.qr(rng.normal(size=(DEPTH + 1, WIDTH, WIDTH)))[0], t.dtype)
    bias = jnp.full((WIDTH,), 0.1, t.dtype)
    blocks = bases[1:].at[1].add(t * jnp.sin(7.0 * bases[2]))
    params = networks.Params(
        {"dense": {"kernel": bases[0], "bias": bias}},
        {"dense": {"kernel": blocks, "bias": jnp.stack([bias] * DEPTH)}},
        {"dense": {"kernel": bases[0, :, :2], "bias": bias[:2]}},
    )
    mlp = networks.MLP(DEPTH, WIDTH, activation, features_out=2)
    return mlp, params, jnp.linspace(-1.0, 1.3, WIDTH).astype(t.dtype)


def _first_squared(y):
    return y[0] ** 2


def _propagation(t):
    """Two inputs t apart; at 0 they are one."""
    mlp, params, x = _network(jnp.full_like(t, 0.3))
    chain = networks.chain(mlp)
    other = x.at[0].add(t)
    gradient = lambda x: saliency.input_gradient(chain, params, x, _first_squared)
    drawn = jax.vmap(gradient)(jnp.stack([x, other, x + t**2]))
    backward = propagation.backward(chain, params, other, _first_squared)
    return {
        "input_gradient": drawn.direction[1] * drawn.log_norm[1],
        "gradient_correlation": saliency.gradient_correlation(
            chain, params, x, other, _first_squared
        ),
        "agreement": saliency.agreement(drawn).value,
        "correlation": propagation.correlation(chain, params, x, other).c,
        "forward": propagation.forward(chain, params, other).log_q,
        "backward": backward.log_grad_h + backward.log_grad_theta,
    }


def _attending(w, x):
    h = networks.tag("h", jnp.tanh(x @ w))
    return networks.tag("y", jax.nn.softmax(h @ w @ h.T) @ h)


def _sites(t):
    """An unmodified model, at two inputs t apart."""
    w = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)), t.dtype)
    x = jnp.asarray([[1.0, 2.0, 3.0], [0.25, 1.0, 2.25]], t.dtype)
    other = x.at[0, 0].add(t)
    probe = networks.probe(_attending, w, x)
    softmax = networks.probe(_attending, w, x, kind="softmax")
    forward = propagation.forward(probe, w, other)
    backward = propagation.backward(probe, w, other, lambda y: jnp.sum(y**2))
    attention = propagation.attention(softmax, w, other)
    jacobian = spectra.jacobian(probe, w, other, "h", "y")
    return {
        "forward": forward.log_q + forward.mean,
        "correlation": propagation.correlation(probe, w, x, other).c,
        "backward": backward.log_grad_h,
        "gradient by parameters": backward.theta,
        "attention": attention.max_logit + attention.entropy,
        "jacobian": jacobian.matvec(jnp.ones(6, t.dtype)),
        "reading": probe.read(w, other).output,
    }


def _spectra(t):
    """Isometric layers at t = 0, of which symmetric functions of values have derivatives."""
    mlp, params, x = _network(t, "identity")
    chain = networks.chain(mlp)
    limit = spectra.lyapunov_exponents(chain, params, x, KEY, groups=3)
    estimate = spectra.log_apjn(chain, params, x, key=KEY, probes=3)
    spectrum = records.Spectrum.of(spectra.log_singular_values(chain, params, x, [DEPTH]))
    logs = spectra.log_singular_values(chain, params, x, [DEPTH], errors=True).log_s
    layers = params.blocks["dense"]["kernel"][:2]
    return {
        "alignment": spectra.alignment(chain, params, x).excess,
        "lyapunov_exponents": jnp.sum(limit.exponent),
        "log_apjn by probes": estimate.log_value,
        "spectrum": jnp.sum(jnp.cos(spectrum.log_s)) + spectrum.log_mean_square,
        "log_singular_values": jnp.sum(jnp.cos(logs)),
        "product_log_singular_values": jnp.sum(
            jnp.cos(spectra.product_log_singular_values(layers))
        ),
    }


def _curvature(t):
    """A quadratic loss of three eigenvalues, two of them t apart, and a network's Gauss-Newton matrix."""
    turn = jnp.asarray(np.linalg.qr(np.arange(9.0).reshape(3, 3) + np.eye(3))[0], t.dtype)
    matrix = turn * jnp.stack([2.0 + 0 * t, 1.0 + t, jnp.ones_like(t)])[None] @ turn.T
    loss = lambda w: w @ matrix @ w / 2 + t * jnp.sum(w**3)
    w = jnp.asarray([0.3, -0.2, 0.5], t.dtype)
    hessian = curvature.hessian(loss, w)
    extremes = curvature.extremes(hessian, KEY, top=3, steps=3)
    density = curvature.density(hessian, KEY, probes=2, steps=3)
    by_gradient = curvature.hessian_by_gradient(jax.grad(loss), w)
    mlp, params, x = _network(t)
    chain = networks.chain(mlp)
    batch = jnp.stack([x, x**2])
    kernel = curvature.tangent_kernel(chain, params, batch, by_layer=True)
    goal = curvature.objective(lambda w, x: jnp.tanh(x @ w), "squared")
    weights = jnp.ones((WIDTH, 2), t.dtype) * (0.2 + t)
    examples = (batch, jnp.ones((2, 2), t.dtype))
    direction = jnp.ones(2 * WIDTH, t.dtype)
    gauss_newton = curvature.gauss_newton(goal, weights, examples)
    fisher = curvature.empirical_fisher(goal, weights, examples)
    return {
        "hessian": hessian.matvec(w),
        "hessian_by_gradient": by_gradient.matvec(w),
        "extremes": jnp.sum(jnp.cos(extremes.largest)),
        "largest": curvature.largest(hessian, KEY, steps=3).value,
        "density": jnp.sum(density.weights * jnp.sin(density.eigenvalues)),
        "trace": curvature.trace(hessian, KEY).value,
        "directional_sharpness": curvature.directional_sharpness(hessian, w),
        "preconditioned": curvature.preconditioned(hessian, 1.0 + w**2).matvec(w),
        "largest_stable_rate": curvature.largest_stable_rate(2.0 + t, "momentum"),
        "tangent_kernel": kernel.blocks,
        "gauss_newton_eigenvalues": jnp.sum(
            jnp.sqrt(1 + curvature.gauss_newton_eigenvalues(chain, params, batch))
        ),
        "gauss_newton": gauss_newton.matvec(direction),
        "empirical_fisher": fisher.matvec(direction),
        "parameter_jacobian": curvature.parameter_jacobian(chain, params, batch).transpose.matvec(
            jnp.ones(4, t.dtype)
        )[:8],
        "ravel": curvature.ravel({"w": t * w})[0],
    }


def _clipped(tx, gradient):
    """The second update, of a gradient that is the same twice."""
    params = jax.tree.map(jnp.ones_like, gradient)
    state = tx.init(params)
    _, state = tx.update(gradient, state, params)
    return tx.update(gradient, state, params)[0]


def _clipping(t):
    """Gradients below and above their thresholds, with two singular values of the same size at t = 0."""
    kernel = jnp.stack([jnp.stack([1.0 + t, 0.2 * t]), jnp.stack([-0.1 * t, jnp.ones_like(t)])])
    gradient = {"kernel": kernel, "bias": jnp.stack([0 * t, 0 * t])}
    found = {}
    for size, most in {"above": 0.5, "below": 50.0}.items():
        makes = {
            "clip_by_norm": clipping.clip_by_norm(most),
            "clip_by_spectral_norm": clipping.clip_by_spectral_norm(most),
            "clip_updates": clipping.clip_updates(most),
            "normalize": clipping.normalize(most),
            "guarded": clipping.guarded(clipping.clip_by_norm(most), "skip"),
            "monitored": clipping.monitored(clipping.clip_by_norm(most)),
            "with_momentum_reset": clipping.with_momentum_reset(optax.trace(0.9)),
            "clip_by_running_mean": clipping.clip_by_running_mean(most / 5),
        }
        for name, tx in makes.items():
            found[f"{name} {size}"] = _clipped(tx, gradient)["kernel"]
    return found


def _parameters(t):
    """Norms, regularisers, initialisers and losses of parameters that vanish, or are isometric, at t = 0."""
    mlp, params, x = _network(t)
    chain = networks.chain(mlp)
    batch = jnp.stack([x, -x, x**2])
    ones = jax.tree.map(lambda leaf: leaf / (1 + jnp.abs(leaf)), params)
    small = {"kernel": t * jnp.ones((2, 3), t.dtype), "bias": jnp.ones(3, t.dtype)}
    gains = networks.rescale(ones, 1.0 + jnp.stack([t, 0 * t, t, 2 * t, t]))
    parallel = networks.flatten(networks.over_batch(chain), 3)
    loss = lambda y: training.cross_entropy(y, jnp.asarray([0, 1, 1]))
    bound = chain.bind(params)
    value = training.value_and_grad(networks.over_batch(chain), bound, batch, loss)
    skipping = networks.MLP(DEPTH, WIDTH, "tanh", skip="sum", features_out=2)
    fixed = initializers.fixup(skipping, params)
    read = lambda params: networks.state(chain, params, x)
    return {
        "norm": norms.norm({"a": t * x, "b": x}).value,
        "group_norms": [
            norm.value for norm in norms.group_norms({"a": x + t, "b": t * x + 1}, "leaf").values()
        ],
        "spectral_norm": regularizers.spectral_norm(small, KEY),
        "rescale layer by layer": read(gains),
        "rescale": read(networks.rescale(params, 1.0 + t, 0.5 + t)),
        "fixup": networks.state(networks.chain(skipping), fixed, x),
        "flatten": networks.state(parallel, params, batch.ravel()),
        "cross_entropy": loss(100 * t * batch[:, :2]),
        "value_and_grad": value.loss + value.log_norms[:DEPTH],
    }


def _theory(t):
    """Of inputs that are one, without biases, and of a residual branch whose factor is t."""
    gain = 1.2 + t
    sizes = {"width": 8, "d_in": 4}
    depth = [4]
    rezero = theory.law("relu", skip="rezero", alpha=t)
    _, correlation, backward, _ = theory.predict(rezero, 1.2, 0.0, depth, **sizes, c0=0.3)
    critical = theory.critical_points("relu", 0.3 + t)
    slopes = theory.squared_slopes("tanh", 1.2, 0.5 + t)
    growth = theory.log_growth("leaky_relu", 8, gain)
    equal = theory.kernels("relu", gain, 0.0, 2, c0=1.0, q0=(1.0, 1.0))
    sharpness = theory.sharpness("relu", gain, 0.0, (1,), **sizes, outputs=3, examples=2, draws=3)
    return {
        "kernels": equal.ntk,
        "sharpness": [sharpness.log_gauss_newton, sharpness.log_gauss_newton_sd],
        "predict": correlation.c[-1] + backward.log_grad_h,
        "fixed_points": theory.fixed_points("relu", 1.0 + t, 0.3).q[0],
        "critical_points": critical.sigma_w[0] + critical.q[0],
        "squared_slopes": jnp.sum(slopes[0] * slopes[1]),
        "kernel_map": list(theory.kernel_map("tanh", 0.5 + t)),
        "hermite_coefficients": theory.hermite_coefficients("tanh", 4, 0.5 + t),
        "typical_shift": theory.typical_shift("tanh", 0.5 + t, 8),
        "log_growth": [growth.mean, growth.variance],
        "celu": theory.derivative_moment(activations.celu(0.5 + t), 1.0),
        "elu": theory.derivative_moment(activations.elu(0.5 + t), 1.0),
        "mixture": theory.derivative_moment(activations.mixture("relu", "erf", 0.5 + t), 1.0),
        "saturation": theory.saturation("tanh", 0.5 + t, 0.1),
        "compare": theory.compare(1.0 + t, 0.7, 0.1, depth=4, width=32).beyond,
    }


class Table(NamedTuple):
    """A function of one number, where to differentiate it, and how far off it may be in float64 and float32."""

    function: Callable
    points: tuple[float, ...] = (0.0, 1e-6, 1e-3, 0.3)
    step: float = 1e-3
    tolerances: tuple[float, float] = (1e-7, 1e-3)


TABLES = {
    "propagation": Table(_propagation),
    "sites": Table(_sites),
    "spectra": Table(_spectra),
    "curvature": Table(_curvature),
    "clipping": Table(_clipping),
    "parameters": Table(_parameters),
    "theory": Table(_theory, points=(0.0, 1e-6, 0.3), step=1e-4, tolerances=(1e-6, 1e-3)),
}


def _numbers(tree):
    """The leaves of each entry as one vector."""
    return {
        name: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(entry)])
        for name, entry in tree.items()
    }


# of other draws in float32 than in float64
_IN_FLOAT64 = ("log_apjn by probes", "density", "trace")


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("room", TABLES)
def test_derivatives_are_central_differences(room):
    table = TABLES[room]
    function = lambda t: _numbers(table.function(t))
    points = np.array(table.points)
    around = (points[:, None] + table.step * np.arange(-2, 3)).ravel()
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(function))(jnp.asarray(around, jnp.float64))
    x64 = jax.config.jax_enable_x64
    dtype = jnp.float64 if x64 else jnp.float32
    held = lambda t: {
        name: leaf for name, leaf in function(t).items() if x64 or name not in _IN_FLOAT64
    }
    slopes = jax.jit(jax.vmap(jax.jacrev(held)))(jnp.asarray(points, dtype))
    # of the fourth order
    central = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / (12 * table.step)
    tolerance = table.tolerances[0 if x64 else 1]
    for name, slope in slopes.items():
        near = np.asarray(values[name]).reshape(len(points), 5, -1)
        expected = np.einsum("psk,s->pk", near, central)
        size = np.maximum(1.0, np.max(np.abs(near), axis=(1, 2)))[:, None]
        np.testing.assert_allclose(
            slope / size, expected / size, rtol=tolerance, atol=tolerance, err_msg=name
        )


def _predicted(block, gains):
    _, correlation, backward, spectrum = theory.predict(
        block, gains[0], gains[1], [2], width=8, d_in=4, c0=gains[2]
    )
    gradient = jnp.where(jnp.isfinite(backward.log_grad_h), backward.log_grad_h, 0.0)
    return jnp.sum(correlation.c) + jnp.sum(gradient) + spectrum.log_mean_square[0]


def _kernels(block, gains):
    return jnp.sum(theory.kernels(block, gains[0], gains[1], 2, c0=gains[2]).ntk)


@pytest.mark.parametrize(
    ("function", "activation", "settings"),
    [
        (_predicted, "tanh", {"skip": "dense"}),
        (_predicted, "gelu", {"skip": "rezero", "alpha": 0.3, "keep": 0.8}),
        (_predicted, "relu", {"norm": "layer", "norm_after": True}),
        (_predicted, "tanh", {"norm": "peri", "skip": "sum"}),
        (_predicted, "gelu", {"norm": "batch", "batch": 8}),
        (_kernels, "tanh", {}),
        (_kernels, "gelu", {"norm": "rms", "skip": "sum"}),
    ],
)
def test_laws_have_reverse_derivatives_with_float64_switched_off(function, activation, settings):
    """They are float64 inside: what JAX transposes there has no float64 of its own."""
    block = theory.law(activation, **settings)
    with jax.enable_x64(False):
        gradient = jax.jit(jax.grad(lambda gains: function(block, gains)))
        lowered = gradient.trace(jnp.array([1.2, 0.3, 0.4])).lower()
    assert lowered.out_info.dtype == jnp.float32


@pytest.mark.parametrize(
    "field", ["log_s", "log_s_max"], ids=["a point of the law", "its upper edge"]
)
def test_a_law_found_by_bisection_refuses_its_derivatives(field):
    law = lambda q: jnp.sum(getattr(theory.jacobian_law("relu", 1.3, q, 2, points=16), field))
    with pytest.raises(ValueError, match="no derivatives; differentiate theory.jacobian_moments"):
        jax.eval_shape(jax.grad(law), 1.0)


_PLAIN = "returns names, counts, numbers of Python or what makes a network"
_STEPS = "chooses among points: it is constant, or has kinks, between them"
_STATES = "an optimiser's state, whose numbers are those of `clipping` and `curvature` here"
_LINEAR = "differentiated wherever a chain is measured"
_WITHOUT = {
    "activations": {"names": _PLAIN, "get": _PLAIN, "one_of": _STEPS},
    "clipping": {"auto_clip": _STEPS, "clip_spikes": _STEPS, "z_clip": _STEPS},
    "curvature": {
        "adam_preconditioner": _STATES,
        "critical_sharpness": _STEPS,
        "monitor_sharpness": _STATES,
    },
    "initializers": {
        "auto_init": "sets layers from samples under stop_gradient",
        "critical": _PLAIN,
        "skip_init": "writes its number into the parameters",
    },
    "networks": {
        "from_functions": _LINEAR,
        "from_linen": _LINEAR,
        "from_nnx": _LINEAR,
        "from_params": _LINEAR,
        "mlp": _LINEAR,
        "upwards": _LINEAR,
        "downwards": _LINEAR,
        "states": _LINEAR,
    },
    "spectra": {"precision_report": "compares two precisions"},
    "theory": {
        "product_law": "refuses, as `jacobian_law` does",
    }
    | dict.fromkeys(
        (
            "design",
            "doubly_critical",
            "lyapunov_exponents",
            "missing",
            "shaped",
        ),
        _PLAIN,
    ),
    "training": {"sharpness": _STATES, "train": "its updates are those of optax"},
}
_ROOMS = {
    room: importlib.import_module(f"jaxstab.{room}")
    for room in (
        "activations",
        "clipping",
        "curvature",
        "initializers",
        "networks",
        "norms",
        "propagation",
        "regularizers",
        "spectra",
        "theory",
        "training",
    )
}


def _called():
    """What the two tables call, such as theory.predict."""
    for name in ("test_derivatives.py", "test_derivative_tables.py"):
        tree = ast.parse(Path(__file__).with_name(name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func)


def test_every_public_function_is_differentiated_or_says_why_not():
    called = set(_called())
    for room, module in _ROOMS.items():
        functions = {
            name
            for name in getattr(module, "__all__", vars(module))
            if inspect.isfunction(inspect.unwrap(getattr(module, name)))
            and not name.startswith("_")
            and getattr(module, name).__module__.startswith(f"jaxstab.{room}")
        }
        held = {name for name in functions if f"{room}.{name}" in called}
        excused = set(_WITHOUT.get(room, {}))
        assert not functions - held - excused, f"{room}: no derivative is held"
        assert not excused & held, f"{room}: is differentiated after all"
        assert not excused - functions, f"{room}: is no function any more"
