"""Products with curvature matrices and their eigenvalues, against dense matrices, closed forms and quadratic losses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import curvature, devices, networks
from jaxstab.networks import MLP

KEY = jax.random.key(3)
LABELS = jnp.asarray([0, 1, 2, 0, 1])


def _dense(operator):
    """The matrix, from its products with all unit vectors."""
    values, exponents = operator.apply(jnp.eye(operator.columns, dtype=operator.dtype))
    return jnp.ldexp(values, exponents[:, None])


def _mlp():
    mlp = MLP(2, 4, norm="layer", skip="sum", features_out=3)
    x = jax.random.normal(KEY, (5, 3), jnp.result_type(float))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, 1.3, 0.2), x


def _own():
    """A chain of the user's own layers, of changing width, its input a pytree."""

    def draw(width):
        def init(key, h):
            size = sum(leaf.size for leaf in jax.tree.leaves(h))
            return {
                "w": jax.random.normal(key, (size, width), jnp.result_type(float)),
                "b": jnp.full(width, 0.1),
            }

        return init

    def first(theta, x):
        return x["a"] @ theta["w"] + theta["b"]

    def layer(theta, h):
        return jnp.tanh(h) @ theta["w"] + theta["b"]

    chain = networks.from_functions(
        [(draw(4), first), (draw(4), layer), (draw(4), layer), (draw(3), layer)]
    )
    x = {"a": jax.random.normal(KEY, (5, 2), jnp.result_type(float))}
    return chain, chain.init(KEY, jax.tree.map(lambda leaf: leaf[0], x)), x


def _function():
    """A model that nobody made a chain of, its parameters a dictionary with a step count."""
    w = jax.random.normal(KEY, (2, 3), jnp.result_type(float))
    params = {"w": w, "step": jnp.asarray(7), "scale": jnp.ones((), w.dtype)}
    x = jax.random.normal(KEY, (5, 2), w.dtype)
    return lambda params, x: jnp.tanh(params["scale"] * x) @ params["w"], params, x


MODELS = {"mlp": _mlp, "own layers": _own, "a function": _function}


@functools.cache
def _matrices(name, loss):
    """(Hessian, Gauss-Newton, empirical Fisher) by products, in chunks of 2 of 5; and the dense twins."""
    model, params, x = MODELS[name]()
    targets = (
        LABELS
        if loss == "cross_entropy"
        else jax.nn.one_hot(LABELS, 3, dtype=jnp.result_type(float))
    )
    goal = curvature.objective(model, loss)
    vector, unravel = curvature.ravel(params)

    @jax.jit
    def products(vector):
        params = unravel(vector)
        one = curvature.hessian(goal, params, (x, targets), chunk_size=2)
        two = curvature.gauss_newton(goal, params, (x, targets), chunk_size=2)
        three = curvature.empirical_fisher(goal, params, (x, targets))
        return _dense(one), _dense(two), _dense(three)

    @jax.jit
    def twins(vector):
        def y(vector):
            return goal.outputs(unravel(vector), x)

        def losses(y):
            if loss == "cross_entropy":
                return optax.softmax_cross_entropy_with_integer_labels(y, targets)
            return jnp.sum((y - targets) ** 2, 1) / 2

        out, j = y(vector), jax.jacobian(y)(vector)
        by_output = jax.vmap(jax.hessian(lambda y, t: losses(y)[t], 0), (None, 0))(
            out, jnp.arange(5)
        )
        own = jnp.stack([by_output[b, b, :, b] for b in range(5)])
        g = jax.jacobian(lambda vector: losses(y(vector)))(vector)
        hessian = jax.hessian(lambda vector: jnp.mean(losses(y(vector))))(vector)
        return hessian, jnp.einsum("bin,bij,bjm->nm", j, own, j) / 5, g.T @ g / 5

    return products(vector), twins(vector)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("name", MODELS)
