"""The benchmark of spectra times what it says: its floors do ours' work, and ours agrees with the plain thing."""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxstab import propagation

FOLDER = str(Path(__file__).parent.parent / "experiments" / "benchmarks")


@pytest.fixture(scope="module")
def spectral():
    sys.path.insert(0, FOLDER)
    try:
        from spectral import dense, gradients, matrix_free, problem

        yield {"dense": dense, "gradients": gradients, "matrix_free": matrix_free, "problem": problem}
    finally:
        sys.path.remove(FOLDER)


def test_floor_and_ours_find_the_same_singular_values(spectral):
    dense, drawing = spectral["dense"], spectral["problem"]
    problem = drawing.draw(("tanh", "relu"), (1, 3), 8, drawing.gains(2), 2)
    placed = drawing.place(problem)
    ours = drawing.ours(problem, dense.values(problem))()
    assert ours.shape == (2, 4, 2, 8) and ours.dtype == np.float32
    matrices = np.asarray(placed.compile(dense.every(problem, dense.jacobians))())
    assert dense.disagreement(dense.numpy_values(matrices)(), ours) < 1e-5
    # the naive twin: JAX's own Jacobian of one network
    chain, params, x = spectral["matrix_free"].single(problem.only([1]))
    deep = jax.jit(jax.jacfwd(lambda x: propagation.states(chain, params, x)[3]))(x)
    np.testing.assert_allclose(matrices[0, 1, 1].T, deep, rtol=1e-4, atol=1e-6)


def test_gradient_floors_do_the_products_they_count(spectral):
    gradients, drawing = spectral["gradients"], spectral["problem"]
    problem = drawing.draw(("tanh",), (1, 3), 8, drawing.gains(2), 1, batch=4)
    placed = drawing.place(problem)
    assert gradients.segments(problem) == [(2, 1), (1, 2)]
    # 3 layers forwards, 4 backwards and 4 gradients, for two networks
    assert gradients.flops(problem, gram=False) == 2 * 2 * 4 * 8**2 * (3 + 4 + 4)
    # |a^T c|^2 by either route
    formed, gram = (np.asarray(gradients.jax_floor(problem, placed, g)()) for g in (False, True))
    np.testing.assert_allclose(formed, gram, rtol=1e-4)
    for g in (False, True):
        gradients.numpy_floor(problem, g)()
    found = drawing.ours(problem, gradients.norms(problem))()
    assert gradients.disagreement(found, found) == 0
    # one gain at a time, and networks that hold their own weights
    one = functools.partial(gradients.norms(problem), problem.chains[0])
    each = lambda *cells: jax.tree.map(lambda a: a[None], jax.vmap(one, (drawing.CELLS, 0, 0))(*cells))
    for others in (drawing.ours(problem, gradients.norms(problem), at_once=1)(), placed.compile(each)()):
        for part in zip(found, others, strict=True):
            np.testing.assert_allclose(*part, rtol=1e-4, atol=1e-4)


def test_accurate_takes_the_cheapest_setting_that_will_do(spectral):
    matrix_free = spectral["matrix_free"]
    truth = np.linspace(2, 1, matrix_free.TOP)
    ways = [(n, lambda n=n: lambda: truth * (1 + 10.0**-n)) for n in (2, 5, 8)]
    assert matrix_free.accurate(ways, truth)[0] == 5
