"""Blocks drawn at random: what networks of finite width measure, beside what theory predicts of them."""

import argparse
import math
import random
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import networks, propagation, theory

DEPTH = 4
D_IN = 48
OUTPUTS = 6
ACTIVATIONS = (
    "tanh", "relu", "gelu", "elu", "sigmoid", "silu", "sin", "softplus", "leaky_relu", "hard_tanh",
    "selu", "erf",
)  # fmt: skip
NORMS = (None, "batch", "layer", "rms", "peri", "dyt", "derf")
SKIPS = (None, "sum", "scaled", "rezero", "dense")
WEIGHTS = ("gaussian", "orthogonal", "he_normal", "glorot_uniform")


class Case(NamedTuple):
    """A block at one point.

    Attributes:
        activation: name of phi.
        block: settings of the block, of `networks.MLP` and `theory.law` alike.
        keep: keep rate of dropout.
        batch: examples of a batch; None without BatchNorm.
        alpha: factor of a ReZero branch.
        gains: sigma_w and sigma_b.
        q0: mean square of the inputs.
        c0: correlation of any two inputs.
    """

    activation: str
    block: dict[str, Any]
    keep: float
    batch: int | None
    alpha: float
    gains: tuple[float, float]
    q0: float
    c0: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="to go on for")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--networks", type=int, default=48)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    source = random.Random(args.seed)
    end = time.perf_counter() + args.seconds
    count = 0
    worst = 0.0
    while time.perf_counter() < end:
        case = draw(source)
        count += 1
        measured = measure(case, args.width, args.networks, count)
        excess = compare(measured, predict(case, args.width), args.width)
        largest = max(excess, key=lambda name: excess[name])
        worst = max(worst, excess[largest])
        verdict = "OFF" if excess[largest] > 1 else "ok"
        print(f"{verdict:4}{excess[largest]:5.2f} {largest:20} {case}", flush=True)
    print(f"{count} blocks; the largest difference is {worst:.2f} of what is allowed")


def draw(source: random.Random) -> Case:
    """A block that theory has a law of."""
    norm = source.choice(NORMS)
    skip = source.choice(SKIPS)
    if norm == "peri" and skip == "dense":
        skip = "sum"
    # behind phi BatchNorm's law is that of many examples
    behind = norm not in (None, "batch") and source.random() < 0.4
    block = {"norm": norm, "norm_after": behind, "skip": skip, "weights": source.choice(WEIGHTS)}
    if norm in ("batch", "layer", "rms", "peri"):
        block["epsilon"] = source.choice((1e-5, 0.1, 1.0))
    return Case(
        activation=source.choice(ACTIVATIONS),
        block=block,
        keep=source.choice((1.0, 1.0, 0.9, 0.5)),
        batch=source.choice((4, 6, 8)) if norm == "batch" else None,
        alpha=source.choice((0.2, 0.7)),
        gains=(source.uniform(0.6, 2.0), source.choice((0.0, 0.1, 0.5))),
        q0=source.choice((0.2, 1.0, 4.0)),
        c0=source.choice((0.0, 0.3, 0.9)),
    )


def inputs(case: Case) -> jax.Array:
    """Two inputs, or two batches, any two examples of which have correlation c0."""
    shape = (2, D_IN) if case.batch is None else (2, case.batch, D_IN)
    count = math.prod(shape[:-1])
    orthonormal = np.linalg.qr(np.random.default_rng(5).normal(size=(D_IN, count)))[0].T
    correlations = np.full((count, count), case.c0) + (1 - case.c0) * np.eye(count)
    rows = np.linalg.cholesky(correlations) @ orthonormal
    return jnp.asarray(rows.reshape(shape) * (D_IN * case.q0) ** 0.5)


def measure(case: Case, width: int, count: int, seed: int) -> dict[str, np.ndarray]:
    """Samples [network, layer]; squares of gradients are over that of the last state."""
    mlp = networks.MLP(
        DEPTH, width, case.activation, features_out=OUTPUTS, dropout=case.keep < 1, **case.block
    )
    chain = networks.chain(mlp)
    x, other = inputs(case)

    def one(key: jax.Array) -> dict[str, jax.Array]:
        weights, masks, ends, directions = jax.random.split(key, 4)
        params = chain.init(weights, x, *case.gains)
        if case.block["skip"] == "rezero":
            alpha = jnp.full_like(params.blocks["alpha"], case.alpha)
            params = params._replace(blocks=params.blocks | {"alpha": alpha})
        if case.keep < 1:
            params = chain.bind(params, key=masks, rate=1 - case.keep)
        end = jax.random.normal(ends, (*x.shape[:-1], OUTPUTS))
        gradient = propagation.backward(chain, params, x, lambda y: jnp.sum(end * y))
        last = gradient.log_grad_h[-1]
        moved = jax.random.normal(directions, x.shape)
        push = jax.jvp(lambda x: networks.states(chain, params, x)[-1], (x,), (moved,))[1]
        return {
            "q": jnp.exp(propagation.forward(chain, params, x).log_q),
            "c": propagation.correlation(chain, params, x, other).c,
            "log growth": gradient.log_grad_h - last,
            "growth": jnp.exp(2 * (gradient.log_grad_h - last)),
            "parameters": jnp.exp(2 * (gradient.log_grad_theta - last)),
            "Jacobian": jnp.sum(push**2, keepdims=True).reshape(1),
        }

    keys = jax.random.split(jax.random.key(seed, impl="rbg"), count)
    samples = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=16))(keys)
    return {name: np.asarray(values) for name, values in samples.items()}


def predict(case: Case, width: int) -> dict[str, np.ndarray]:
    """The same at infinite width; NaN where theory has a reason."""
    block = theory.law(
        case.activation, keep=case.keep, batch=case.batch, alpha=case.alpha, **case.block
    )
    forward, correlation, backward, spectrum = theory.predict(
        block, *case.gains, [DEPTH], width=width, d_in=D_IN, q0=case.q0, c0=case.c0
    )
    units = width * (DEPTH + 1 if case.block["skip"] == "dense" else 1)
    values = min(units, D_IN) * (case.batch or 1)
    predicted = {
        "q": jnp.exp(forward.log_q),
        "c": correlation.c,
        "log growth": backward.log_grad_h[0],
        "growth": jnp.exp(2 * backward.log_grad_h[0]),
        "parameters": jnp.exp(2 * backward.log_grad_theta[0]),
        "Jacobian": values * jnp.exp(spectrum.log_mean_square),
    }
    return {name: np.asarray(values) for name, values in predicted.items()}


def compare(
    measured: dict[str, np.ndarray], predicted: dict[str, np.ndarray], width: int
) -> dict[str, float]:
    """The largest difference of each quantity, over four standard errors and what finite width may shift."""
    excess = {}
    for name, wanted in predicted.items():
        samples = measured[name]
        error = np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
        # logarithms and correlations are of order 1 where they are small
        size = np.maximum(np.abs(wanted), 0.2 if name in ("c", "log growth") else 0.0)
        # four layers shift a mean by O(4 / width), relu's gradient by 5/4 of that
        allowed = 4 * error + 6 / width * size
        off = np.abs(np.mean(samples, axis=0) - wanted) / np.maximum(allowed, 1e-12)
        excess[name] = float(np.nanmax(off, initial=0.0))
    return excess


if __name__ == "__main__":
    main()
