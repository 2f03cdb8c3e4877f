"""How well the gradient by the input explains each network: python explain.py [--small] [--out DIR].

Goes on from the measured.json that run.py wrote: every cure that learns is trained once more at its best learning rate,
as there, into a store, DIR/explained, and what its saliency maps are like is added to measured.json.
"""

import argparse
import dataclasses
import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from cures import CURES, SMALL, Job, Setting, one_run, split, weights
from jax.sharding import Mesh, PartitionSpec
from judging import FAR, GUESSING, estimate, verdict

from jaxstab import networks
from jaxstab.devices import divide_cpu, spread
from jaxstab.propagation.saliency import agreement, input_gradient, signal_to_noise

DIGITS = 32  # test digits whose maps are drawn
COPIES = 6  # of each, with noise
LEAST = 0.01  # signal-to-noise ratio that counts; an estimate of none may be negative
NOISE = 0.1  # standard deviation at every pixel; the digits' mean square is 1
CLAIMS = {  # of the trained network; how much better than the baseline counts, in the unit of `benefits`
    "steadies explanations": np.log(2.0),
    "explanations agree": 0.1,
}
MAPS = {
    "nearby": "mean cosine of the maps of one digit with other noise: shattering",
    "noise": "ln of the signal-to-noise ratio over the noise, median of the digits",
    "seeds": "mean cosine of the maps of one digit between networks of other seeds",
    "others": "mean cosine of the maps of two digits of one class",
}
TIMES = ("start", "end")
FIELDS = ("test", *(f"{time}_{name}" for time in TIMES for name in MAPS))


@cache
def program(mlp, setting, clip):
    """(seeds, rates, params, data, test, depth) -> accuracy and the states at the end, spread over devices."""

    def share(which, rates, *rest):
        def one(run):
            seen, state = one_run(mlp, setting, clip, setting.updates, *run, *rest)
            return seen.test_accuracy[-1], state.params, state.stats

        return jax.lax.map(one, (which, rates))

    mesh = Mesh(np.array(jax.local_devices()), ("run",))
    here, everywhere = PartitionSpec("run"), PartitionSpec()
    return spread(share, mesh, (here, here, *[everywhere] * 4), here)


@cache
def maps(mlp):
    """(params, stats, x, labels, noise) of a seed -> (nearby, noise, directions of the maps [digit, pixel])."""
    chain = networks.chain(mlp)
    dry = chain.inference

    @jax.jit
    def of_seed(params, stats, x, labels, noise):
        bound = chain.bind(params, stats=stats)

        def gradient(x, label):
            return input_gradient(dry, bound, x, lambda y: y[label])

        def of_digit(x, label):
            near = jax.vmap(lambda e: gradient(x + e, label))(noise)
            ratio = jnp.log(jnp.maximum(signal_to_noise(near).value, LEAST))
            return agreement(near).value, ratio, gradient(x, label).direction

        nearby, ratio, directions = jax.lax.map(lambda one: of_digit(*one), (x, labels))
        return jnp.mean(nearby), jnp.median(ratio), directions

    return of_seed


def shallower(params, stats, depth):
    """The first blocks of all seeds: what the gradient of a network of that depth goes through."""

    def first(tree):
        return jax.tree.map(lambda leaf: leaf[:, :depth], tree)

    stats = stats | {"blocks": first(stats["blocks"])} if "blocks" in stats else stats
    return params._replace(blocks=first(params.blocks)), stats


def between_seeds(directions):
    """Mean cosine between seeds as a pseudo-value a seed: their mean is it, their scatter its jackknife error."""
    count, digits, _ = directions.shape
    flat = directions.reshape(count, -1).astype(float)
    cosines = flat @ flat.T / digits
    np.fill_diagonal(cosines, 0.0)
    whole = cosines.sum() / (count * (count - 1))
    if count < 3:
        return np.full(count, whole)
    without = (cosines.sum() - 2 * cosines.sum(axis=1)) / ((count - 1) * (count - 2))
    return count * whole - (count - 1) * without


def between_digits(directions, labels):
    """Mean cosine between the maps of two digits of one class, a value a seed."""
    pairs = (labels[:, None] == labels[None]) & ~np.eye(len(labels), dtype=bool)
    cosines = np.einsum("sip,sjp->sij", directions.astype(float), directions.astype(float))
    return cosines[:, pairs].mean(axis=1)


def explained(mlp, params, stats, depth, digits):
    """What the maps of all seeds' networks are like: {name of MAPS: a value a seed}."""
    params, stats = shallower(params, stats, depth)
    of_seed = maps(mlp)
    seeds = len(jax.tree.leaves(params)[0])

    def of_one(seed):
        own = jax.tree.map(lambda leaf: leaf[seed], (params, stats))
        return jax.device_get(of_seed(*own, *digits))

    of_each = [of_one(seed) for seed in range(seeds)]
    nearby, noise, directions = map(np.stack, zip(*of_each, strict=True))
    return {
        "nearby": nearby,
        "noise": noise,
        "seeds": between_seeds(directions),
        "others": between_digits(directions, np.asarray(digits[1])),
    }


