"""The cures, the sizes of the experiment, and what run.py and explain.py share: weights, data, one training."""

import dataclasses
import hashlib
import time
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import clipping, datasets, initializers, networks, store
from jaxstab.sweeps.durable import Result, complete, open_store, settings_of_run
from jaxstab.training import Examples, train


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
    explained_depths: tuple[int, ...] = (0, 50)  # where explain.py looks
    explained_seeds: int = 4
    alone: bool = True  # whether depth 0 has a program of its own, not that of the deepest
    cures: tuple[str, ...] = tuple(CURES)


SMALL = Setting(
    width=16, depths=(0, 6), tuned=(0, 6), rates=(0.01, 0.16), long_updates=60, updates=60, seeds=2,
    reached=0.3, train=400, test=100, explained_depths=(6,), explained_seeds=2, alone=False,
    cures=("sigmoid", "relu, He, BatchNorm"),
)  # fmt: skip
FULL = Setting(batch=128, updates=4690, train=60_000, test=10_000)


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
        params = networks.chain(mlp).init(key, x[0])
        if draw == "plain":
            return params
        # LSUV looks at what each layer gets, the readout at the end too
        shallow = params._replace(blocks=jax.tree.map(lambda leaf: leaf[:depth], params.blocks))
        fitted = initializers.lsuv(mlp, shallow, x)
        behind = lambda new, old: jnp.concatenate([new, old[depth:]])
        return fitted._replace(blocks=jax.tree.map(behind, fitted.blocks, params.blocks))

    return jax.lax.map(one, keys)


def one_run(mlp, setting, clip, updates, seed, rate, params, data, test, depth):
    """Train the network of one seed: what was seen, and the state at the end."""
    clipped = optax.identity() if clip is None else clipping.monitored(clipping.clip_by_norm(clip))
    return train(
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


def weights(setting, cure, depth, data):
    """Draw the parameters of all seeds; the network that is trained, and they."""
    deepest = 1 if setting.alone and depth == 0 else max(setting.depths)
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    own_depth = depth if cure.draw == "lsuv" else None
    mlp = network(setting, cure, deepest)
    params = drawn(mlp, cure.draw, own_depth, keys, data[0].x[:256])
    # drawn already: draws share one program
    return mlp.clone(weights="gaussian"), params


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


class Job:
    """All cures at all depths as a job of the durable run: a group is a cure at a depth, a row a seed.

    Args:
        setting: sizes.
        data: training and test digits.
        fields: names of what is measured of every seed.
        compute_one: (cure's name, depth) -> ({field: values}, what to print).
        source: the file that measures; a store of another is not gone on with.
        given: more that the numbers depend on.
    """

    def __init__(self, setting, data, fields, compute_one, source, given=None):
        self.setting = setting
        self.compute_one = compute_one
        # at depth 0 there is no block to skip
        self.pairs = [
            (name, depth)
            for name in setting.cures
            for depth in setting.depths
            if depth or "skip" not in CURES[name].mlp
        ]
        # a group is spread over all devices, so one is computed at a time
        self.devices = jax.local_devices()[:1]
        self.fields = {name: store.Field((), "float64", ()) for name in fields}
        self.axes = {"row": store.Axis(len(self.pairs) * setting.seeds, setting.seeds)}
        self.coordinates = {}
        code = Path(source).read_bytes() + Path(__file__).read_bytes()
        arrays = b"".join(np.asarray(part.x).tobytes() for part in data)
        own = {
            "setting": dataclasses.asdict(setting),
            "experiment": hashlib.sha256(code + arrays).hexdigest(),
            "given": given,
        }
        self.settings = own | settings_of_run()

    def program(self, group):
        return group

    def rank(self, group):
        return group

    def compute(self, batches, pending):
        start = time.time()
        for (group,) in batches:
            name, depth = self.pairs[group]
            values, told = self.compute_one(name, depth)
            print(f"{time.time() - start:5.0f} s  {name}, depth {depth}: {told}", flush=True)
            yield Result(group, values)

    def complete(self, place):
        """Measure what the store at `place` has not yet: {(cure, depth): {field: a value a seed}}."""
        complete(open_store(place, self), self)
        rows = store.load(place)
        seeds = self.setting.seeds
        found = {}
        for group, pair in enumerate(self.pairs):
            at = rows.isel(row=slice(group * seeds, (group + 1) * seeds))
            found[pair] = {name: at[name].values for name in self.fields}
        return found
