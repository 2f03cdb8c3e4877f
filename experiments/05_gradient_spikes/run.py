"""Does clipping save a deep net from corrupted batches? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import clipping, datasets, initializers, networks


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    depth: int = 30
    width: int = 64
    batch: int = 64
    steps: int = 600
    seeds: int = 8
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    first: int = 100  # first corrupted batch, and one every so many steps after it
    every: int = 50
    brightness: float = 100.0  # factor of a corrupted batch's pixels; its labels are shuffled
    clippers: tuple[str, ...] = ()


SMALL = Setting(
    depth=6,
    width=16,
    batch=16,
    steps=60,
    seeds=2,
    rates=(0.03,),
    first=20,
    every=20,
    clippers=("none", "global norm"),
)


def clippers(threshold):
    """What is compared; fixed thresholds in units of the median norm of a clean run, entries and layers scaled down.

    Nothing else is tuned: adaptive ones run at their authors' defaults, but for AutoClip's history, which is all.
    """
    return {
        "none": optax.identity(),
        "skip non-finite": clipping.guarded(optax.identity(), "skip", per="tree"),
        "value": optax.clip(threshold / 50),
        "global norm": clipping.clip_by_norm(threshold),
        "per layer": clipping.clip_by_norm(threshold / 5, per="layer"),
        "block RMS": optax.clip_by_block_rms(threshold / 50),
        "adaptive (AGC)": optax.adaptive_grad_clip(0.01),
        "running mean x 2": clipping.clip_by_running_mean(2.0),
        "AutoClip": clipping.auto_clip(10.0, history=600),
        "ZClip": clipping.z_clip(),
        "SPAM's spikes": clipping.clip_spikes(),
        "spectral": clipping.clip_by_spectral_norm(threshold / 5),
        "normalised": clipping.normalize(threshold),
    }


def split(key, data):
    """Training and test digits, four to one."""
    order = jax.random.permutation(key, len(data.x))
    x, y = jnp.asarray(data.normalised().x)[order], jnp.asarray(data.y)[order]
    cut = len(x) // 5
    return (x[cut:], y[cut:]), (x[:cut], y[:cut])


def train(setting, clipper, corrupted, key, rate, data):
    """One run: test accuracy, mean training loss of the last tenth, and what the clipper did."""
    keys = jax.random.split(key, 4)
    (x, y), (test_x, test_y) = split(keys[0], data)
    mlp = networks.MLP(setting.depth, setting.width, "relu")
    params = networks.chain(mlp).init(keys[1], x[0], sigma_w=initializers.gain("relu").sigma_w)
    tx = optax.chain(clipping.monitored(clipper), optax.sgd(rate, momentum=0.9))
    logits = lambda params, x: mlp.apply({"params": params._asdict()}, x)

    def step(carry, at):
        params, state = carry
        index, key = at
        pick, shuffle = jax.random.split(key)
        chosen = jax.random.choice(pick, len(x), (setting.batch,))
        hit = corrupted & (index >= setting.first) & ((index - setting.first) % setting.every == 0)
        labels = jnp.where(hit, jax.random.permutation(shuffle, y[chosen]), y[chosen])
        pixels = x[chosen] * jnp.where(hit, setting.brightness, 1.0)
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            logits(p, pixels), labels
        ).mean()
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        fired = optax.tree.get(state, "fired")
        return (optax.apply_updates(params, updates), state), (
            value,
            optax.tree.get(state, "norm_before"),
            fired,
            hit,
        )

    steps = (jnp.arange(setting.steps), jax.random.split(keys[2], setting.steps))
    (params, state), (losses, norms, fired, hit) = jax.lax.scan(
        step, (params, tx.init(params)), steps
    )
    clean = ~hit & (jnp.arange(setting.steps) >= setting.steps * 9 // 10)
    return {
        "accuracy": jnp.mean(jnp.argmax(logits(params, test_x), -1).astype(test_y.dtype) == test_y),
        "loss": jnp.mean(losses, where=clean),
        "median_norm": jnp.nanmedian(jnp.where(hit, jnp.nan, norms)),
        "spike": jnp.nanmax(jnp.where(hit, norms, jnp.nan))
        if setting.steps > setting.first
        else jnp.nan,
        "fired_clean": jnp.mean(fired, where=~hit),
        "fired_hit": jnp.sum(fired & hit) / jnp.maximum(jnp.sum(hit), 1),
        "nonfinite": optax.tree.get(state, "nonfinite_count") > 0,
    }


def runs(setting, clipper, corrupted, data):
    """Every rate and seed at once: [rate, seed]."""
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    one = lambda rate, key: train(setting, clipper, corrupted, key, rate, data)
    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return jax.tree.map(np.asarray, jax.jit(every)(jnp.asarray(setting.rates, jnp.float32), keys))


def best(found):
    """The learning rate of the lowest training loss over seeds, divergence counting as infinite; its seeds."""
    loss = np.where(np.isfinite(found["loss"]), found["loss"], np.inf).mean(axis=1)
    return int(np.argmin(loss))


def summary(setting, found):
    """Numbers of the best rate, with standard errors over seeds."""
    i = best(found)
    accuracy = found["accuracy"][i]
    return {
        "rate": setting.rates[i],
        "accuracy": float(accuracy.mean()),
        "accuracy_se": float(accuracy.std(ddof=1) / np.sqrt(len(accuracy))),
        "worst_seed": float(accuracy.min()),
        "diverged": int(found["nonfinite"][i].sum()),
        "fired_on_clean": float(found["fired_clean"][i].mean()),
        "fired_on_corrupted": float(found["fired_hit"][i].mean()),
        "median_norm": float(np.median(found["median_norm"][i])),
        "largest_spike": float(np.max(found["spike"][i]))
        if np.isfinite(found["spike"][i]).all()
        else None,
    }


def measure(setting):
    """The table, and the numbers that expected.toml bounds."""
    data = datasets.load("digits")
    clean = runs(setting, optax.identity(), False, data)
    threshold = float(np.median(clean["median_norm"][best(clean)]))
    table = {"clean, no clipping": summary(setting, clean)}
    for name, clipper in clippers(threshold).items():
        if not setting.clippers or name in setting.clippers:
            table[name] = summary(setting, runs(setting, clipper, True, data))
            print(f"{name:20}", {k: round(v, 4) for k, v in table[name].items()}, flush=True)
    corrupted = {
        name: row["accuracy"] for name, row in table.items() if name != "clean, no clipping"
    }
    return {
        "clean_accuracy": table["clean, no clipping"]["accuracy"],
        "unclipped_accuracy": corrupted["none"],
        "global_norm_gain": corrupted["global norm"] - corrupted["none"],
        "global_norm_shortfall": table["clean, no clipping"]["accuracy"] - corrupted["global norm"],
        "threshold": threshold,
        "table": table,
        "setting": dataclasses.asdict(setting),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a shallow net, few steps: shows that it runs"
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
