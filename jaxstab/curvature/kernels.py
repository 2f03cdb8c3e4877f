"""Empirical neural tangent kernel, the Gram matrix of the Jacobian by parameters.

Rows are all outputs of all examples: row b d_out + k is output k of example b. With J_l =
dy/dtheta_l, [rows, P_l],

    Theta = sum_l J_l J_l^T,    l: embedding, blocks, readout,

is one backward fold over layers. The fold carries the cotangents dy_b/dh_l of all rows. A row of
J_l is one pullback of layer l alone, and its products with all other rows are one push through
layer l alone. Only a chunk of rows of one J_l is held at a time. Values are not scaled against
overflow. Examples share the parameters and, under dropout, the masks. A network that mixes examples
(BatchNorm) goes through `networks.flatten` as one example, x.ravel()[None].
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from jaxstab import decompositions, networks
from jaxstab.checks import check_count, check_floating
from jaxstab.curvature.functions import is_function, kernel_of_function
from jaxstab.networks import Chain, Here, Params, views
from jaxstab.networks.chains import with_network
from jaxstab.networks.folds import layer_at
from jaxstab.norms.meshes import varying_like
from jaxstab.precision import at_full_precision

LOSSES = ("cross_entropy", "squared")
# default bytes of a chunk of rows of one layer's Jacobian and its push
BYTES = 2**28


class TangentKernel(NamedTuple):
    """Contributions of each layer's parameters to the empirical neural tangent kernel.

    Attributes:
        embed: J J^T of the embedding's parameters.
        blocks: J J^T of each block's parameters.
        readout: J J^T of the readout's parameters.
    """

    embed: Float[Array, "rows rows"]
    blocks: Float[Array, "layer rows rows"]
    readout: Float[Array, "rows rows"]

    @property
    def total(self) -> Float[Array, "rows rows"]:
        """Sum over layers: the kernel of all parameters."""
        return self.embed + jnp.sum(self.blocks, axis=0) + self.readout


@overload
def tangent_kernel(
    chain: Chain | Callable,
    params: PyTree,
    x: Shaped[Array, "batch ..."],
    chunk_size: int | None = None,
    by_layer: Literal[False] = False,
) -> Float[Array, "rows rows"]: ...
@overload
def tangent_kernel(
    chain: Chain,
    params: Params,
    x: Shaped[Array, "batch ..."],
    chunk_size: int | None = None,
    *,
    by_layer: Literal[True],
) -> TangentKernel: ...
def tangent_kernel(
    chain: Chain | Callable,
    params: PyTree,
    x: Shaped[Array, "batch ..."],
    chunk_size: int | None = None,
    by_layer: bool = False,
) -> Float[Array, "rows rows"] | TangentKernel:
    """Compute the empirical neural tangent kernel (dy/dtheta)(dy/dtheta)^T of a batch (Jacot et al. 2018).

    The cost is about rows x batch forward passes through the parameters, rows = batch d_out, as for
    NTK-vector products (Novak, Sohl-Dickstein & Schoenholz 2022), but each row passes through one
    layer only. For a model that is a function, each row passes through the whole model.

    Args:
        chain: the network; or any model as a function (params, x [batch, ...]) -> y [batch, ...].
        params: parameters of the network, or any pytree for a function; what `Chain.bind` adds is
            not differentiated by.
        x: a batch of inputs [batch, d_in]; for layers of the user's own [batch, ...], a batch of
            inputs of the chain.
        chunk_size: number of rows of J at a time, >= 1; None for as many as fit into BYTES = 256
            MiB, at least one; for a function, one.
        by_layer: True to return the contribution of each layer of a chain; they sum to Theta.

    Returns:
        Theta, symmetric, [batch d_out, batch d_out]. Its eigenvalues by `jaxstab.decompositions`
        are the squared singular values of J; eigenvalues below about eps times the largest are
        rounding errors of either sign. With by_layer=True, the record of L + 2 such kernels.

    Raises:
        ValueError: if chunk_size < 1, x (for a function, y) is not a floating batch, or by_layer is
            given for a function.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=8, features_out=1)
        >>> x = jnp.eye(3)
        >>> params = net.init(jax.random.key(0), x)
        >>> kernel = jax.jit(tangent_kernel, static_argnums=0)(net, params, x)
        >>> kernel.shape, bool(jnp.all(jnp.linalg.eigvalsh(kernel) > 0))
        ((3, 3), True)
    """
    if is_function(chain):
        if by_layer:
            raise ValueError("by_layer must be False for a function, whose layers are unknown")
        return kernel_of_function(chain, params, x, chunk_size)
    last, blocks, first = _kernel(cast(Chain, chain), params, x, chunk_size, by_layer)
    if by_layer:
        return TangentKernel(first, blocks, last)
    return last + blocks + first


@at_full_precision
def gauss_newton_gram(
    kernel: Float[Array, "*layer rows rows"],
    y: Float[Array, "batch d_out"],
    loss: str = "cross_entropy",
) -> Float[Array, "*layer rows rows"]:
    """Compute the Gram matrix with the nonzero eigenvalues of the Gauss-Newton matrix of a mean loss.

    G = (1/batch) sum_b J_b^T H_b J_b, with H_b = S_b S_b^T the Hessian of the loss by the output.
    G has the nonzero eigenvalues of (1/batch) S^T Theta S, since AB and BA share theirs. For
    cross-entropy H = diag(p) - p p^T, S = diag(sqrt p) - p sqrt(p)^T, and G is the Fisher matrix of
    the softmax model (Martens 2020, section 9.2). For squared error |y - t|^2 / 2, S = 1. Targets
    do not enter.

    Args:
        kernel: Theta of all parameters, or of one layer from a `TangentKernel` for a diagonal block
            of G.
        y: outputs of the network; logits for cross-entropy.
        loss: "cross_entropy" or "squared".

    Returns:
        The Gram matrices.

    Raises:
        ValueError: if the loss is unknown, or rows are not batch d_out.
    """
    _check_loss(loss)
    batch, out = y.shape
    if kernel.shape[-1] != batch * out:
        raise ValueError(
            f"kernel must have {batch * out} rows for outputs {y.shape}, got {kernel.shape[-1]}"
        )
    if loss == "squared":
        return kernel / batch
    root = jax.vmap(_softmax_root)(y)
    grid = kernel.reshape(*kernel.shape[:-2], batch, out, batch, out)
    half = jnp.einsum("...bicj,cjl->...bicl", grid, root)
    return jnp.einsum("bik,...bicl->...bkcl", root, half).reshape(kernel.shape) / batch


def gauss_newton_eigenvalues(
    chain: Chain | Callable,
    params: PyTree,
    x: Shaped[Array, "batch ..."],
    loss: str = "cross_entropy",
    chunk_size: int | None = None,
) -> Float[Array, " rows"]:
    """Compute the eigenvalues of the Gauss-Newton matrix of a batch's mean loss.

    For cross-entropy it is the Fisher matrix. All eigenvalues are given that are not zero by
    construction. The batch must be small enough for a matrix [batch d_out, batch d_out].

    Args:
        chain: as in `tangent_kernel`.
        params: as in `tangent_kernel`.
        x: a batch of inputs.
        loss: "cross_entropy" or "squared" (|y - t|^2 / 2), averaged over the batch.
        chunk_size: as in `tangent_kernel`.

    Returns:
        The batch d_out largest eigenvalues, descending.

    Raises:
        ValueError: if the loss is unknown, chunk_size < 1, or x is not a floating batch.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=8, features_out=2)
        >>> x = jnp.eye(3)
        >>> params = net.init(jax.random.key(0), x)
        >>> top = jax.jit(gauss_newton_eigenvalues, static_argnums=0)(net, params, x)
        >>> top.shape, int(jnp.sum(top > 1e-6))  # one direction of each example's logits shifts them all
        ((6,), 3)
    """
    kernel = tangent_kernel(chain, params, x, chunk_size)
    if is_function(chain):
        y = chain(params, x)
        # a squared loss is a mean over the first axis, a cross-entropy over all axes but the last
        if loss == "squared":
            y = y.reshape(len(y), -1)
        else:
            y = y.reshape(-1, y.shape[-1])
    else:
        y = _outputs(cast(Chain, chain), params, x, chunk_size)
    return decompositions.eigenvalues(gauss_newton_gram(kernel, y, loss))[::-1]


@with_network
def _outputs(
    chain: Chain, params: Params, x: Any, chunk_size: int | None
) -> Float[Array, "batch d_out"]:
    chain, x = _rows(chain, params, x, chunk_size)
    return jax.vmap(lambda x: chain.readout(params, networks.state(chain, params, x)))(x)


def _rows(chain: Chain, params: Params, x: Any, chunk_size: int | None) -> tuple[Chain, Any]:
    """Return the chain on vectors, and the examples as rows."""
    if chunk_size is not None:
        check_count("chunk_size", chunk_size, 1)
    if isinstance(chain.block, tuple):
        vectors = views.of_rows(chain, params, x)
        rows = (x.shape[0], math.prod(x.shape[1:]))
        if isinstance(x, jax.ShapeDtypeStruct):
            return vectors, jax.ShapeDtypeStruct(rows, x.dtype)
        return vectors, x.reshape(rows)
    check_floating("x", x.dtype)
    if len(x.shape) != 2:
        raise ValueError(f"x must be a batch [batch, d_in], got shape {x.shape}")
    return chain, x


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")


def _softmax_root(logits: Float[Array, " out"]) -> Float[Array, "out out"]:
    p = jax.nn.softmax(logits)
    root = jnp.sqrt(p)
    return jnp.diag(root) - p[:, None] * root[None]


@with_network
def _kernel(
    chain: Chain,
    params: Params,
    x: Shaped[Array, "batch ..."],
    chunk_size: int | None,
    by_layer: bool,
) -> tuple[Array, Array, Array]:
    """Compute the kernels of readout, blocks (each, or their sum) and embedding, in that order."""
    chain, x = _rows(chain, params, x, chunk_size)
    states = networks.states(networks.over_batch(chain), params, x)
    hidden = states.last

    def layer(carry: tuple[Array, Array], here: Here) -> tuple[tuple[Array, Array], Array | None]:
        cotangents, total = carry
        gram = _gram(here, cotangents, chunk_size)
        below = _pulled(here, cotangents)
        if by_layer:
            return (below, total), gram
        return (below, total + gram), None

    y = jax.eval_shape(chain.readout, params, hidden[0])
    cotangents = jnp.broadcast_to(
        jnp.eye(y.size, dtype=y.dtype)[None], (x.shape[0], y.size, y.size)
    )
    cotangents = varying_like(cotangents, hidden)
    top = layer_at(chain, params, params.depth + 1, hidden)
    last = _gram(top, cotangents, chunk_size)
    start = (_pulled(top, cotangents), jnp.zeros_like(last))
    (cotangents, total), each = networks.downwards(chain, params, states, layer, start, first=1)
    first = _gram(layer_at(chain, params, 0, x), cotangents, chunk_size)
    if by_layer:
        return last, each, first
    return last, total, first


def _pulled(here: Here, cotangents: Float[Array, "batch out m"]) -> Float[Array, "batch out n"]:
    """Pull cotangents of a batch's states back through a layer, example by example."""

    def one(h: Array, cotangents: Array) -> Array:
        return jax.vmap(here.meeting(h).pull)(cotangents)

    return jax.vmap(one)(here.h, cotangents)


