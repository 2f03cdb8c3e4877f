"""Decompositions that leave no thread waiting: values and derivatives of JAX's own, one matrix to each LAPACK call."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxstab import decompositions

TALL = jax.random.normal(jax.random.key(0), (3, 4, 6, 5))
WIDE = TALL.mT
SQUARE = TALL[..., :5, :]
# well apart from singular
UPPER = jnp.triu(SQUARE) + 3 * jnp.eye(5, dtype=SQUARE.dtype)[None, None]
RIGHT = TALL[..., :5, :2]


def _thin_svd(a):
    return jnp.linalg.svd(a, full_matrices=False)


def _values(a):
    return jnp.linalg.svd(a, compute_uv=False)


def _symmetric_eigenvalues(a):
    return decompositions.eigenvalues(a + a.mT)


def _their_eigenvalues(a):
    return jnp.linalg.eigvalsh(a + a.mT)


def _solution(a):
    return decompositions.solve_triangular(a, RIGHT[0, 0])


def _their_solution(a):
    return jax.scipy.linalg.solve_triangular(jnp.triu(a), RIGHT[0, 0])


def _transposed_solution(a):
    return decompositions.solve_triangular(a, RIGHT[0, 0], transpose=True)


def _their_transposed_solution(a):
    return jax.scipy.linalg.solve_triangular(jnp.triu(a), RIGHT[0, 0], trans=1)


CASES = {
    "values, tall": (decompositions.singular_values, _values, TALL),
    "values, wide": (decompositions.singular_values, _values, WIDE),
    "svd, tall": (decompositions.svd, _thin_svd, TALL),
    "svd, wide": (decompositions.svd, _thin_svd, WIDE),
    "svd, square": (decompositions.svd, _thin_svd, SQUARE),
    "qr, tall": (decompositions.qr, jnp.linalg.qr, TALL),
    "qr, square": (decompositions.qr, jnp.linalg.qr, SQUARE),
    "eigenvalues": (_symmetric_eigenvalues, _their_eigenvalues, SQUARE),
    "solution": (_solution, _their_solution, UPPER),
    "transposed solution": (_transposed_solution, _their_transposed_solution, UPPER),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_jax(name):
    ours, theirs, stack = CASES[name]

    def both(function):
        def of_one(a):
            out, pushed = jax.jvp(function, (a,), (jnp.cos(a),))
            loss = lambda a: sum(
                jnp.sum(jnp.sin(leaf + 0.3)) for leaf in jax.tree.leaves(function(a))
            )
            return out, pushed, jax.grad(loss)(a)

        return jax.jit(jax.vmap(jax.vmap(of_one)))(stack)

    for mine, want in zip(jax.tree.leaves(both(ours)), jax.tree.leaves(both(theirs)), strict=True):
        # a few roundings, over gaps of singular values that are not small here
        np.testing.assert_allclose(mine, want, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_a_wide_qr_has_derivatives_too():
    # JAX has none of a wide matrix; central differences are right to about 1e-8
    check_grads(decompositions.qr, (WIDE[0, 0],), order=1, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_second_derivatives():
    check_grads(decompositions.singular_values, (TALL[0, 0],), order=2, atol=1e-4, rtol=1e-4)
    check_grads(lambda a: decompositions.qr(a)[1], (TALL[0, 0],), order=2, atol=1e-4, rtol=1e-4)
    check_grads(decompositions.eigenvalues, (SQUARE[0, 0],), order=2, atol=1e-4, rtol=1e-4)


def test_equal_singular_values_have_finite_derivatives_of_their_sum():
    slope = jax.grad(lambda a: jnp.sum(decompositions.singular_values(a)))(2 * jnp.eye(4))
    np.testing.assert_allclose(slope, np.eye(4), atol=1e-12)


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other platforms decompose stacks as they are"
)
def test_each_call_of_lapack_has_one_matrix():
    def everything(a):
        u, s, vt = decompositions.svd(a)
        q, r = decompositions.qr(u * s[None] @ vt)
        x = decompositions.solve_triangular(r, q)
        return decompositions.eigenvalues(x @ x.mT)

    compiled = jax.jit(jax.vmap(jax.vmap(everything))).lower(SQUARE).compile().as_text()
    calls = [line for line in compiled.splitlines() if 'custom_call_target="lapack' in line]
    assert len(calls) >= 5
    for line in calls:
        assert not re.search(r"f64\[\d+,\d+,\d", line), line


ON_DEVICES = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxstab import decompositions

def everything(a):
    u, s, vt = decompositions.svd(a)
    q, r = decompositions.qr(a)
    solution = decompositions.solve_triangular(r + 3 * jnp.eye(len(r)), q.T)
    return jnp.sum(s) + s[0] * r + solution + decompositions.eigenvalues(a + a.T) + (u * s) @ vt

stack = jax.random.normal(jax.random.key(0), (4, 3, 40, 40))
of_all = jax.vmap(jax.vmap(everything))
expected = jax.jit(of_all)(stack)
mesh = Mesh(np.array(jax.devices()), ("part",))
sharded = NamedSharding(mesh, P("part"))
across_columns = NamedSharding(mesh, P(None, None, None, "part"))
explicit = jax.make_mesh((2,), ("part",), axis_types=(jax.sharding.AxisType.Explicit,))
program = jax.jit(of_all)
ways = {
    "jit of sharded arrays": lambda: program(jax.device_put(stack, sharded)),
    "jit of sharded columns": lambda: program(jax.device_put(stack, across_columns)),
    "shard_map": lambda: jax.jit(jax.shard_map(of_all, mesh=mesh, in_specs=P("part"), out_specs=P("part")))(stack),
    "pmap": lambda: jax.pmap(of_all)(stack.reshape(2, 2, *stack.shape[1:])).reshape(expected.shape),
}
for name, way in ways.items():
    for _ in range(20):
        found = way()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=name)
text = program.lower(jax.device_put(stack, sharded)).compile().as_text()
assert "all-gather" not in text and "lapack" in text
from jaxstab import networks, spectra
mlp = networks.MLP(depth=2, width=40)
chain = networks.chain(mlp)

def measured(key):
    # an input that all devices share has its derivative summed over them, by the rules of shard_map
    x = jax.random.normal(key, 40)
    return spectra.singular_values(chain, chain.init(key, x), x, [1, 2])

keys = jax.random.split(jax.random.key(1), 4)
spread = jax.jit(jax.shard_map(jax.vmap(measured), mesh=mesh, in_specs=P("part"), out_specs=P("part")))
np.testing.assert_allclose(spread(keys), jax.jit(jax.vmap(measured))(keys), rtol=1e-9)
with jax.set_mesh(explicit):
    placed = jax.device_put(stack, NamedSharding(explicit, P("part")))
    singular = jax.jit(jax.vmap(jax.vmap(decompositions.singular_values)))(placed)
    assert jax.typeof(singular).sharding.spec[0] == "part"
    np.testing.assert_allclose(singular, np.linalg.svd(stack, compute_uv=False), rtol=1e-9)
"""


