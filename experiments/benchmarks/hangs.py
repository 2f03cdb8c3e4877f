"""Whether anything waits for ever: public functions, in every way of batching, on 1, 2 and 8 host devices."""

import argparse
import functools
import inspect
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

from jaxstab import curvature, initializers, networks, propagation, spectra, theory
from jaxstab.networks.family import initial_stats, unbind
from jaxstab.spectra.matrix_free import Density

# stacks of this many matrices of this width are what jaxlib 0.10.2 shares out among threads
NETWORKS, WIDTH, DEPTH = 8, 32, 4
DEVICES = (1, 2, 8)
EAGER = ("plain", "vmap")
WAYS = (*EAGER, "jit(vmap)", "shard_map", "pmap", "jit of sharded")
ROOMS = (spectra, curvature, networks, propagation, initializers, theory)

Call = Callable[[networks.Params, jax.Array, jax.Array], Any]


@functools.cache
def calls() -> dict[str, Call]:
    """A call of every public function that computes: (params, x [d_in], key) of one network -> arrays."""
    mlp = networks.MLP(DEPTH, WIDTH, features_out=WIDTH, weights="orthogonal")
    normed = networks.MLP(DEPTH, WIDTH, norm="batch")
    relu = networks.MLP(DEPTH, WIDTH, "relu", skip="rezero", weights="orthogonal")
    chain, depths = networks.chain(mlp), [2, DEPTH]
    gain = lambda x: 1 + 0.1 * x[0]
    square = lambda x: x[:, None] * x[None]
    shares = lambda x: Density(jnp.sort(square(x)), jax.nn.softmax(square(x)))
    batch = lambda x: jnp.stack([x, -x])
    jacobian = lambda p, x: spectra.jacobian(chain, p, x)
    drawn = lambda x, key: networks.init(relu, key, x)
    law = lambda x: theory.jacobian_law("tanh", gain(x), 0.1, 8, points=32)
    return {
        "spectra.alignment": lambda p, x, key: spectra.alignment(chain, p, x),
        "spectra.cdf": lambda p, x, key: spectra.cdf(shares(x), x),
        "spectra.density": lambda p, x, key: spectra.density(jacobian(p, x), key, 2, 3),
        "spectra.extremes": lambda p, x, key: spectra.extremes(jacobian(p, x), key, 2, 2, 8),
        "curvature.gauss_newton_eigenvalues": lambda p, x, key: curvature.gauss_newton_eigenvalues(
            chain, p, batch(x)
        ),
        "curvature.gauss_newton_gram": lambda p, x, key: curvature.gauss_newton_gram(
            square(x[:6]), batch(x[:3])
        ),
        "spectra.jacobian": lambda p, x, key: jacobian(p, x).matvec(x),
        "curvature.kernel_eigenvalues": lambda p, x, key: curvature.kernel_eigenvalues(square(x)),
        "spectra.local_log_singular_values": lambda p, x, key: spectra.local_log_singular_values(
            chain, p, x
        ),
        "spectra.log_apjn": lambda p, x, key: spectra.log_apjn(chain, p, x),
        "spectra.log_apjn_estimate": lambda p, x, key: spectra.log_apjn_estimate(chain, p, x, key),
        "spectra.log_singular_values": lambda p, x, key: spectra.log_singular_values(
            chain, p, x, depths
        ),
        "spectra.log_spectrum": lambda p, x, key: spectra.log_spectrum(
            chain, p, x, depths, 1, True
        ),
        "spectra.lyapunov_exponents": lambda p, x, key: spectra.lyapunov_exponents(
            chain, p, x, depths
        ),
        "spectra.lyapunov_limit": lambda p, x, key: spectra.lyapunov_limit(
            chain, p, x, key, groups=2
        ),
        "spectra.moments": lambda p, x, key: spectra.moments(jacobian(p, x), key),
        "curvature.parameter_jacobian": lambda p, x, key: curvature.parameter_jacobian(
            chain, p, batch(x)
        ).rmatvec(jnp.tile(x, 2)),
        "spectra.partial_jacobian": lambda p, x, key: spectra.partial_jacobian(chain, p, x, 1, 3),
        "spectra.precision_report": lambda p, x, key: spectra.precision_report(chain, p, x, depths),
        "spectra.product_log_singular_values": lambda p, x, key: (
            spectra.product_log_singular_values(p.blocks["dense"]["kernel"])
        ),
        "spectra.quantiles": lambda p, x, key: spectra.quantiles(shares(x), jnp.asarray([0.5])),
        "spectra.singular_values": lambda p, x, key: spectra.singular_values(chain, p, x, depths),
        "spectra.spectrum": lambda p, x, key: spectra.spectrum(chain, p, x, depths),
        "curvature.tangent_kernel": lambda p, x, key: curvature.tangent_kernel(chain, p, batch(x)),
        "curvature.tangent_kernel_by_layer": lambda p, x, key: curvature.tangent_kernel_by_layer(
            chain, p, batch(x)
        ),
        "networks.bind": lambda p, x, key: unbind(networks.bind(mlp, p, sigma_w=2.0)),
        "networks.init": lambda p, x, key: networks.init(mlp, key, x[: WIDTH // 2]),
        "networks.rescale": lambda p, x, key: networks.rescale(p, gain(x), 1.0),
        "networks.initial_stats": lambda p, x, key: (x, initial_stats(normed, batch(x)))[0],
        "propagation.backward": lambda p, x, key: propagation.backward(
            chain, p, x, jnp.sum, depths
        ),
        "propagation.correlation": lambda p, x, key: propagation.correlation(chain, p, x, x[::-1]),
        "propagation.forward": lambda p, x, key: propagation.forward(chain, p, x),
        "propagation.states": lambda p, x, key: propagation.states(chain, p, x),
        "initializers.fixup": lambda p, x, key: initializers.fixup(relu, drawn(x, key)),
        "initializers.looks_linear": lambda p, x, key: initializers.looks_linear(relu, key, x),
        "initializers.lsuv": lambda p, x, key: initializers.lsuv(mlp, p, batch(x)),
        "initializers.skip_init": lambda p, x, key: initializers.skip_init(drawn(x, key)),
        "theory.correlation_map": lambda p, x, key: theory.correlation_map(
            "tanh", gain(x), 0.1, 1.0, 0.5
        ),
        "theory.correlation_slope": lambda p, x, key: theory.correlation_slope(
            "tanh", gain(x), 0.1, 1.0, 0.5
        ),
        "theory.critical_points": lambda p, x, key: theory.critical_points("tanh", 0.1 * gain(x)),
        "theory.critical_sigma_w": lambda p, x, key: theory.critical_sigma_w("tanh", 0.1 * gain(x)),
        "theory.derivative_moment": lambda p, x, key: theory.derivative_moment("tanh", gain(x)),
        "theory.fixed_point": lambda p, x, key: theory.fixed_point("tanh", gain(x), 0.1),
        "theory.fixed_points": lambda p, x, key: theory.fixed_points("tanh", gain(x), 0.1),
        "theory.jacobian_cdf": lambda p, x, key: theory.jacobian_cdf(law(x), x),
        "theory.jacobian_law": lambda p, x, key: law(x),
        "theory.jacobian_moments": lambda p, x, key: theory.jacobian_moments(
            "tanh", gain(x), 0.1, 8
        ),
        "theory.length_map": lambda p, x, key: theory.length_map("tanh", gain(x), 0.1, 1.0),
        "theory.predict": lambda p, x, key: theory.predict(
            "tanh", gain(x), 0.1, depths, width=WIDTH, d_in=WIDTH
        ),
        "theory.second_moment": lambda p, x, key: theory.second_moment("tanh", gain(x)),
    }


def uncalled() -> list[str]:
    """Public functions that have no call here, for the head of the report."""
    names = []
    for room in ROOMS:
        for name, function in vars(room).items():
            own = inspect.isfunction(function) and function.__module__.startswith(room.__name__)
            if own and not name.startswith("_"):
                names.append(f"{room.__name__.split('.')[1]}.{name}")
    return sorted(set(names) - set(calls()))


def arguments() -> tuple[networks.Params, jax.Array, jax.Array]:
    """Parameters, inputs and keys of a few networks."""
    mlp = networks.MLP(DEPTH, WIDTH, features_out=WIDTH)
    keys = jax.random.split(jax.random.key(0), NETWORKS)
    x = jnp.linspace(-1.0, 1.0, NETWORKS * WIDTH).reshape(NETWORKS, -1)
    return jax.vmap(lambda key, x: networks.init(mlp, key, x, 1.3))(keys, x), x, keys


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
            run = program(way, calls()[name])
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
        for name in calls()
        if not args.functions or name in args.functions or name.split(".")[0] in args.functions
    ]
    print(
        f"jax {jax.__version__}, {os.cpu_count()} cores; not called: {', '.join(uncalled())}",
        flush=True,
    )
    bad = 0
    for devices in args.devices:
        for way in args.ways:
            times = args.eager_times if way in EAGER else args.times
            found = watch(devices, way, names, times, args.limit)
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
