"""The five remedies, and others, at four depths: python run.py [--small | --full] [--data-path DIR] [--out DIR].

Runs go into a store, DIR/runs.zarr, a cure at a depth at a time: one that is stopped goes on where it was.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxstab import clipping, datasets, initializers, networks, store
from jaxstab.analysis import steps_to
from jaxstab.devices import divide_cpu, spread
from jaxstab.sweeps.durable import Result, complete, open_store, settings_of_run
from jaxstab.training import Examples, train

ERRORS = 3  # standard errors that decide
GUESSING = 0.15  # test accuracy of a network that has learnt nothing, at most
FAR = 1e3  # what stands for an infinite difference of logarithms
CLAIMS = {  # what each cure is said to do; how much better than the baseline counts, in the unit of `benefits`
    "speeds training": np.log(1.1),
    "improves accuracy": 0.01,
    "steadies gradients": np.log(2.0),
}


class Cure(NamedTuple):
    """One row of the tables: what differs from the baseline, a sigmoid network with Glorot's uniform weights."""

    kind: str
    mlp: dict
    weights: str = "glorot_uniform"
    draw: str = "plain"  # or "looks-linear", "lsuv"
    clip: float | None = None


RELU = {"activation": "relu"}
CURES = {
    "sigmoid": Cure("baseline", {}),
    "relu": Cure("activation", RELU),
    "tanh": Cure("activation", {"activation": "tanh"}),
    "gelu": Cure("activation", {"activation": "gelu"}),
    "selu": Cure("activation", {"activation": "selu"}),
    "BatchNorm": Cure("BatchNorm", {"norm": "batch"}),
    "dropout": Cure("dropout", {"dropout": True}),
    "critical": Cure("initialisation", {}, weights="critical sigmoid"),
    "LSUV": Cure("initialisation", {}, weights="orthogonal", draw="lsuv"),
    "clipping": Cure("clipping", {}, clip=1.0),
    "LayerNorm": Cure("LayerNorm", {"norm": "layer"}),
    "residual": Cure("residual", {"skip": "sum"}),
    "ReZero": Cure("residual", {"skip": "rezero"}),
    "relu, He": Cure("pair", RELU, weights="he_normal"),
    "relu, He, clipping": Cure("pair", RELU, weights="he_normal", clip=1.0),
    "relu, He, BatchNorm": Cure("pair", RELU | {"norm": "batch"}, weights="he_normal"),
    "relu, He, LayerNorm, residual": Cure(
        "pair", RELU | {"norm": "layer", "skip": "sum"}, weights="he_normal"
    ),
    "relu, looks-linear": Cure("pair", RELU, weights="orthogonal", draw="looks-linear"),
    "tanh, critical orthogonal": Cure("pair", {"activation": "tanh"}, weights="critical tanh"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment. Depth counts blocks: 784-128-10 has none, only embed and readout."""

    width: int = 128
    depths: tuple[int, ...] = (0, 10, 30, 50)
    tuned: tuple[int, ...] = (0, 10, 30, 50)  # depths at which the learning rate is tuned too
    batch: int = 32
    rate: float = 0.01  # the article's
    rates: tuple[float, ...] = (0.0025, 0.01, 0.04, 0.16, 0.64, 2.56)
    long_updates: int = (
        4690  # updates at depth 0 and the article's rate: 10 epochs of MNIST, 128 a batch
    )
    updates: int = 250  # all others
    seeds: int = 8
    tuning_seeds: int = 2
    dropout: float = 0.2
    window: int = 20  # steps that the accuracy is a mean over
    reached: float = 0.9
    train: int = 4000
    test: int = 1000
    alone: bool = True  # whether depth 0 has a program of its own, not that of the deepest
    cures: tuple[str, ...] = tuple(CURES)


SMALL = Setting(
    width=16, depths=(0, 6), tuned=(0, 6), rates=(0.01, 0.16), long_updates=60, updates=60, seeds=2,
    reached=0.3, train=400, test=100, alone=False, cures=("sigmoid", "relu, He, BatchNorm"),
)  # fmt: skip
FULL = Setting(batch=128, updates=4690, train=60_000, test=10_000)


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
FIELDS = {
    name: store.Field((), "float64", ())
    for name in ("rate", *(f"{m}_{f}" for m in MODES for f in Runs._fields))
}


# ---- training


@cache
def critical(name):
    return initializers.critical(name, weights="orthogonal" if name == "tanh" else "gaussian")


def network(setting, cure, deepest):
    weights = (
        critical(cure.weights.split()[1]) if cure.weights.startswith("critical") else cure.weights
    )
    return networks.MLP(
        deepest, setting.width, **({"activation": "sigmoid"} | cure.mlp), weights=weights
    )


@partial(jax.jit, static_argnames=("mlp", "draw", "depth"))
def drawn(mlp, draw, depth, keys, x):
    """Parameters of all seeds: for a network of this depth, with blocks up to the deepest behind it."""

    def one(key):
        if draw == "looks-linear":
            return initializers.looks_linear(mlp, key, x[0])
        params = networks.init(mlp, key, x[0])
        if draw == "plain":
            return params
        # LSUV looks at what each layer gets, the readout at the end too
        shallow = params._replace(blocks=jax.tree.map(lambda leaf: leaf[:depth], params.blocks))
        fitted = initializers.lsuv(mlp, shallow, x)
        behind = lambda new, old: jnp.concatenate([new, old[depth:]])
        return fitted._replace(blocks=jax.tree.map(behind, fitted.blocks, params.blocks))

    return jax.lax.map(one, keys)


@cache
def program(mlp, setting, clip, updates):
    """(seeds, rates, params, data, test, depth) -> runs, spread over devices, one at a time on each."""

    def run(seed, rate, params, data, test, depth):
        clipped = (
            optax.identity() if clip is None else clipping.monitored(clipping.clip_by_norm(clip))
        )
        seen, _ = train(
            mlp,
            jax.tree.map(lambda leaf: leaf[seed], params),
            optax.chain(clipped, optax.sgd(rate)),
            data,
            key=jax.random.fold_in(jax.random.key(1), seed),
            steps=updates,
            batch=setting.batch,
            test=test,
            rate=setting.dropout if mlp.dropout else 0.0,
            depth=depth,
            evaluate=(0,),
        )
        return seen

    def share(which, rates, *rest):
        return jax.lax.map(lambda one: run(*one, *rest), (which, rates))

    mesh = Mesh(np.array(jax.local_devices()), ("run",))
    here, everywhere = PartitionSpec("run"), PartitionSpec()
    return spread(share, mesh, (here, here, *[everywhere] * 4), here)


def runs(setting, cure, deepest, depth, params, data, seeds, rates, updates):
    """The runs of every seed at every rate, seed within rate."""
    which, at = np.tile(seeds, len(rates)), np.repeat(rates, len(seeds))
    size = 2 * jax.local_device_count()  # of a group, so that however many runs share one program
    groups = [
        np.resize(np.arange(i, min(i + size, len(at))), size) for i in range(0, len(at), size)
    ]
    mlp = network(setting, cure, deepest).clone(
        weights="gaussian"
    )  # drawn already: draws share one program
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
    deepest = 1 if setting.alone and depth == 0 else max(setting.depths)
    keys, everyone = jax.random.split(jax.random.key(0), setting.seeds), np.arange(setting.seeds)
    own_depth = depth if cure.draw == "lsuv" else None
    params = drawn(network(setting, cure, deepest), cure.draw, own_depth, keys, data[0].x[:256])
    go = partial(runs, setting, cure, deepest, depth, params, data)
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


def estimate(values):
    """Mean and standard error, None where it is infinite."""
    values = np.asarray(values, float)
    if not np.all(np.isfinite(values)):
        return [None, None]
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


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


def verdict(benefit, margin):
    """[whether a benefit exceeds its margin by so many standard errors, falls short by as many or neither; it; error].

    Without the numbers where runs diverged.
    """
    if benefit is None:
        return ["neither", None, None]
    mean, error = benefit.mean(), benefit.std(ddof=1) / np.sqrt(len(benefit))
    open_ = "does not" if mean + ERRORS * error < margin else "undecided"
    word = "holds" if mean - ERRORS * error > margin else open_
    return [word, *estimate(np.where(np.abs(benefit) < FAR, benefit, np.inf))]


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


def split(setting, data_path):
    """Training and test digits, of mean square 1 each; the 5,000 are divided once for all seeds."""
    if data_path:
        parts = [datasets.load("mnist", data_path, train).normalised() for train in (True, False)]
    else:
        whole = datasets.load("mnist-5k").normalised()
        order = np.random.default_rng(0).permutation(len(whole.x))
        parts = [
            whole._replace(x=whole.x[at], y=whole.y[at])
            for at in (order[: -setting.test], order[-setting.test :])
        ]
    sizes = (setting.train, setting.test)
    return [
        Examples(jnp.asarray(p.x[:n]), jnp.asarray(p.y[:n]))
        for p, n in zip(parts, sizes, strict=True)
    ]


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


class Remedies:
    """All cures at all depths as a job of the durable run: a group is a cure at a depth, a row a seed."""

    def __init__(self, setting, data):
        self.setting = setting
        self.data = data
        # at depth 0 there is no block to skip
        self.pairs = [
            (name, depth)
            for name in setting.cures
            for depth in setting.depths
            if depth or "skip" not in CURES[name].mlp
        ]
        # a group is spread over all devices, so one is computed at a time
        self.devices = jax.local_devices()[:1]
        self.fields = FIELDS
        self.axes = {"row": store.Axis(len(self.pairs) * setting.seeds, setting.seeds)}
        self.coordinates = {}
        source = hashlib.sha256(
            Path(__file__).read_bytes() + b"".join(np.asarray(part.x).tobytes() for part in data)
        )
        own = {"setting": dataclasses.asdict(setting), "experiment": source.hexdigest()}
        self.settings = own | settings_of_run()

    def program(self, group):
        return group

    def rank(self, group):
        return group

    def compute(self, batches, pending):
        start = time.time()
        for (group,) in batches:
            name, depth = self.pairs[group]
            found, best = depth_runs(self.setting, CURES[name], depth, self.data)
            blank = np.full(self.setting.seeds, np.nan)
            values = dict.fromkeys(FIELDS, blank)
            values["rate"] = blank if best is None else np.full_like(blank, best)
            for mode, one in found.items():
                values |= {f"{mode}_{field}": value for field, value in one._asdict().items()}
            told = {
                mode: f"{one.train.mean():.3f} {one.test.mean():.3f}" for mode, one in found.items()
            }
            print(
                f"{time.time() - start:5.0f} s  {name}, depth {depth}: {told} at {best}", flush=True
            )
            yield Result(group, values)


def whole(setting, data, place):
    """{(cure, depth): ({mode: Runs}, best rate)}: what the store at `place` has not yet is trained first."""
    job = Remedies(setting, data)
    pairs = job.pairs
    complete(open_store(place, job), job)
    rows = store.load_groups(place)
    everything = {}
    for group, (name, depth) in enumerate(pairs):
        at = rows.isel(row=slice(group * setting.seeds, (group + 1) * setting.seeds))
        modes = MODES if depth in setting.tuned else MODES[:1]
        found = {
            mode: Runs(*(at[f"{mode}_{field}"].values for field in Runs._fields)) for mode in modes
        }
        everything[name, depth] = found, float(at.rate[0])
    return everything


def measure(setting, place, data_path=None):
    start = time.time()
    everything = whole(setting, split(setting, data_path), place)
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
    measured = measure(setting, arguments.out / "runs.zarr", arguments.data_path)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    divide_cpu()
    main()