def _gram(
    here: Here, cotangents: Float[Array, "batch out m"], chunk_size: int | None
) -> Float[Array, "rows rows"]:
    """Compute J J^T of one layer at a batch of states, J = cotangents d f(theta, h) / d theta."""
    batch, out, size = cotangents.shape

    def row(index: tuple[Array, Array]) -> Array:
        example, cotangent = index
        gradient = here.meeting(here.h[example]).pull_theta(cotangent)

        def push(h: Array) -> Array:
            return jax.jvp(lambda theta: here.f(theta, h), (here.theta,), (gradient,))[1]

        return jnp.sum(cotangents * jax.vmap(push)(here.h)[:, None], axis=-1).ravel()

    rows = (jnp.arange(batch * out) // out, cotangents.reshape(batch * out, size))
    chunk, _ = _chunk(here.theta, batch, out, size, chunk_size, here.h.dtype.itemsize)
    gram = jax.lax.map(row, rows, batch_size=chunk)
    # rounding of rows computed one at a time is not symmetric
    return (gram + gram.T) / 2


def _chunk(
    theta: PyTree, batch: int, out: int, size: int, chunk_size: int | None, itemsize: int
) -> tuple[int, int]:
    """Choose the rows of one layer's Jacobian that are held at a time, and count their bytes."""
    per_row = itemsize * (sum(leaf.size for leaf in jax.tree.leaves(theta)) + batch * size)
    rows = min(chunk_size or max(1, BYTES // per_row), batch * out)
    return rows, rows * per_row
