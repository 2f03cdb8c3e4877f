"""Which sign warns of divergence, and how early? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import clipping, curvature, datasets, networks, training

NEVER = 1e30  # a threshold that no gradient comes to
# signs that the claim is about, by their keys in expected.toml
SIGNS = {
    "update": "update over parameters",
    "sharpness": "sharpness over its edge",
    "gradient": "gradient norm",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    digits: int = 128
    batch: int = 32
    width: int = 24
    activations: tuple[str, ...] = ("relu", "tanh")
    depths: tuple[int, ...] = (2, 6, 12)
    gains: tuple[float, ...] = (1.0, 2**0.5, 1.8)
    rates: tuple[float, ...] = (0.003, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 1.0)
    thresholds: tuple[float, ...] = (NEVER, 1.0)  # of clipping by the global norm
    seeds: int = 2
    momentum: float = 0.9
    steps: int = 120
    every: int = 5  # steps from one measurement of the sharpness to the next
    leads: tuple[int, ...] = (1, 5)  # steps before the onset by which a sign must have fired
    false_alarms: float = 0.05  # share of healthy runs that a threshold may stop
    resamples: int = 400  # of runs, for standard errors


SMALL = Setting(
    digits=32,
    batch=16,
    width=8,
    activations=("relu",),
    depths=(2,),
    rates=(0.02, 0.08, 1.0, 10.0),
    seeds=1,
    steps=40,
    resamples=50,
)


class UpdateState(NamedTuple):
    """Relative updates |u| / |theta| so far; NaN for those to come."""

    count: jax.Array
    relative: jax.Array


def relative_updates(steps):
    """An optax transformation that records the updates' norms over the parameters'."""

    def init(params):
        del params
        return UpdateState(jnp.zeros((), jnp.int32), jnp.full(steps, jnp.nan, jnp.float32))

    def update(updates, state, params=None):
        ratio = optax.tree.norm(updates) / optax.tree.norm(params)
        relative = state.relative.at[state.count].set(ratio.astype(jnp.float32))
        return updates, UpdateState(state.count + 1, relative)

    return optax.GradientTransformation(init, update)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(setting, activation, data, cells):
    """Series of every run: loss, gradient norm, clip coefficient, relative update, sharpness."""
    mlp = networks.MLP(max(setting.depths), setting.width, activation)

    def one(cell):
        depth, gain, rate, threshold, seed = cell
        key = jax.random.key(seed)
        params = networks.chain(mlp).init(key, data.x[0], sigma_w=gain)
        tx = optax.chain(
            clipping.monitored(clipping.clip_by_norm(threshold)),
            optax.sgd(rate, momentum=setting.momentum),
            relative_updates(setting.steps),
        )
        seen, state = training.train(
            mlp,
            params,
            tx,
            data,
            key=key,
            steps=setting.steps,
            batch=setting.batch,
            depth=depth,
            curvature_every=setting.every,
        )
        return {
            "loss": seen.loss,
            "gradient": seen.norm_before,
            "coefficient": seen.coefficient,
            "update": optax.tree.get(state.optimiser, "relative"),
            "sharpness": state.curvature.sharpness,
        }

    return jax.lax.map(one, cells)


def cells_of(setting):
    """Columns of the grid: depth, gain, rate, threshold, seed."""
    axes = (setting.depths, setting.gains, setting.rates, setting.thresholds, range(setting.seeds))
    columns = zip(*itertools.product(*axes), strict=True)
    kinds = (np.int32, np.float32, np.float32, np.float32, np.int32)
    return tuple(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True))


def problem(setting):
    """Some digits of mean square 1."""
    data = datasets.load("digits").normalised()
    chosen = np.random.default_rng(0).permutation(len(data.x))[: setting.digits]
    x = jnp.asarray(data.x[chosen], jnp.float32)
    return training.Examples(x, jnp.asarray(data.y[chosen], jnp.int32))


def fate(losses):
    """What became of a run, and the step from which its loss stays above that at the start."""
    last = np.mean(losses[-max(1, len(losses) // 10) :])
    if last < np.log(10) / 2:
        return "healthy", len(losses)
    above = ~(losses <= losses[0])
    if not np.isfinite(last) or last > max(losses[0], np.log(10)):
        return "diverged", len(losses) - int(np.argmin(above[::-1]))
    return "neither", len(losses)


def over_median(series):
    """Each value over the median of those before it; 1 while there are fewer than five."""
    ratios = np.ones(len(series))
    for t in range(5, len(series)):
        ratios[t] = series[t] / np.median(series[:t])
    return ratios


def signs_of(setting, run, rate):
    """Each sign at every step, larger for worse; what is not known is no alarm."""
    edge = float(curvature.largest_stable_rate(1.0, "momentum", setting.momentum)) / rate
    signs = {
        "sharpness over its edge": np.repeat(run["sharpness"], setting.every)[: setting.steps]
        / edge,
        "update over parameters": run["update"],
        "gradient norm": run["gradient"],
        "gradient norm over its median": over_median(run["gradient"]),
        "loss over its median": over_median(run["loss"]),
        "clip coefficient": 1 / run["coefficient"],
    }
    return {name: np.nan_to_num(series, nan=0.0, posinf=1e30) for name, series in signs.items()}


def area(diverged, healthy):
    """Chance that a diverging run shows more of a sign than a healthy one; ties count half."""
    ranks = diverged[:, None] - healthy[None]
    return float(np.mean((ranks > 0) + 0.5 * (ranks == 0)))


def area_with_error(diverged, healthy, resamples):
    """The area, and its standard error from runs drawn again."""
    rng = np.random.default_rng(0)
    draw = lambda values: values[rng.integers(len(values), size=len(values))]
    again = [area(draw(diverged), draw(healthy)) for _ in range(resamples)]
    return area(diverged, healthy), float(np.std(again, ddof=1))


def peak(sign, end):
    """The largest value before a step; 0 where there is none."""
    return max(sign[:end], default=0.0)


def judge(setting, name, diverged, healthy, lead):
    """How well one sign tells runs apart that diverge at least `lead` steps later."""
    late = [run for run in diverged if run["onset"] >= lead]
    seen = np.array([peak(run["signs"][name], run["onset"] - lead + 1) for run in late])
    calm = np.array([peak(run["signs"][name], setting.steps) for run in healthy])
    # a healthy run that is watched no longer than a diverging one
    ends = np.random.default_rng(1).choice([run["onset"] - lead + 1 for run in late], len(healthy))
    brief = np.array([peak(r["signs"][name], end) for r, end in zip(healthy, ends, strict=True)])
    threshold = float(np.quantile(calm, 1 - setting.false_alarms))
    fired = seen > threshold
    first = [int(np.argmax(run["signs"][name] > threshold)) for run in late]
    leads = [
        run["onset"] - step for run, step, known in zip(late, first, fired, strict=True) if known
    ]
    whole, whole_error = area_with_error(seen, calm, setting.resamples)
    matched, matched_error = area_with_error(seen, brief, setting.resamples)
    levels = np.quantile(np.concatenate([seen, calm]), np.linspace(0, 1, 41))
    return {
        "area": whole,
        "area_error": whole_error,
        "matched": matched,
        "matched_error": matched_error,
        "threshold": threshold,
        "detected": float(fired.mean()),
        "detected_error": float(np.sqrt(fired.mean() * (1 - fired.mean()) / len(fired))),
        "lead": float(np.median(leads)) if leads else 0.0,
        "runs": len(late),
        "roc": [[float(np.mean(calm > at)), float(np.mean(seen > at))] for at in levels],
    }


def measure(setting):
    """Every run, and how early each sign knew."""
    data = problem(setting)
    cells = cells_of(setting)
    runs: list[dict[str, Any]] = []
    for activation in setting.activations:
        found = jax.tree.map(np.asarray, train(setting, activation, data, cells))
        for i in range(len(cells[0])):
            series = {name: rows[i].astype(float) for name, rows in found.items()}
            kind, onset = fate(series["loss"])
            depth, gain, rate, threshold, _ = (column[i].item() for column in cells)
            run = {"activation": activation, "depth": depth, "gain": gain, "rate": rate}
            run |= {"clipped": threshold < NEVER, "kind": kind, "onset": onset}
            runs.append(run | {"signs": signs_of(setting, series, rate)})
    table = {}
    for group, clipped in (("without clipping", False), ("with clipping", True)):
        some = [run for run in runs if run["clipped"] == clipped]
        diverged = [run for run in some if run["kind"] == "diverged"]
        healthy = [run for run in some if run["kind"] == "healthy"]
        table[group] = {
            "diverged": len(diverged),
            "healthy": len(healthy),
            "neither": len(some) - len(diverged) - len(healthy),
            "at once": sum(run["onset"] <= 1 for run in diverged),
            "onset": float(np.median([run["onset"] for run in diverged])) if diverged else None,
            "signs": {
                lead: {
                    name: judge(setting, name, diverged, healthy, lead)
                    for name in runs[0]["signs"]
                    if clipped or name != "clip coefficient"
                }
                for lead in setting.leads
                if healthy and sum(run["onset"] >= lead for run in diverged) >= 2
            },
        }
    for group, row in table.items():
        print(group, {name: value for name, value in row.items() if name != "signs"})
        for lead, signs in row["signs"].items():
            for name, at in signs.items():
                shown = {k: round(v, 3) for k, v in at.items() if k != "roc"}
                print(f"  {lead} steps before: {name:32}", shown, flush=True)
    kept = [{name: value for name, value in run.items() if name != "signs"} for run in runs]
    whole = {"table": table, "runs": kept, "setting": dataclasses.asdict(setting)}
    return whole | claimed(setting, table)


def claimed(setting, table):
    """The numbers that expected.toml bounds; NaN where too few runs diverge to have them."""
    first = setting.leads[0]
    found = {"diverged": sum(row["diverged"] for row in table.values())}
    for short, group in (("unclipped", "without clipping"), ("clipped", "with clipping")):
        signs = table[group]["signs"].get(first, {})
        for key, name in SIGNS.items():
            found[f"{short}_{key}"] = signs[name]["area"] if name in signs else float("nan")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a narrow net, few runs: shows that it runs"
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