def test_products_against_dense_matrices(name):
    products, twins = _matrices(name, "squared" if name == "own layers" else "cross_entropy")
    for product, twin in zip(products, twins, strict=True):
        # a few rounded sums of tens of terms of the size of the largest entry
        np.testing.assert_allclose(
            product, twin, atol=300 * jnp.finfo(twin.dtype).eps * np.abs(twin).max()
        )


def _quadratic(scale=1.0):
    """A symmetric matrix with eigenvalues -3, 0, 0, 0, 1, 1, 2, 5 times a scale, and the loss that has it."""
    values = np.asarray([-3.0, 0, 0, 0, 1, 1, 2, 5])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    matrix = jnp.asarray(scale * (q * values) @ q.T, jnp.result_type(float))
    return matrix, lambda w: w @ matrix @ w / 2


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_quadratic_loss_is_exact(scale):
    _, loss = _quadratic(scale)

    @jax.jit
    def measure(w):
        operator = curvature.hessian(loss, w)
        few = curvature.extremes(operator, KEY, 2, 1, steps=7)
        every = curvature.extremes(operator, KEY, 6, 2, block=8)
        return few, every, curvature.density(operator, KEY, 4, 5), curvature.trace(operator, KEY, 8)

    few, every, density, trace = measure(jnp.ones(8))
    eps = float(jnp.finfo(few.largest.dtype).eps)
    close = functools.partial(np.testing.assert_allclose, atol=100 * eps)
    # one vector finds one copy of each distinct value, five of them
    close(few.largest / scale, [5, 2])
    close(few.smallest / scale, [-3])
    close(every.largest / scale, [5, 2, 1, 1, 0, 0])
    close(every.smallest / scale, [-3, 0])
    assert np.all(few.largest_error <= 1000 * eps * scale)
    # as many probes as there are dimensions leave nothing to chance; what is left of each is small, and rounded
    close(trace.value / scale, 6.0, atol=1000 * eps)
    # five distinct eigenvalues are five nodes
    nodes = np.sort(density.eigenvalues / scale, axis=1)
    close(nodes, np.broadcast_to([-3, 0, 1, 2, 5], (4, 5)), atol=1e4 * eps)


@pytest.mark.slow
def test_a_deep_linear_network_at_its_minimum():
    # balanced layers that make A = U diag(s) V^T, whitened inputs, no bias: H = sum_l J_l^T J_l has the eigenvalues
    # sum_l (s_i^(L - l) s_j^(l - 1))^(2/L), the largest L s_1^(2 - 2/L) (Mulayoff & Michaeli 2020)
    s = np.asarray([3.0, 1.5, 0.5])
    depth, n = 4, len(s)

    def init(key, h):
        return jnp.diag(jnp.asarray(s ** (1 / depth)))

    chain = networks.from_functions([(init, lambda w, h: w @ h)] * depth)
    x = jnp.sqrt(n) * jnp.eye(n)
    params = chain.init(KEY, x[0])
    targets = x * s[None]
    goal = curvature.objective(chain, "squared")
    found = jax.jit(
        lambda: curvature.extremes(curvature.hessian(goal, params, (x, targets)), KEY, 9, 0, 1, 36)
    )()
    layers = np.arange(1, depth + 1)[:, None, None]
    expected = np.sum((s[:, None] ** (depth - layers) * s ** (layers - 1)) ** (2 / depth), axis=0)
    np.testing.assert_allclose(found.largest, np.sort(expected.ravel())[::-1], rtol=1e-10)
    assert float(found.largest[0]) == pytest.approx(depth * s[0] ** (2 - 2 / depth), rel=1e-10)


