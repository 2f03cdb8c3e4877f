"""Does sharpness settle at 2 over the learning rate? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import curvature, datasets, networks


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    digits: int = 1000
    depth: int = 1  # blocks: with embedding and readout, two hidden layers, as in the paper
    width: int = 64
    sigma_w: float = 3**-0.5  # of PyTorch's default weights, those of the paper
    # learning rates by activation and optimiser
    rates: tuple[tuple[str, str, tuple[float, ...]], ...] = (
        ("tanh", "sgd", (0.1, 0.12, 0.14)),
        ("relu", "sgd", (0.2, 0.3, 0.5)),
        ("tanh", "adam", (1e-3,)),
    )
    steps: int = 2000
    every: int = 25  # steps between measurements of the sharpness
    products: int = 10  # of the Hessian for one measurement, begun at the last eigenvector


SMALL = Setting(
    digits=100,
    width=16,
    rates=(("tanh", "sgd", (0.1,)), ("tanh", "adam", (3e-3,))),
    steps=200,
    every=20,
)


def problem(setting, activation):
    """The network, its parameters and the examples: centred digits of mean square 1, one-hot targets."""
    data = datasets.load("mnist-5k")
    chosen = np.random.default_rng(0).permutation(len(data.x))[: setting.digits]
    centred = data.x[chosen] - data.x[chosen].mean(axis=0)
    x = jnp.asarray(centred / np.sqrt(np.mean(centred**2)), jnp.float32)
    targets = jax.nn.one_hot(data.y[chosen], 10, dtype=jnp.float32)
    mlp = networks.MLP(setting.depth, setting.width, activation)
    params = networks.init(mlp, jax.random.key(1), x[0], sigma_w=setting.sigma_w)
    return networks.chain(mlp), params, (x, targets)


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def train(setting, chain, params, optimiser, examples, rate):
    """One run: the loss of every step; sharpness and critical sharpness of every so many."""
    goal = curvature.objective(chain, "squared")
    tx = optax.sgd(rate) if optimiser == "sgd" else optax.adam(rate)
    key = jax.random.key(2)

    def moved(gradient, state, params):
        # optax mixes integers and floats, which strict users have switched off
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(gradient, state, params)

    def update(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(goal)(params, examples)
        updates, state = moved(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def sharpness(params, state, start):
        operator = curvature.hessian(goal, params, examples)
        if optimiser == "adam":
            operator = curvature.preconditioned(operator, curvature.adam_preconditioner(state))
        return curvature.extremes(operator, key, steps=setting.products, start=start)

    def segment(carry, _):
        params, state, vector = carry
        top = sharpness(params, state, vector)
        move = moved(jax.grad(goal)(params, examples), state, params)[0]
        critical = (
            curvature.critical_sharpness(goal, params, move, examples, passes=6).sharpness / rate
        )
        (params, state), losses = jax.lax.scan(update, (params, state), length=setting.every)
        read = {
            "sharpness": top.largest[0],
            "error": top.largest_error[0],
            "critical": critical,
            "loss": losses,
        }
        # Adam has no preconditioner before its first update
        vector = jnp.where(jnp.isnan(top.largest_vectors), start, top.largest_vectors)
        return (params, state, vector), read

    start = jax.random.normal(key, (1, curvature.ravel(params)[0].size), jnp.float32)
    return jax.lax.scan(
        segment, (params, tx.init(params), start), length=setting.steps // setting.every
    )[1]


def summary(optimiser, rate, found):
    """What a run says of its edge; sharpness in units of the largest that is stable."""
    edge = float(curvature.largest_stable_rate(1.0, optimiser)) / rate
    relative = found["sharpness"] / edge
    last = slice(-max(1, len(relative) // 4), None)
    losses = found["loss"].ravel()
    quarter = losses[-(len(losses) // 4) :]
    return {
        "optimiser": optimiser,
        "rate": rate,
        "edge": edge,
        "start": float(np.nan_to_num(relative, nan=0.0)[0]),
        "largest": float(np.nanmax(relative)),
        "settled": float(np.median(relative[last])),
        "spread": float(np.subtract(*np.percentile(relative[last], [90, 10]))),
        "critical": float(np.nanmedian(found["critical"][last] / edge)),
        "error": float(np.nanmedian(found["error"] / found["sharpness"])),
        "rises": float(np.mean(np.diff(quarter) > 0)),
        "fall": float(np.mean(quarter) / losses[0]),
        "sharpness": [None if np.isnan(value) else float(value) for value in found["sharpness"]],
        "losses": found["loss"][:, 0].astype(float).tolist(),
    }


def measure(setting):
    """Every run, and the numbers that expected.toml bounds."""
    runs = []
    for activation, optimiser, rates in setting.rates:
        chain, params, examples = problem(setting, activation)
        for rate in rates:
            found = train(setting, chain, params, optimiser, examples, jnp.float32(rate))
            row = summary(optimiser, rate, jax.tree.map(np.asarray, found)) | {
                "activation": activation
            }
            numbers = {
                name: round(value, 4) for name, value in row.items() if isinstance(value, float)
            }
            print(activation, optimiser, numbers, flush=True)
            runs.append(row)
    descents = [row for row in runs if row["optimiser"] == "sgd"]
    settled = [row["settled"] for row in descents]
    return {
        "start": max(row["start"] for row in descents),
        "settled_least": min(settled),
        "settled_most": max(settled),
        "adam_settled": float(
            np.mean([row["settled"] for row in runs if row["optimiser"] == "adam"])
        ),
        "rises": min(row["rises"] for row in descents),
        "fall": max(row["fall"] for row in descents),
        "error": max(row["error"] for row in runs),
        "runs": runs,
        "setting": dataclasses.asdict(setting),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a narrow net, few steps: shows that it runs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    measured = measure(SMALL if arguments.small else Setting())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
