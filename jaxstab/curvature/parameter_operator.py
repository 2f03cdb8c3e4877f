r"""Jacobian by parameters as an operator, for batches whose kernel is too large a matrix.

J = dy/dtheta has a row per output of each example, in the order of `tangent_kernel`, and a column
per parameter, in the order of `jax.flatten_util.ravel_pytree`. With layer 0 the embedding and layer
L + 1 the readout, a product is a fold over layers,

    forwards    t_l = (dh_l/dh_{l-1}) t_{l-1} + (dh_l/dtheta_l) v_l,
    backwards   g_l = sum over examples of (dh_l/dtheta_l)^T c_l,    c_{l-1} = (dh_l/dh_{l-1})^T c_l,

for a chunk of examples at a time. Parts of a flat vector are read and written one layer at a time.
Each layer's part has its own powers of two until the end.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxstab import networks
from jaxstab.checks import integer
from jaxstab.curvature.functions import is_function, jacobian_of_function
from jaxstab.curvature.kernels import BYTES, _check_loss, _rows
from jaxstab.networks import Chain, Here, Params, chains, flatten, views
from jaxstab.networks.chains import with_network
from jaxstab.networks.folds import States, layer_at
from jaxstab.networks.layers import trained
from jaxstab.norms.logarithms import times_power
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_precision_of
from jaxstab.spectra.operators import Operator, Scaled, scaled

# exponent of zero
NOTHING = -(2**30)


def parameter_jacobian(
    chain: Chain | Callable,
    params: PyTree,
    x: Shaped[Array, "batch ..."],
    loss: str | None = None,
    layer: int | None = None,
    chunk_size: int | None = None,
) -> Operator:
    """Make the Jacobian J of a batch's outputs by the parameters, or a root R of G = R^T R, Gauss-Newton.

    Squared singular values of J are the eigenvalues of `tangent_kernel`. Squared singular values of
    R = S^T J / sqrt(batch), with S S^T the Hessian of the loss by the outputs, are
    `gauss_newton_eigenvalues`. `extremes`, `moments` and `density` compute them matrix-free; the
    trace is the size of the operator times the first moment. A product with k vectors costs a
    forward pass of the batch, and two passes of k vectors through every layer. Memory holds the
    states of a chunk of examples, and the vectors, with an entry per parameter on one side.

    Args:
        chain: the network; or any model as a function (params, x [batch, ...]) -> y [batch, ...],
            for J alone and the whole batch at once.
        params: parameters of the network, depth L; what `Chain.bind` adds is not differentiated by.
        x: a batch of inputs [batch, d_in]; for layers of the user's own [batch, ...], a batch of
            inputs of the chain.
        loss: None for J; for R, "cross_entropy" or "squared" (|y - t|^2 / 2), averaged over the
            rows of x.
        layer: None for all parameters; l in [0, L] for the parameters of layer l (0: embedding),
            L + 1 for the readout. With R, this gives a diagonal block of G.
        chunk_size: number of examples at a time, >= 1; None for as many as fit into BYTES = 256
            MiB, at least one.

    Returns:
        The operator, with rows in the order of y.ravel() and columns in that of
        `jax.flatten_util.ravel_pytree`.

    Raises:
        ValueError: if the loss is unknown, the layer is no integer in [0, L + 1], chunk_size < 1, x
            is not a floating batch, or a function is given with a loss, a layer or a chunk_size.

    Example:
        >>> from jaxstab import curvature, networks, spectra
        >>> net = networks.mlp(depth=2, width=8, features_out=2)
        >>> x = jnp.eye(5)
        >>> params = net.init(jax.random.key(0), x)
        >>> root = parameter_jacobian(net, params, x, loss="cross_entropy")
        >>> found = jax.jit(lambda key: spectra.extremes(root, key, top=3))(jax.random.key(1))
        >>> exact = jax.jit(curvature.gauss_newton_eigenvalues, static_argnums=0)(net, params, x)
        >>> bool(jnp.allclose(jnp.exp(2 * found.log_s), exact[:3], rtol=1e-4))
        True
    """
    if is_function(chain):
        if (loss, layer, chunk_size) != (None, None, None):
            raise ValueError(
                "loss, layer and chunk_size must be None for a function, got "
                f"{loss!r}, {layer!r}, {chunk_size!r}; use curvature.gauss_newton for a loss"
            )
        return jacobian_of_function(chain, params, x)
    return _of_chain(cast(Chain, chain), params, x, loss, layer, chunk_size)


@with_network
def _of_chain(
    chain: Chain,
    params: Params,
    x: Shaped[Array, "batch ..."],
    loss: str | None,
    layer: int | None,
    chunk_size: int | None,
) -> Operator:
    chain, x = _rows(chain, params, x, chunk_size)
    if loss is not None:
        _check_loss(loss)
    last = params.depth + 1
    if layer is not None:
        whole = integer(layer)
        if whole is None or not 0 <= whole <= last:
            raise ValueError(f"layer must be None or an integer in [0, {last}], got {layer!r}")
        layer = whole
    row = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    width = max(h.size for h in views.state_shapes(chain, params, row))
    y = views.output_shape(chain, params, row)
    return _Batch(chain, params, x, loss, layer, chunk_size, width, y.size, y.dtype).operator()


class _Chunk(NamedTuple):
    """Chunk of examples as one input of a network on batches, with its states."""

    chain: Chain
    params: Params
    states: States

    def layer(self, number: int) -> Here:
        """Return layer `number` at its input state."""
        if number == 0:
            h = self.states.x
        else:
            h = self.states.at(number - 1)
        return layer_at(self.chain, self.params, number, h)


def _push_theta(here: Here, v: Float[Array, "k p"]) -> Float[Array, "k n"]:
    """Multiply flat vectors of parameters by a layer's Jacobian by its parameters."""
    if not jax.tree.leaves(here.theta):
        return jnp.zeros((len(v), here.out.size), v.dtype)
    unravel = ravel_pytree(here.theta)[1]
    return jax.vmap(here.push_theta)(jax.vmap(unravel)(v))


