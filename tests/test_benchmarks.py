"""The benchmarks time what they say: floors do ours' work, and all sides agree with the plain thing."""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxstab import networks
from jaxstab.records import Data
from jaxstab.sweeps import Grid, Train
from jaxstab.sweeps.training_plan import flops

FOLDER = str(Path(__file__).parent.parent / "experiments" / "benchmarks")


@pytest.fixture(scope="module")
def spectral():
    sys.path.insert(0, FOLDER)
    try:
        from spectral import dense, gradients, matrix_free, problem

        yield {
            "dense": dense,
            "gradients": gradients,
            "matrix_free": matrix_free,
            "problem": problem,
        }
    finally:
        sys.path.remove(FOLDER)


@pytest.fixture(scope="module")
def training_runs():
    sys.path.insert(0, FOLDER)
    try:
        from rivals import jax_training
        from training_runs import agreement, floors, ours, problem

        yield {
            "agreement": agreement, "floors": floors, "ours": ours, "problem": problem, "jax": jax_training
        }  # fmt: skip
    finally:
        sys.path.remove(FOLDER)


@pytest.fixture(scope="module")
def trainings(training_runs):
    """Eight small networks, two minibatches an epoch."""
    rng = np.random.default_rng(0)
    data = Data(
        rng.standard_normal((12, 5)).astype(np.float32),
        (np.arange(12) % 3).astype(np.int32),
        "random",
    )
    grid = Grid(
        {"depth": (1, 3), "sigma_w": (0.5, 1.0, 1.5, 2.0)}, sigma_b=0.05**0.5, width=8, batch=4
    )
    return training_runs["problem"].draw(grid, 5, training_runs["problem"].halves(data))


@pytest.mark.slow
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
    deep = jax.jit(jax.jacfwd(lambda x: networks.state(chain, params, x, 3)))(x)
    np.testing.assert_allclose(matrices[0, 1, 1].T, deep, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
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
    each = lambda *cells: jax.tree.map(
        lambda a: a[None], jax.vmap(one, (drawing.CELLS, 0, 0))(*cells)
    )
    for others in (
        drawing.ours(problem, gradients.norms(problem), at_once=1)(),
        placed.compile(each)(),
    ):
        for part in zip(found, others, strict=True):
            np.testing.assert_allclose(*part, rtol=1e-4, atol=1e-4)


def test_accurate_takes_the_cheapest_setting_that_will_do(spectral):
    matrix_free = spectral["matrix_free"]
    truth = np.linspace(2, 1, matrix_free.TOP)
    ways = [(n, lambda n=n: lambda: truth * (1 + 10.0**-n)) for n in (2, 5, 8)]
    assert matrix_free.accurate(ways, truth)[0] == 5


def train_plainly(problem, depth, cell):
    """Losses, and which examples are right at the end: back-propagation written out, in float64."""
    weights = jax.tree.map(lambda leaf: leaf[cell].astype(np.float64), problem.weights(depth))
    (start, inner, end), kernels, biases = weights, [], []
    for kernel, bias in (start, *zip(*inner, strict=True), end):
        kernels.append(kernel)
        biases.append(bias)
    x, y, losses = problem.x.astype(np.float64), problem.y, []

    def states(x):
        found = [x @ kernels[0] + biases[0]]
        for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
            found.append(np.tanh(found[-1]) @ kernel + bias)
        return found

    for examples in problem.batches:
        *hidden, logits = states(x[examples])
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.mean(np.log(chances[np.arange(len(examples)), y[examples]])))
        cotangent, activations = (
            (chances - np.eye(3)[y[examples]]) / len(examples),
            [x[examples], *map(np.tanh, hidden)],
        )
        for layer in reversed(range(len(kernels))):
            pulled = (cotangent @ kernels[layer].T) * (1 - activations[layer] ** 2)
            kernels[layer] = kernels[layer] - 0.01 * activations[layer].T @ cotangent
            biases[layer] = biases[layer] - 0.01 * cotangent.sum(0)
            cotangent = pulled
    return np.array(losses), states(x)[-1].argmax(1) == y