def trained(setting, mlp, cure, depth, rate, params, data):
    """Test accuracy, parameters and running statistics of every seed after all updates."""
    # as run.py: this many runs share a program
    size = 2 * jax.local_device_count()
    run = program(mlp, setting, cure.clip)
    parts = []
    for first in range(0, setting.seeds, size):
        which = np.resize(np.arange(first, min(first + size, setting.seeds)), size)
        rates = np.full(size, rate, "float32")
        found = run(which.astype("int32"), rates, params, *data, np.int32(depth))
        parts.append(jax.device_get(found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: setting.seeds], *parts)


def one_cure(setting, cure, depth, row, data):
    """A cure at one depth, of which run.py measured `row`: {field of FIELDS: a value a seed}."""
    mlp, params = weights(setting, cure, depth, data)
    noise = NOISE * jax.random.normal(jax.random.key(3), (COPIES, data[1].x.shape[1]))
    digits = (data[1].x[:DIGITS], data[1].y[:DIGITS], noise.astype(data[1].x.dtype))
    values, moments = {}, {}
    # before the first update BatchNorm has no running statistics
    if not mlp.mixes_examples:
        moments["start"] = params, {}
    # a network at chance has nothing to explain
    if row["test"][0] > GUESSING:
        values["test"], *moments["end"] = trained(
            setting, mlp, cure, depth, row["rate"], params, data
        )
    for moment, network in moments.items():
        found = explained(mlp, *network, depth, digits)
        values |= {f"{moment}_{name}": value for name, value in found.items()}
    blank = np.full(setting.seeds, np.nan)
    return {name: np.asarray(values.get(name, blank), float) for name in FIELDS}


def benefits(base, cure):
    """How much better the cure's maps are than the baseline's, seed by seed; None where the cure has learnt nothing.

    Where the baseline has not, its maps are those at the start, and noise is not compared: maps of a network that
    hardly looks at its input are smooth.
    """
    if np.isnan(cure["test"]).all():
        return dict.fromkeys(CLAIMS)
    learns = not np.isnan(base["test"]).all()

    def near(difference):
        return np.clip(np.nan_to_num(difference, nan=-FAR), -FAR, FAR)

    base_seeds = base["end_seeds"] if learns else base["start_seeds"]
    noise = near(cure["end_noise"] - base["end_noise"])
    return {
        "steadies explanations": noise if learns else None,
        "explanations agree": near(cure["end_seeds"] - base_seeds),
    }


def claimed(setting, rows, found):
    """The numbers that expected.toml bounds; NaN where a small run lacks the cure."""
    of = found["explained"][str(max(setting.explained_depths))]

    def at(name, field):
        value = of.get(name, {}).get(field, [np.nan])[0]
        return np.nan if value is None else value

    off = [
        abs(row["test"][0] - rows[depth][name]["test"][0])
        for depth, table in found["explained"].items()
        for name, row in table.items()
        if row["test"][0] is not None
    ]
    return {
        "explained_difference": max(off),
        "shattered_relu": at("relu, He", "start_nearby"),
        "whole_looks_linear": at("relu, looks-linear", "start_nearby"),
        "chance_seeds": at("sigmoid", "start_seeds"),
    }


def measure(setting, place, data, measured):
    """The maps of every cure at its best rate: {"explained": rows, "explained_verdicts": ..., the claims}."""
    tuned = measured["rows"]["tuned"]
    some = dataclasses.replace(setting, seeds=setting.explained_seeds)

    def one(name, depth):
        values = one_cure(some, CURES[name], depth, tuned[str(depth)][name], data)
        return values, {field: f"{value.mean():.3f}" for field, value in values.items()}

    rows, verdicts = {}, {}
    for depth in sorted(setting.explained_depths):
        job = Job(
            dataclasses.replace(some, depths=(depth,)),
            data,
            FIELDS,
            one,
            __file__,
            tuned[str(depth)],
        )
        found = job.complete(place / f"depth{depth}.zarr")
        better = {
            name: benefits(found["sigmoid", depth], each) for (name, _), each in found.items()
        }
        rows[str(depth)] = {
            name: {field: estimate(value) for field, value in each.items()}
            for (name, _), each in found.items()
        }
        verdicts[str(depth)] = {
            name: {claim: verdict(benefit[claim], margin) for claim, margin in CLAIMS.items()}
            for name, benefit in better.items()
        }
    known = {"explained": rows, "explained_verdicts": verdicts}
    return claimed(setting, tuned, known) | known


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="what run.py --small measured")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    setting = SMALL if arguments.small else Setting()
    path = arguments.out / "measured.json"
    measured = json.loads(path.read_text())
    measured |= measure(setting, arguments.out / "explained", split(setting, None), measured)
    path.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    divide_cpu()
    main()