def _pull_theta(here: Here, u: Float[Array, "k n"]) -> Float[Array, "k p"]:
    """Multiply by the transposed Jacobian, with flat vectors of parameters as results."""
    return jax.vmap(lambda tree: ravel_pytree(tree)[0])(jax.vmap(here.pull_theta)(u))


class _Columns(NamedTuple):
    """Positions of the layers' parameters in flat vectors.

    Attributes:
        rooms: for the embedding, each segment and the readout, or for one layer alone: start, step
            from layer to layer and size of each leaf.
        firsts: number of the first layer of each room, and the total number of layers.
    """

    rooms: list[list[tuple[int, int, int]]]
    firsts: list[int]

    def of(self, here: Here) -> "_Place":
        """Return the positions of the parameters of a layer."""
        if here.segment is not None and len(self.rooms) > 1:
            return self.place(here.segment + 1, here.index)
        if here.layer == 0:
            return self.place(0, 0)
        return self.place(len(self.rooms) - 1, 0)

    def place(self, room: int, index: Array | int) -> "_Place":
        """Return the positions of the parameters of a layer within a room."""
        return _Place([(start + index * step, size) for start, step, size in self.rooms[room]])


class _Place(NamedTuple):
    """Positions of the parameters of one layer: start and size of each leaf."""

    spans: list[tuple[Array | int, int]]

    def read(self, v: Float[Array, "k columns"]) -> Float[Array, "k p"]:
        parts = [jax.lax.dynamic_slice_in_dim(v, start, size, axis=1) for start, size in self.spans]
        return jnp.concatenate([v[:, :0], *parts], axis=1)

    def write(self, v: Float[Array, "k columns"], part: Float[Array, "k p"]) -> Array:
        done = 0
        for start, size in self.spans:
            v = jax.lax.dynamic_update_slice_in_dim(v, part[:, done : done + size], start, axis=1)
            done += size
        return v


