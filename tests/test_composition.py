"""All cures at once: norm, dropout, skip, initialiser, clipper, guard, telemetry, penalties, in one jitted step."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax_variables import variables

from jaxstab import clipping, initializers, networks, propagation, regularizers
from jaxstab.networks import MLP
from jaxstab.networks.binding import initial_statistics

KEY = jax.random.key(4)
MLP_ = MLP(
    depth=6, width=12, activation="tanh", features_out=3, weights=initializers.critical("tanh", weights="orthogonal"),
    norm="batch", dropout=True, skip="rezero",
)  # fmt: skip
X = jax.random.normal(KEY, (24, 5))
Y = jnp.argmax(X[:, :3], axis=1)
STEPS = 60


class Knobs(NamedTuple):
    """What a sweep may vary without compiling anew."""

    sigma_w: float = 1.0
    rate: float = 0.1
    threshold: float = 0.5
    learning_rate: float = 0.3
    strength: float = 1e-3


def _train(key, knobs):
    draw, masks = jax.random.split(key)
    params = networks.chain(MLP_).init(draw, X, knobs.sigma_w, 0.0)
    tx = optax.chain(
        clipping.guarded(
            clipping.monitored(clipping.clip_by_norm(knobs.threshold), per="layer"),
            "skip",
            per="tree",
        ),
        optax.sgd(knobs.learning_rate, momentum=0.9),
    )

    def step(carry, key):
        params, stats, state = carry
        wet, projection = jax.random.split(key)

        def loss(params):
            bound = networks.chain(MLP_).bind(params, stats=stats, key=wet, rate=knobs.rate)
            y, new = MLP_.apply(variables(bound), X, mutable=["batch_stats"])
            error = optax.softmax_cross_entropy_with_integer_labels(y, Y).mean()
            entropy = lambda y: optax.softmax_cross_entropy_with_integer_labels(y, Y).mean()
            penalty = regularizers.omega(networks.chain(MLP_), bound, X, entropy)
            penalty += regularizers.orthogonality(params.blocks)
            dry = lambda x: MLP_.apply(variables(bound), x, train=False)
            penalty += regularizers.jacobian_norm(dry, X[0], projection).value
            return error + knobs.strength * penalty, (error, new["batch_stats"])

        gradient, (error, stats) = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), stats, state), error

    start = (params, initial_statistics(MLP_, params, X), tx.init(params))
    (params, stats, state), errors = jax.lax.scan(step, start, jax.random.split(masks, STEPS))
    inference = networks.chain(MLP_).bind(params, stats=stats)
    accuracy = jnp.mean(jnp.argmax(MLP_.apply(variables(inference), X, train=False), -1) == Y)
    profile = propagation.forward(networks.chain(MLP_, train=False), inference, X[0])
    return errors, accuracy, state, profile


@pytest.fixture(scope="module")
def trained():
    count = chex.assert_max_traces(_train, n=1)
    knobs = Knobs(
        *jnp.array(
            [[1.0, 1.0, 1.5], [0.0, 0.3, 0.1], [0.5, 0.01, 5.0], [0.3] * 3, [0.0, 1e-3, 1e-2]]
        )
    )
    runs = jax.jit(jax.vmap(jax.vmap(count, (0, None)), (None, 0)))
    keys = jax.random.split(KEY, 2)
    # a second grid of knobs compiles nothing: the traces are counted
    return runs(keys, knobs), runs(keys, jax.tree.map(lambda v: 1.1 * v, knobs))


@pytest.mark.slow
def test_it_trains(trained):
    (errors, accuracy, _, profile), _ = trained
    assert errors.shape == (3, 2, STEPS) and np.isfinite(errors).all()
    # three classes, of which the largest coordinate of three tells: learnt without the clipper at 0.01
    assert np.all(errors[0, :, -10:].mean(-1) < 0.5 * errors[0, :, 0])
    assert np.all(accuracy[0] > 0.8)
    assert profile.log_q.shape == (3, 2, 7) and np.isfinite(profile.log_q).all()


@pytest.mark.slow
def test_telemetry_is_read_wherever_it_stands(trained):
    (_, _, state, _), _ = trained
    read = lambda name: np.asarray(optax.tree.get(state, name))
    assert read("firing_rate").shape == (3, 2)
    # a threshold of 0.01 fires nearly always, and to the threshold
    assert np.all(read("firing_rate")[1] > 0.9)
    np.testing.assert_allclose(read("norm_after")[1], 0.01, rtol=1e-6)
    assert np.all(read("coefficient") <= 1 + 1e-12)
    logs = optax.tree.get(state, "log_norms")
    assert logs["blocks/dense"].shape == (3, 2, 6) and logs["blocks/norm"].shape == (3, 2, 6)
    total = sum(np.exp(2 * np.asarray(v)).reshape(3, 2, -1).sum(-1) for v in logs.values())
    np.testing.assert_allclose(np.sqrt(total), read("norm_before"), rtol=1e-9)


@pytest.mark.slow
def test_a_run_alone_is_the_run_among_others(trained):
    (errors, _, _, _), _ = trained
    knobs = Knobs(1.0, 0.3, 0.01, 0.3, 1e-3)
    alone = jax.jit(_train)(jax.random.split(KEY, 2)[1], knobs)
    np.testing.assert_allclose(alone[0], errors[1, 1], rtol=1e-7)