@pytest.mark.slow
def test_extremes_bound_their_errors_and_begin_where_told():
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(60, 60)))[0]
    values = np.concatenate([[-4.0, 6.0, 10.0], rng.uniform(-1, 1, 57)])
    matrix = jnp.asarray((q * values) @ q.T)
    operator = curvature.hessian(lambda w: w @ matrix @ w / 2, jnp.zeros(60))
    for steps, block in ((6, 1), (12, 2)):
        found = jax.jit(lambda s=steps, b=block: curvature.extremes(operator, KEY, 2, 1, s, b))()
        for theta, error, v in zip(
            found.largest, found.largest_error, found.largest_vectors, strict=True
        ):
            assert np.min(np.abs(values - theta)) <= error
            assert np.linalg.norm(matrix @ v - theta * v) <= error * (1 + 1e-9)
        assert found.largest[0] <= 10 + 1e-12 and found.smallest[0] >= -4 - 1e-12
    np.testing.assert_allclose(found.largest, [10, 6], rtol=1e-6)
    # one product from the vector itself, moved a little
    near = jnp.asarray(q[:, 2] + 1e-4 * q[:, 5])[None]
    again = jax.jit(lambda: curvature.extremes(operator, KEY, 1, 0, 1, 1, near))()
    assert float(again.largest[0]) == pytest.approx(10, rel=1e-7)


@pytest.mark.slow
def test_errors_of_trace_and_density_are_honest():
    # a few large eigenvalues over a bulk, as Hessians have them; 40 keys at once
    rng = np.random.default_rng(2)
    q = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    values = np.concatenate([[100.0, 50.0, -20.0], rng.uniform(0, 0.1, 97)])
    matrix = jnp.asarray((q * values) @ q.T)
    operator = curvature.hessian(lambda w: w @ matrix @ w / 2, jnp.zeros(100))

    @jax.jit
    @jax.vmap
    def measure(key):
        density = curvature.density(operator, key, 4, 10)
        return curvature.trace(operator, key, 10), density.cdf(0.05)

    trace, share = measure(jax.random.split(KEY, 40))
    errors = (trace.value - values.sum()) / trace.standard_error
    # the mean over keys has no bias, and errors are a few standard errors
    assert abs(np.mean(trace.value) - values.sum()) < 4 * np.std(trace.value) / np.sqrt(40)
    assert np.mean(np.abs(errors) < 3) > 0.9
    # Hutchinson's estimate from 20 products errs by sqrt(2 sum values^2 / 20), 35; leaving one out, by far less
    assert np.std(trace.value) < 1
    # within the bulk; the quadrature resolves it to half a node's weight, of ten
    assert abs(np.mean(share.value) - np.mean(values <= 0.05)) < 0.05
    assert (
        np.mean(np.abs(share.value - np.mean(values <= 0.05)) < 3 * share.standard_error + 0.05)
        > 0.9
    )


@pytest.mark.slow
def test_memory_of_products_is_that_of_a_chunk():
    net, x = networks.mlp(3, 64, features_out=4), jnp.ones((512, 32), jnp.float32)
    params = net.init(KEY, x)
    goal = curvature.objective(net)

    def product(size):
        operator = curvature.hessian(goal, params, (x, jnp.zeros(512, int)), chunk_size=size)
        v = jnp.ones((2, operator.columns), jnp.float32)
        return devices.memory(operator.apply, v)

    assert product(32) < product(512) / 4


@pytest.mark.slow
def test_a_traced_depth_by_the_gradient_of_training():
    from jaxstab import training

    mlp = MLP(3, 4, features_out=3)
    x = jax.random.normal(KEY, (5, 3))
    params = networks.chain(mlp).bind(networks.chain(mlp).init(KEY, x))

    @jax.jit
    def by_gradient(depth):
        def gradient(params):
            return training.value_and_grad(
                mlp, params, x, lambda y: training.cross_entropy(y, LABELS), depth
            ).params

        return _dense(curvature.hessian_by_gradient(gradient, params))

    goal = curvature.objective(networks.chain(mlp))
    twin = _dense(curvature.hessian(goal, params, (x, LABELS)))
    np.testing.assert_allclose(by_gradient(3), twin, atol=1e-12)
    shorter = by_gradient(2)
    assert by_gradient._cache_size() == 1
    # a block that does not take part bends nothing
    assert np.sum(np.abs(shorter).max(axis=0) == 0) == 4 * 4 + 4


