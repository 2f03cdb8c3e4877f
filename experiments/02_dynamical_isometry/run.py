"""Spectra of deep Jacobians at criticality, against free probability: python run.py [--small] [--out DIR]."""

import argparse
import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from jaxstab import activations, networks, spectra, theory
from jaxstab.devices import one_blas_thread

WEIGHTS = ("gaussian", "orthogonal")
GAIN = (
    1.05  # sigma_w^2 phi'(0)^2 of the saturating activations; Pennington et al. train tanh at 1.05
)
CLOSE = 1e-4  # logarithms this close are one value: an atom's are scattered by rounding
SIGMAS = 4.0
CHAOTIC = 2.0  # sigma_w of the chaotic net; tanh is critical at 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of the experiment."""

    width: int = 400
    seeds: int = 10
    depths: tuple[int, ...] = (2, 8, 32, 128)
    activations: tuple[str, ...] = ("identity", "relu", "hard_tanh", "erf", "tanh")
    chaos_width: int = 128
    chaos_depths: tuple[int, ...] = (1, 10, 100, 500, 1000)  # all drawn but the last but one


SMALL = Setting(
    width=64, depths=(2, 8), activations=("identity", "relu", "hard_tanh"), chaos_width=16
)


# ---- the critical networks


def critical(name):
    """sigma_w, sigma_b and q* at chi_1 = 1."""
    if name in ("identity", "relu"):  # critical at every length
        return (1.0 if name == "identity" else 2**0.5), 0.0, 1.0
    phi = activations.get(name)
    moment = jax.jit(partial(theory.derivative_moment, phi))
    steepest = float(jnp.max(phi.derivative(jnp.zeros(1))))
    q = optimize.brentq(lambda q: float(moment(q)) * GAIN / steepest**2 - 1, 1e-4, 1.0, xtol=1e-14)
    sigma_w = GAIN**0.5 / steepest
    return sigma_w, float(q - sigma_w**2 * jax.jit(partial(theory.second_moment, phi))(q)) ** 0.5, q


def chain(setting, index):
    """h -> W phi(h) + b from layer 0 on, phi chosen when it runs: one program serves all activations."""
    phis = [activations.get(name).fn for name in setting.activations]

    def block(layer, h):
        return jax.lax.switch(index, phis, h) @ layer["dense"]["kernel"] + layer["dense"]["bias"]

    # no embedding: dx is dh_0
    return networks.Chain(
        lambda params, x: x, block, lambda params, h: h, activations.get("identity")
    )


@partial(jax.jit, static_argnums=(0, 1))
def draw(setting, weights, key, sigma_w, sigma_b, q):
    """A net, and a first layer of length exactly q."""
    signal, key = jax.random.split(key)
    h_0 = jax.random.normal(signal, setting.width)
    h_0 = h_0 * jnp.sqrt(q / jnp.mean(h_0**2))
    mlp = networks.MLP(max(setting.depths), setting.width, "identity", weights=weights)
    return networks.chain(mlp).init(key, h_0, sigma_w, sigma_b), h_0


@partial(jax.jit, static_argnums=0)
def measured_log_s(setting, index, params, h_0):
    """ln s of dh_L/dh_0, [depth, width]."""
    return spectra.log_singular_values(chain(setting, index), params, h_0, setting.depths)


def slopes(name, sigma_w, q):
    """The law of sigma_w^2 phi'(h)^2: values and their shares, two or more."""
    d, share = jax.tree.map(np.asarray, jax.jit(partial(theory.squared_slopes, name))(sigma_w, q))
    values, which = np.unique(np.append(d, 0.0), return_inverse=True)  # equal ones are one
    return values, np.bincount(which, np.append(share, 0.0))


@partial(jax.jit, static_argnums=3)
def limits(d, share, depths, weights):
    return jax.vmap(lambda depth: theory.product_law(d, share, depth, weights))(depths)


def laws(setting, d, share, weights):
    """The limit law at every depth, one by one."""
    law = jax.tree.map(np.asarray, limits(d, share, jnp.asarray(setting.depths, float), weights))
    return [type(law)(*fields) for fields in zip(*law, strict=True)]


# ---- what finite width allows


@jax.jit
def share_below(law, log_s):
    """The law's share of singular values at most s."""
    return law.cdf(log_s)


def distance(law, log_s):
    """Kolmogorov's distance between one net's singular values and a law, values within CLOSE being one."""
    ordered, count = np.sort(log_s), len(log_s)
    finite, steps = np.isfinite(ordered), np.arange(count + 1) / count
    above = steps[1:] - np.asarray(share_below(law, ordered + CLOSE))
    below = np.asarray(share_below(law, ordered - CLOSE)) - steps[:-1]
    zeros = np.mean(~finite) - law.zeros
    return float(np.max([*above[finite], *below[finite], zeros]))


def finite_gaussian(width, depth):
    """Exact E (tr JJ'/N)^2 and E tr (JJ')^2 / N for products of Gaussian matrices of variance 1/N."""
    square, second = 1.0, 1.0
    for _ in range(depth):
        square, second = square + 2 * second / width**2, second * (1 + 1 / width) + square
    return square, second


