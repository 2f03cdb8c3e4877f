"""Does sharpness settle at 2 over the learning rate? python run.py [--small] [--out DIR] writes measured.json.

Each run's row goes into DIR/rows.jsonl, so that what was stopped goes on where it was.
"""

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
class Variant:
    """A network or an optimiser that differs from the first tanh run in one thing.

    Its rate is a share of the largest stable one at the start: its sharpness there is another.
    """

    name: str
    activation: str = "tanh"
    norm: str | None = None
    depth: int | None = None  # blocks; None for those of the setting
    clip: float | None = None  # largest norm of a gradient, in units of that at the start
    seed: int = 101
    share: float = 0.8  # of the largest stable rate at the start
    kind: str = "plain"  # which claim it is about


# BatchNorm flattens its sharp start by itself, so rates beyond that edge are stable too
BATCH_NORM_SHARES = (5.0, 3.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    digits: int = 5000
    depth: int = 1  # blocks: with embedding and readout, two hidden layers, as in the paper
    width: int = 64
    sigma_w: float = 3**-0.5  # of PyTorch's default weights, those of the paper
    # learning rates by activation and optimiser
    rates: tuple[tuple[str, str, tuple[float, ...]], ...] = (
        ("tanh", "sgd", (0.14, 0.16, 0.18)),
        ("relu", "sgd", (0.2, 0.3, 0.5)),
        ("tanh", "adam", (1e-3,)),
    )
    variants: tuple[Variant, ...] = (
        *(
            Variant(
                f"BatchNorm, {share:g}", activation, norm="batch", share=share, kind="BatchNorm"
            )
            for share in BATCH_NORM_SHARES
            for activation in ("tanh", "relu")
        ),
        Variant("clipped", clip=0.1, kind="clipped"),
        Variant("depth 4", depth=4),
        Variant("seed 102", seed=102),
        Variant("seed 103", seed=103),
    )
    steps: int = 4000
    every: int = 25  # steps between measurements of the sharpness
    products: int = 10  # of the Hessian for one measurement, begun at the last eigenvector


SMALL = Setting(
    digits=100,
    width=16,
    rates=(("tanh", "sgd", (0.1,)), ("tanh", "adam", (3e-3,))),
    variants=(Variant("clipped", clip=0.1, kind="clipped"),),
    steps=200,
    every=20,
)


def problem(setting, variant):
    """The loss, the parameters and the examples: centred digits of mean square 1, one-hot targets."""
    data = datasets.load("mnist-5k")
    chosen = np.random.default_rng(0).permutation(len(data.x))[: setting.digits]
    centred = data.x[chosen] - data.x[chosen].mean(axis=0)
    x = jnp.asarray(centred / np.sqrt(np.mean(centred**2)), jnp.float32)
    targets = jax.nn.one_hot(data.y[chosen], 10, dtype=jnp.float32)
    depth = variant.depth or setting.depth
    mlp = networks.MLP(depth, setting.width, variant.activation, norm=variant.norm)
    params = networks.chain(mlp).init(jax.random.key(variant.seed), x[0], sigma_w=setting.sigma_w)
    goal = curvature.objective(networks.chain(mlp), "squared", mixes=variant.norm is not None)
    return goal, params, (x, targets)


@functools.partial(jax.jit, static_argnums=0)
def at_start(goal, params, examples):
    """Sharpness and norm of the gradient before the first update."""
    operator = curvature.hessian(goal, params, examples)
    top = curvature.extremes(operator, jax.random.key(2), steps=30).largest[0]
    return top, optax.tree.norm(jax.grad(goal)(params, examples))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def train(setting, goal, params, optimiser, examples, rate, clip):
    """One run: the loss of every step; sharpness and critical sharpness of every so many."""
    tx = optax.sgd(rate) if optimiser == "sgd" else optax.adam(rate)
    key = jax.random.key(2)

    def moved(gradient, state, params):
        # optax mixes integers and floats, which strict users have switched off
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(gradient, state, params)

    def update(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(goal)(params, examples)
        coefficient = jnp.minimum(1.0, clip / optax.tree.norm(gradient))
        updates, state = moved(optax.tree.scale(coefficient, gradient), state, params)
        return (optax.apply_updates(params, updates), state), (loss, coefficient)

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
        (params, state), (losses, coefficients) = jax.lax.scan(
            update, (params, state), length=setting.every
        )
        read = {
            "sharpness": top.largest[0],
            "error": top.largest_error[0],
            "critical": critical,
            "loss": losses,
            "coefficient": coefficients,
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
        "clipped": float(np.mean(found["coefficient"].ravel()[-len(quarter) :] < 1)),
        "sharpness": [None if np.isnan(value) else float(value) for value in found["sharpness"]],
        "losses": found["loss"][:, 0].astype(float).tolist(),
    }


def run(setting, variant, optimiser, rate=None):
    """One run as a row; without a rate, at a share of the largest stable one at the start."""
    goal, params, examples = problem(setting, variant)
    clip = np.inf
    if rate is None:
        top, norm = map(float, at_start(goal, params, examples))
        rate = variant.share * float(curvature.largest_stable_rate(top, optimiser))
        clip = norm * (variant.clip or np.inf)
    numbers = jnp.float32(rate), jnp.float32(clip)
    found = train(setting, goal, params, optimiser, examples, *numbers)
    row = summary(optimiser, rate, jax.tree.map(np.asarray, found))
    row |= {"activation": variant.activation, "variant": variant.name, "kind": variant.kind}
    shown = {name: round(value, 4) for name, value in row.items() if isinstance(value, float)}
    print(variant.name, variant.activation, optimiser, shown, flush=True)
    return row


def kept(path, setting, *which):
    """The row of a run from the file at `path`, to which it is added if it is not there."""
    name = repr((dataclasses.replace(setting, rates=(), variants=()), *which))
    lines = path.read_text().splitlines() if path.exists() else []
    rows = dict(json.loads(line) for line in lines)
    if name not in rows:
        rows[name] = run(setting, *which)
        with path.open("a") as file:
            file.write(json.dumps([name, rows[name]]) + "\n")
    return rows[name]


def measure(setting, path):
    """Every run, and the numbers that expected.toml bounds; rows are kept in the file at `path`."""
    runs = [
        kept(path, setting, Variant("", activation), optimiser, rate)
        for activation, optimiser, rates in setting.rates
        for rate in rates
    ]
    variants = [kept(path, setting, variant, "sgd") for variant in setting.variants]
    descents = [row for row in runs if row["optimiser"] == "sgd"]
    settled = [row["settled"] for row in descents]

    def settled_of(kind):
        return [row["settled"] for row in variants if row["kind"] == kind] or [float("nan")]

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
        "variants_least": min(settled_of("plain")),
        "variants_most": max(settled_of("plain")),
        "batch_norm_least": min(settled_of("BatchNorm")),
        "batch_norm_most": max(settled_of("BatchNorm")),
        "clipped_settled": settled_of("clipped")[0],
        "runs": runs,
        "variants": variants,
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
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured = measure(SMALL if arguments.small else Setting(), arguments.out / "rows.jsonl")
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
