r"""The Jacobian with respect to parameters as an operator, for batches whose kernel would be too large a matrix.

J = dy/dtheta has a row per output of each example, in the order of `tangent_kernel`, and a column per parameter, in
the order of `jax.flatten_util.ravel_pytree`. With layer 0 the embedding and layer L + 1 the readout, a product is a
fold over layers,

    forwards    t_l = (dh_l/dh_{l-1}) t_{l-1} + (dh_l/dtheta_l) v_l,
    backwards   g_l = sum over examples of (dh_l/dtheta_l)^T c_l,    c_{l-1} = (dh_l/dh_{l-1})^T c_l,

for a chunk of examples at a time. Vectors are read and written where they lie, one layer at a time; every layer's part
carries powers of two of its own until the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxstab.checks import integer
from jaxstab.networks import Chain, Params, flatten, with_network
from jaxstab.norms import varying_like
from jaxstab.propagation import states
from jaxstab.spectra.operators import Operator, Precision, _both_ways, _scaled
from jaxstab.spectra.parameters import BYTES, _check, _check_loss, _given, _trained

# vectors y_i 2^(e_i): y [k, n] and e [k]
Scaled = tuple[Array, Array]
# the exponent of what is zero
NOTHING = -(2**30)


@with_network
def parameter_jacobian(
    chain: Chain,
    params: Params,
    x: Float[Array, "batch d_in"],
    loss: str | None = None,
    layer: int | None = None,
    chunk_size: int | None = None,
    precision: Precision = "highest",
) -> Operator:
    """The Jacobian J of a batch's outputs by the parameters, or a root R of the Gauss-Newton matrix, R^T R = G.

    Squared singular values of J are the eigenvalues of `tangent_kernel`; those of R = S^T J / sqrt(batch), S S^T the
    loss's Hessian by the outputs, are `gauss_newton_eigenvalues`. `extremes`, `moments` and `density` take them
    matrix-free: a trace is the operator's size times the first moment. A product of k vectors passes the batch
    forwards and those k through every layer twice; it holds the states of a chunk of examples and the vectors, which
    on the one side have an entry per parameter.

    Args:
        chain: the network.
        params: its parameters, depth L; what `networks.bind` adds to them is not differentiated by.
        x: a batch of inputs.
        loss: None for J; "cross_entropy" or "squared" (|y - t|^2 / 2), averaged over the rows of x, for R.
        layer: None for all parameters; l in [0, L] for those that make h_l (0: the embedding's), L + 1 for the
            readout's. Of R, it gives G's diagonal block.
        chunk_size: examples at a time, >= 1; None for as many as fit into BYTES = 256 MiB, at least one.
        precision: of the matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The operator. Rows are ordered as y.ravel(), columns as `jax.flatten_util.ravel_pytree` has the parameters.

    Raises:
        ValueError: if the loss is unknown, there is no such layer, chunk_size < 1, or x is not a floating batch.

    Example:
        >>> from jaxstab import networks, spectra
        >>> mlp = networks.MLP(depth=2, width=8, features_out=2)
        >>> x = jnp.eye(5)
        >>> chain, params = networks.chain(mlp), networks.init(mlp, jax.random.key(0), x)
        >>> root = parameter_jacobian(chain, params, x, loss="cross_entropy")
        >>> found = jax.jit(lambda key: spectra.extremes(root, key, top=3))(jax.random.key(1))
        >>> exact = jax.jit(spectra.gauss_newton_eigenvalues, static_argnums=0)(chain, params, x)
        >>> bool(jnp.allclose(jnp.exp(2 * found.log_s), exact[:3], rtol=1e-4))
        True
    """
    _check(x, chunk_size)
    if loss is not None:
        _check_loss(loss)
    last = params.depth + 1
    if layer is not None:
        whole = integer(layer)
        if whole is None or not 0 <= whole <= last:
            raise ValueError(f"layer must be None or an integer in [0, {last}], got {layer!r}")
        layer = whole
    h = jax.eval_shape(chain.embed, params, x[0])
    y = jax.eval_shape(chain.readout, params, h)
    return _Batch(chain, params, x, loss, layer, chunk_size, precision, h.size, y.size).operator()


class _Layer(NamedTuple):
    """The derivatives of one layer at a chunk of examples, by its parameters and by its input, both ways."""

    push_theta: Callable
    pull_theta: Callable
    push: Callable
    pull: Callable


class _Chunk(NamedTuple):
    """A chunk of examples as one long input to one network, and its states."""

    chain: Chain
    params: Params
    x: Float[Array, " inputs"]
    hidden: Float[Array, "layer n"]

    def layer(self, at: Array | int) -> _Layer:
        """The one that makes h_at: 0 the embedding, L + 1 the readout; those between may be traced."""
        chain, params = self.chain, self.params
        function: Callable
        if _is(at, 0):
            here, h, function = params.embed, self.x, lambda embed, x: chain.embed(params._replace(embed=embed), x)
        elif _is(at, params.depth + 1):
            here, h = params.readout, self.hidden[-1]
            function = lambda readout, h: chain.readout(params._replace(readout=readout), h)
        else:
            of = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at - 1, keepdims=False)
            here, h, function = jax.tree.map(of, params.blocks), of(self.hidden), chain.block
        theta = _trained(here)
        unravel, ravel = ravel_pytree(theta)[1], lambda tree: ravel_pytree(tree)[0]
        push, pull = _both_ways(lambda theta: function(_given(here, theta), h), theta)
        return _Layer(
            lambda v: push(jax.vmap(unravel)(v)),
            lambda u: jax.vmap(ravel)(pull(u)),
            *_both_ways(lambda h: function(here, h), h),
        )


class _Columns(NamedTuple):
    """Where the parameters of layers lie in flat vectors: start, step from layer to layer and size of each leaf."""

    rooms: list[list[tuple[int, int, int]]]
    depth: int

    def spans(self, at: Array | int) -> list[tuple[Array | int, int]]:
        if len(self.rooms) == 1:
            return [(start, size) for start, _, size in self.rooms[0]]
        if _is(at, 0) or _is(at, self.depth + 1):
            return [(start, size) for start, _, size in self.rooms[0 if _is(at, 0) else 2]]
        return [(start + (at - 1) * step, size) for start, step, size in self.rooms[1]]

    def read(self, v: Float[Array, "k columns"], at: Array | int) -> Float[Array, "k p"]:
        parts = [jax.lax.dynamic_slice_in_dim(v, start, size, axis=1) for start, size in self.spans(at)]
        return jnp.concatenate(parts, axis=1)

    def write(self, v: Float[Array, "k columns"], at: Array | int, part: Float[Array, "k p"]) -> Array:
        done = 0
        for start, size in self.spans(at):
            v = jax.lax.dynamic_update_slice_in_dim(v, part[:, done : done + size], start, axis=1)
            done += size
        return v


class _Batch(NamedTuple):
    """What `parameter_jacobian` was given, with the sizes of state and output."""

    chain: Chain
    params: Params
    x: Float[Array, "batch d_in"]
    loss: str | None
    layer: int | None
    chunk_size: int | None
    precision: Precision
    width: int
    out: int

    def operator(self) -> Operator:
        columns, total = _columns(self.params, self.layer)
        rows = len(self.x) * self.out

        def apply(v: Float[Array, "k columns"]) -> Scaled:
            xs, _ = self.chunks(len(v))
            with jax.default_matmul_precision(self.precision):
                t, exponents = jax.lax.map(lambda x: self.forwards(columns, x, v), xs)
                top = jnp.max(_effective(t, exponents), axis=0)
                t = jnp.moveaxis(jnp.ldexp(t, (exponents - top[None])[..., None]), 0, 1)
                return _scaled(t.reshape(len(v), -1)[:, :rows], top)

        def adjoint(u: Float[Array, "k rows"]) -> Scaled:
            xs, size = self.chunks(len(u))
            # examples that only fill up the last chunk have cotangents of zero
            u = jnp.pad(u, ((0, 0), (0, len(xs) * size * self.out - rows)))
            us = jnp.moveaxis(u.reshape(len(u), len(xs), -1), 1, 0)
            nothing = jnp.zeros((len(u), total), u.dtype), jnp.full((len(u), self.params.depth + 2), NOTHING, jnp.int32)
            nothing = varying_like(nothing, (self.params, self.x, u))
            with jax.default_matmul_precision(self.precision):
                step = lambda found, at: (self.backwards(columns, at[0], at[1], found), None)
                return self.levelled(columns, *jax.lax.scan(step, nothing, (xs, us))[0])

        return Operator(apply, adjoint, rows, total, self.x.dtype, lambda k: self.workspace(k, total))

    def workspace(self, block: int, columns: int) -> int:
        """Either copies of the vectors of parameters, or a chunk's states and vectors and one layer's parameters."""
        depth, (_, size) = self.params.depth, self.chunks(block)
        layer = sum(leaf.size for leaf in jax.tree.leaves(_trained(self.params.blocks))) // depth
        # states are stacked, then joined with the first: twice there, before any product
        hidden, vectors = (depth + 1) * size * self.width, 4 * block * size * self.width + (1 + 2 * block) * layer
        return max(2 * block * columns, hidden + max(hidden, vectors)) * self.x.dtype.itemsize

    def chunks(self, block: int) -> tuple[Float[Array, "count inputs"], int]:
        """The examples in chunks of one size, those at the start once more to fill up the last; and the size."""
        batch = len(self.x)
        most = self.chunk_size or _default_chunk(self.params.depth, self.width, block, self.x.dtype.itemsize)
        count = -(-batch // most)
        size = -(-batch // count)
        return self.x[jnp.arange(count * size) % batch].reshape(count, -1), size

    def chunk(self, x: Float[Array, " inputs"]) -> _Chunk:
        whole = self.chain._replace(
            embed=jax.vmap(self.chain.embed, (None, 0)),
            block=jax.vmap(self.chain.block, (None, 0)),
            readout=jax.vmap(self.chain.readout, (None, 0)),
        )
        many = flatten(whole, x.size // self.x.shape[1])
        return _Chunk(many, self.params, x, states(many, self.params, x))

    def forwards(self, columns: _Columns, x: Float[Array, " inputs"], v: Float[Array, "k columns"]) -> Scaled:
        """The rows of one chunk of J v, or R v."""
        chunk, first, last = self.chunk(x), self.layer or 0, self.params.depth + 1
        zero = jnp.zeros(len(v), jnp.int32)

        def onward(carry: Scaled, at: Array | int) -> Scaled:
            layer = chunk.layer(at)
            through = _scaled(layer.push(carry[0]), carry[1])
            if self.layer is not None:
                return through
            return _add(through, _scaled(layer.push_theta(columns.read(v, at)), zero))

        carry = _scaled(chunk.layer(first).push_theta(columns.read(v, first)), zero)
        if first < last:
            carry, _ = jax.lax.scan(lambda carry, at: (onward(carry, at), None), carry, jnp.arange(first + 1, last))
            carry = onward(carry, last)
        return (self.root(chunk)[0](carry[0]), carry[1]) if self.loss else carry

    def backwards(
        self, columns: _Columns, x: Float[Array, " inputs"], u: Float[Array, "k rows"], found: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        """What was found so far plus one chunk's part of J^T u, or R^T u; every layer with an exponent of its own."""
        chunk, first, last = self.chunk(x), self.layer or 0, self.params.depth + 1

        def collect(c: Scaled, found: tuple[Array, Array], at: Array | int) -> tuple[Array, Array]:
            values, exponents = found
            new = _scaled(chunk.layer(at).pull_theta(c[0]), c[1])
            part, exponent = _add((columns.read(values, at), exponents[:, at]), new)
            return columns.write(values, at, part), exponents.at[:, at].set(exponent)

        def back(carry: tuple, at: Array | int) -> tuple:
            c, found = carry
            if self.layer is None:
                found = collect(c, found, at)
            return _scaled(chunk.layer(at).pull(c[0]), c[1]), found

        c = _scaled(self.root(chunk)[1](u) if self.loss else u, jnp.zeros(len(u), jnp.int32))
        carry = (c, found)
        if first < last:
            layers = jnp.arange(first + 1, last)
            step = lambda carry, at: (back(carry, at), None)
            carry, _ = jax.lax.scan(step, back(carry, last), layers, reverse=True)
        return collect(carry[0], carry[1], first)

    def levelled(
        self, columns: _Columns, values: Float[Array, "k columns"], exponents: Int[Array, "k layer"]
    ) -> Scaled:
        """The layers at one exponent for each vector: that of the largest."""
        top = jnp.max(exponents, axis=1)

        def level(values: Array, at: Array | int) -> Array:
            part = columns.read(values, at)
            return columns.write(values, at, jnp.ldexp(part, (exponents[:, at] - top)[:, None]))

        if self.layer is None:
            values = level(level(values, 0), self.params.depth + 1)
            layers = jnp.arange(1, self.params.depth + 1)
            values, _ = jax.lax.scan(lambda values, at: (level(values, at), None), values, layers)
        return values, top

    def root(self, chunk: _Chunk) -> tuple[Callable, Callable]:
        """S^T / sqrt(batch) at one chunk, and its transpose."""
        scale = 1 / math.sqrt(len(self.x))
        if self.loss == "squared":
            return (lambda t: scale * t,) * 2
        logits = chunk.chain.readout(self.params, chunk.hidden[-1]).reshape(-1, self.out)
        p = jax.nn.softmax(logits)

        def half(t: Float[Array, " rows"]) -> Float[Array, " rows"]:
            t = t.reshape(p.shape)
            return (scale * jnp.sqrt(p) * (t - jnp.sum(p * t, axis=1, keepdims=True))).ravel()

        return _both_ways(half, jnp.zeros(p.size, p.dtype))


def _columns(params: Params, layer: int | None) -> tuple[_Columns, int]:
    """Where layers lie, and how many columns there are."""
    depth = params.depth
    rooms, stacks = [_trained(room) for room in params], [1, depth, 1]
    if layer is not None:
        room = 0 if layer == 0 else 2 if layer > depth else 1
        size = sum(leaf.size for leaf in jax.tree.leaves(rooms[room])) // stacks[room]
        return _Columns([[(0, 0, size)]], depth), size
    places: list[list[tuple[int, int, int]]] = []
    start = 0
    for room, stack in zip(rooms, stacks, strict=True):
        places.append([])
        for leaf in jax.tree.leaves(room):
            places[-1].append((start, leaf.size // stack, leaf.size // stack))
            start += leaf.size
    return _Columns(places, depth), start


def _default_chunk(depth: int, width: int, block: int, itemsize: int) -> int:
    """Examples whose states and some vectors by layer fit into BYTES."""
    return max(1, BYTES // ((depth + 1 + 4 * block) * width * itemsize))


def _effective(values: Float[Array, "*some k n"], exponents: Int[Array, "*some k"]) -> Int[Array, "*some k"]:
    return jnp.where(jnp.any(values != 0, axis=-1), exponents, NOTHING)


def _add(a: Scaled, b: Scaled) -> Scaled:
    top = jnp.maximum(_effective(*a), _effective(*b))
    at = lambda v, exponent: jnp.ldexp(v, (exponent - top)[:, None])
    return _scaled(at(*a) + at(*b), top)


def _is(at: Array | int, layer: int) -> bool:
    return isinstance(at, int) and at == layer
