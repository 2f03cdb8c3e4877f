"""Regularisers against dense Jacobians, singular values and derivatives worked out by hand."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import networks, propagation, regularizers
from jaxstab.networks import MLP

KEY = jax.random.key(3)
LOSS = lambda y: optax.softmax_cross_entropy_with_integer_labels(y, 2)
BATCH_LOSS = lambda y: jnp.sum(jax.vmap(LOSS)(y))

# eager, each small operation compiles by itself
omega = jax.jit(regularizers.omega, static_argnums=(0, 3, 4))
slope = jax.jit(jax.grad(regularizers.omega, argnums=1), static_argnums=(0, 3, 4))
orthogonality = jax.jit(regularizers.orthogonality)
spectral_norm = jax.jit(regularizers.spectral_norm, static_argnums=2)


@cache
def _network(activation="tanh", depth=3, width=10, sigma_w=1.3, sigma_b=0.2):
    mlp = MLP(depth, width, activation)
    x = jax.random.normal(jax.random.key(7), (6,))
    chain = networks.chain(mlp)
    return chain, chain.init(KEY, x, sigma_w, sigma_b), x


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _toward(params):
    """A random direction in parameter space, of length 1."""
    leaves, structure = jax.tree.flatten(params)
    flat = np.random.default_rng(0).standard_normal(sum(leaf.size for leaf in leaves))
    flat /= np.linalg.norm(flat)
    parts = np.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return structure.unflatten(
        [jnp.asarray(p.reshape(leaf.shape)) for p, leaf in zip(parts, leaves, strict=True)]
    )


def _central(f, params, direction, step=1e-5):
    """Its error is step^2 and eps / step, relatively: 1e-10 and 1e-11."""
    shifted = [jax.tree.map(lambda p, d, t=t: p + t * d, params, direction) for t in (step, -step)]
    return float((f(shifted[0]) - f(shifted[1])) / (2 * step))


def _along(gradient, direction):
    return sum(
        float(np.sum(g * d)) for g, d in zip(_leaves(gradient), _leaves(direction), strict=True)
    )


@partial(jax.jit, static_argnums=0)
def _dense_omega(chain, params, x):
    """Omega and its immediate derivative by W_l: full Jacobians, equation 9 as printed, no unit vectors."""
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params.blocks) for i in range(params.depth)]
    h = [chain.embed(params, x)]
    for layer in layers:
        h.append(chain.block(layer, h[-1]))
    gradient, total, immediate = jax.grad(lambda h: LOSS(chain.readout(params, h)))(h[-1]), 0.0, []
    for layer, before in zip(layers[::-1], h[-2::-1], strict=True):
        earlier = gradient @ jax.jacobian(lambda h, layer=layer: chain.block(layer, h))(before)
        norm, ratio = (
            jnp.linalg.norm(gradient),
            jnp.linalg.norm(earlier) / jnp.linalg.norm(gradient),
        )
        # dE/dh_{l-1} = phi' * (W g): by W, the ratio's square changes by 2 (phi' * dE/dh_{l-1}) g^T / |g|^2
        by_square = (
            (chain.activation.derivative(before) * earlier)[:, None] * gradient[None] / norm**2
        )
        immediate.append(2 * (ratio - 1) * by_square / ratio)
        gradient, total = earlier, total + (ratio - 1) ** 2
    return total, jnp.stack(immediate[::-1])


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["tanh", pytest.param("relu", marks=pytest.mark.kernels)])
def test_omega_and_its_immediate_derivative_agree_with_full_jacobians(activation):
    chain, params, x = _network(activation)
    total, immediate = _dense_omega(chain, params, x)
    tolerance = 100 * float(jnp.finfo(x.dtype).eps)
    np.testing.assert_allclose(omega(chain, params, x, LOSS), total, rtol=tolerance)
    np.testing.assert_allclose(omega(chain, params, x, LOSS, False), total, rtol=tolerance)
    found = slope(chain, params, x, LOSS)
    np.testing.assert_allclose(
        found.blocks["dense"]["kernel"], immediate, rtol=tolerance, atol=tolerance
    )
    # nothing else is reached with h and dE/dh held
    assert not any(
        np.any(leaf)
        for leaf in _leaves([found.embed, found.readout, found.blocks["dense"]["bias"]])
    )


@pytest.mark.slow
def test_the_full_derivative_of_omega_agrees_with_finite_differences():
    chain, params, x = _network("gelu")
    direction = _toward(params)
    expected = _central(lambda params: omega(chain, params, x, LOSS), params, direction)
    assert _along(slope(chain, params, x, LOSS, False), direction) == pytest.approx(
        expected, rel=1e-7
    )


@pytest.mark.slow
@pytest.mark.parametrize("immediate", [True, False])
def test_dead_layers_and_zero_gradients_are_no_nan(immediate):
    chain, params, x = _network("relu")
    dead = jnp.zeros(params.depth).at[0].set(-100.0)[:, None]
    killed = params._replace(
        blocks={"dense": {**params.blocks["dense"], "bias": dead + jnp.ones((1, 10))}}
    )
    # h_1 is negative throughout: block 3 passes some gradient on, block 2 kills it, block 1 never sees one
    last = jax.tree.map(lambda leaf: leaf[2:], killed)._replace(
        embed=killed.embed, readout=killed.readout
    )
    h_2 = killed.blocks["dense"]["bias"][1]
    alone = omega(chain._replace(embed=lambda params, x: x), last, h_2, LOSS)
    assert float(omega(chain, killed, x, LOSS, immediate)) == pytest.approx(
        1 + float(alone), rel=1e-12
    )
    steps = slope(chain, killed, x, LOSS, immediate)
    assert all(np.isfinite(leaf).all() for leaf in _leaves(steps))
    assert np.any(steps.blocks["dense"]["kernel"][2]) and not np.any(
        steps.blocks["dense"]["kernel"][0]
    )
    for nothing in (lambda y: 0.0 * y[0], LOSS):
        silent = params if nothing is not LOSS else networks.rescale(params, 0.0, 0.0)
        assert float(omega(chain, silent, x, nothing, immediate)) == 0
        assert not any(
            np.any(leaf) for leaf in _leaves(slope(chain, silent, x, nothing, immediate))
        )


@pytest.mark.parametrize("immediate", [pytest.param(True, marks=pytest.mark.kernels), False])
def test_omega_at_depth_300_in_float32(immediate):
    mlp = MLP(300, 8, "identity", weights="orthogonal")
    x = jnp.ones(8, jnp.float32)
    chain = networks.chain(mlp)
    params = chain.init(KEY, x, 0.1)
    value, steps = (
        omega(chain, params, x, lambda y: y[0], immediate),
        slope(chain, params, x, lambda y: y[0], immediate),
    )
    assert value.dtype == jnp.float32 and all(leaf.dtype == np.float32 for leaf in _leaves(steps))
    # the gradient shrinks to 10^-300; each block's term is (0.1 - 1)^2 and its slope 2 (0.1 - 1) u v^T
    assert float(value) == pytest.approx(300 * 0.81, rel=1e-5)
    if immediate:
        by_layer = np.linalg.norm(steps.blocks["dense"]["kernel"], axis=(1, 2))
        np.testing.assert_allclose(by_layer, 1.8, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in _leaves(steps))


def test_omega_under_vmap_and_on_a_batch():
    chain, params, x = _network()
    batch = jnp.stack([x, -2 * x])
    singly = [omega(chain, params, x, LOSS) for x in batch]
    np.testing.assert_allclose(
        jax.vmap(lambda x: omega(chain, params, x, LOSS))(batch), singly, rtol=1e-12
    )
    # one example in a batch has the batch's gradient
    alone = omega(chain, params, x[None], lambda y: LOSS(y[0]))
    assert float(alone) == pytest.approx(float(singly[0]), rel=1e-12)


CURES = [
    {"norm": "batch"},
    {"dropout": True, "skip": "highway"},
    {"skip": "dense"},
]


@cache
def _cured(index):
    """Omega with its slope, and the gradient norms, of one compile."""
    mlp = MLP(3, 6, "tanh", **CURES[index])
    x = jax.random.normal(KEY, (5, 4))
    masks = {"key": KEY, "rate": 0.2} if mlp.dropout else {}
    on = lambda f: (
        lambda params: f(
            networks.chain(mlp), networks.chain(mlp).bind(params, **masks), x, BATCH_LOSS
        )
    )
    both = jax.jit(
        lambda params: (
            jax.value_and_grad(on(regularizers.omega))(params),
            on(propagation.backward)(params),
        )
    )
    return both(networks.chain(mlp).init(KEY, x, 1.3, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CURES)), ids=lambda index: str(CURES[index]))
def test_omega_of_every_cure_is_that_of_its_gradient_norms(index):
    (value, _), profile = _cured(index)
    expected = np.sum((np.exp(-np.diff(np.asarray(profile.log_grad_h))) - 1) ** 2)
    assert float(value) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("index", range(len(CURES)), ids=lambda index: str(CURES[index]))
def test_the_slope_of_omega_is_finite_for_every_cure(index):
    (_, steps), _ = _cured(index)
    assert np.any(steps.blocks["dense"]["kernel"]) and all(
        np.isfinite(leaf).all() for leaf in _leaves(steps)
    )


@pytest.mark.slow
def test_descending_omega_lets_the_gradient_through():
    chain, params, x = _network("tanh", depth=10, sigma_w=0.5, sigma_b=0.0)

    @jax.jit
    def descend(params):
        def step(params, _):
            penalty, steps = jax.value_and_grad(regularizers.omega, argnums=1)(
                chain, params, x, LOSS
            )
            return jax.tree.map(lambda p, d: p - 0.1 * d, params, steps), penalty

        return jax.lax.scan(step, params, length=60)[1]

    penalties = descend(params)
    # a gain of about 1/2 in ten layers; then all blocks pass the gradient on to within 1 % in the mean
    assert penalties[0] > 2 and penalties[-1] < 10 * 0.01**2


@partial(jax.jit, static_argnums=0)
def _jacobian(chain, params, x):
    return jax.jacobian(lambda x: _output(chain, params, x))(x)


def _output(chain, params, x):
    h, _ = jax.lax.scan(
        lambda h, block: (chain.block(block, h), None), chain.embed(params, x), params.blocks
    )
    return chain.readout(params, h)


def test_jacobian_norm_is_unbiased_and_knows_its_error():
    chain, params, x = _network()
    estimate = jax.jit(
        lambda key: regularizers.jacobian_norm(partial(_output, chain, params), x, key, 4000)
    )(KEY)
    gram = (
        np.asarray(_jacobian(chain, params, x), float)
        @ np.asarray(_jacobian(chain, params, x), float).T
    )
    d, trace = len(gram), np.trace(gram)
    exact = np.sqrt(2 / (d + 2) * (d * np.sum(gram**2) - trace**2) / 4000)
    assert abs(float(estimate.value) - trace) <= 4 * exact
    # a standard deviation from 4000 samples is good to 1/sqrt(8000), or a few times that for long tails
    assert float(estimate.standard_error) == pytest.approx(exact, rel=0.1)


def test_the_slope_of_jacobian_norm_is_unbiased():
    chain, params, x = _network()
    direction = _toward(params)
    square = lambda params: jnp.sum(_jacobian(chain, params, x) ** 2)
    value = lambda params, key: (
        regularizers.jacobian_norm(partial(_output, chain, params), x, key, 2).value
    )

    @jax.jit
    def slopes(keys):
        by_params = lambda key: jax.grad(value)(params, key)
        along = lambda key: jax.tree.map(lambda g, d: jnp.sum(g * d), by_params(key), direction)
        return sum(jax.tree.leaves(jax.vmap(along)(keys)))

    samples = np.asarray(slopes(jax.random.split(KEY, 500)))
    error = samples.std(ddof=1) / np.sqrt(len(samples))
    assert abs(samples.mean() - _central(square, params, direction)) <= 4 * error


@pytest.mark.slow
def test_jacobian_norm_without_spread():
    linear = lambda x: 3 * x
    exact = regularizers.jacobian_norm(linear, jnp.ones(5), KEY, 3)
    assert (
        float(exact.value) == pytest.approx(45, rel=1e-12) and float(exact.standard_error) < 1e-12
    )
    assert np.isnan(regularizers.jacobian_norm(linear, jnp.ones(5), KEY).standard_error)
    # a root of zero has no slope; the error is a constant instead
    through = lambda c: regularizers.jacobian_norm(lambda x: c * x, jnp.ones(1), KEY, 2)
    assert float(
        jax.grad(lambda c: through(c).value + through(c).standard_error)(3.0)
    ) == pytest.approx(6)


WEIGHTS = {
    "blocks": {"kernel": jax.random.normal(KEY, (3, 5, 5)), "bias": jnp.full((3, 5), 9.0)},
    "tall": {"kernel": jax.random.normal(KEY, (7, 4))},
    "wide": {"kernel": jax.random.normal(KEY, (4, 7))},
    "noise": {"kernel": jax.random.key(0), "count": jnp.arange(3)},
    "steps": {"kernel": jnp.arange(4)},
}


def _singular_values(tree=None):
    tree = tree or WEIGHTS
    return [
        np.linalg.svd(np.asarray(w, float), compute_uv=False)
        for name in ("blocks", "tall", "wide")
        for w in np.reshape(tree[name]["kernel"], (-1, *tree[name]["kernel"].shape[-2:]))
    ]


@pytest.mark.kernels
@pytest.mark.parametrize("gain", [1.0, 1.7])
def test_orthogonality_counts_singular_values(gain):
    expected = sum(np.sum((s**2 / gain**2 - 1) ** 2) for s in _singular_values())
    tolerance = 100 * float(jnp.finfo(jnp.result_type(float)).eps)
    assert float(orthogonality(WEIGHTS, gain)) == pytest.approx(expected, rel=tolerance)
    assert float(regularizers.orthogonality(WEIGHTS, gain)) == pytest.approx(
        expected, rel=tolerance
    )


@pytest.mark.slow
def test_orthogonality_of_parameters_and_of_their_slope():
    # no layer has more outputs than inputs, where rows of weights cannot be orthonormal
    mlp = MLP(3, 6, "tanh", features_out=4, weights="orthogonal")
    params = networks.chain(mlp).init(KEY, jnp.ones(8), 1.2, 0.5)
    assert float(orthogonality(params, 1.2)) < 1e-25
    assert float(orthogonality(params.blocks["dense"]["kernel"])) == pytest.approx(
        3 * 6 * 0.44**2, rel=1e-10
    )
    direction = _toward(params)
    gradient = jax.jit(jax.grad(regularizers.orthogonality))(params)
    assert _along(gradient, direction) == pytest.approx(
        _central(orthogonality, params, direction), rel=1e-7
    )


@pytest.mark.kernels
def test_spectral_norm_and_its_slope_agree_with_the_svd():
    kernels = {name: {"kernel": WEIGHTS[name]["kernel"]} for name in ("blocks", "tall", "wide")}
    penalty, found = jax.jit(
        jax.value_and_grad(lambda w: regularizers.spectral_norm(w, KEY, 2000))
    )(kernels)
    assert float(penalty) == pytest.approx(sum(s[0] ** 2 for s in _singular_values()) / 2, rel=1e-5)
    for name, leaf in kernels.items():
        u, s, vt = np.linalg.svd(np.asarray(leaf["kernel"], float), full_matrices=False)
        expected = (s[..., :1] * u[..., 0])[..., None] * vt[..., :1, :]
        np.testing.assert_allclose(
            found[name]["kernel"], expected, atol=2e-3 if expected.dtype != np.float64 else 1e-4
        )


def test_the_slope_of_spectral_norm_holds_u_and_v_constant():
    penalty, steps = jax.jit(jax.value_and_grad(lambda w: regularizers.spectral_norm(w, KEY, 1)))(
        jax.random.normal(KEY, (6, 6))
    )
    # sigma u v^T: of rank one however far from converged
    s = np.linalg.svd(steps, compute_uv=False)
    np.testing.assert_allclose(s, [np.sqrt(2 * penalty), 0, 0, 0, 0, 0], atol=1e-14)


def test_spectral_norm_of_few_iterations_is_below_and_within_its_bound():
    w = jax.random.normal(KEY, (64, 64))
    largest = np.linalg.svd(w, compute_uv=False)[0] ** 2
    keys = jax.random.split(KEY, 200)
    for k in (1, 5, 20):
        missing = (
            1 - 2 * np.asarray(jax.vmap(lambda key, k=k: spectral_norm(w, key, k))(keys)) / largest
        )
        error = missing.std(ddof=1) / np.sqrt(len(missing))
        assert np.all(missing > -1e-12) and missing.mean() <= 0.871 * np.log(64) / k + 3 * error


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_weights_and_narrow_ones(dtype):
    nothing, small = (
        {"kernel": jnp.zeros((2, 3, 3), dtype)},
        {"kernel": 1e-3 * jnp.eye(3, dtype=dtype)[None]},
    )
    for penalty, expected in (
        (partial(regularizers.spectral_norm, key=KEY), 0),
        (regularizers.orthogonality, 6),
    ):
        value, steps = jax.jit(jax.value_and_grad(penalty))(nothing)
        assert float(value) == expected and value.dtype == jnp.float32
        assert steps["kernel"].dtype == dtype and not np.any(np.asarray(steps["kernel"], float))
    # 1e-6 would be lost beside 1 if the Gram matrix were accumulated in bfloat16
    assert float(orthogonality(small)) == pytest.approx(3 * (1 - 1e-6) ** 2, rel=1e-7)


def test_leaves_of_several_dtypes_are_added_in_the_widest():
    mixed = {"a": {"kernel": jnp.eye(2, dtype=jnp.bfloat16)}, "b": {"kernel": 2 * jnp.eye(2)}}
    assert orthogonality(mixed).dtype == jnp.float64 and float(orthogonality(mixed)) == 18
    assert float(spectral_norm(mixed, KEY, 20)) == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: regularizers.jacobian_norm(jnp.sin, jnp.ones(3), KEY, 0),
            "projections must be an integer >= 1",
        ),
        (
            lambda: regularizers.jacobian_norm(jnp.sum, jnp.ones(3), KEY),
            r"must return a vector .* got shape \(\)",
        ),
        (
            lambda: regularizers.orthogonality({"bias": jnp.ones(3)}),
            r"params must have a floating leaf named .kernel., got leaves \['bias'\]",
        ),
        (
            lambda: regularizers.orthogonality({"kernel": jnp.ones(3)}),
            r"must be a matrix .* got shape \(3,\)",
        ),
        (
            lambda: regularizers.orthogonality(jnp.eye(2), 0.0),
            "gain must be one finite number > 0, got 0.0",
        ),
        (
            lambda: regularizers.orthogonality(jnp.eye(2), np.ones(2)),
            "gain must be one finite number > 0",
        ),
        (
            lambda: regularizers.orthogonality(jnp.eye(2), jnp.nan),
            "gain must be one finite number > 0, got nan",
        ),
        (
            lambda: regularizers.spectral_norm(jnp.eye(2), KEY, 0),
            "iterations must be an integer >= 1, got 0",
        ),
        (
            lambda: regularizers.spectral_norm({}, KEY),
            r"params must have a floating leaf named .kernel., got leaves \[\]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_omega_of_tokens_and_of_states_that_are_pytrees_is_that_of_vectors():
    """Hold that Omega does not ask what x is, nor how a state is laid out."""
    w = jax.random.normal(jax.random.key(0), (5, 4, 4))
    x = jnp.asarray(2)

    def join(h):
        return jnp.concatenate(h) if isinstance(h, tuple) else h

    def chain(first, split):
        def block(w, h):
            out = jnp.tanh(join(h)) @ w
            return (out[:1], out[1:]) if split else out

        def embed(w, x):
            return block(jnp.eye(4), w[x] if first is None else first)

        layers = [embed, block, block, block, lambda w, h: join(h) @ w]
        return networks.from_params(layers, list(w), x)

    found = jax.jit(
        lambda: [
            regularizers.omega(*chain(first, split), x, lambda y: y[0])
            for first, split in ((None, False), (None, True), (w[0, 2], False))
        ]
    )()
    np.testing.assert_allclose(found, found[2], rtol=1e-5)
    assert found[2] > 0.01
