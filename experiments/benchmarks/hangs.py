"""Whether anything waits for ever: public functions, in every way of batching, on 1, 2 and 8 host devices."""

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from public_functions.calls import PLAIN, UNCALLED, Call, calls, mlp, public

from jaxstab import networks

# stacks of this many matrices of this width are what jaxlib 0.10.2 shares out among threads
NETWORKS, WIDTH, DEPTH = 8, 32, 4
DEVICES = (1, 2, 8)
EAGER = ("plain", "vmap")
WAYS = (*EAGER, "jit(vmap)", "shard_map", "pmap", "jit of sharded")


def uncalled() -> dict[str, str]:
    """Public functions that have no call, with the reason, for the head of the report."""
    named = set(calls(WIDTH, DEPTH))
    return {name: UNCALLED.get(name, "forgotten") for name in public() if name not in named}


def arguments() -> tuple[networks.Params, jax.Array, jax.Array]:
    """Parameters, inputs and keys of a few networks."""
    keys = jax.random.split(jax.random.key(0), NETWORKS)
    x = jnp.linspace(-1.0, 1.0, NETWORKS * WIDTH).reshape(NETWORKS, -1)
    ours = mlp(WIDTH, DEPTH)
    return jax.vmap(lambda key, x: networks.chain(ours).init(key, x, 1.3))(keys, x), x, keys


def program(way: str, call: Call) -> Callable[[], Any]:
    """The call of all networks, batched in this way over all devices."""
    given = arguments()
    every = jax.vmap(call)
    devices = np.array(jax.devices())
    mesh, own = Mesh(devices, ("part",)), PartitionSpec("part")
    if way == "plain":
        first = jax.tree.map(lambda leaf: leaf[0], given)
        return lambda: call(*first)
    if way == "vmap":
        return lambda: every(*given)
    if way == "jit(vmap)":
        jitted = jax.jit(every)
        return lambda: jitted(*given)
    if way == "shard_map":
        mapped = jax.jit(jax.shard_map(every, mesh=mesh, in_specs=own, out_specs=own))
        return lambda: mapped(*given)
    if way == "pmap":
        apart = jax.tree.map(lambda leaf: leaf.reshape(len(devices), -1, *leaf.shape[1:]), given)
        pmapped = jax.pmap(every)
        return lambda: pmapped(*apart)
    placed, jitted = jax.device_put(given, NamedSharding(mesh, own)), jax.jit(every)
    return lambda: jitted(*placed)


def work(devices: int, way: str, names: list[str], times: int) -> None:
    """Make the calls, with a line before and after those of each function."""
    jax.config.update("jax_num_cpu_devices", devices)
    for name in names:
        print("start", name, flush=True)
        try:
            run = program(way, calls(WIDTH, DEPTH)[name])
            for _ in range(times):
                jax.block_until_ready(run())
            print("end", name, flush=True)
        except Exception as error:
            # what a function refuses is not what is looked for here, but it is to be seen
            print("error", name, type(error).__name__, str(error).splitlines()[0][:120], flush=True)


def watch(devices: int, way: str, names: list[str], times: int, limit: float) -> dict[str, str]:
    """What became of each function: seconds, an error, or that it hung; a process that hangs is ended."""
    found: dict[str, str] = {}
    settings = {
        name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")
    }
    settings.pop("NPROC", None)
    while left := [name for name in names if name not in found]:
        command = [
            sys.executable,
            str(Path(__file__)),
            "--work",
            str(devices),
            way,
            str(times),
            *left,
        ]
        process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        at, start = left[0], time.perf_counter()
        while True:
            try:
                line = lines.get(timeout=limit)
            except queue.Empty:
                found[at] = f"HUNG: nothing in {limit:.0f} s"
                break
            kind, _, rest = line.strip().partition(" ")
            if kind == "":
                # the process ended: well, or in the middle of a function
                if process.wait() != 0:
                    found[at] = f"DIED: exit status {process.returncode}"
                break
            at = rest.split(" ")[0]
            if kind == "start":
                start = time.perf_counter()
            else:
                found[at] = (
                    f"{time.perf_counter() - start:.1f} s" if kind == "end" else f"refused: {rest}"
                )
        process.kill()
        process.wait()
    return found


def _read(process: subprocess.Popen, lines: queue.Queue[str]) -> None:
    """Hand on what a process prints, line by line, and an empty line at its end."""
    for line in process.stdout or ():
        lines.put(line)
    lines.put("")


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        devices, way, times, *names = sys.argv[2:]
        work(int(devices), way, names, int(times))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "functions", nargs="*", help="such as spectra.extremes, or a room; all unless given"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--times", type=int, default=50, help="calls of each compiled program")
    parser.add_argument(
        "--eager-times",
        type=int,
        default=3,
        help="calls of what is not jitted, which compiles anew",
    )
    parser.add_argument(
        "--limit", type=float, default=120, help="seconds after which a function counts as hung"
    )
    args = parser.parse_args()
    names = [
        name
        for name in calls(WIDTH, DEPTH)
        if not args.functions or name in args.functions or name.split(".")[0] in args.functions
    ]
    print(
        f"jax {jax.__version__}, {os.cpu_count()} cores; not called: {uncalled()}",
        flush=True,
    )
    bad = 0
    for devices in args.devices:
        for way in args.ways:
            times = args.eager_times if way in EAGER else args.times
            batched = [name for name in names if way == "plain" or name not in PLAIN]
            found = watch(devices, way, batched, times, args.limit)
            wrong = {
                name: text
                for name, text in found.items()
                if not text.endswith(" s") or "HUNG" in text
            }
            bad += sum("HUNG" in text or "DIED" in text for text in wrong.values())
            print(
                f"{devices} devices, {way}: {len(found) - len(wrong)} of {len(found)} finish, {times} calls each",
                flush=True,
            )
            for name, text in wrong.items():
                print(f"    {name}: {text}", flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
