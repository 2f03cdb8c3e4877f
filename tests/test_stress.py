"""No hang: every public function of `spectra` and `curvature` fifty times over, batched, on a pool of two threads."""

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxstab import curvature, networks, spectra
from jaxstab.networks import MLP
from jaxstab.spectra.matrix_free import Density

ROOT = Path(__file__).parent.parent
TIMES = 50
NETWORKS = 8
# seconds for the process, against hangs alone: most of it is compiling
LIMIT = 240


@functools.cache
def _calls(width=6):
    """A call of every function: (params, x [d_in], key) of one network -> anything."""
    mlp = MLP(depth=4, width=width, features_out=2)
    chain, depths = networks.chain(mlp), [2, 4]
    operator = lambda p, x: spectra.jacobian(chain, p, x)
    batch = lambda x: jnp.stack([x, -x, 2 * x])
    # whatever a kernel or a density may be
    square = lambda x: x[:, None] * x[None]
    shares = lambda x: Density(jnp.sort(square(x)), jax.nn.softmax(square(x)))
    goal, labels = curvature.objective(chain), jnp.asarray([0, 1, 1])
    hessian = lambda p, x: curvature.hessian(goal, p, (batch(x), labels), chunk_size=2)
    product = lambda operator, p: operator.matvec(curvature.ravel(p)[0])
    monitor = lambda operator: curvature.monitor_sharpness(operator, steps=2, products=2)
    monitored = lambda operator, p: monitor(operator).update(p, monitor(operator).init(p), p)[1]
    unit = lambda p: jax.tree.map(jnp.ones_like, p)
    adam = lambda p: optax.ScaleByAdamState(jnp.asarray(3), unit(p), unit(p))
    eigenvalues = lambda x: curvature.EigenvalueDensity(
        jnp.sort(square(x)), jax.nn.softmax(square(x))
    )
    calls = {
        "curvature.adam_preconditioner": lambda p, x, key: curvature.adam_preconditioner(adam(p)),
        "curvature.cdf": lambda p, x, key: curvature.cdf(eigenvalues(x), x),
        "curvature.critical_sharpness": lambda p, x, key: curvature.critical_sharpness(
            goal, p, unit(p), (batch(x), labels), passes=2, chunk_size=2
        ),
        "curvature.density": lambda p, x, key: curvature.density(hessian(p, x), key, 2, 3),
        "curvature.directional_sharpness": lambda p, x, key: curvature.directional_sharpness(
            hessian(p, x), unit(p)
        ),
        "curvature.empirical_fisher": lambda p, x, key: product(
            curvature.empirical_fisher(goal, p, (batch(x), labels)), p
        ),
        "curvature.extremes": lambda p, x, key: curvature.extremes(hessian(p, x), key, 2, 1, 2, 2),
        "curvature.gauss_newton": lambda p, x, key: product(
            curvature.gauss_newton(goal, p, (batch(x), labels)), p
        ),
        "curvature.hessian": lambda p, x, key: product(hessian(p, x), p),
        "curvature.hessian_by_gradient": lambda p, x, key: product(
            curvature.hessian_by_gradient(lambda p: jax.tree.map(jnp.tanh, p), p), p
        ),
        "curvature.largest": lambda p, x, key: curvature.largest(hessian(p, x), key, 4),
        "curvature.largest_stable_rate": lambda p, x, key: curvature.largest_stable_rate(x),
        "curvature.monitor_sharpness": lambda p, x, key: monitored(lambda p: hessian(p, x), p),
        "curvature.objective": lambda p, x, key: goal(p, (batch(x), labels)),
        "curvature.preconditioned": lambda p, x, key: product(
            curvature.preconditioned(hessian(p, x), unit(p)), p
        ),
        "curvature.ravel": lambda p, x, key: curvature.ravel(p)[0],
        "curvature.trace": lambda p, x, key: curvature.trace(hessian(p, x), key, 3),
        "alignment": lambda p, x, key: spectra.alignment(chain, p, x),
        "cdf": lambda p, x, key: spectra.cdf(shares(x), x),
        "density": lambda p, x, key: spectra.density(operator(p, x), key, 2, 3),
        "extremes": lambda p, x, key: spectra.extremes(operator(p, x), key, 2, 2, 2),
        "curvature.gauss_newton_eigenvalues": lambda p, x, key: curvature.gauss_newton_eigenvalues(
            chain, p, batch(x)
        ),
        "curvature.gauss_newton_gram": lambda p, x, key: curvature.gauss_newton_gram(
            square(x[:6]), batch(x[:2])
        ),
        "jacobian": lambda p, x, key: operator(p, x).matvec(x),
        "curvature.kernel_eigenvalues": lambda p, x, key: curvature.kernel_eigenvalues(square(x)),
        "local_log_singular_values": lambda p, x, key: spectra.local_log_singular_values(
            chain, p, x
        ),
        "log_apjn": lambda p, x, key: spectra.log_apjn(chain, p, x),
        "log_apjn_estimate": lambda p, x, key: spectra.log_apjn_estimate(chain, p, x, key),
        "log_singular_values": lambda p, x, key: spectra.log_singular_values(chain, p, x, depths),
        "log_spectrum": lambda p, x, key: spectra.log_spectrum(chain, p, x, depths, 1, True),
        "lyapunov_exponents": lambda p, x, key: spectra.lyapunov_exponents(chain, p, x, depths),
        "lyapunov_limit": lambda p, x, key: spectra.lyapunov_limit(chain, p, x, key, groups=2),
        "moments": lambda p, x, key: spectra.moments(operator(p, x), key),
        "curvature.parameter_jacobian": lambda p, x, key: curvature.parameter_jacobian(
            chain, p, batch(x)
        ).rmatvec(x[:6]),
        "partial_jacobian": lambda p, x, key: spectra.partial_jacobian(chain, p, x, 1, 3),
        "precision_report": lambda p, x, key: spectra.precision_report(chain, p, x, depths),
        "product_log_singular_values": lambda p, x, key: spectra.product_log_singular_values(
            p.blocks["dense"]["kernel"]
        ),
        "quantiles": lambda p, x, key: spectra.quantiles(shares(x), jnp.asarray([0.5])),
        "singular_values": lambda p, x, key: spectra.singular_values(chain, p, x, depths),
        "spectrum": lambda p, x, key: spectra.spectrum(chain, p, x, depths),
        "curvature.tangent_kernel": lambda p, x, key: curvature.tangent_kernel(chain, p, batch(x)),
        "curvature.tangent_kernel_by_layer": lambda p, x, key: curvature.tangent_kernel_by_layer(
            chain, p, batch(x)
        ),
    }
    keys, x = (
        jax.random.split(jax.random.key(0), NETWORKS),
        jnp.linspace(-1.0, 1.0, NETWORKS * width).reshape(NETWORKS, -1),
    )
    params = jax.vmap(lambda key, x: networks.init(mlp, key, x, 1.3))(keys, x)
    return calls, (params, x, keys)


