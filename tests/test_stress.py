"""No hang: every public function of `spectra` and `curvature` fifty times over, batched, on a pool of two threads."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxstab import networks

ROOT = Path(__file__).parent.parent
FOLDER = str(ROOT / "experiments" / "benchmarks")
WIDTH = 6
DEPTH = 4
TIMES = 50
NETWORKS = 8
# seconds for the process, against hangs alone: most of it is compiling
LIMIT = 240


def _table():
    """The calls of all public functions, which `experiments/benchmarks/hangs.py` makes too."""
    if FOLDER not in sys.path:
        sys.path.append(FOLDER)
    from public_functions import calls

    return calls


@functools.cache
def _calls():
    """A call of every function of `spectra` and `curvature`, by name."""
    calls = _table().calls(WIDTH, DEPTH)
    return {name: call for name, call in calls.items() if name.startswith(("spectra", "curvature"))}


@functools.cache
def _arguments():
    """Parameters, inputs and keys of a few networks."""
    keys = jax.random.split(jax.random.key(0), NETWORKS)
    x = jnp.linspace(-1.0, 1.0, NETWORKS * WIDTH).reshape(NETWORKS, -1)
    mlp = _table().mlp(WIDTH, DEPTH)
    return jax.vmap(lambda key, x: networks.chain(mlp).init(key, x, 1.3))(keys, x), x, keys


def main():
    """Call every function, and print its name as it begins and the stacks that its program decomposes."""
    of = _arguments()
    for name, call in _calls().items():
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


def test_every_public_function_is_called():
    """A public function has a call in the table, or a reason to have none; neither holds others."""
    table = _table()
    named = set(table.calls(WIDTH, DEPTH))
    public = set(table.public())
    assert public == {name.removesuffix("(probe)") for name in named} | set(table.UNCALLED)
    assert set(table.PLAIN) <= named
    assert named.isdisjoint(table.UNCALLED)


def _of_stacks(lowered):
    """Calls of LAPACK with several matrices in a program for a CPU: each waits for the pool, and two for ever."""
    calls = [
        line
        for line in lowered.as_text().splitlines()
        if re.search("custom_call @(lapack|blas)", line)
    ]
    return [line for line in calls if 'num_batch_dims = "0"' not in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", _calls())
def test_no_hang_and_one_matrix_at_a_time(name, stress):
    assert stress[name] == "0"


def test_stacks_are_seen():
    stack = jnp.ones((3, 2, 2))
    stacks = lambda function, a: _of_stacks(jax.jit(function).lower(a))
    assert len(stacks(lambda a: jnp.linalg.svd(a, compute_uv=False), stack)) == 1
    assert len(stacks(jnp.linalg.eigvalsh, stack)) == 1
    assert len(stacks(lambda a: jax.scipy.linalg.solve_triangular(a, a), stack)) == 1
    assert stacks(jnp.linalg.eigvalsh, stack[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", _calls())
def test_every_function_traces_within_shard_map(name, request):
    if name == "spectra.jacobian(probe)":
        # JAX itself adds axes of the mesh where it traces, and a probe's program is traced outside
        reason = "a softmax of a probed model does not know the axes of the mesh"
        request.applymarker(pytest.mark.xfail(reason=reason, raises=ValueError, strict=True))
    calls, of = _calls(), _arguments()
    mesh = jax.make_mesh((1,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        jax.vmap(calls[name]), mesh=mesh, in_specs=jax.P("device"), out_specs=jax.P("device")
    )
    assert {leaf.shape[0] for leaf in jax.tree.leaves(jax.eval_shape(sharded, *of))} == {NETWORKS}


if __name__ == "__main__":
    main()