class _Batch(NamedTuple):
    """Arguments of `parameter_jacobian`, with the sizes of state and output, and the output's dtype."""

    chain: Chain
    params: Params
    x: Shaped[Array, "batch d_in"]
    loss: str | None
    layer: int | None
    chunk_size: int | None
    width: int
    out: int
    dtype: jnp.dtype

    def operator(self) -> Operator:
        columns, total = _columns(self.params, self.layer)
        rows = len(self.x) * self.out

        def apply(v: Float[Array, "k columns"]) -> Scaled:
            xs, _ = self.chunks(len(v))
            with at_precision_of(self.chain):
                t, exponents = jax.lax.map(lambda x: self.forwards(columns, x, v), xs)
                top = jnp.max(_effective(t, exponents), axis=0)
                t = jnp.moveaxis(times_power(t, (exponents - top[None])[..., None]), 0, 1)
                return scaled(t.reshape(len(v), -1)[:, :rows], top)

        def adjoint(u: Float[Array, "k rows"]) -> Scaled:
            xs, size = self.chunks(len(u))
            # padding examples of the last chunk have cotangents of zero
            u = jnp.pad(u, ((0, 0), (0, len(xs) * size * self.out - rows)))
            us = jnp.moveaxis(u.reshape(len(u), len(xs), -1), 1, 0)
            nothing = (
                jnp.zeros((len(u), total), u.dtype),
                jnp.full((len(u), self.params.depth + 2), NOTHING, jnp.int32),
            )
            nothing = varying_like(nothing, (self.params, self.x, u))

            def step(collected: tuple, chunk: tuple[Array, Array]) -> tuple[tuple, None]:
                x, u = chunk
                return self.backwards(columns, x, u, collected), None

            with at_precision_of(self.chain):
                return self.levelled(columns, *jax.lax.scan(step, nothing, (xs, us))[0])

        return Operator(apply, adjoint, rows, total, self.dtype)

    def chunks(self, block: int) -> tuple[Shaped[Array, "count inputs"], int]:
        """Return the examples in chunks of equal size, padded with the first examples, and the size."""
        batch = len(self.x)
        most = self.chunk_size or _default_chunk(
            self.params.depth, self.width, block, self.dtype.itemsize
        )
        count = -(-batch // most)
        size = -(-batch // count)
        return self.x[jnp.arange(count * size) % batch].reshape(count, -1), size

    def chunk(self, x: Shaped[Array, " inputs"]) -> _Chunk:
        many = flatten(networks.over_batch(self.chain), x.size // self.x.shape[1])
        return _Chunk(many, self.params, networks.states(many, self.params, x))

    def forwards(
        self, columns: _Columns, x: Shaped[Array, " inputs"], v: Float[Array, "k columns"]
    ) -> Scaled:
        """Compute the rows of J v, or R v, of one chunk."""
        chunk = self.chunk(x)
        first = self.layer or 0
        last = self.params.depth + 1
        zero = jnp.zeros(len(v), jnp.int32)

        def onward(carry: Scaled, here: Here) -> tuple[Scaled, None]:
            through = scaled(jax.vmap(here.push)(carry[0]), carry[1])
            if self.layer is not None:
                return through, None
            return _add(through, scaled(_push_theta(here, columns.of(here).read(v)), zero)), None

        lowest = chunk.layer(first)
        carry = scaled(_push_theta(lowest, columns.of(lowest).read(v)), zero)
        if first < last:
            carry, _ = networks.upwards(*chunk, onward, carry, first=first + 1, readout=True)
        if self.loss:
            return (self.root(chunk)[0](carry[0]), carry[1])
        return carry

    def backwards(
        self,
        columns: _Columns,
        x: Shaped[Array, " inputs"],
        u: Float[Array, "k rows"],
        collected: tuple[Array, Array],
    ) -> tuple[Array, Array]:
        """Add one chunk's part of J^T u, or R^T u, to a sum with an exponent for every layer."""
        chunk = self.chunk(x)
        first = self.layer or 0
        last = self.params.depth + 1

        def collect(c: Scaled, collected: tuple[Array, Array], here: Here) -> tuple[Array, Array]:
            if not jax.tree.leaves(here.theta):
                return collected
            values, exponents = collected
            place = columns.of(here)
            new = scaled(_pull_theta(here, c[0]), c[1])
            part, exponent = _add((place.read(values), exponents[:, here.layer]), new)
            return place.write(values, part), exponents.at[:, here.layer].set(exponent)

        def back(carry: tuple, here: Here) -> tuple[tuple, None]:
            c, collected = carry
            if self.layer is None:
                collected = collect(c, collected, here)
            return (scaled(jax.vmap(here.pull)(c[0]), c[1]), collected), None

        if self.loss:
            u = self.root(chunk)[1](u)
        c = scaled(u, jnp.zeros(len(u), jnp.int32))
        if first < last:
            (c, collected), _ = networks.downwards(
                *chunk, back, (c, collected), first=first + 1, readout=True
            )
        return collect(c, collected, chunk.layer(first))

    def levelled(
        self, columns: _Columns, values: Float[Array, "k columns"], exponents: Int[Array, "k layer"]
    ) -> Scaled:
        """Scale the layers of each vector to the exponent of the largest layer."""
        top = jnp.max(exponents, axis=1)

        def level(values: Array, room: int, index: Array | int) -> Array:
            place = columns.place(room, index)
            exponent = exponents[:, columns.firsts[room] + index]
            return place.write(values, times_power(place.read(values), (exponent - top)[:, None]))

        if self.layer is not None:
            return values, top
        for room, (first, above) in enumerate(itertools.pairwise(columns.firsts)):

            def one(values: Array, index: Array, room: int = room) -> tuple[Array, None]:
                return level(values, room, index), None

            if above - first == 1:
                values = level(values, room, 0)
            else:
                values, _ = jax.lax.scan(one, values, jnp.arange(above - first))
        return values, top

    def root(self, chunk: _Chunk) -> tuple[Callable, Callable]:
        """Return the products with S^T / sqrt(batch) at one chunk, and with its transpose."""
        scale = 1 / math.sqrt(len(self.x))
        if self.loss == "squared":
            return (lambda t: scale * t,) * 2
        logits = chunk.chain.readout(self.params, chunk.states.last).reshape(-1, self.out)
        p = jax.nn.softmax(logits)

        def half(t: Float[Array, " rows"]) -> Float[Array, " rows"]:
            t = t.reshape(p.shape)
            return (scale * jnp.sqrt(p) * (t - jnp.sum(p * t, axis=1, keepdims=True))).ravel()

        transposed = jax.linear_transpose(half, jnp.zeros(p.size, p.dtype))
        return jax.vmap(half), jax.vmap(lambda u: transposed(u)[0])


def _columns(params: Params, layer: int | None) -> tuple[_Columns, int]:
    """Find the positions of layers, and count the columns."""
    stacks = trained(params).stacks
    counts = _counts(params)
    firsts = [0, *itertools.accumulate(counts)]
    if layer is not None:
        room = next(room for room, above in enumerate(firsts[1:]) if layer < above)
        size = _sizes(params)[room]
        return _Columns([[(0, 0, size)]], firsts), size
    rooms: list[list[tuple[int, int, int]]] = []
    start = 0
    for stack, count in zip(stacks, counts, strict=True):
        rooms.append([])
        for leaf in jax.tree.leaves(stack):
            rooms[-1].append((start, leaf.size // count, leaf.size // count))
            start += leaf.size
    return _Columns(rooms, firsts), start


def _counts(params: Params) -> list[int]:
    """Count the layers of the embedding, of each segment and of the readout."""
    return [1, *map(chains.layers_of, params.stacks[1:-1]), 1]


def _sizes(params: Params) -> list[int]:
    """Count the parameters of a layer of the embedding, of each segment and of the readout."""
    stacks = zip(params.stacks, _counts(params), strict=True)
    return [
        sum(leaf.size for leaf in jax.tree.leaves(trained(stack))) // count
        for stack, count in stacks
    ]


def _default_chunk(depth: int, width: int, block: int, itemsize: int) -> int:
    """Count the examples whose states, and a block of vectors by layer, fit into BYTES."""
    return max(1, BYTES // ((depth + 1 + 4 * block) * width * itemsize))


def _effective(
    values: Float[Array, "*some k n"], exponents: Int[Array, "*some k"]
) -> Int[Array, "*some k"]:
    return jnp.where(jnp.any(values != 0, axis=-1), exponents, NOTHING)


def _add(a: Scaled, b: Scaled) -> Scaled:
    top = jnp.maximum(_effective(*a), _effective(*b))
    levelled = lambda v, exponent: times_power(v, (exponent - top)[:, None])
    return scaled(levelled(*a) + levelled(*b), top)