def zeros_of_relu(width, depth):
    """Exact mean and standard deviation of the share of zeros: the least active layer's, units being fair coins."""
    at_least = stats.binom.sf(np.arange(width), width, 0.5) ** depth
    mean, square = at_least.sum(), (at_least * (2 * np.arange(width) + 1)).sum()
    return 1 - mean / width, (square - mean**2) ** 0.5 / width


def projection_band(setting, gain, share):
    """How far from the limit law a finite net of projections, a given share of units active, may lie at each depth.

    Active units are binomial. Their mean share over layers moves the whole law, the least active layer adds zeros, and
    single values are rigid to a few times their mean spacing.
    """
    n, depths = setting.width, np.asarray(setting.depths)
    reach = SIGMAS * np.sqrt(share * (1 - share) / (n * depths))
    law = lambda share, depth: jax.tree.map(
        np.asarray,
        limits(
            np.array([0.0, gain**2]),
            np.array([1 - share, share]),
            jnp.array([depth], float),
            "orthogonal",
        ),
    )
    bands = []
    for depth, around in zip(setting.depths, reach, strict=True):
        at = [jax.tree.map(lambda x: x[0], law(share + by, depth)) for by in (-around, 0.0, around)]
        grid = np.sort(np.concatenate([one.log_s for one in at]))
        low, middle, high = (np.asarray(share_below(one, grid - CLOSE)) for one in at)
        moved = max(np.max(np.abs(low - middle)), np.max(np.abs(high - middle)))
        least = stats.binom.ppf(stats.norm.sf(SIGMAS) / depth, n, share) / n
        bands.append(float(moved + (share - least) + 4 / n))
    return bands


# ---- the measurements


def cells(setting):
    """Every activation with every law of weights: measured, predicted, and how they compare at each depth."""
    arrays, table = {}, {}
    for index, name in enumerate(setting.activations):
        gains = critical(name)
        for weights in WEIGHTS:
            cell = f"{name} {weights}"
            limit = laws(setting, *slopes(name, gains[0], gains[2]), weights)
            moments = jax.jit(
                partial(theory.jacobian_moments, name, gains[0], gains[2], weights=weights)
            )
            variances = [
                float(moments(depth=float(depth)).relative_variance) for depth in setting.depths
            ]
            nets = (
                draw(setting, weights, key, *gains)
                for key in jax.random.split(jax.random.key(0), setting.seeds)
            )
            log_s = np.stack(
                [np.asarray(measured_log_s(setting, jnp.asarray(index), *net)) for net in nets]
            )
            arrays[f"{cell}/log_s"] = log_s.astype(np.float32)
            log_s_limit = np.stack([law.log_s for law in limit])
            cdf_limit = np.stack([law.share for law in limit])
            arrays[f"{cell}/log_s_limit"] = log_s_limit.astype(np.float32)
            arrays[f"{cell}/cdf_limit"] = cdf_limit.astype(np.float32)
            table[cell] = compare(log_s, limit, variances) | dict(
                zip(("sigma_w", "sigma_b", "q"), gains, strict=True)
            )
            print(cell, json.dumps(table[cell]), flush=True)
    return arrays, table


def compare(log_s, laws, variances):
    """Numbers of one cell, lists over depths; log_s [seed, depth, width]."""
    squares = np.exp(2 * log_s)
    mean, second = squares.mean(axis=2), (squares**2).mean(axis=2)
    variance = (
        second / mean**2 - 1
    )  # of each net by itself: lengths and active shares fluctuate from net to net
    error = lambda x: (x.std(axis=0, ddof=1) / np.sqrt(len(x))).tolist()
    return {
        "mean": mean.mean(axis=0).tolist(),
        "mean_se": error(mean),
        "second": second.mean(axis=0).tolist(),
        "second_se": error(second),
        "variance": variance.mean(axis=0).tolist(),
        "variance_se": error(variance),
        "variance_limit": variances,
        "largest": np.exp(log_s[:, :, 0]).mean(axis=0).tolist(),
        "largest_se": error(np.exp(log_s[:, :, 0])),
        "largest_limit": [float(np.exp(law.log_s_max)) for law in laws],
        "zeros": np.isneginf(log_s).mean(axis=(0, 2)).tolist(),
        "zeros_limit": [float(law.zeros) for law in laws],
        "distance": [[distance(law, one) for one in log_s[:, i]] for i, law in enumerate(laws)],
    }


