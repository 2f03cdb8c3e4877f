"""At which learning rate does a network train? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.interpolate import CubicSpline

from jaxstab import curvature, datasets, networks, theory, training
from jaxstab.curvature import objectives

CURES = {"plain": {}, "residual": {"skip": "sum"}, "LayerNorm": {"norm": "layer"}}
# of which theory knows the kernel
PREDICTED = ("plain", "residual")
# half the squared error of answering 0 where the label is 1 or -1
UNTRAINED = 0.5
CRITICAL = {"tanh": 1.0, "relu": 2**0.5}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    digits: int = 64
    width: int = 48
    depths: tuple[int, ...] = (1, 4, 16)
    gains: tuple[float, ...] = (0.7, 1.0, 2**0.5, 2.0)
    networks: tuple[tuple[str, str], ...] = (
        ("tanh", "plain"),
        ("relu", "plain"),
        ("relu", "residual"),
        ("relu", "LayerNorm"),
    )
    seeds: int = 2
    steps: int = 80
    # rates in units of 2 / sharpness, as powers of two
    powers: tuple[float, ...] = (-2, -1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7)
    products: int = 15  # of the Hessian for the sharpness
    trains: float = 0.5  # loss that counts as trained, in units of that of answering 0


SMALL = Setting(
    digits=30,
    width=16,
    depths=(1, 2),
    gains=(1.0,),
    networks=(("tanh", "plain"),),
    seeds=2,
    steps=30,
    powers=(-2, 0, 3),
)


def problem(setting):
    """Centred digits, each of mean square 1; the target is 1 for odd ones, -1 for even ones.

    One output: with C of them the readout alone spreads the kernel's eigenvalues by (1 + sqrt(C / width))^2.
    """
    data = datasets.load("digits")
    chosen = np.random.default_rng(0).permutation(len(data.x))[: setting.digits]
    centred = data.x[chosen] - data.x[chosen].mean(axis=0)
    x = centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True))
    targets = 2.0 * (data.y[chosen, None] % 2) - 1
    return training.Examples(jnp.asarray(x, jnp.float32), jnp.asarray(targets, jnp.float32))


def sharpness_at_start(mlp, products, data, depth, gain, key):
    """Largest eigenvalues of the Hessian and of the Gauss-Newton matrix; the depth may be traced."""
    chain = networks.chain(mlp)
    params = chain.init(key, data.x[0], sigma_w=gain)

    def pulled(params, some, by_output):
        bound = chain.bind(params)
        return training.value_and_grad(mlp, bound, some.x, by_output, depth).params

    def gradient(moved, some):
        return pulled(moved, some, lambda y: objectives.squared(y, some.y))

    def half(moved, some):
        # J^T y(moved) / n at the parameters: its derivative by `moved` is J^T J / n
        bound = chain.bind(moved)
        y = chain.readout(bound, networks.state(chain, bound, some.x, depth))
        return pulled(params, some, lambda at: jnp.sum(at * y) / some.size)

    def largest(by):
        operator = curvature.hessian_by_gradient(by, params, data)
        return curvature.extremes(operator, key, steps=products).largest[0]

    return largest(gradient), largest(half)


def losses_at_rates(setting, mlp, data, depth, gain, key, sharpness):
    """Mean loss of the last tenth of the steps at each multiple of 2 / sharpness."""
    multiples = 2.0 ** jnp.asarray(setting.powers, jnp.float32)
    last = max(1, setting.steps // 10)
    params = networks.chain(mlp).init(key, data.x[0], sigma_w=gain)
    options = {"key": key, "steps": setting.steps, "loss": objectives.squared, "depth": depth}

    def loss(rate):
        seen, _ = training.train(mlp, params, optax.sgd(rate), data, **options)
        return jnp.mean(seen.loss[-last:])

    return jax.vmap(loss)(2 / sharpness * multiples)


@functools.partial(jax.jit, static_argnums=(0, 1))
def every_cell(setting, mlp, data, cells):
    """Sharpness, that of the Gauss-Newton matrix, and losses of (depth, gain, key)."""

    def one(cell):
        depth, gain, key = cell
        top, outer = sharpness_at_start(mlp, setting.products, data, depth, gain, key)
        return top, outer, losses_at_rates(setting, mlp, data, depth, gain, key, top)

    return jax.lax.map(one, cells)


def predicted(setting, activation, cure, x):
    """Largest eigenvalue of the infinitely wide network's kernel over the number of examples, [depth, gain, 2].

    With squared error the Gauss-Newton matrix shares it. Beside it Karakida's form for inputs that are all
    equally alike: (a + (n - 1) b) / n with a the kernel of an input with itself and b the mean of two.
    """
    law = theory.law(activation, skip=CURES[cure].get("skip"))
    n, features = x.shape
    sizes = {"width": setting.width, "d_in": features}
    angles = jnp.linspace(0.0, jnp.pi, 33)
    between = np.arccos(np.clip(x @ x.T / features, -1, 1))

    def with_readout(gain, nngp, ntk):
        """The kernel after the readout, a layer without skip: n A + 1 + sigma_w^2 D Theta."""
        lengths = jnp.diagonal(nngp)
        c = nngp[0, 1] / nngp[0, 0]
        layer = theory.kernels(activation, gain, 0.0, 1, q0=tuple(lengths / gain**2), c0=c, **sizes)
        own = setting.width * layer.nngp[1] / gain**2 + 1
        # D is read off one step of a known kernel
        return (own + (layer.ntk[1] - own) / layer.ntk[0] * ntk)[0, 1]

    def at_angle(gain, angle):
        block = theory.kernels(law, gain, 0.0, max(setting.depths), c0=jnp.cos(angle), **sizes)
        depths = jnp.asarray(setting.depths)
        return jax.vmap(with_readout, (None, 0, 0))(gain, block.nngp[depths], block.ntk[depths])

    @jax.jit
    def table(gains):
        grid = [leaf.ravel() for leaf in jnp.meshgrid(gains, angles, indexing="ij")]
        found = jax.lax.map(lambda cell: at_angle(*cell), grid)
        return found.reshape(len(gains), len(angles), -1)

    def largest(values):
        theta = CubicSpline(np.asarray(angles), values)(between)
        mean = (theta.sum() - np.trace(theta)) / (n * (n - 1))
        return np.linalg.eigvalsh(theta)[-1] / n, (np.trace(theta) / n + (n - 1) * mean) / n

    known = np.asarray(table(jnp.asarray(setting.gains)), float)
    return np.array([[largest(values) for values in row.T] for row in known]).swapaxes(0, 1)


def measure_network(setting, data, activation, cure):
    """Every depth and gain of one network, a row each."""
    size = (max(setting.depths), setting.width, activation)
    mlp = networks.MLP(*size, features_out=1, **CURES[cure])
    shape = (len(setting.depths), len(setting.gains), setting.seeds)
    depth, gain, seed = (index.ravel() for index in np.indices(shape))
    cells = (
        jnp.asarray(np.array(setting.depths, np.int32)[depth]),
        jnp.asarray(np.array(setting.gains, np.float32)[gain]),
        jax.random.split(jax.random.key(1), setting.seeds)[seed],
    )
    found = jax.tree.map(np.asarray, every_cell(setting, mlp, data, cells))
    hessian, gauss_newton, losses = (leaf.reshape(*shape, *leaf.shape[1:]) for leaf in found)
    trains = losses < setting.trains * UNTRAINED
    largest = np.max(np.where(trains, 2.0 ** np.array(setting.powers), 0), axis=-1)
    known = np.full((*shape[:2], 2), np.nan)
    if cure in PREDICTED:
        known = predicted(setting, activation, cure, np.asarray(data.x, float))
    rows = []
    for i, j in np.ndindex(shape[:2]):
        row = {
            "activation": activation,
            "cure": cure,
            "depth": setting.depths[i],
            "gain": setting.gains[j],
            "hessian": hessian[i, j].tolist(),
            "gauss_newton": gauss_newton[i, j].tolist(),
            "predicted": known[i, j, 0] if cure in PREDICTED else None,
            "alike": known[i, j, 1] if cure in PREDICTED else None,
            "largest": largest[i, j].tolist(),
            "losses": np.nan_to_num(losses[i, j], nan=1e9, posinf=1e9).tolist(),
        }
        print(*(f"{name} {value}" for name, value in row.items() if name != "losses"), flush=True)
        rows.append(row)
    return rows


def measure(setting):
    """Every network, and the numbers that expected.toml bounds."""
    data = problem(setting)
    rows = [
        row
        for activation, cure in setting.networks
        for row in measure_network(setting, data, activation, cure)
    ]
    losses = np.array([losses for row in rows for losses in row["losses"]])
    shares = np.mean(losses < setting.trains * UNTRAINED, axis=0)
    at = {
        f"{2.0**power:.3g}": float(share)
        for power, share in zip(setting.powers, shares, strict=True)
    }
    known = {"share_that_trains_at": at, "rows": rows, "setting": dataclasses.asdict(setting)}
    return summary(rows) | known


def summary(rows):
    """The numbers that expected.toml bounds."""
    known = [row for row in rows if row["predicted"] is not None]
    ratio = lambda row: np.mean(row["gauss_newton"]) / row["predicted"]
    shallow = [ratio(row) for row in known if row["depth"] == 1]
    deep = [ratio(row) for row in known if row["depth"] > 1]
    critical = [
        ratio(row)
        for row in known
        if row["cure"] == "plain" and row["gain"] == CRITICAL[row["activation"]]
    ]
    # the largest rate that trains in units of 2 / sharpness, of each network that trains at some rate
    limits = np.array([limit for row in rows for limit in row["largest"] if limit > 0])
    stable = {}
    for row in rows:
        kind = f"{row['activation']}, {row['cure']}"
        stable.setdefault(kind, {}).setdefault(row["depth"], []).append(2 / np.mean(row["hessian"]))
    return {
        "shallow_least": float(min(shallow)),
        "shallow_most": float(max(shallow)),
        "deep_most": float(max(deep)),
        "critical": [float(value) for value in critical],
        "hessian_over_gauss_newton": float(
            np.median([np.mean(row["hessian"]) / np.mean(row["gauss_newton"]) for row in rows])
        ),
        "limit_least": float(limits.min()),
        "limit_median": float(np.median(limits)),
        "limit_most": float(limits.max()),
        "limit_within_8": float(np.mean((limits >= 1 / 8) & (limits <= 8))),
        "trained": len(limits),
        "untrained": sum(limit == 0 for row in rows for limit in row["largest"]),
        # largest over smallest 2 / sharpness of all gains, at the deepest
        "over_gains": {
            kind: float(max(by[max(by)]) / min(by[max(by)])) for kind, by in stable.items()
        },
        "layer_norm_over_gains": max(
            (max(by[max(by)]) / min(by[max(by)]) for kind, by in stable.items() if "Layer" in kind),
            default=float("nan"),
        ),
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
    measured = measure(SMALL if arguments.small else Setting())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