@pytest.mark.slow
def test_all_sides_train_the_networks_that_the_plain_loop_does(training_runs, trainings):
    jax_training, agreement = training_runs["jax"], training_runs["agreement"]
    assert trainings.batches.shape == (5, 4)
    assert sorted(trainings.batches[:2].ravel()) == sorted(set(trainings.batches[:2].ravel()))
    plain = [[train_plainly(trainings, depth, cell) for cell in range(4)] for depth in (1, 3)]
    losses = np.array([[net[0] for net in row] for row in plain])
    accuracy = trainings.accuracy(np.array([[net[1] for net in row] for row in plain]))
    sides = {
        "vmap of scans": jax_training.trained(trainings, one_by_one=False, unrolled=False),
        "lax.map, unrolled": jax_training.trained(trainings, one_by_one=True, unrolled=True),
        "ours": training_runs["ours"].ours(trainings),
    }
    expected = agreement.Truth(
        training_runs["problem"].Result(losses, accuracy), np.full((2, 4), 5)
    )
    for name, train in sides.items():
        found = train()
        # float32 against float64
        np.testing.assert_allclose(found.losses, losses, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-6, err_msg=name)
        assert agreement.disagreement(found, expected) < 1e-4
    other = expected.result._replace(accuracy=1 - accuracy)
    assert agreement.disagreement(other, expected) == np.inf


def test_what_rounding_decides_is_not_compared(training_runs, trainings):
    agreement, result = training_runs["agreement"], training_runs["problem"].Result

    def chaotic(problem):
        """Losses that follow the weights, in the second cell a million times as much from the third step on."""
        losses = np.full((2, 4, 5), problem.unit.embed[0].astype(np.float64).sum())
        losses[:, 1, 2:] *= 1e6
        return result(losses, np.zeros((2, 4, 2)))

    truth = agreement.truth(trainings, chaotic)
    assert truth.steps.tolist() == [[5, 2, 5, 5]] * 2
    assert str(truth) == "compared: 6 of 8 trainings to the end, 6 for ten steps or more"
    found = truth.result._replace(losses=truth.result.losses.copy())
    found.losses[:, 1, 2:] = np.nan
    assert agreement.disagreement(found, truth) == 0
    assert agreement.disagreement(found._replace(losses=found.losses + 0.5), truth) == 0.5
    some = slice(1, None)
    assert agreement.disagreement(truth.only(some).result, truth.only(some)) == 0
    assert agreement.disagreement(truth.only(some).result, truth) == np.inf


def test_floors_of_training_do_the_products_they_count(training_runs, trainings, monkeypatch):
    floors, counted = training_runs["floors"], []
    matmul = np.matmul

    def counting(a, b, **options):
        counted.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return matmul(a, b, **options)

    monkeypatch.setattr(np, "matmul", counting)
    blas = floors.numpy_floor(trainings)()
    assert sum(counted) == trainings.flops
    grid = trainings.grid
    each = [flops(grid, grid.kinds[0], Train(5), depth, trainings.split) for depth in (1, 3)]
    # one product for each layer and example at the end
    ends = [2 * 12 * (5 * 8 + depth * 8 * 8 + 8 * 3) for depth in (1, 3)]
    assert trainings.flops == 4 * (sum(each) + sum(ends))
    # the gradient of |y|^2 / 2 of a linear network
    for depth, row, (grads, outputs) in zip(
        (1, 3), blas, floors.jax_floor(trainings)(), strict=True
    ):
        kernels = [
            trainings.unit.embed[0],
            *trainings.unit.blocks[0][:depth],
            trainings.unit.readout[0],
        ]
        half = lambda kernels, x: (forwards(kernels, x) ** 2).sum() / 2
        wanted = jax.jit(jax.grad(half))(kernels, trainings.x[trainings.batches[-1]])
        for cell in range(4):
            for found in (row[cell][0], [grad[cell] for grad in grads]):
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                    found,
                    wanted,
                )
            for found in (row[cell][1], outputs[cell]):
                np.testing.assert_allclose(
                    found, forwards(kernels, trainings.x), rtol=1e-4, atol=1e-5
                )


def forwards(kernels, x):
    for kernel in kernels:
        x = x @ kernel
    return x