@pytest.mark.slow
def test_batches_that_a_network_mixes():
    mlp = MLP(2, 4, norm="batch", features_out=3)
    x = jax.random.normal(KEY, (5, 3))
    params = networks.chain(mlp).bind(networks.chain(mlp).init(KEY, x))
    goal = curvature.objective(networks.chain(mlp), mixes=True)
    vector, unravel = curvature.ravel(params)

    def loss(vector):
        return goal(unravel(vector), (x, LABELS))

    twin = jax.jit(jax.hessian(loss))(vector)
    found = jax.jit(lambda: _dense(curvature.hessian(goal, params, (x, LABELS))))()
    np.testing.assert_allclose(found, twin, atol=1e-11)


def test_what_makes_no_sense_is_refused():
    model, params, x = _function()
    goal = curvature.objective(model)
    operator = curvature.hessian(lambda w: w @ w, jnp.ones(4))
    rectangular = curvature.parameter_jacobian(*_mlp())
    for message, call in {
        "loss must be one scalar, a mean over examples, got shapes .*4": lambda: curvature.hessian(
            lambda w: w, jnp.ones(4)
        ),
        "loss must be floating": lambda: curvature.hessian(lambda w: jnp.asarray(1), jnp.ones(4)),
        "params must have a floating leaf": lambda: curvature.hessian(lambda w: 1.0, jnp.arange(3)),
        "params must be real": lambda: curvature.hessian(lambda w: 1.0, jnp.ones(3, complex)),
        "chunk_size must be an integer >= 1, got 0": lambda: curvature.hessian(
            goal, params, (x, LABELS), 0
        ),
        "examples must share a leading axis": lambda: curvature.hessian(
            goal, params, (x, LABELS[:3])
        ),
        "at least one example, got shapes": lambda: curvature.hessian(
            goal, params, (x[:0], LABELS[:0])
        ),
        "gradient must have 4 entries, as params, got 2": lambda: curvature.hessian_by_gradient(
            lambda w: w[:2], jnp.ones(4)
        ),
        "loss must be one of cross_entropy, squared, got 'hinge'": lambda: curvature.objective(
            model, "hinge"
        ),
        "targets must have the outputs' shape": lambda: curvature.hessian(
            curvature.objective(model, "squared"), params, (x, x)
        ),
        r"top \+ bottom must be in \[1, 4\]": lambda: curvature.extremes(operator, KEY, 4, 1),
        r"block \* steps must be at least top \+ bottom = 3": lambda: curvature.extremes(
            operator, KEY, 2, 1, 1
        ),
        "start must be vectors of 4 entries": lambda: curvature.extremes(
            operator, KEY, start=jnp.ones((1, 3))
        ),
        "operator must be symmetric, got 15 rows": lambda: curvature.trace(rectangular, KEY),
        "optimiser must be one of sgd, momentum, nesterov, adam, got 'adagrad'": lambda: (
            curvature.largest_stable_rate(1.0, "adagrad")
        ),
        r"beta must be in \[0, 1\), got 1.0": lambda: curvature.largest_stable_rate(
            1.0, "momentum", 1.0
        ),
        "preconditioner must have 4 entries": lambda: curvature.preconditioned(
            operator, jnp.ones(3)
        ),
        "direction must have 4 entries": lambda: curvature.directional_sharpness(
            operator, jnp.ones(3)
        ),
        "update must have 4 entries": lambda: curvature.critical_sharpness(
            jnp.sum, jnp.ones(4), jnp.ones(3)
        ),
        "guess must be > 0, got 0.0": lambda: curvature.critical_sharpness(
            jnp.sum, jnp.ones(4), jnp.ones(4), None, 0.0
        ),
        "passes must be an integer >= 2": lambda: curvature.critical_sharpness(
            jnp.sum, jnp.ones(4), jnp.ones(4), passes=1
        ),
        "probes must be an integer >= 1": lambda: curvature.trace(operator, KEY, 0),
    }.items():
        with pytest.raises(ValueError, match=message) as told:
            call()
        assert "\n" not in str(told.value)


