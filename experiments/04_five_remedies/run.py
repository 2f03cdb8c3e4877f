"""The five remedies, and others, at four depths: python run.py [--small | --full] [--data-path DIR] [--out DIR].

Runs go into a store, DIR/runs.zarr, a cure at a depth at a time: one that is stopped goes on where it was.
explain.py comes next, into DIR/explained.
"""

import argparse
import dataclasses
import json
import time
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import explain
import jax
import numpy as np
from cures import CURES, FULL, SMALL, Job, Setting, one_run, split, weights
from jax.sharding import Mesh, PartitionSpec
from judging import FAR, GUESSING, estimate, verdict

from jaxstab.analysis import steps_to
from jaxstab.devices import divide_cpu, spread

CLAIMS = {  # what each cure is said to do; how much better than the baseline counts, in the unit of `benefits`
    "speeds training": np.log(1.1),
    "improves accuracy": 0.01,
    "steadies gradients": np.log(2.0),
}


class Runs(NamedTuple):
    """What runs of one cure at one depth came to, a value a seed."""

    steps: (
        np.ndarray
    )  # until the mean accuracy of the last minibatches reaches the goal; inf for never
    train: np.ndarray
    test: np.ndarray
    loss: np.ndarray  # mean of the last fifth of the steps; inf if it diverged
    low: np.ndarray  # smallest ln gradient of a layer at the start
    high: np.ndarray  # largest
    spread: (
        np.ndarray
    )  # largest less smallest, mean of the first step and the last; inf if it diverged
    clipped: np.ndarray  # share of the steps at which clipping did something


MODES = ("fixed", "tuned")
FIELDS = ("rate", *(f"{mode}_{field}" for mode in MODES for field in Runs._fields))


# ---- training


@cache
def program(mlp, setting, clip, updates):
    """(seeds, rates, params, data, test, depth) -> runs, spread over devices, one at a time on each."""

    def share(which, rates, *rest):
        def seen(one):
            return one_run(mlp, setting, clip, updates, *one, *rest)[0]

        return jax.lax.map(seen, (which, rates))

    mesh = Mesh(np.array(jax.local_devices()), ("run",))
    here, everywhere = PartitionSpec("run"), PartitionSpec()
    return spread(share, mesh, (here, here, *[everywhere] * 4), here)


