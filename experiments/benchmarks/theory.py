"""A phase diagram of fixed points: compiled, run, and its errors, beside scipy.integrate.quad and a NumPy Newton."""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from phase_diagrams.blocks import BLOCKS
from scipy import integrate, optimize

from jaxstab import theory

Q0 = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=64, help="of either axis")
    parser.add_argument("--activation", default="tanh", help="name; the rivals are of tanh")
    parser.add_argument(
        "--laws",
        nargs="*",
        choices=BLOCKS,
        metavar="LAW",
        help=f"laws of a block in place of the plain one, all unless named: {', '.join(BLOCKS)}",
    )
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sigma_w = np.linspace(0.5, 3.0, args.points)
    sigma_b = np.linspace(0.01, 1.0, args.points)
    if args.laws is not None:
        print(
            f"{'law':20}{'trace':>8}{'compile':>9}{'run':>8}   s of processors; lines of StableHLO"
        )
        for name in args.laws or BLOCKS:
            block = theory.law(args.activation, **BLOCKS[name])
            trace, build, run, size, _ = timed(block, sigma_w, sigma_b)
            print(f"{name:20}{trace[1]:8.2f}{build[1]:9.2f}{run[1]:8.2f}   {size}", flush=True)
        return
    trace, build, run, _, found = timed(args.activation, sigma_w, sigma_b)
    print(f"trace {trace[0]:.2f} s, compile {build[0]:.2f} s")
    print(f"{args.points} x {args.points} points: {run[0]:.2f} s, {run[1]:.2f} s of processors")
    if args.activation != "tanh":
        return
    some = [
        (i, j)
        for i in range(0, args.points, args.points // 4)
        for j in range(0, args.points, args.points // 4)
    ]
    for name, rival in (("scipy.integrate.quad", quad), ("NumPy Newton, 40 nodes", hermite)):
        start = time.perf_counter()
        theirs = np.array([rival(sigma_w[i], sigma_b[j]) for i, j in some])
        seconds = (time.perf_counter() - start) / len(some) * args.points**2
        ours = np.array([[found.q[i, j], found.chi_1[i, j]] for i, j in some])
        off = np.max(np.abs(theirs / ours - 1), axis=0)
        print(
            f"{name}: {seconds:.0f} s ({len(some)} points timed); off ours by {off[0]:.1e} in q, {off[1]:.1e} in chi_1"
        )


Seconds = tuple[float, float]


def timed(
    block: Any, sigma_w: np.ndarray, sigma_b: np.ndarray
) -> tuple[Seconds, Seconds, Seconds, int, Any]:
    """Seconds, of the wall and of processors, to trace, to compile and to run; lines of StableHLO; the record."""

    def point(w: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return theory.fixed_point(block, w, b)

    plane = jax.jit(jax.vmap(jax.vmap(point, (None, 0)), (0, None)))
    gains = (jnp.asarray(sigma_w), jnp.asarray(sigma_b))
    start = clocks()
    lowered = plane.lower(*gains)
    trace = since(start)
    start = clocks()
    compiled = lowered.compile()
    build = since(start)
    runs = []
    for _ in range(3):
        start = clocks()
        found = jax.block_until_ready(compiled(*gains))
        runs.append(since(start))
    return (
        trace,
        build,
        tuple(map(min, zip(*runs, strict=True))),
        lowered.as_text().count("\n"),
        found,
    )


def clocks() -> Seconds:
    """The wall's clock and the process's."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """Seconds from a reading of the clocks to now."""
    now = clocks()
    return now[0] - start[0], now[1] - start[1]


def quad(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    """q* and chi_1 by adaptive quadrature and bracketing."""

    def mean(f, q: float) -> float:
        density = lambda u: f(np.sqrt(q) * u) * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
        return 2 * integrate.quad(density, 0, 12, epsabs=1e-15, epsrel=1e-13, limit=200)[0]

    excess = lambda q: sigma_w**2 * mean(lambda z: np.tanh(z) ** 2, q) + sigma_b**2 - q
    q = optimize.brentq(excess, sigma_b**2 / 2, sigma_w**2 + sigma_b**2 + 1, xtol=1e-15, rtol=1e-14)
    return q, sigma_w**2 * mean(lambda z: np.cosh(z) ** -4.0, q)


def hermite(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    """q* and chi_1 by 40 Gauss-Hermite nodes and fixed-point steps."""
    u, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    q = sigma_w**2 * Q0 + sigma_b**2
    for _ in range(200):
        z = np.sqrt(q) * u
        value, slope = np.tanh(z), np.cosh(z) ** -2.0
        step = (sigma_w**2 * weights @ value**2 + sigma_b**2 - q) / (
            sigma_w**2 * weights @ (value * slope * z) / q - 1
        )
        q = max(q - step, sigma_b**2 / 2)
        if abs(step) < 1e-14 * q:
            break
    return q, sigma_w**2 * float(weights @ np.cosh(np.sqrt(q) * u) ** -4.0)


if __name__ == "__main__":
    main()