@pytest.mark.slow
@pytest.mark.long
def test_any_way_over_two_devices_finishes_with_nothing_in_the_environment():
    # stacks large enough for jaxlib 0.10.2 to share them out among threads: of JAX's own, none of these finishes
    settings = {
        name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")
    }
    settings.pop("NPROC", None)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_DEVICES],
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_the_blas_that_decomposes_has_one_thread_and_numpys_keeps_its_own():
    code = (
        "import jax.numpy as jnp, json, threadpoolctl; from jaxstab import decompositions; "
        "decompositions.singular_values(jnp.eye(3)); "
        "print(json.dumps([[lib['filepath'], lib['num_threads']] for lib in threadpoolctl.threadpool_info()]))"
    )
    settings = os.environ | {
        "OPENBLAS_NUM_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    threads = {path: count for path, count in json.loads(run.stdout) if "blas" in path}
    assert threads
    for path, count in threads.items():
        assert count == (2 if "numpy.libs" in path else 1), path


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 5), (2, 2, 5, 3)])
def test_values_by_the_route_of_cuda(shape):
    a = jax.random.normal(jax.random.key(0), shape)
    expected = np.linalg.svd(np.asarray(a), compute_uv=False)
    (found,) = decompositions._dilated_values(a)
    # eigenvalues of matrices of norm 5 and size 8
    np.testing.assert_allclose(found, expected, atol=1e-14)