def main():
    """Call every function, and print its name as it begins and the stacks that its program decomposes."""
    calls, of = _calls()
    for name, call in calls.items():
        print(name, end=" ", flush=True)
        lowered = jax.jit(jax.vmap(call)).lower(*of)
        program = lowered.compile()
        for _ in range(TIMES):
            jax.block_until_ready(program(*of))
        print(len(_of_stacks(lowered)), flush=True)


@pytest.fixture(scope="module")
def stress():
    """Number of stacks that each function's program decomposes, by name, from a process that called them all."""
    # two threads of XLA's pool for everything, and one of BLAS, as sweeps have it; compiled in a hurry
    settings = {"NPROC": "2", "OPENBLAS_NUM_THREADS": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-m", "tests.test_stress"]
    try:
        run = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"not done in {LIMIT} s; last were {(late.stdout or b'').split()[-2:]}")
    assert run.returncode == 0, run.stderr
    return dict(line.split() for line in run.stdout.splitlines())


def test_every_function_is_called():
    functions = {name for name in spectra.__all__ if inspect.isfunction(getattr(spectra, name))}
    functions |= {
        f"curvature.{name}"
        for name in curvature.__all__
        if inspect.isfunction(getattr(curvature, name))
    }
    # a probe's model is the user's: tests/test_probes.py
    assert functions - {"jacobian_at_sites"} <= set(_calls()[0])


def _of_stacks(lowered):
    """Calls of LAPACK with several matrices in a program for a CPU: each waits for the pool, and two for ever."""
    calls = [
        line
        for line in lowered.as_text().splitlines()
        if re.search("custom_call @(lapack|blas)", line)
    ]
    return [line for line in calls if 'num_batch_dims = "0"' not in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", _calls()[0])
def test_no_hang_and_one_matrix_at_a_time(name, stress):
    assert stress[name] == "0"


def test_stacks_are_seen():
    stack = jnp.ones((3, 2, 2))
    stacks = lambda function, a: _of_stacks(jax.jit(function).lower(a))
    assert len(stacks(lambda a: jnp.linalg.svd(a, compute_uv=False), stack)) == 1
    assert len(stacks(jnp.linalg.eigvalsh, stack)) == 1
    assert len(stacks(lambda a: jax.scipy.linalg.solve_triangular(a, a), stack)) == 1
    assert stacks(jnp.linalg.eigvalsh, stack[0]) == []


BYTES = {name for name in _calls()[0] if name.endswith("_memory")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(_calls()[0]) - BYTES))
def test_every_function_traces_within_shard_map(name):
    calls, of = _calls()
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        jax.vmap(calls[name]), mesh=mesh, in_specs=jax.P("device"), out_specs=jax.P("device")
    )
    assert {leaf.shape[0] for leaf in jax.tree.leaves(jax.eval_shape(sharded, *of))} == {NETWORKS}


if __name__ == "__main__":
    main()
