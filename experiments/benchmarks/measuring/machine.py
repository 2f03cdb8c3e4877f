"""What the timings are held against: the devices, and the rates of a large product and of reading memory."""

import itertools
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.devices import cores

CORES = cores()


class Rates(NamedTuple):
    """Of this machine, all cores: float32 FLOP/s of a large matrix product, bytes/s read."""

    flops: float
    bytes: float


def on_every_core(function: Callable[[slice], Any], items: int) -> list[Any]:
    """The function on as many slices of the items as there are cores, each in a thread of its own."""
    ends = np.linspace(0, items, min(CORES, items) + 1).astype(int)
    slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
    with ThreadPoolExecutor(len(slices)) as pool:
        return list(pool.map(function, slices))


def rates(devices: Sequence[jax.Device], size: int = 2048, repeats: int = 3) -> Rates:
    """The better of one device's product and one product on each device; reads as dot products in BLAS or a sum."""
    draw = lambda device: jax.device_put(
        np.random.default_rng(0).standard_normal((size, size), np.float32), device
    )
    square = [draw(device) for device in devices]
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    products = [
        _fastest(lambda n=n: [product(a) for a in square[:n]], repeats) / n
        for n in {1, len(devices)}
    ]
    if devices[0].platform == "cpu":
        long = np.ones(1 << 28, np.float32)
        read = _fastest(
            lambda: on_every_core(lambda part: np.dot(long[part], long[part]), len(long)), repeats
        )
    else:
        long = jax.device_put(np.ones(1 << 28, np.float32), devices[0])
        total = jax.jit(jnp.sum)
        read = _fastest(lambda: total(long), repeats)
    return Rates(2 * size**3 / min(products), long.nbytes / read)


def _fastest(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe(devices: Sequence[jax.Device], rate: Rates) -> str:
    """Device, versions and rates, for the head of a report."""
    device = devices[0]
    return (
        f"{len(devices)} x {device.device_kind} ({device.platform}), {CORES} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__}\n"
        f"float32, large product {rate.flops / 1e9:.0f} GFLOP/s, reads {rate.bytes / 1e9:.1f} GB/s"
    )
