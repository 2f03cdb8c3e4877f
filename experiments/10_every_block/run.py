"""Does theory predict every block that networks have? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import activations, networks, propagation, theory

# activation: (sigma_w, sigma_b), near the critical line of the plain network
POINTS = {
    "tanh": (1.3, 0.2),
    "relu": (2**0.5, 0.1),
    "gelu": (1.45, 0.3),
    "silu": (1.6, 0.3),
    "sigmoid": (4.0, 0.5),
}
QUANTITIES = ("ln q", "c", "ln |g|^2")
WEIGHTS = ("gaussian", "orthogonal")
# correlation of the two inputs, and of any two examples of a batch
C0 = 0.3
# of the band size * depth/width by which finite width may move a mean: twice 5/4, by which it moves ln |g|^2 of relu
BAND = 2.5


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    norms: tuple[str | None, ...] = (None, "batch", "layer", "rms", "dyt", "derf")
    skips: tuple[str | None, ...] = (None, *networks.SKIPS)
    dropouts: tuple[float, ...] = (0.0, 0.2)
    depth: int = 5
    width: int = 256
    d_in: int = 64
    seeds: int = 48
    batch: int = 8


SMALL = Setting(norms=(None,), skips=("sum",), dropouts=(0.0,), depth=2, width=64, seeds=16)


def blocks(setting):
    """Every combination of norm, its place, skip and dropout; dropout beside plain, LayerNorm, sum and dense alone."""
    for norm in setting.norms:
        for norm_after in (False, True) if norm else (False,):
            for skip in setting.skips:
                for dropout in setting.dropouts:
                    if dropout and (
                        norm not in (None, "layer") or skip not in (None, "sum", "dense")
                    ):
                        continue
                    yield {
                        "norm": norm,
                        "norm_after": norm_after,
                        "skip": skip,
                        "dropout": dropout,
                    }


def inputs(setting, batch):
    """Two inputs, or two batches, of mean square 1, any two examples of which have correlation C0."""
    shape = (2, setting.d_in) if batch is None else (2, batch, setting.d_in)
    count = int(np.prod(shape[:-1]))
    drawn = np.random.default_rng(0).normal(size=(setting.d_in, count))
    root = np.linalg.cholesky(np.full((count, count), C0) + (1 - C0) * np.eye(count))
    rows = root @ np.linalg.qr(drawn)[0].T * setting.d_in**0.5
    return jnp.asarray(rows.reshape(shape), jnp.float32)


def network(setting, block, activation, weights):
    """The network of a block."""
    return networks.mlp(
        setting.depth,
        setting.width,
        activation,
        weights=weights,
        norm=block["norm"],
        norm_after=block["norm_after"],
        skip=block["skip"],
        dropout=block["dropout"] > 0,
        features_out=8,
    )


def measure(setting, block):
    """Each quantity of every network [weights, activation, seed, quantity]."""
    batch = setting.batch if block["norm"] == "batch" else None
    x, other = inputs(setting, batch)

    def one(params, index, key):
        net = network(setting, block, activations.one_of(tuple(POINTS), index), "gaussian")
        masks, end = jax.random.split(key)
        if block["dropout"]:
            params = net.bind(params, key=masks, rate=block["dropout"])
        cotangent = jax.random.normal(end, (8,) if batch is None else (batch, 8), x.dtype)
        gradient = propagation.backward(net, params, x, lambda y: jnp.sum(cotangent * y))
        return jnp.stack(
            [
                propagation.forward(net, params, x).log_q[-1],
                propagation.correlation(net, params, x, other).c[-1],
                2 * (gradient.log_grad_h[0] - gradient.log_grad_h[-1]),
            ]
        )

    @jax.jit
    def draw(key):
        """Weights of gain 1 by both laws."""
        drawn = [
            network(setting, block, "tanh", weights).init(key, x, 1.0, 1.0) for weights in WEIGHTS
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)

    @jax.jit
    def measured(both, index, sigma_w, sigma_b, key):
        scaled = networks.rescale(both, sigma_w, sigma_b)
        return jax.vmap(one, (0, None, None))(scaled, index, key)

    found = []
    for seed in range(setting.seeds):
        draws, rest = jax.random.split(jax.random.key(seed))
        both = draw(draws)
        points = [(index, *point) for index, point in enumerate(POINTS.values())]
        found.append([measured(both, *map(jnp.float32, point), rest) for point in points])
    return np.asarray(found, float).transpose(2, 1, 0, 3)


def law(setting, block, activation):
    """What theory is told of a block."""
    settings = {name: value for name, value in block.items() if name != "dropout"}
    if block["norm"] == "batch":
        settings["batch"] = setting.batch
    return theory.law(activation, keep=1.0 - block["dropout"], **settings)


def predict(setting, block):
    """The same at infinite width [activation, quantity], where both laws of weights have the same maps."""

    @jax.jit
    def one(index, sigma_w, sigma_b):
        known = law(setting, block, activations.one_of(tuple(POINTS), index))
        forward, correlation, backward, _ = theory.predict(
            known,
            sigma_w,
            sigma_b,
            [setting.depth],
            width=setting.width,
            d_in=setting.d_in,
            c0=C0,
        )
        return jnp.stack([forward.log_q[-1], correlation.c[-1], 2 * backward.log_grad_h[0, 0]])

    points = enumerate(POINTS.values())
    return np.asarray([one(float(index), *point) for index, point in points], float)


def compared(setting, block):
    """A row for each law of weights, activation and quantity."""
    values = measure(setting, block)
    mean = values.mean(2)
    wanted = np.broadcast_to(predict(setting, block), mean.shape)
    error = values.std(2, ddof=1) / setting.seeds**0.5
    # float32 rounds what has no scatter, such as the gradient through ReZero's identities
    error = np.hypot(error, 1e-5 * np.maximum(1.0, np.abs(mean)))
    found = theory.compare(mean, wanted, error, depth=setting.depth, width=setting.width, size=BAND)
    names = [
        (weights, activation, quantity)
        for weights in WEIGHTS
        for activation in POINTS
        for quantity in QUANTITIES
    ]
    flat = zip(mean.ravel(), wanted.ravel(), np.ravel(found.z), np.ravel(found.beyond), strict=True)
    for (weights, activation, quantity), (ours, theirs, z, beyond) in zip(names, flat, strict=True):
        yield {
            **block,
            "weights": weights,
            "activation": activation,
            "quantity": quantity,
            "measured": float(ours),
            "predicted": float(theirs),
            "z": float(z),
            "beyond": float(beyond),
        }


def results(setting):
    """Every block, and the numbers that expected.toml bounds."""
    rows = []
    absent = []
    for block in blocks(setting):
        why = theory.missing(law(setting, block, "tanh")).get("log_q")
        if why:
            absent.append({**block, "reason": why})
            continue
        found = list(compared(setting, block))
        worst = max(
            found, key=lambda row: abs(row["beyond"]) if row["beyond"] == row["beyond"] else 1e9
        )
        print(
            *block.values(),
            f"{worst['activation']} {worst['quantity']}: {worst['beyond']:.1f}",
            flush=True,
        )
        rows += found
    beyond = np.abs([row["beyond"] for row in rows])
    return {
        "compared": len(rows),
        "unknown": int(np.isnan(beyond).sum()),
        "blocks": len(rows) // (len(WEIGHTS) * len(POINTS) * len(QUANTITIES)),
        "absent": absent,
        "worst": float(np.nanmax(beyond)),
        "agree": float(np.mean(beyond < 4)),
        "rows": rows,
        "setting": dataclasses.asdict(setting),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one block: shows that it runs")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    measured = results(SMALL if arguments.small else Setting())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
