"""What telemetry costs: monitored(clip_by_global_norm) against optax.clip_by_global_norm alone, 10M parameters.

Two ratios, each measured in one run with the two sides interleaved, warm-up outside the clock:
(a) a training update: gradient of an MLP at batch 128, tx.update, an optimiser, apply_updates; one jitted call, and
    one of a scan, which reuses its memory where a call takes fresh pages;
(b) tx.update alone, gradients and state given.

Bytes first, in passes over the gradient: the bare clipper reads g for the norm, reads it again to scale it and writes
u: 3 passes. Telemetry shares the first read and adds one of u and, where parameters are given, one of theirs: 4 and 5
passes, so (b) cannot be 1 where memory is the limit; reads are several times faster than writes to fresh memory.
Counting what is not finite costs nothing in the usual case: the sum of squares tells. But the conditional behind it
holds on to g, so that XLA needs one more buffer where it could have overwritten g in place, as with plain sgd.
"""

import argparse
import platform
import time

import jax
import numpy as np
import optax

from jaxstab import networks
from jaxstab.clipping import monitored
from jaxstab.networks import MLP

BATCH, TARGET = 128, 1.10


def problem(width: int, depth: int):
    """Parameters of an MLP and its loss on one batch of random digits."""
    mlp = MLP(depth, width, "relu")
    x = jax.random.normal(jax.random.key(0), (BATCH, 784))
    y = jax.random.randint(jax.random.key(1), (BATCH,), 0, 10)
    params = networks.chain(mlp).init(jax.random.key(2), x[0], sigma_w=2**0.5)

    def loss(params):
        logits = mlp.apply({"params": params._asdict()}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return params, loss


def training(tx, optimiser, loss, updates: int, params):
    """A call that makes so many training updates, one alone or several in a scan."""
    tx = optax.chain(tx, optimiser)

    def step(carry, _):
        params, state = carry
        change, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, change), state), None

    def run(carry):
        return (
            step(carry, None)[0] if updates == 1 else jax.lax.scan(step, carry, length=updates)[0]
        )

    jitted, start = jax.jit(run), (params, tx.init(params))
    return lambda: jitted(start)


def update_alone(tx, with_params: bool):
    return jax.jit(
        lambda grads, state, params: tx.update(grads, state, params if with_params else None)
    )


def interleaved(calls, repeats: int) -> np.ndarray:
    """Seconds [call, repeat]; every repeat runs every call once, in alternating order."""
    for call in calls:
        for _ in range(3):
            jax.block_until_ready(call())
    seconds = np.zeros((len(calls), repeats))
    for repeat in range(repeats):
        order = range(len(calls)) if repeat % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            start = time.perf_counter()
            jax.block_until_ready(calls[index]())
            seconds[index, repeat] = time.perf_counter() - start
    return seconds


def row(name: str, bare: np.ndarray, ours: np.ndarray) -> None:
    low, middle = ours.min() / bare.min(), np.median(ours) / np.median(bare)
    print(
        f"{name:<34}{1e3 * bare.min():>9.2f}{1e3 * ours.min():>9.2f}{low:>8.3f}"
        f"{1e3 * np.median(bare):>10.2f}{1e3 * np.median(ours):>9.2f}{middle:>8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--depth", type=int, default=9)
    args = parser.parse_args()
    params, loss = problem(args.width, args.depth)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), {platform.machine()}, Python {platform.python_version()},"
    )
    print(
        f"jax {jax.__version__}, optax {optax.__version__}; {size / 1e6:.1f}M parameters, {args.repeats} repeats\n"
    )
    print(f"{'ms':<34}{'bare':>9}{'ours':>9}{'ratio':>8}{'bare':>10}{'ours':>9}{'ratio':>8}")
    print(f"{'':<34}{'--- minimum ---':>26}{'--- median ---':>27}")
    bare = optax.clip_by_global_norm(1.0)
    ours = monitored(bare)
    for name, optimiser in (("sgd", optax.sgd(1e-3)), ("adam", optax.adam(1e-3))):
        for updates in (1, 8):
            calls = [training(tx, optimiser, loss, updates, params) for tx in (bare, ours)]
            kind = f"(a) {name}, " + ("one call" if updates == 1 else f"scan of {updates}")
            row(kind, *interleaved(calls, args.repeats) / updates)
    grads = jax.jit(jax.grad(loss))(params)
    for with_params in (False, True):
        runs = [(update_alone(tx, with_params), tx.init(params)) for tx in (bare, ours)]
        calls = [lambda run=run, state=state: run(grads, state, params) for run, state in runs]
        row(f"(b) tx.update{', with params' * with_params}", *interleaved(calls, args.repeats))
    print(f"\ntarget for (a): at most {TARGET:.2f}")


if __name__ == "__main__":
    main()
