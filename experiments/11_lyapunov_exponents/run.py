"""Do log singular values grow as masked products do? python run.py [--small] [--out DIR] writes measured.json."""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import networks, spectra, theory

# activation, weights, sigma_w, sigma_b, share of units alive
FAMILIES = {
    "linear, Gaussian": ("identity", "gaussian", 1.0, 0.0, 1.0),
    "relu, Gaussian": ("relu", "gaussian", 2**0.5, 0.2, 0.5),
    "relu, orthogonal": ("relu", "orthogonal", 2**0.5, 0.2, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment; those of --small only show that it runs."""

    width: int = 32
    depths: tuple[int, ...] = (32, 64, 128, 256, 512)
    seeds: int = 192
    # values that are compared, of the largest; layers that cannot carry six are one in 30,000
    top: int = 6


SMALL = Setting(width=8, depths=(16, 32, 64, 128), seeds=48, top=1)


def measure(setting, family):
    """Of every network: ln s [seed, depth, index], and ln sin of the angle of v_1 at L and 2 L [seed, depth]."""
    activation, weights, sigma_w, sigma_b, _ = FAMILIES[family]
    net = networks.mlp(setting.depths[-1], setting.width, activation, weights=weights)

    def one(key):
        draw, at = jax.random.split(key)
        x = jax.random.normal(at, (setting.width,))
        params = net.init(draw, x, sigma_w, sigma_b)
        log_s = spectra.log_singular_values(net, params, x, setting.depths, from_layer=0)
        vectors = [first_vector(net, params, x, depth) for depth in setting.depths]
        angles = [log_sine(a, b) for a, b in itertools.pairwise(vectors)]
        return log_s, jnp.stack(angles)

    keys = jax.random.split(jax.random.key(0), setting.seeds)
    log_s, angles = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=8))(keys)
    return np.asarray(log_s), np.asarray(angles)


def first_vector(net, params, x, depth):
    """The direction at layer 0 that grows most up to a depth."""
    jacobian = spectra.jacobian(net, params, x, 0, depth).matrix().direction
    return jnp.linalg.svd(jacobian)[2][0]


def log_sine(a, b):
    """ln of the sine of the angle between two lines."""
    return jnp.log(jnp.linalg.norm(b - jnp.dot(a, b) * a))


def predict(setting, family):
    """The exponents in closed form."""
    _, weights, sigma_w, _, alive = FAMILIES[family]
    return theory.lyapunov_exponents(setting.width, sigma_w, alive=alive, weights=weights)


def difference(values, before):
    """By network what was gained; NaN where a value is lost, its directions all being killed."""
    alive = np.isfinite(values) & np.isfinite(before)
    return np.subtract(values, before, where=alive, out=np.full(values.shape, np.nan))


def scores(values, expected):
    """Standard errors between the mean over the networks that have a value and what is expected."""
    counts = np.sum(np.isfinite(values), axis=0)
    errors = np.nanstd(values, axis=0, ddof=1) / np.sqrt(counts)
    return np.abs(np.nanmean(values, axis=0) - expected) / errors


def compare(setting, log_s, angles, exponents):
    """The statements about one family."""
    top = slice(setting.top)
    *_, quarter, half, whole = setting.depths
    # the constants of ln s_i = L lambda_i + c_i cancel
    rates = difference(log_s[:, -1], log_s[:, -2])[:, top] / (whole - half)
    expected = np.multiply.outer(setting.depths, exponents)
    constants = [
        difference(log_s[:, i], np.broadcast_to(expected[i], log_s[:, i].shape))[:, top]
        for i in (-1, -3)
    ]
    # the angle shrinks as s_2/s_1 does
    falls = difference(angles[:, -1], angles[:, -2]) / (half - quarter)
    gap = exponents[1] - exponents[0]
    return {
        "rates_z": float(np.max(scores(rates, exponents[top]))),
        "corrections_z": float(np.max(scores(constants[0] - constants[1], 0.0))),
        "largest_constant": float(np.max(np.abs(np.nanmean(constants[0], axis=0)))),
        "alignment_z": float(scores(falls, gap)),
        "rates": np.nanmean(rates, axis=0).tolist(),
        "exponents": exponents[top].tolist(),
        "alignment": float(np.nanmean(falls)),
        "gap": float(gap),
        "lost": float(np.mean(np.isnan(rates[:, -1]))),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="narrow, shallow, few networks")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    setting = SMALL if arguments.small else Setting()
    measured = {"families": {}}
    arrays = {"depths": np.asarray(setting.depths)}
    # the angle falls below what single precision tells from 0
    with jax.enable_x64(True):
        for family in FAMILIES:
            log_s, angles = measure(setting, family)
            exponents = predict(setting, family)
            measured["families"][family] = compare(setting, log_s, angles, exponents)
            arrays |= {
                f"{family} ln s": log_s,
                f"{family} ln sin": angles,
                f"{family} exponents": exponents,
            }
    for name in ("rates_z", "corrections_z", "largest_constant", "alignment_z"):
        measured[name] = max(one[name] for one in measured["families"].values())
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out / "result.npz", **arrays)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    for family, one in measured["families"].items():
        print(family, *(f"{name} {one[name]:.2f}" for name in one if name.endswith("_z")))


if __name__ == "__main__":
    main()