@pytest.mark.kernels
def test_rates_just_below_converge_and_just_above_diverge():
    scales = jnp.asarray([10.0, 1.0, 0.1])

    def loss(w):
        return jnp.sum(scales * w**2) / 2

    def length(tx):
        """What is left along the largest eigenvector after 1,000 updates."""

        def update(_, carry):
            w, state = carry
            updates, state = tx.update(jax.grad(loss)(w), state, w)
            return optax.apply_updates(w, updates), state

        w = jnp.full(3, 1e-3)
        return jax.lax.fori_loop(0, 1000, update, (w, tx.init(w)))[0][0]

    makers = {
        "sgd": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, momentum=0.8),
        "nesterov": lambda rate: optax.sgd(rate, momentum=0.8, nesterov=True),
        # Adam whose second moments no longer change
        "adam": lambda rate: optax.chain(optax.ema(0.8, debias=False), optax.scale(-rate)),
    }

    @jax.jit
    @jax.vmap
    def run(relative):
        top = curvature.extremes(curvature.hessian(loss, jnp.ones(3)), KEY, steps=3).largest[0]
        rates = {name: curvature.largest_stable_rate(top, name, 0.8) for name in makers}
        return {name: length(make(relative * rates[name])) for name, make in makers.items()}

    for name, left in run(jnp.asarray([0.97, 1.03])).items():
        below, above = np.abs(left)
        # 0.97^1000 is e^-30; what diverges may leave the range of float32
        assert below < 1e-6 and not above <= 1, name


@pytest.mark.slow
def test_the_preconditioner_of_adam():
    # a gradient that stays as it is: nu / (1 - b2^t) is its square
    tx = optax.chain(optax.clip(100.0), optax.adam(optax.constant_schedule(0.1), 0.9, 0.99, 1e-3))
    params = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([[5.0]])}
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            _, state = tx.update(params, state, params)
    preconditioner = curvature.adam_preconditioner(state, 0.9, 0.99, 1e-3)
    np.testing.assert_allclose(
        preconditioner, (1 - 0.9**3) * (np.asarray([3, 4, 5]) + 1e-3), rtol=1e-12
    )
    matrix = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)))
    operator = curvature.hessian(lambda w: w @ matrix @ w / 2, jnp.zeros(3))
    found = curvature.extremes(curvature.preconditioned(operator, preconditioner), KEY, 3)
    expected = np.linalg.eigvals((matrix + matrix.T) / 2 / preconditioner[:, None])
    np.testing.assert_allclose(found.largest, np.sort(expected.real)[::-1], rtol=1e-10)
    with pytest.raises(ValueError, match="state must hold the moments of one optax.adam, got 0"):
        curvature.adam_preconditioner(optax.sgd(0.1).init(params))


@pytest.mark.slow
@pytest.mark.kernels
def test_critical_sharpness_of_a_quadratic_is_the_directional_one():
    matrix, _ = _quadratic()
    matrix = matrix @ matrix

    def loss(w):
        return w @ matrix @ w / 2

    w = jnp.arange(1.0, 9.0)

    @jax.jit
    @jax.vmap
    def measure(guess):
        gradient = jax.grad(loss)(w)
        along = curvature.directional_sharpness(curvature.hessian(loss, w), gradient)
        return curvature.critical_sharpness(loss, w, -gradient, guess=guess, passes=8), along

    # from a rate far too small and far too large to one next to it
    found, along = measure(jnp.asarray([1e-4, 1.0, 1e3, 2 / 20.0]))
    # rounding of the loss next to its slope
    np.testing.assert_allclose(found.sharpness, along, rtol=1e4 * float(jnp.finfo(w.dtype).eps))
    assert np.all((found.rate_low <= found.rate) & (found.rate <= found.rate_high))
    twin = np.asarray(
        jax.grad(loss)(w) @ matrix @ jax.grad(loss)(w) / jnp.sum(jax.grad(loss)(w) ** 2)
    )
    np.testing.assert_allclose(along, np.full(4, twin), rtol=1e-5)


