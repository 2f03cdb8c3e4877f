"""Do shaped activations train where raw ones do not? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import functools
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import activations, datasets, initializers, networks, theory, training

# raw activation, what is shaped instead of it, method: relu has no smooth transformation, its leaky form has
PAIRS = (
    ("relu", "leaky_relu", "tat"),
    ("gelu", "gelu", "dks"),
    ("softplus", "softplus", "tat"),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    pairs: tuple[tuple[str, str, str], ...] = PAIRS
    depth: int = 50
    width: int = 50
    examples: int = 1437  # four in five of the digits
    batch: int = 64
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003)
    seeds: int = 2
    steps: int = 200


SMALL = Setting(
    pairs=PAIRS[1:2], depth=30, width=32, examples=256, rates=(0.001, 0.003), seeds=1, steps=60
)


def examples(setting):
    """Digits of mean 0 and mean square 1 over all pixels, for training and for testing."""
    data = datasets.load("digits")
    chosen = np.random.default_rng(0).permutation(len(data.x))
    x = data.x - data.x.mean()
    x = jnp.asarray((x / np.sqrt(np.mean(x**2)))[chosen], jnp.float32)
    y = jnp.asarray(data.y[chosen])
    kept = slice(0, setting.examples)
    rest = slice(1437, None)
    return training.Examples(x[kept], y[kept]), training.Examples(x[rest], y[rest])


@functools.partial(jax.jit, static_argnums=0)
def trained(setting, activation, sigma_w, rates, keys, data, test):
    """Loss of every step and accuracies at the end, of every rate and seed; raw and shaped share the program."""

    def one(rate, key):
        mlp = networks.MLP(setting.depth, setting.width, activation, features_out=10)
        draw, shuffle = jax.random.split(key)
        params = networks.chain(mlp).init(draw, data.x, sigma_w, 0.0)
        seen, _ = training.train(
            mlp,
            params,
            optax.sgd(rate, momentum=0.9),
            data,
            key=shuffle,
            steps=setting.steps,
            batch=setting.batch,
            test=test,
        )
        return seen.loss, seen.train_accuracy[-1], seen.test_accuracy[-1]

    return jax.vmap(lambda rate: jax.vmap(lambda key: one(rate, key))(keys))(rates)


def correlations(activation, sigma_w, depth):
    """Correlation at layers 0, 1, ... of two inputs that have none, by the maps of theory."""
    q, c = sigma_w**2, 0.0
    found = [c]
    for _ in range(depth):
        c = float(theory.correlation_map(activation, sigma_w, 0.0, q, c))
        q = float(theory.length_map(activation, sigma_w, 0.0, q))
        found.append(c)
    return found


def run(setting, activation, sigma_w, data, test):
    """Train one activation at every rate, and keep the rate of the lowest training loss."""
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    rates = jnp.asarray(setting.rates, jnp.float32)
    as_arrays = jax.tree.map(jnp.float32, activation)
    loss, on_train, on_test = map(
        np.asarray, trained(setting, as_arrays, jnp.float32(sigma_w), rates, keys, data, test)
    )
    # a run that is not finite has lost
    late = loss[..., -setting.steps // 5 :].mean((1, 2))
    late = np.where(np.isfinite(late), late, np.inf)
    best = int(np.argmin(late))
    return {
        "rate": setting.rates[best],
        "loss": float(late[best]),
        "train_accuracy": on_train[best].tolist(),
        "test_accuracy": on_test[best].tolist(),
        "losses": loss[best].mean(0).tolist(),
        "sigma_w": sigma_w,
        "c": correlations(activation, sigma_w, setting.depth),
    }


def raw_form(shaped):
    """The activation that was shaped, in the form of the shaped one, so that both are one program."""
    numbers = {"alpha": 1.0, "beta": 0.0, "gamma": 1.0, "delta": 0.0}
    if "slope" in shaped.base.parameters:
        return activations.leaky_relu(0.0)
    found = shaped.activation
    return activations.Activation(found.name, found.static_fn, found.kinks, parameters=numbers)


def measure(setting):
    """Every activation raw and shaped, and the numbers that expected.toml bounds."""
    data, test = examples(setting)
    runs = []
    for raw, base, method in setting.pairs:
        with warnings.catch_warnings():
            # that gradients explode at the gain that keeps the length is what is shown here
            warnings.simplefilter("ignore")
            gain = initializers.gain(raw).sigma_w
        shaped = theory.shaped(base, setting.depth, method)
        tailored = shaped.activation
        if "slope" in shaped.base.parameters and shaped.delta == 0.0:
            # gamma leaky_relu(x) is leaky_relu at gain gamma
            tailored = shaped.base
        rows = {
            "raw": run(setting, raw_form(shaped), gain, data, test),
            "shaped": run(
                setting, tailored, shaped.gamma if tailored is shaped.base else 1.0, data, test
            ),
        }
        for kind, row in rows.items():
            accuracy = np.mean(row["train_accuracy"])
            print(raw, kind, f"rate {row['rate']}, train accuracy {accuracy:.3f}", flush=True)
            runs.append({"activation": raw, "method": method, "kind": kind, **row})
    means = {
        (row["activation"], row["kind"]): float(np.mean(row["train_accuracy"])) for row in runs
    }
    names = [raw for raw, _, _ in setting.pairs]
    return {
        "shaped": min(means[name, "shaped"] for name in names),
        "raw": max(means[name, "raw"] for name in names),
        "gained": min(means[name, "shaped"] - means[name, "raw"] for name in names),
        "test": min(
            float(np.mean(row["test_accuracy"])) for row in runs if row["kind"] == "shaped"
        ),
        "runs": runs,
        "setting": dataclasses.asdict(setting),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="one activation, few steps: shows that it runs"
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