def chaos(setting):
    """A tanh net far in the chaotic phase, in float32: its whole spectrum, and what the product alone would show."""
    n, depths = setting.chaos_width, setting.chaos_depths
    mlp = networks.MLP(max(depths), n, "tanh")
    net = networks.chain(mlp)._replace(embed=lambda params, x: x)
    h_0 = jax.random.normal(jax.random.key(1), n, jnp.float32)
    params = jax.jit(networks.chain(mlp).init)(jax.random.key(2), h_0, CHAOTIC, 0.0)
    log_s = np.asarray(
        jax.jit(lambda: spectra.log_singular_values(net, params, h_0, depths))(), float
    )
    along = jax.jit(lambda: networks.states(net, params, h_0).stacked[:-1])()
    factors = np.asarray(
        jax.jit(jax.vmap(jax.jacfwd(net.block, argnums=1)))(params.blocks, along), float
    )
    log_det = np.cumsum(np.linalg.slogdet(factors)[1])[np.asarray(depths) - 1]
    # the same factors in float64, and their product rescaled at every step and decomposed at the end
    exact = np.asarray(jax.jit(spectra.product_log_singular_values)(jnp.asarray(factors)))
    product, log_scale = np.eye(n), 0.0
    for factor in factors:
        product = factor @ product
        size = np.abs(product).max()
        product, log_scale = product / size, log_scale + np.log(size)
    naive = np.log(np.linalg.svd(product, compute_uv=False)) + log_scale
    exponents = log_s / np.asarray(depths)[:, None]
    settled = np.abs(exponents[-1] - exponents[-2])
    arrays = {
        "chaos/log_s": log_s,
        "chaos/naive": naive,
        "chaos/exact": exact,
        "chaos/depths": np.asarray(depths),
    }
    return arrays, {
        "chaos_spread": float(np.ptp(log_s[-1])),
        "chaos_determinant_error": float(np.max(np.abs(log_s.sum(axis=1) - log_det)) / n),
        "chaos_precision_error": float(np.max(np.abs(log_s[-1] - exact)) / np.ptp(exact)),
        "chaos_precision_error_median": float(np.median(np.abs(log_s[-1] - exact))),
        "chaos_exponent_change": float(np.median(settled)),
        "chaos_exponent_change_worst": float(np.max(settled)),
        "chaos_largest_exponent": float(exponents[-1, 0]),
        "chaos_right_without_logarithms": int(np.sum(np.abs(naive - exact) < 0.01)),
    }


def measure(setting):
    """The arrays of the figure, the table, and the numbers that expected.toml bounds."""
    arrays, table = cells(setting)
    linear = {k: np.asarray(v) for k, v in table["identity gaussian"].items()}
    square, second = np.array([finite_gaussian(setting.width, depth) for depth in setting.depths]).T
    mean_error = np.abs(linear["mean"] - 1) / np.sqrt((square - 1) / setting.seeds)
    over_band = {}
    for name, share in (("relu", 0.5), ("hard_tanh", 1 / GAIN)):
        row = table[f"{name} orthogonal"]
        row["band"] = projection_band(setting, row["sigma_w"], share)
        over_band[name] = float(np.max(np.max(row["distance"], axis=1) / row["band"]))
    shallow = [
        np.abs(np.log(row["variance"][i] / row["variance_limit"][i]))
        for cell, row in table.items()
        for i, depth in enumerate(setting.depths)
        if depth <= 8 and cell != "identity orthogonal"
    ]
    largest = [
        np.abs(np.log(np.asarray(row["largest"]) / row["largest_limit"])) for row in table.values()
    ]
    zeros, zeros_sd = np.array([zeros_of_relu(setting.width, depth) for depth in setting.depths]).T
    zeros_error = np.abs(np.asarray(table["relu orthogonal"]["zeros"]) - zeros) / (
        zeros_sd / setting.seeds**0.5
    )
    chaos_arrays, chaotic = chaos(setting)
    measured = {
        "linear_gaussian_mean": float(np.max(mean_error)),
        "linear_gaussian_second_moment": float(
            np.max(np.abs(linear["second"] - second) / linear["second_se"])
        ),
        "linear_orthogonal_error": float(np.max(np.abs(arrays["identity orthogonal/log_s"]))),
        "relu_zeros": float(np.max(zeros_error)),
        "relu_orthogonal_distance": over_band["relu"],
        "hard_tanh_orthogonal_distance": over_band["hard_tanh"],
        "isometry": np.divide(
            *(table[f"hard_tanh {w}"]["variance"][setting.depths.index(8)] for w in WEIGHTS)
        ),
        "shallow_variance": float(np.max(shallow)),
        "shallow_largest": float(np.max([x[np.asarray(setting.depths) <= 8] for x in largest])),
        "largest": float(np.max(largest)),
    } | chaotic
    arrays["depths"] = np.asarray(setting.depths)
    exact = {"linear_gaussian_second_moment": second.tolist(), "relu_zeros": zeros.tolist()}
    return arrays | chaos_arrays, measured | {
        "table": table,
        "exact": exact,
        "setting": dataclasses.asdict(setting),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="narrow, shallow, three activations")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    with jax.enable_x64(True), one_blas_thread():
        arrays, measured = measure(SMALL if arguments.small else Setting())
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out / "result.npz", **arrays)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    for name, value in measured.items():
        if not isinstance(value, dict):
            print(f"{name:32} {value:.6g}")


if __name__ == "__main__":
    main()
