"""How deep do tanh networks train, in units of theory's depth scale? python run.py [--small | --full] [--out DIR].

Networks are trained into a store, DIR/trained.zarr: a run that is stopped goes on where it was.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from jaxstab import analysis, datasets, devices, sweeps
from jaxstab.analysis.trained import SCALES, SIDES

SIGMA_B = 0.05**0.5
CHANCE = 0.1


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment."""

    data: str = "mnist-5k"
    variances: tuple[float, ...] = (
        1,
        1.1,
        1.2,
        1.3,
        1.4,
        1.5,
        1.6,
        1.75,
        2,
        2.2,
        2.5,
        2.8,
        3.1,
        3.4,
        3.7,
        4,
    )
    depths: tuple[int, ...] = (10, 14, 20, 28, 40, 56, 75, 100)
    width: int = 300
    batch: int = 64
    learning_rate: float = 1e-3
    lengths: tuple[int, int] = (100, 300)  # numbers of steps after which accuracy is judged
    seeds: int = 1

    def grid(self):
        """What is trained."""
        axes = {
            "activation": ("tanh",),
            "depth": self.depths,
            "sigma_w": np.sqrt(self.variances),
            "seed": range(self.seeds),
        }
        return sweeps.Grid(
            axes,
            sigma_b=SIGMA_B,
            learning_rate=self.learning_rate,
            width=self.width,
            batch=self.batch,
        )

    def training(self):
        """What each training is."""
        return sweeps.Train(self.lengths[1], evaluate=(self.lengths[0],))


SMALL = Setting(
    "digits",
    (0.7, 0.85, 1, 1.7, 4, 5, 6),
    (4, 8, 14, 24),
    width=32,
    batch=32,
    learning_rate=0.01,
    lengths=(40, 120),
)
FULL = Setting(
    variances=tuple(np.linspace(1, 4, 90).round(6).tolist()),
    depths=tuple(range(10, 101)),
    batch=256,
    lengths=(100, 200),
)


def numbers(summary, look):
    """What the fits say at one training length."""
    at = summary.isel(kind=0, evaluation=look)
    table = {
        "steps": int(at.evaluation),
        "threshold": float(at.threshold),
        "best": float(at.train_accuracy.max()),
    }
    for scale in SCALES:
        for side in SIDES:
            fit = at.sel(scale=scale, side=side)
            values = {name: float(fit[f"fit_{name}"]) for name in analysis.DepthFit._fields}
            table[f"{scale}, {side}"] = {
                name: x if np.isfinite(x) else None for name, x in values.items()
            }
    return table


def measure(summary):
    """Arrays of the figure, and the numbers that expected.toml bounds."""
    first, last = (numbers(summary, look) for look in (0, -1))
    accuracy = (
        summary.train_accuracy.isel(kind=0).transpose("evaluation", "depth", "sigma_w").values
    )
    bounds = {
        name: summary[f"boundary_{name}"].isel(kind=0).transpose("evaluation", "sigma_w").values
        for name in ("low", "high")
    }
    arrays = {
        "accuracy": accuracy, "depths": summary.depth.values, "variances": summary.sigma_w.values**2,
        "xi_c": summary.xi_c.values[0], **bounds,
    }  # fmt: skip
    share = (accuracy - CHANCE) / (last["best"] - CHANCE)  # of the best, above chance
    value = lambda look, fit, name: np.nan if look[fit][name] is None else look[fit][name]
    return arrays, {
        "n": value(last, "xi_c, both", "n"),
        "n_growth": value(last, "xi_c, both", "n") / value(first, "xi_c, both", "n"),
        "r_squared": value(last, "xi_c, both", "r_squared"),
        "ordered_r_squared": value(last, "xi_c, ordered", "r_squared"),
        "ordered_exponent": value(last, "xi_c, ordered", "exponent"),
        "gradients_scatter": value(last, "xi_grad, both", "scatter")
        / value(last, "xi_c, both", "scatter"),
        "early_chaos_by_gradient": value(first, "xi_grad, chaotic", "r_squared"),
        "early_chaos_by_correlation": value(first, "xi_c, chaotic", "r_squared"),
        "deepest_at_its_best": float(share[-1, -1].max()),
        "deepest_at_the_ends": float(max(share[-1, -1, 0], share[-1, -1, -1])),
        "fits": [first, last],
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="only shows that it runs")
    size.add_argument("--full", action="store_true", help="as in the paper: 8,190 networks")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    setting = SMALL if arguments.small else FULL if arguments.full else Setting()
    place = arguments.out / "trained.zarr"
    data = sweeps.Split.of(datasets.load(setting.data))
    with jax.enable_x64(True):
        trained = sweeps.run_into(place, setting.grid(), setting.training(), data, progress=tqdm)
        arrays, measured = measure(analysis.summarise(trained, CHANCE))
    np.savez_compressed(arguments.out / "result.npz", **arrays)
    whole = measured | {"setting": dataclasses.asdict(setting)}
    (arguments.out / "measured.json").write_text(json.dumps(whole, indent=1) + "\n")
    for name, value in measured.items():
        if isinstance(value, float):
            print(f"{name:32} {value:.4g}")


if __name__ == "__main__":
    devices.divide_cpu()
    main()
