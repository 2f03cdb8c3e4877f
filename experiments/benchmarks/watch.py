"""What following a run costs: diagnosis.watch every 10 updates and no watch, an MLP of depth 20 and width 512.

Both sides are scans of some updates (gradient of an MLP's loss at a batch of 128, clipping, Adam), interleaved, compile
and warm-up outside the clock. Seconds are of processors (user and system, all threads), which a busy machine disturbs
less than the clock. The first summary, with more steps of the power method, is before the start.
"""

import argparse
import os
import platform

import jax
import numpy as np
import optax
from clipping import BATCH, problem

from jaxstab import diagnosis
from jaxstab.clipping import monitored

TARGET = 1.05


def training(tx, loss, updates: int, params):
    """A call that makes so many training updates in a scan; it gives parameters and state."""

    def step(carry, _):
        params, state = carry
        change, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, change), state), None

    jitted = jax.jit(lambda carry: jax.lax.scan(step, carry, length=updates)[0])
    start = jitted((params, tx.init(params)))
    return lambda: jax.block_until_ready(jitted(start))


def processor_seconds(calls, repeats: int) -> np.ndarray:
    """Of processors [call, repeat]; every repeat runs every call once, in alternating order."""
    for call in calls:
        call()
    seconds = np.zeros((len(calls), repeats))
    for repeat in range(repeats):
        order = range(len(calls)) if repeat % 2 == 0 else reversed(range(len(calls)))
        for index in order:
            before = os.times()
            calls[index]()
            after = os.times()
            seconds[index, repeat] = after.user - before.user + after.system - before.system
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=20)
    args = parser.parse_args()
    params, loss = problem(args.width, args.depth)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0]
    print(
        f"{device.device_kind} ({device.platform}), {platform.machine()}, Python {platform.python_version()}, "
        f"jax {jax.__version__}\n{size / 1e6:.1f}M parameters, batch {BATCH}, watched every {args.every} updates, "
        f"scans of {args.updates}, {args.repeats} repeats\n"
    )
    bare = optax.chain(monitored(optax.clip_by_global_norm(1.0)), optax.adam(1e-3))
    sides = {
        "no watch": bare,
        "watch": diagnosis.watch(bare, every=args.every),
        "watch that is never due": diagnosis.watch(bare, every=10**6),
    }
    calls = [training(tx, loss, args.updates, params) for tx in sides.values()]
    seconds = 1e3 * processor_seconds(calls, args.repeats) / args.updates
    print(f"{'processor ms an update':<32}{'least':>8}{'median':>8}{'ratio':>8}{'ratio':>8}")
    for name, row in zip(sides, seconds, strict=True):
        ratios = row.min() / seconds[0].min(), np.median(row) / np.median(seconds[0])
        print(
            f"{name:<32}{row.min():>8.2f}{np.median(row):>8.2f}{ratios[0]:>8.3f}{ratios[1]:>8.3f}"
        )
    print(f"\ntarget: at most {TARGET:.2f}")


if __name__ == "__main__":
    main()
