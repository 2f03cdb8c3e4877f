"""The networks: every side gets the same weights, made beforehand, in the layout that it likes best."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxstab import networks, sweeps
from jaxstab.networks import Params

ACTIVATIONS = ("tanh", "relu", "gelu", "erf")
SIGMA_B = 0.05**0.5
# cells along the second axis of the blocks, so that a scan over layers reads them where they are
CELLS = Params(0, 1, 0)


class Problem(NamedTuple):
    """Networks of several activations, all with the same weights: one per seed and gain, a "cell".

    Attributes:
        activations: names.
        depths: where results are wanted, ascending.
        gains: sigma_w, the faster axis of the cells.
        params: arrays [cell, ...], of the blocks [layer, cell, ...].
        x: inputs [cell, d_in] or [cell, batch, d_in].
        labels: classes [cell, batch].
    """

    activations: tuple[str, ...]
    depths: tuple[int, ...]
    gains: tuple[float, ...]
    params: Params
    x: np.ndarray
    labels: np.ndarray

    @property
    def cells(self) -> int:
        """Gains times seeds."""
        return len(self.x)

    @property
    def nets(self) -> int:
        """Networks of one activation, cell and depth."""
        return len(self.activations) * self.cells * len(self.depths)

    @property
    def width(self) -> int:
        """Units per layer."""
        return self.params.embed["dense"]["kernel"].shape[-1]

    @property
    def chains(self) -> list[networks.Chain]:
        """One per activation."""
        return [networks.chain(networks.MLP(max(self.depths), self.width, name)) for name in self.activations]

    def only(self, cells: Sequence[int]) -> "Problem":
        """The same for some of the cells."""
        cells = list(cells)
        take = lambda axis, tree: jax.tree.map(lambda leaf: leaf.take(cells, axis), tree)
        return self._replace(params=Params(*map(take, CELLS, self.params)), x=self.x[cells], labels=self.labels[cells])

    def to(self, depths: Sequence[int]) -> "Problem":
        """The same, read at other depths, no deeper."""
        blocks = jax.tree.map(lambda leaf: leaf[: max(depths)], self.params.blocks)
        return self._replace(depths=tuple(depths), params=self.params._replace(blocks=blocks))


def gains(count: int) -> tuple[float, ...]:
    """sigma_w from ordered to chaotic, in a range where float32 holds the Jacobians of 64 layers."""
    return tuple(np.linspace(0.5, 2.5, count).tolist())


def draw(
    activations: Sequence[str],
    depths: Sequence[int],
    width: int,
    sigma_w: Sequence[float],
    seeds: int,
    batch: int | None = None,
) -> Problem:
    """Gaussian weights, inputs of mean square 1."""
    mlp = networks.MLP(max(depths), width)
    factors, many = jnp.asarray(sigma_w, jnp.float32), len(sigma_w)
    shape = (width,) if batch is None else (batch, width)

    def seed(key: jax.Array) -> tuple[Params, jax.Array, jax.Array]:
        x = jax.random.normal(jax.random.fold_in(key, 1), shape, jnp.float32)
        x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
        labels = jax.random.randint(jax.random.fold_in(key, 2), shape[:-1], 0, 10, jnp.int32)
        unit = networks.init(mlp, key, x, 1.0, 1.0)
        params = jax.vmap(lambda g: networks.rescale(unit, g, SIGMA_B), out_axes=CELLS)(factors)
        return params, *(jnp.broadcast_to(a[None], (many, *a.shape)) for a in (x, labels))

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        parts = [jax.tree.map(np.asarray, jax.jit(seed)(jax.random.key(s))) for s in range(seeds)]
    params, x, labels = zip(*parts, strict=True)
    stack = lambda axis: lambda *leaves: np.concatenate(leaves, axis)
    whole = Params(
        *(jax.tree.map(stack(axis), *trees) for axis, trees in zip(CELLS, zip(*params, strict=True), strict=True))
    )
    return Problem(tuple(activations), tuple(depths), tuple(sigma_w), whole, np.concatenate(x), np.concatenate(labels))


class Placed(NamedTuple):
    """A problem's arrays (params, x, labels) on the devices, cells spread over them, in parts computed in turn."""

    mesh: Mesh
    parts: tuple[tuple[Params, jax.Array, jax.Array], ...]

    def compile(self, program: Callable[[Params, jax.Array, jax.Array], Any]) -> Callable[[], Any]:
        """The compiled program (params, x, labels) -> results [activation, cell, ...], on the cells of each device."""
        spread = jax.shard_map(
            program, mesh=self.mesh, in_specs=_SPECS, out_specs=PartitionSpec(None, "cell"), check_vma=False
        )
        # in program order on a CPU: two batched decompositions side by side can deadlock a small thread pool
        ordered = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
        options = ordered if self.mesh.devices.flat[0].platform == "cpu" else None
        compiled = jax.jit(spread, compiler_options=options).lower(*self.parts[0]).compile()

        def run() -> Any:
            # one in flight
            found = [jax.block_until_ready(compiled(*part)) for part in self.parts]
            return found[0] if len(found) == 1 else jax.tree.map(lambda *a: np.concatenate(a, 1), *found)

        return run


_ONE = PartitionSpec("cell")
_SPECS = (Params(_ONE, PartitionSpec(None, "cell"), _ONE), _ONE, _ONE)


def place(problem: Problem, at_once: int | None = None) -> Placed:
    """Spread the cells over the devices, so many at a time, or all; the number must divide that of the cells."""
    at_once = min(at_once or problem.cells, problem.cells)
    devices = sweeps.usable_devices()
    devices = devices[: max(n for n in range(1, len(devices) + 1) if at_once % n == 0)]
    mesh = Mesh(np.array(devices), ("cell",))
    put = lambda spec, tree: jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    def part(some: Problem) -> tuple[Params, jax.Array, jax.Array]:
        return Params(*map(put, _SPECS[0], some.params)), put(_SPECS[1], some.x), put(_SPECS[2], some.labels)

    starts = range(0, problem.cells, at_once)
    return Placed(mesh, tuple(part(problem.only(range(start, start + at_once))) for start in starts))
