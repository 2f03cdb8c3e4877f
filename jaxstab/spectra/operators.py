r"""Jacobians as operators: products with blocks of vectors, without the matrix.

A block of k vectors is propagated layer by layer, v <- (d block_l / dh) v forwards and the transpose
backwards. Each layer is linearised at its stored state h_l. One pass over depth L and width n reads
every weight once, 4 n^2 L bytes in float32, for 2 k n^2 L FLOPs: k/2 FLOPs per byte, against 1/2
for one vector at a time. Memory holds the states [L + 1, n], the vectors [k, n] and the weights of
one layer, which XLA copies out of the stack on a CPU.

Each vector is stored with a power of two, so that products of any depth and gain neither over- nor
underflow, and scaling is exact.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxstab import networks
from jaxstab.checks import check_floating, integer
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.views import at_one_input
from jaxstab.norms.logarithms import times_power, unit
from jaxstab.norms.meshes import varying_like

# vectors y_i 2^(e_i): y [k, n] and e [k]
Scaled = tuple[Array, Array]
Product = Callable[[Float[Array, "k n"]], tuple[Float[Array, "k m"], Int[Array, " k"]]]


class ScaledMatrix(NamedTuple):
    """Matrix e^log_norm direction, of any magnitude.

    Attributes:
        direction: the matrix at Frobenius norm 1; zero for a zero matrix.
        log_norm: ln of the Frobenius norm.
    """

    direction: Float[Array, "rows columns"]
    log_norm: Float[Array, ""]


class Operator(NamedTuple):
    """Matrix J [rows, columns] given by its products with blocks of vectors, one vector per row.

    Attributes:
        apply: V [k, columns] -> (Y [k, rows], e [k]), J v_i = y_i 2^(e_i), where the largest entry
            of y_i is in [1/2, 1) or y_i is zero.
        adjoint: U [k, rows] -> (Y [k, columns], e [k]), J^T u_i = y_i 2^(e_i), likewise.
        rows: number of outputs of J.
        columns: number of inputs of J.
        dtype: dtype of the vectors.
    """

    apply: Product
    adjoint: Product
    rows: int
    columns: int
    dtype: DTypeLike

    @property
    def size(self) -> int:
        """Number of singular values, min(rows, columns)."""
        return min(self.rows, self.columns)

    @property
    def transpose(self) -> "Operator":
        """Transposed operator."""
        return self._replace(
            apply=self.adjoint, adjoint=self.apply, rows=self.columns, columns=self.rows
        )

    def matvec(self, v: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """Compute J v as a plain array, which may under- or overflow.

        Args:
            v: one vector.

        Returns:
            J v.
        """
        y, exponent = self.apply(v[None])
        return times_power(y[0], exponent[0])

    def rmatvec(self, u: Float[Array, " rows"]) -> Float[Array, " columns"]:
        """Compute J^T u as a plain array, which may under- or overflow.

        Args:
            u: one vector.

        Returns:
            J^T u.
        """
        return self.transpose.matvec(u)

    def matrix(self) -> ScaledMatrix:
        """Compute J by products with all unit vectors, which holds rows x columns numbers.

        Returns:
            Record of `direction`, J at Frobenius norm 1, and `log_norm`, ln of the norm of J.
        """
        y, exponent = self.apply(jnp.eye(self.columns, dtype=self.dtype))
        alive = jnp.any(y != 0, axis=1)
        lowest = jnp.iinfo(exponent.dtype).min
        largest = jnp.max(jnp.where(alive, exponent, lowest))
        largest = jnp.where(jnp.any(alive), largest, 0)
        below = jnp.where(alive, exponent - largest, 0)
        direction, log_norm = unit(times_power(y, below[:, None]).T)
        return ScaledMatrix(direction, log_norm + math.log(2) * largest.astype(log_norm.dtype))


def scaled(
    v: Float[Array, "k n"], exponent: Int[Array, " k"]
) -> tuple[Float[Array, "k n"], Int[Array, " k"]]:
    """Scale vectors by powers of 2 so that the largest entry of each is in [1/2, 1).

    Args:
        v: vectors, one per row.
        exponent: powers of two of the vectors.

    Returns:
        The scaled vectors, and their new exponents.

    Example:
        >>> scaled(jnp.asarray([[3.0, 4.0]]), jnp.zeros(1, jnp.int32))[1].tolist()
        [3]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=-1))
    shift = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    return times_power(v, -shift[:, None]), exponent + shift


@at_one_input
def chain_jacobian(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    from_layer: int | None = None,
    to_layer: int | None = None,
    readout: bool = False,
) -> Operator:
    """Make the Jacobian dh_l/dh_k = F_l ... F_(k+1) of a chain at one input as an operator.

    Args:
        chain: the network; see `networks.flatten` where a block mixes examples.
        params: parameters of the network, depth L.
        x: one input.
        from_layer: k in [0, L]; None for dh_l/dx, the embedding included.
        to_layer: l in [k, L]; None for L.
        readout: whether to include the readout, y = readout(h_l).

    Returns:
        The operator. Its layers are a scan, so that compile time does not depend on depth.

    Raises:
        ValueError: if a layer is not an integer, layers are out of order or beyond the chain, or x
            is not one floating vector.
    """
    check_floating("x", jnp.result_type(x))
    if from_layer is None and jnp.size(x) == 0:
        raise ValueError(
            "x must be floating to differentiate by it, got tokens; use from_layer=0 for their "
            "embedding"
        )
    first: int | None = 0
    if from_layer is not None:
        first = integer(from_layer)
    last: int | None = params.depth
    if to_layer is not None:
        last = integer(to_layer)
    if first is None or last is None or not 0 <= first <= last <= params.depth:
        raise ValueError(
            f"layers must be integers 0 <= from_layer <= to_layer <= {params.depth}, got "
            f"{from_layer} and {to_layer}"
        )
    states = networks.states(chain, params, x, last)
    h = states.last
    # the layer to differentiate by is not part of the product
    lowest = 0
    if from_layer is not None:
        lowest = first + 1
    bounds = {"first": lowest, "last": last, "readout": readout}

    def push(carry: Scaled, here: Here) -> tuple[Scaled, None]:
        v, exponent = carry
        return scaled(jax.vmap(here.push)(v), exponent), None

    def pull(carry: Scaled, here: Here) -> tuple[Scaled, None]:
        u, exponent = carry
        return scaled(jax.vmap(here.pull)(u), exponent), None

    def product(fold: Callable, step: Callable) -> Product:
        def run(v: Array) -> Scaled:
            # the folds multiply at the precision of the chain
            start = varying_like(scaled(v, jnp.zeros(len(v), jnp.int32)), h)
            return fold(chain, params, states, step, start, **bounds)[0]

        return run

    rows = h.size
    if readout:
        rows = jax.eval_shape(lambda h: chain.readout(params, h), h).size
    columns = x.shape[0]
    if from_layer is not None:
        columns = states.at(first).size
    apply = product(networks.upwards, push)
    adjoint = product(networks.downwards, pull)
    return Operator(apply, adjoint, rows, columns, h.dtype)
