"""What users get wrong in scripts: a plain interpreter, no type checker in between, one clear error each."""

import json
import re
import subprocess
import sys

import pytest

SETUP = """
import json, sys
import numpy as np, jax, jax.numpy as jnp
from jaxstab import activations, curvature, initializers, networks, propagation, spectra, theory, sweeps, records
key, data = jax.random.key(0), records.Data(np.ones((9, 4), np.float32), np.zeros(9, np.int32), "ones")
mlp = networks.MLP(3, 4); chain = networks.chain(mlp); params = chain.init(key, jnp.ones(4))
"""
CASES = {
    "networks.MLP(0, 4)": r"depth must be an integer >= 1, got 0",
    "networks.MLP(2, 1.5)": r"width must be an integer >= 1, got 1.5",
    "chain.init(key, np.arange(3))": r"x must be floating, got dtype int",
    "chain.init(key, jnp.ones(3), float('nan'))": r"sigma_w must be finite and >= 0, got nan",
    "networks.MLP(2, 4, norm='group')": r"norm must be one of None, batch, layer, rms, peri, dyt, derf, got 'group'",
    "networks.MLP(2, 4, skip='resnet')": r"skip must be one of None, sum, .* got 'resnet'",
    "networks.mlp(3, 4, dropout=True).bind(params, key=key, rate=-0.1)": r"rate must be in \[0, 1\], got -0.1",
    "networks.MLP(2, 4, norm='batch').init(key, np.ones(4)) and networks.MLP(2, 4, norm='batch').apply("
    "{'params': networks.mlp(2, 4, norm='batch').init(key, jnp.ones(4))._asdict()}, jnp.ones(4))": (
        r"it needs a batch \[batch, width\], got \(4,\)"
    ),
    "initializers.lsuv(mlp, params, jnp.ones(4))": r"x must be a batch \[batch, d_in\], got shape \(4,\)",
    "initializers.gain('relu', -1.0)": r"sigma_b must be finite and >= 0, got -1.0",
    "propagation.backward(chain, params, jnp.arange(4), jnp.sum)": r"x must be floating, got dtype int",
    "propagation.backward(chain, params, jnp.ones(4), jnp.sum, [1.0])": r"depths must be ascending integers",
    "spectra.log_singular_values(chain, params, jnp.ones(4), [4])": r"integers in \[0, 3\], at least one, got \[4\]",
    "spectra.log_singular_values(chain, params, np.arange(4), [2])": r"x must be floating",
    "spectra.product_log_singular_values(np.ones((3, 2, 4)))": r"\[layers, n, n\], got shape \(3, 2, 4\)",
    "spectra.product_log_singular_values(np.ones((2, 2)))": r"got shape \(2, 2\)",
    "spectra.product_log_singular_values(np.ones((0, 2, 2)))": r"got shape \(0, 2, 2\)",
    "spectra.product_log_singular_values(np.ones((2, 3, 3), int))": r"factors must be floating, got dtype int",
    "curvature.gauss_newton(lambda p, x: x, params, (jnp.ones((2, 4)),) * 2)": r"objective must be from curvature.obj",
    "curvature.objective(3)": r"model must be a networks.Chain or a function \(params, x\) -> y, got a int",
    "curvature.objective(mlp)": r"model must be a chain, got a networks.MLP: networks.chain\(mlp\) makes a chain of it",
    "curvature.objective(networks.probe(mlp, params, jnp.ones(4)))": r"got a networks.Probe: outputs, theta = probe.f",
    "curvature.tangent_kernel(networks.probe(mlp, params, jnp.ones(4)), params, jnp.ones((2, 4)))": (
        r"got a Probe: .* curvature takes the function that probe.function\(params\) gives"
    ),
    "curvature.tangent_kernel(lambda p, x: x, params, jnp.ones((2, 4)), by_layer=True)": r"by_layer must be False",
    "curvature.density(jnp.eye(3), key)": r"operator must be products with a matrix, .* got a ",
    "activations.get('siloo')": r"unknown activation 'siloo'; did you mean silu",
    "activations.get(3)": r"a name or a callable, got int",
    "theory.fixed_point('tanh', -1.0, 0.0)": r"sigma_w must be finite and >= 0, got -1.0",
    "theory.fixed_point('tanh', np.array([1.0, 2.0]), 0.1)": (
        r"sigma_w must be one number, got shape \(2,\); use jax.vmap for several"
    ),
    "jax.jit(lambda w: theory.fixed_points('tanh', w, 0.1))(jnp.ones(1))": r"sigma_w must be one number, got .*\(1,\)",
    "theory.critical_points('tanh', np.array([0.1, 0.2]))": r"sigma_b must be one number, got shape \(2,\)",
    "theory.fixed_point('tanh', 1j, 0.1)": r"sigma_w must be one real number, got 1j",
    "theory.fixed_point('tanh', 1.0, 0.1, -1.0)": r"q0 must be >= 0, got -1.0",
    "theory.fixed_point('tanh', 1.0, 0.1, float('nan'))": r"q0 must be >= 0, got nan",
    "theory.predict('tanh', 'a', 0.0, [2], width=4, d_in=4)": (
        r"sigma_w must be a real number or an array of such, got 'a'"
    ),
    "theory.predict('tanh', 1.0, 0.0, [2], width=4, d_in=4, c0=1.5)": r"c0 must be in \[-1, 1\], got 1.5",
    "theory.kernels('tanh', 1.0, 0.1, 3, c0=-1.5)": r"c0 must be in \[-1, 1\], got -1.5",
    "theory.kernels('tanh', 1.0, 0.1, 3, q0=1.0)": r"q0 must be two numbers, one for each input, got 1.0",
    "theory.kernels('tanh', 1.0, 0.1, 3, q0=(-1.0, 1.0))": r"q0 must be >= 0, got -1.0",
    "networks.mlp(2, 4, dropout=0.5)": r"dropout must be True or False, got 0.5; the rate is an argument of bind",
    "networks.MLP(2, 4, norm='layer', norm_after='yes')": r"norm_after must be True or False, got 'yes'",
    "theory.predict('tanh', 1.0, 0.0, [], width=4, d_in=4)": r"depths must be ascending integers",
    "sweeps.Grid({'depth': ()})": r"depth must be ascending values, at least one, got \[\]",
    "sweeps.Grid({'sigma_w': ()})": r"sigma_w must be ascending values, at least one",
    "sweeps.Grid({'sigma_w': (1.0, float('inf'))})": r"sigma_w must be finite and >= 0",
    "sweeps.Grid({'activation': ()})": r"activation must be one or more",
    "sweeps.Grid({'activation': ('tanh', 'tanh')})": r"activation must be of different values",
    "sweeps.Grid({'depth': (0, 1)})": r"depth must be an integer >= 1, got 0",
    "sweeps.Grid({}, sigma_b=(0.0, 0.1))": r"sigma_b must be one real number, got \(0.0, 0.1\)",
    "sweeps.run(sweeps.Grid({}, outputs=3), sweeps.signal, data._replace(y=data.y + 3))": r"labels must be in \[0, 3\)",
    "propagation.backward(chain, params, jnp.ones(4) + 1j, jnp.sum)": r"got dtype complex.*; real and imaginary parts",
    "sweeps.Grid({}, width=0)": r"width must be an integer >= 1, got 0",
    "sweeps.Grid({}, dtype='float16')": r"dtype must be one of float32, float64, got 'float16'",
    "sweeps.Grid({}, weights='uniform')": r"weights must be one of gaussian, orthogonal",
    "sweeps.run(sweeps.Grid({}, norm='batch'), sweeps.signal, data)": r"batch must be an integer >= 2, and .* got None",
    "sweeps.run(sweeps.Grid({}, batch=1), sweeps.signal, data)": r"batch must be an integer >= 2",
    "sweeps.Grid({}, dropout=1.0)": r"dropout must be in \[0, 1\), got 1.0",
    "sweeps.Grid({}, skip='residual')": r"skip must be one of None, sum",
    "sweeps.run(sweeps.Grid({}, dtype='float64'), sweeps.signal, data)": r"switch jax_enable_x64 on",
    "sweeps.run(sweeps.Grid({}, inputs=5), sweeps.signal, data)": r"5 inputs need 10 examples, ones has 9",
    "sweeps.plan(sweeps.Grid({}), sweeps.signal, data, 0)": r"chunk_size must be an integer >= 1, got 0",
}


@pytest.fixture(scope="module")
def answers():
    tell = "\nfor case in json.loads(sys.argv[1]):\n    try:\n        eval(case); print(json.dumps('accepted'))\n"
    tell += "    except (ValueError, TypeError) as error:\n        print(json.dumps(str(error)))\n"
    run = subprocess.run(
        [sys.executable, "-c", SETUP + tell, json.dumps(list(CASES))],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    return dict(zip(CASES, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_clear_error(answers, case):
    assert re.search(CASES[case], answers[case]), answers[case]
    assert "\n" not in answers[case]