@pytest.mark.slow
def test_critical_sharpness_of_a_network_and_where_there_is_none():
    model, params, x = _own()
    goal = curvature.objective(model)
    examples = (x, LABELS)
    gradient = jax.grad(goal)(params, examples)
    update = jax.tree.map(jnp.negative, gradient)

    @jax.jit
    def measure(guess):
        return curvature.critical_sharpness(goal, params, update, examples, guess, 10, chunk_size=2)

    found = measure(1.0)

    def change(rate):
        moved = jax.tree.map(lambda w, u: w + rate * u, params, update)
        return float(goal(moved, examples) - goal(params, examples))

    # after ten passes; the secant of a bracket of a few percent
    assert change(0.995 * found.rate) < 0 < change(1.005 * found.rate)
    assert change(float(found.rate_low)) < 0 < change(float(found.rate_high))
    # four of the ten passes are spent on coming down from 100
    np.testing.assert_allclose(measure(100.0).rate, found.rate, rtol=0.02)
    # upwards the loss rises at once, down a straight line it never does
    upwards = curvature.critical_sharpness(goal, params, gradient, examples)
    assert np.isnan(upwards.sharpness) and upwards.rate_low == 0
    straight = curvature.critical_sharpness(jnp.sum, jnp.ones(3), -jnp.ones(3))
    assert np.isnan(straight.rate) and np.isinf(straight.rate_high)
    # a loss that is not finite has risen
    wall = curvature.critical_sharpness(
        lambda w: jnp.where(w > 2, jnp.nan, -w), jnp.zeros(()), jnp.ones(()), passes=30
    )
    assert float(wall.rate) == pytest.approx(2, rel=1e-3)


@pytest.mark.slow
def test_sharpness_along_training_is_recorded_and_frozen_where_a_run_diverges():
    from jaxstab import training

    mlp = MLP(1, 4, features_out=3)
    x = jax.random.normal(KEY, (20, 3))
    data = training.Examples(x, jnp.arange(20) % 3)
    params = networks.chain(mlp).init(KEY, x, 1.3)
    goal = curvature.objective(networks.chain(mlp))

    def at(params):
        return curvature.hessian(goal, params, data)

    @jax.jit
    def run(rate):
        monitor = curvature.monitor_sharpness(at, steps=60, every=20, products=30)
        tx = optax.chain(monitor, optax.sgd(rate))
        seen, state = training.train(mlp, params, tx, data, key=KEY, steps=60)
        return seen.first_nonfinite, optax.tree.get(state.optimiser, "sharpness"), state.params

    _, series, _ = run(0.1)
    assert np.all(np.isfinite(series))
    top = jax.jit(lambda params: curvature.extremes(at(params), KEY, steps=30).largest[0])
    assert float(series[0]) == pytest.approx(float(top(params)), rel=1e-6)
    half = jax.jit(
        lambda: training.train(mlp, params, optax.sgd(0.1), data, key=KEY, steps=40)[1].params
    )()
    assert float(series[2]) == pytest.approx(float(top(half)), rel=1e-6)
    # no compile for another rate, at which float64 overflows within three steps
    stopped, series, _ = run(1e307)
    assert run._cache_size() == 1
    assert 0 <= stopped < 40 and np.isfinite(series[0]) and np.isnan(series[2])
    # built in, over rates at once: the same records, and a branch that vmap leaves a branch
    rates = jnp.asarray([0.1, 1e307])
    settings = {"key": KEY, "steps": 60, "curvature_every": 20}
    built_in = lambda rate: (
        training.train(mlp, params, optax.sgd(rate), data, **settings)[1].curvature
    )
    both = jax.vmap(built_in)
    assert "cond[" in str(jax.make_jaxpr(both)(rates))
    found = jax.jit(both)(rates)
    # ten products, begun at the last eigenvector
    np.testing.assert_allclose(found.sharpness[0], run(0.1)[1], rtol=1e-3)
    assert np.isnan(found.sharpness[1, 2]) and not np.isnan(found.sharpness[1, 0])
    with pytest.raises(ValueError, match="curvature_every must be an integer >= 1, got 0"):
        training.train(mlp, params, optax.sgd(0.1), data, key=KEY, steps=3, curvature_every=0)
    monitor = curvature.monitor_sharpness(at, 3)
    with pytest.raises(ValueError, match="needs the parameters"):
        monitor.update(params, monitor.init(params))
    with pytest.raises(ValueError, match="every must be an integer >= 1, got 0"):
        curvature.monitor_sharpness(at, 3, 0)


