r"""Jacobians as functions: products with blocks of vectors, never the matrix.

A block of k vectors goes through the chain layer by layer, v <- (d block_l / dh) v forwards and its transpose
backwards, linearised anew at the stored state h_l in each layer. One pass over depth L and width n reads every weight
once, 4 n^2 L bytes in float32, for 2 k n^2 L FLOPs: k/2 FLOPs per byte, against 1/2 for one vector at a time. Memory
is the states [L + 1, n], the vectors [k, n] and the weights of one layer, which XLA copies out of their stack, 1/L of
all: on a CPU no product reads a slice where it lies.

Vectors carry a power of two beside them, so that products of any depth and gain neither overflow nor vanish, and
scaling rounds nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.checks import check_floating, integer
from jaxstab.networks import Chain, Params, at_one_input
from jaxstab.propagation import states

Precision = str | jax.lax.Precision
Product = Callable[[Float[Array, "k n"]], tuple[Float[Array, "k m"], Int[Array, " k"]]]


class Operator(NamedTuple):
    """A matrix J [rows, columns] known by its products with blocks of vectors, one vector per row.

    Attributes:
        apply: V [k, columns] -> (Y [k, rows], e [k]), J v_i = y_i 2^(e_i), where the largest entry of y_i is in
            [1/2, 1) or y_i is zero.
        adjoint: U [k, rows] -> (Y [k, columns], e [k]), J^T u_i = y_i 2^(e_i), likewise.
        rows: outputs of J.
        columns: inputs of J.
        dtype: of the vectors.
        workspace: k -> bytes that a product with k vectors holds besides them and the parameters, at most at a time.
    """

    apply: Product
    adjoint: Product
    rows: int
    columns: int
    dtype: DTypeLike
    workspace: Callable[[int], int] = lambda k: 0

    @property
    def size(self) -> int:
        """Number of singular values, min(rows, columns)."""
        return min(self.rows, self.columns)

    @property
    def transpose(self) -> "Operator":
        """The transposed matrix."""
        return self._replace(apply=self.adjoint, adjoint=self.apply, rows=self.columns, columns=self.rows)

    def matvec(self, v: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """The product J v, under- and overflow included.

        Args:
            v: one vector.

        Returns:
            J v.
        """
        y, exponent = self.apply(v[None])
        return jnp.ldexp(y[0], exponent[0])

    def rmatvec(self, u: Float[Array, " rows"]) -> Float[Array, " columns"]:
        """The product J^T u, under- and overflow included.

        Args:
            u: one vector.

        Returns:
            J^T u.
        """
        return self.transpose.matvec(u)


def _scaled(v: Float[Array, "k n"], exponent: Int[Array, " k"]) -> tuple[Float[Array, "k n"], Int[Array, " k"]]:
    """v 2^exponent, the largest entry of each row in [1/2, 1)."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=-1))
    shift = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    return jnp.ldexp(v, -shift[:, None]), exponent + shift


def _both_ways(function: Callable[[PyTree], Array], at: PyTree) -> tuple[Callable, Callable]:
    """A function's derivative and its transpose, on blocks of vectors."""
    push = jax.vmap(lambda v: jax.jvp(function, (at,), (v,))[1])
    # the pullback is built within, so that a pass forwards does not trace it
    return push, lambda u: jax.vmap(jax.vjp(function, at)[1])(u)[0]


@at_one_input
def jacobian(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    from_layer: int | None = None,
    to_layer: int | None = None,
    readout: bool = False,
    precision: Precision = "highest",
) -> Operator:
    """The Jacobian of a chain at one input, from any layer to any layer: dh_l/dh_k = F_l ... F_(k+1).

    Args:
        chain: the network; see `networks.flatten` where a block mixes examples.
        params: its parameters, depth L.
        x: one input.
        from_layer: k in [0, L]; None for dh_l/dx, the embedding included.
        to_layer: l in [k, L]; None for L.
        readout: whether to go on to the output, y = readout(h_l).
        precision: of the matrix products, as in `jax.default_matmul_precision`.

    Returns:
        The operator; layers are folded in a scan, so that it compiles in the same time at every depth.

    Raises:
        ValueError: if a layer is not an integer, they are out of order or beyond the chain, or x is not one floating
            vector.

    Example:
        >>> from jaxstab import networks
        >>> mlp = networks.MLP(depth=500, width=16, activation="identity", weights="orthogonal")
        >>> params = networks.init(mlp, jax.random.key(0), jnp.ones(16), sigma_w=0.25)
        >>> y, exponent = jacobian(networks.chain(mlp), params, jnp.ones(16), from_layer=0).apply(jnp.ones((1, 16)))
        >>> round(float(jnp.log2(jnp.linalg.norm(y)))) + int(exponent[0])
        -998
    """
    check_floating("x", jnp.result_type(x))
    first = integer(0 if from_layer is None else from_layer)
    last = integer(params.depth if to_layer is None else to_layer)
    if first is None or last is None or not 0 <= first <= last <= params.depth:
        raise ValueError(
            f"layers must be integers 0 <= from_layer <= to_layer <= {params.depth}, got {from_layer} and {to_layer}"
        )
    hidden = states(chain, params, x)
    layers = jnp.arange(first, last)

    def block(layer: Array) -> tuple[Callable, Callable]:
        # a slice of one layer at a time: slicing the range beforehand would copy its weights
        here = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), params.blocks)
        return _both_ways(lambda h: chain.block(here, h), hidden[layer])

    outside = (
        _both_ways(lambda x: chain.embed(params, x), x),
        _both_ways(lambda h: chain.readout(params, h), hidden[last]),
    )
    start = outside[0] if from_layer is None else None
    end = outside[1] if readout else None

    def product(way: int, before: tuple | None, after: tuple | None) -> Product:
        def run(v: Array) -> tuple[Array, Array]:
            with jax.default_matmul_precision(precision):
                carry = _scaled(v, jnp.zeros(len(v), jnp.int32))
                if before:
                    carry = _scaled(before[way](carry[0]), carry[1])
                step = lambda carry, layer: (_scaled(block(layer)[way](carry[0]), carry[1]), None)
                carry, _ = jax.lax.scan(step, carry, layers, reverse=way == 1)
                return _scaled(after[way](carry[0]), carry[1]) if after else carry

        return run

    rows = jax.eval_shape(lambda h: chain.readout(params, h), hidden[0]).size if readout else hidden.shape[1]
    columns = x.shape[0] if from_layer is None else hidden.shape[1]
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params.blocks)) // params.depth
    size = hidden.dtype.itemsize
    # states are stacked, then joined with the first: twice there, before any product
    workspace = lambda k: hidden.size * size + max(hidden.size * size, weights + k * hidden.shape[1] * size)
    return Operator(product(0, start, end), product(1, end, start), rows, columns, hidden.dtype, workspace)
