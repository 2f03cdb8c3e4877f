"""The networks: every side gets the same weights, made beforehand, in the layout that it likes best."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxstab import networks
from jaxstab.devices import spread
from jaxstab.networks import Params

ACTIVATIONS = ("tanh", "relu", "gelu", "erf")
SIGMA_B = 0.05**0.5
# cells along the second axis of the blocks, so that a scan over layers reads them where they are
CELLS = Params(0, 1, 0)


class Problem(NamedTuple):
    """Networks of several activations, all with the same weights: one per seed and gain, a "cell".

    Rivals get the weights of every network, which is how their users hold them; ours those of every seed, with the
    gains beside them.

    Attributes:
        activations: names.
        depths: where results are wanted, ascending.
        gains: sigma_w, the faster axis of the cells.
        unit: parameters of each seed, weights of gain 1: arrays [seed, ...], of the blocks [layer, seed, ...].
        params: of each network: arrays [cell, ...], of the blocks [layer, cell, ...].
        x: inputs [cell, d_in] or [cell, batch, d_in].
        labels: classes [cell, batch].
    """

    activations: tuple[str, ...]
    depths: tuple[int, ...]
    gains: tuple[float, ...]
    unit: Params
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
        return [
            networks.chain(networks.MLP(max(self.depths), self.width, name))
            for name in self.activations
        ]

    def only(self, cells: Sequence[int]) -> "Problem":
        """The same for some of the cells, as rivals have them."""
        cells = list(cells)
        take = lambda axis, tree: jax.tree.map(lambda leaf: leaf.take(cells, axis), tree)
        return self._replace(
            params=Params(*map(take, CELLS, self.params)),
            x=self.x[cells],
            labels=self.labels[cells],
        )

    def to(self, depths: Sequence[int]) -> "Problem":
        """The same, read at other depths, no deeper."""
        cut = lambda params: params._replace(
            blocks=jax.tree.map(lambda leaf: leaf[: max(depths)], params.blocks)
        )
        return self._replace(depths=tuple(depths), unit=cut(self.unit), params=cut(self.params))


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

    def seed(key: jax.Array) -> tuple[Params, Params, jax.Array, jax.Array]:
        x = jax.random.normal(jax.random.fold_in(key, 1), shape, jnp.float32)
        x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
        labels = jax.random.randint(jax.random.fold_in(key, 2), shape[:-1], 0, 10, jnp.int32)
        unit = networks.chain(mlp).init(key, x, 1.0, SIGMA_B)
        params = jax.vmap(lambda g: networks.rescale(unit, g, 1.0), out_axes=CELLS)(factors)
        one = jax.vmap(lambda unit: unit, in_axes=None, out_axes=CELLS, axis_size=1)(unit)
        return one, params, *(jnp.broadcast_to(a[None], (many, *a.shape)) for a in (x, labels))

    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        parts = [jax.tree.map(np.asarray, jax.jit(seed)(jax.random.key(s))) for s in range(seeds)]
    unit, params, x, labels = zip(*parts, strict=True)
    stack = lambda axis: lambda *leaves: np.concatenate(leaves, axis)
    whole = lambda parts: Params(
        *(
            jax.tree.map(stack(axis), *trees)
            for axis, trees in zip(CELLS, zip(*parts, strict=True), strict=True)
        )
    )
    found = tuple(activations), tuple(depths), tuple(sigma_w), whole(unit), whole(params)
    return Problem(*found, np.concatenate(x), np.concatenate(labels))


def ours(problem: Problem, measure: Callable, at_once: int | None = None) -> Callable[[], Any]:
    """The compiled program of measure(chain, params, x, labels) of one network, as `sweeps.run` has it.

    Weights of each seed once, vmapped over gains beside them, the gains spread over devices: so many of one seed at a
    time, or all of all seeds. Results are [activation, cell, ...].
    """
    many = len(problem.gains)
    at_once, seeds = at_once or many, problem.cells // many
    mlp, mesh = networks.MLP(max(problem.depths), problem.width), _mesh(at_once, "gain")

    def program(unit: Params, gains: jax.Array, x: jax.Array, labels: jax.Array) -> Any:
        def seed(chain: networks.Chain, unit: Params, x: jax.Array, labels: jax.Array) -> Any:
            return jax.vmap(
                lambda g: measure(chain, networks.chain(mlp).bind(unit, sigma_w=g), x, labels)
            )(gains)

        with jax.default_matmul_precision("highest"):
            over = [
                jax.vmap(functools.partial(seed, chain), (CELLS, 0, 0)) for chain in problem.chains
            ]
            found = [one(unit, x, labels) for one in over]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def put(of: slice, gains: slice) -> tuple:
        take = lambda axis, tree: jax.tree.map(
            lambda leaf: leaf[of] if axis == 0 else leaf[:, of], tree
        )
        sigma_w = np.asarray(problem.gains[gains], np.float32)
        parts = (
            Params(*map(take, CELLS, problem.unit)),
            sigma_w,
            problem.x[::many][of],
            problem.labels[::many][of],
        )
        return jax.device_put(parts, tuple(NamedSharding(mesh, spec) for spec in specs))

    specs = PartitionSpec(), PartitionSpec("gain"), PartitionSpec(), PartitionSpec()
    turns = [slice(s, s + 1) for s in range(seeds)] if at_once < many else [slice(None)]
    parts = [
        put(of, slice(start, start + at_once)) for of in turns for start in range(0, many, at_once)
    ]
    call = _compiled(program, mesh, specs, PartitionSpec(None, None, "gain"), parts)
    rows = lambda *found: np.concatenate(
        [np.asarray(a).reshape(a.shape[0], -1, *a.shape[3:]) for a in found], 1
    )
    return lambda: jax.tree.map(rows, *call())


def _mesh(items: int, axis: str) -> Mesh:
    """As many devices as divide the items among them."""
    devices = jax.local_devices()
    return Mesh(
        np.array(devices[: max(n for n in range(1, len(devices) + 1) if items % n == 0)]), (axis,)
    )


def _compiled(
    program: Callable, mesh: Mesh, specs: tuple, out: PartitionSpec, parts: Sequence[tuple]
) -> Callable:
    compiled = spread(program, mesh, specs, out).lower(*parts[0]).compile()
    # one in flight
    return lambda: [jax.block_until_ready(compiled(*part)) for part in parts]


class Placed(NamedTuple):
    """A problem's arrays (params, x, labels) on the devices, cells spread over them, in parts computed in turn."""

    mesh: Mesh
    parts: tuple[tuple[Params, jax.Array, jax.Array], ...]

    def compile(self, program: Callable[[Params, jax.Array, jax.Array], Any]) -> Callable[[], Any]:
        """The compiled program (params, x, labels) -> results [activation, cell, ...], on the cells of each device."""
        call = _compiled(program, self.mesh, _SPECS, PartitionSpec(None, "cell"), self.parts)

        def run() -> Any:
            found = call()
            return (
                found[0]
                if len(found) == 1
                else jax.tree.map(lambda *a: np.concatenate(a, 1), *found)
            )

        return run


_ONE = PartitionSpec("cell")
_SPECS = (Params(_ONE, PartitionSpec(None, "cell"), _ONE), _ONE, _ONE)


def place(problem: Problem, at_once: int | None = None) -> Placed:
    """Networks for rivals and floors: cells spread over devices, so many at a time; the number must divide them all."""
    at_once = min(at_once or problem.cells, problem.cells)
    mesh = _mesh(at_once, "cell")
    put = lambda spec, tree: jax.tree.map(
        lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree
    )

    def part(some: Problem) -> tuple[Params, jax.Array, jax.Array]:
        return (
            Params(*map(put, _SPECS[0], some.params)),
            put(_SPECS[1], some.x),
            put(_SPECS[2], some.labels),
        )

    starts = range(0, problem.cells, at_once)
    return Placed(
        mesh, tuple(part(problem.only(range(start, start + at_once))) for start in starts)
    )