def test_a_convolutional_network_as_it_is():
    """Hessian, Gauss-Newton, kernel and Jacobian of a linen model by products, against dense derivatives."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            kinds = {"param_dtype": x.dtype, "dtype": x.dtype}
            h = jnp.tanh(nn.Conv(2, (3,), **kinds)(x))
            return nn.Dense(2, **kinds)(jnp.mean(h, axis=1))

    model = Network()
    x = jax.random.normal(KEY, (3, 4, 1), jnp.result_type(float))
    params = jax.jit(model.init)(KEY, x)
    vector, unravel = curvature.ravel(params)
    goal = curvature.objective(lambda params, x: model.apply(params, x))
    examples = x, jnp.asarray([0, 1, 1])
    directions = jax.random.normal(KEY, (2, vector.size), vector.dtype)

    def times(operator, vectors):
        values, exponents = operator.apply(vectors)
        return jnp.ldexp(values, exponents[:, None])

    @jax.jit
    def by_products(vector):
        params = unravel(vector)
        jacobian = curvature.parameter_jacobian(goal.outputs, params, x)
        found = [
            curvature.hessian(goal, params, examples),
            curvature.gauss_newton(goal, params, examples),
            jacobian,
        ]
        products = [times(one, directions) for one in found]
        back = times(jacobian.transpose, jnp.arange(6.0, dtype=vector.dtype)[None])
        kernel = curvature.tangent_kernel(goal.outputs, params, x, chunk_size=4)
        top = curvature.gauss_newton_eigenvalues(goal.outputs, params, x)
        return *products, back, kernel, top

    @jax.jit
    def dense(vector):
        def y(vector):
            return goal.outputs(unravel(vector), x)

        hessian = jax.hessian(lambda vector: goal(unravel(vector), examples))(vector)
        j = jax.jacobian(y)(vector)
        p = jax.nn.softmax(y(vector))
        curves = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None]
        outer = jnp.einsum("bin,bij,bjm->nm", j, curves, j) / 3
        j = j.reshape(6, -1)
        products = [directions @ m.T for m in (hessian, outer, j)]
        top = jnp.linalg.eigvalsh(outer)[::-1][:6]
        back = jnp.arange(6.0, dtype=vector.dtype)[None] @ j
        return *products, back, j @ j.T, top

    bound = 1e-10 if vector.dtype == jnp.float64 else 1e-5
    for found, wanted in zip(by_products(vector), dense(vector), strict=True):
        assert jnp.max(jnp.abs(found - wanted)) <= bound * jnp.max(jnp.abs(wanted))
    with pytest.raises(ValueError, match="loss, layer and chunk_size must be None for a function"):
        curvature.parameter_jacobian(goal.outputs, params, x, loss="squared")
