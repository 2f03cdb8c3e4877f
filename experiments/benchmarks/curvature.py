"""The largest Hessian eigenvalue to 1 %, of a 784-256-256-10 network on 5,000 digits, beside curvlinops (PyTorch).

Seconds of processor, since what else runs does not change them much, and of the clock; the least of the repeats,
sides interleaved. Every side runs on one thread of BLAS or PyTorch, at the fewest products, or the smallest basis and
loosest tolerance, that come within 1 % of the eigenvalue that ours finds with many, from each of five starts: one start
may be lucky. Times are means over the starts. The eigenvalues of ours and of curvlinops at a tight tolerance must
agree to 1e-4 first. What an un-jitted first call costs stands below the table.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import curvature, datasets, networks
from jaxstab.devices import one_blas_thread

ACCURACY, AGREEMENT = 1e-2, 1e-4
STARTS = range(5)
STEPS = (8, 10, 12, 14, 16, 18, 20, 24)
# ARPACK's basis, 20 by default, and tolerance: loose ones take a product more than the basis has vectors
ARPACK = tuple((basis, tol) for tol in (0.3, 0.1, 0.03, 0.01) for basis in (8, 10, 12, 16, 20))


def problem(examples: int, width: int):
    """The network's parameters, and centred digits of mean square 1."""
    data = datasets.load("mnist-5k")
    x = data.x[:examples] - data.x[:examples].mean(axis=0)
    x = jnp.asarray(x / np.sqrt(np.mean(x**2)), jnp.float32)
    mlp = networks.MLP(1, width, "tanh", features_out=10)
    params = networks.chain(mlp).init(jax.random.key(0), x[0])
    return networks.chain(mlp), params, (x, jnp.asarray(data.y[:examples], jnp.int32))


def ours(chain: Any, params: Any, examples: Any, steps: int) -> Callable[[int], float]:
    """`curvature.largest` in one program."""
    goal = curvature.objective(chain)

    def run(params: Any, examples: Any, start: jax.Array) -> jax.Array:
        operator = curvature.hessian(goal, params, examples)
        found = curvature.largest(operator, jax.random.key(start), steps=steps)
        return jnp.ldexp(found.value, found.exponent)

    compiled = jax.jit(run).lower(params, examples, jnp.int32(0)).compile()
    return lambda start: float(compiled(params, examples, jnp.int32(start)))


def weights_of(params: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases, layer by layer."""
    block = jax.tree.map(lambda leaf: leaf[0], params.blocks)
    layers = (params.embed, block, params.readout)
    pair = lambda dense: (np.array(dense["kernel"]), np.array(dense["bias"]))
    return [pair(layer["dense"]) for layer in layers]


def cheapest(name: str, settings: Any, make: Callable, truth: float) -> tuple[str, Callable, float]:
    """The first setting that is accurate enough from every start, and its largest error."""
    for setting in settings:
        call = make(setting)
        error = 0.0
        for start in STARTS:
            error = max(error, abs(call(start) / truth - 1))
            if error > ACCURACY:
                break
        else:
            return f"{name} {setting}", call, error
    raise SystemExit(f"{name} does not come within {ACCURACY:.0%}: {error:.1e}")


def seconds(call: Callable[[int], Any]) -> tuple[float, float]:
    """Of processor and of the clock, a mean over the starts."""
    processor = time.process_time()
    clock = time.perf_counter()
    for start in STARTS:
        call(start)
    spent = np.array([time.process_time() - processor, time.perf_counter() - clock])
    return tuple(spent / len(STARTS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tenth of the digits, width 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-rivals", action="store_true", help="ours alone")
    args = parser.parse_args()
    one_blas_thread()
    chain, params, examples = problem(*((500, 64) if args.small else (5000, 256)))
    truth = ours(chain, params, examples, 30)(0)
    sides = [cheapest("ours, products", STEPS, lambda n: ours(chain, params, examples, n), truth)]
    if not args.no_rivals and importlib.util.find_spec("curvlinops"):
        sides += rivals(params, examples, truth)
    times = np.array([[seconds(call) for _, call, _ in sides] for _ in range(args.repeats)])
    processor, clock = times.min(axis=0).T
    print(f"largest eigenvalue {truth:.6g}; {len(examples[0])} digits, jax {jax.__version__}")
    for (name, _, error), spent, waited in zip(sides, processor, clock, strict=True):
        print(
            f"{name:<34}{spent:>8.2f} s of processor{waited:>8.2f} s{spent / processor[0]:>7.2f} x ours"
            f"   error {error:.0e}"
        )
    operator = curvature.hessian(curvature.objective(chain), params, examples)
    spent = []
    for _ in range(2):
        processor = time.process_time()
        curvature.extremes(operator, jax.random.key(0), steps=1).largest.block_until_ready()
        spent.append(time.process_time() - processor)
    first, again = spent
    print(f"un-jitted, one product: {first:.1f} s of processor, {again:.1f} s the second time")


def rivals(params: Any, examples: Any, truth: float) -> list[tuple[str, Callable, float]]:
    """PyTorch's sides, once their eigenvalue is ours."""
    import torch
    from rivals import torch_curvature

    torch.set_num_threads(1)
    given = (weights_of(params), np.array(examples[0]), np.array(examples[1], np.int64))
    theirs = torch_curvature.curvlinops_arpack(*given, basis=20, tol=1e-5)(0)
    print(f"curvlinops {theirs:.6g}, off ours by {abs(theirs / truth - 1):.1e}", flush=True)
    if not abs(theirs / truth - 1) <= AGREEMENT:
        raise SystemExit(f"eigenvalues must agree to {AGREEMENT}")
    arpack = lambda setting: torch_curvature.curvlinops_arpack(*given, *setting)
    power = lambda steps: torch_curvature.power_iteration(*given, steps=steps)
    return [
        cheapest("curvlinops, ARPACK", ARPACK, arpack, truth),
        cheapest("power iteration, products", (20, 40, 80, 160), power, truth),
    ]


if __name__ == "__main__":
    main()