def runs(setting, cure, mlp, depth, params, data, seeds, rates, updates):
    """The runs of every seed at every rate, seed within rate."""
    which, at = np.tile(seeds, len(rates)), np.repeat(rates, len(seeds))
    size = 2 * jax.local_device_count()  # of a group, so that however many runs share one program
    groups = [
        np.resize(np.arange(i, min(i + size, len(at))), size) for i in range(0, len(at), size)
    ]
    trained = program(mlp, setting, cure.clip, updates)
    seen = [
        jax.device_get(
            trained(
                which[g].astype("int32"), at[g].astype("float32"), params, *data, np.int32(depth)
            )
        )
        for g in groups
    ]
    seen = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(at)].astype(float), *seen)
    layers = np.concatenate(
        [seen.log_grad_theta[..., : depth + 1], seen.log_grad_readout[..., None]], axis=-1
    )
    survived = seen.first_nonfinite < 0
    low, high = layers.min(-1), layers.max(-1)
    return Runs(
        steps=np.nan_to_num(steps_to(seen.accuracy, setting.reached, setting.window), nan=np.inf),
        train=seen.train_accuracy[:, -1],
        test=seen.test_accuracy[:, -1],
        loss=np.where(survived, seen.loss[:, -(updates // 5) :].mean(-1), np.inf),
        low=low[:, 0],
        high=high[:, 0],
        spread=np.where(survived, (high - low).mean(-1), np.inf),
        clipped=np.mean(seen.coefficient < 1 - 1e-4, axis=-1),  # NaN, without clipping, is not less
    )


def depth_runs(setting, cure, depth, data):
    """The cure at one depth: {"fixed": Runs at the article's rate, "tuned": Runs at the best}, and that rate."""
    everyone = np.arange(setting.seeds)
    mlp, params = weights(setting, cure, depth, data)
    go = partial(runs, setting, cure, mlp, depth, params, data)
    first = go(everyone, [setting.rate], setting.updates)
    found = {"fixed": go(everyone, [setting.rate], setting.long_updates) if depth == 0 else first}
    if depth not in setting.tuned:
        return found, None
    some = everyone[: setting.tuning_seeds]
    loss = (
        go(some, setting.rates, setting.updates).loss.reshape(len(setting.rates), -1).mean(axis=1)
    )
    best = setting.rates[int(np.argmin(loss))]
    return found | {
        "tuned": first if best == setting.rate else go(everyone, [best], setting.updates)
    }, best


# ---- what it comes to


def row(found, updates):
    """A line of a table."""
    came = np.isfinite(found.steps)
    return {
        "steps": estimate(found.steps[came]) if came.sum() > 1 else [None, None],
        "reached": int(came.sum()),
        "train": estimate(found.train),
        "test": estimate(found.test),
        "low": estimate(found.low),
        "high": estimate(found.high),
        "spread": estimate(found.spread),
        "clipped": float(found.clipped.mean()),
        "diverged": int(np.sum(~np.isfinite(found.loss))),
        "updates": updates,
    }


def benefits(base, cure, updates):
    """How much better the cure is, seed by seed: the same minibatches, and initial weights where it does not set them.

    Steps to the goal in ln of a ratio, one that never came there counting as all updates; accuracy on the test digits;
    spread of the layers' gradients in nats. None for steps if no run came there, and for accuracy if neither learns.
    """
    near = lambda difference: np.clip(np.nan_to_num(difference, nan=-FAR), -FAR, FAR)
    within = lambda steps: np.log(np.minimum(steps, updates))
    arrives = np.isfinite([base.steps, cure.steps]).any()
    learns = max(base.test.mean(), cure.test.mean()) > GUESSING
    with np.errstate(invalid="ignore"):  # inf - inf: both diverged
        return {
            "speeds training": near(within(base.steps) - within(cure.steps)) if arrives else None,
            "improves accuracy": near(cure.test - base.test) if learns else None,
            "steadies gradients": near(base.spread - cure.spread),
        }


def judged(setting, everything):
    """{mode: {depth: {cure: {claim: verdict}}}}."""
    table = {}
    for (name, depth), (found, _) in everything.items():
        for mode in found:
            base = everything["sigmoid", depth][0][mode]
            updates = setting.long_updates if (mode, depth) == ("fixed", 0) else setting.updates
            better = benefits(base, found[mode], updates)
            table.setdefault(mode, {}).setdefault(str(depth), {})[name] = {
                claim: verdict(better[claim], margin) for claim, margin in CLAIMS.items()
            }
    return table


def claimed(setting, rows):
    """The numbers that expected.toml bounds; NaN where a small run lacks the cure."""
    deep = str(max(setting.tuned))
    at = lambda mode, depth, name, field: rows[mode][depth].get(name, {}).get(field, [np.nan])[0]
    test = partial(at, "tuned", deep, field="test")
    return {
        "sigmoid_gradient_rate": (
            at("fixed", deep, "sigmoid", "high") - at("fixed", deep, "sigmoid", "low")
        )
        / int(deep),
        "deep_sigmoid_test": test("sigmoid"),
        "deep_clipping_test": test("clipping"),
        "deep_dropout_test": test("dropout"),
        "deep_relu_test": test("relu"),
        "deep_best_test": max(row["test"][0] for row in rows["tuned"][deep].values()),
        "deep_critical_tanh_test": test("tanh, critical orthogonal"),
        "shallow_sigmoid_test": at("fixed", "0", "sigmoid", "test"),
    }


def whole(setting, data, place):
    """{(cure, depth): ({mode: Runs}, best rate)}: what the store at `place` has not yet is trained first."""

    def one(name, depth):
        found, best = depth_runs(setting, CURES[name], depth, data)
        blank = np.full(setting.seeds, np.nan)
        values = dict.fromkeys(FIELDS, blank)
        values["rate"] = blank if best is None else np.full_like(blank, best)
        for mode, runs_of_mode in found.items():
            fields = runs_of_mode._asdict()
            values |= {f"{mode}_{field}": value for field, value in fields.items()}
        told = {
            mode: f"{of_mode.train.mean():.3f} {of_mode.test.mean():.3f}"
            for mode, of_mode in found.items()
        }
        return values, f"{told} at {best}"

    rows = Job(setting, data, FIELDS, one, __file__).complete(place)
    everything = {}
    for (name, depth), at in rows.items():
        modes = MODES if depth in setting.tuned else MODES[:1]
        found = {mode: Runs(*(at[f"{mode}_{field}"] for field in Runs._fields)) for mode in modes}
        everything[name, depth] = found, float(at["rate"][0])
    return everything


def measure(setting, place, data):
    start = time.time()
    everything = whole(setting, data, place)
    table = judged(setting, everything)
    rows = {}
    for (name, depth), (found, best) in everything.items():
        for mode, one in found.items():
            updates = setting.long_updates if (mode, depth) == ("fixed", 0) else setting.updates
            rate = best if mode == "tuned" else setting.rate
            rows.setdefault(mode, {}).setdefault(str(depth), {})[name] = row(one, updates) | {
                "rate": rate
            }
    return claimed(setting, rows) | {
        "rows": rows,
        "verdicts": table,
        "kinds": {name: CURES[name].kind for name in setting.cures},
        "setting": dataclasses.asdict(setting),
        "seconds": round(time.time() - start),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="one cure, shallow and narrow: shows that it runs"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="all of MNIST, from --data-path, 4,690 updates at any depth",
    )
    parser.add_argument("--data-path", type=Path, help="folder of MNIST's four IDX files")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    if arguments.full and not arguments.data_path:
        parser.error(
            "--full needs --data-path, the folder of MNIST's IDX files; scripts/fetch_mnist makes one"
        )
    setting = SMALL if arguments.small else FULL if arguments.full else Setting()
    data = split(setting, arguments.data_path)
    measured = measure(setting, arguments.out / "runs.zarr", data)
    measured |= explain.measure(setting, arguments.out / "explained", data, measured)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    divide_cpu()
    main()
