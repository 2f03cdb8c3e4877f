r"""Curvature matrices of a mean loss as operators: products with blocks of vectors.

With y = y(theta, x) the outputs and L = (1/n) sum_b l_b the mean loss,

    Hessian             H = d^2 L / dtheta^2,                       H v = d/de grad L(theta + e v)
    Gauss-Newton        G = (1/n) sum_b J_b^T (d^2 l_b / dy^2) J_b, J_b = dy_b / dtheta
    empirical Fisher    F = (1/n) sum_b g_b g_b^T,                  g_b = grad l_b

The Hessian product is forward mode over reverse mode (Pearlmutter 1994) and takes the time of two
gradients. The vectors of a block are multiplied one at a time, in half the time of a batch of
products on a CPU, and in the memory of one vector. The gradient is linearised once per block and
chunk.

For a diagonal block of the Hessian, such as that of one layer, give the loss as a function of that
layer alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_count, check_floating
from jaxstab.curvature.chunks import examples_of, mean_over_chunks
from jaxstab.curvature.objectives import Objective
from jaxstab.curvature.vectors import ravel
from jaxstab.precision import at_full_precision
from jaxstab.spectra.operators import Operator, Scaled, scaled

# default bytes of the residuals of one chunk's gradient
BYTES = 2**28

# chunk of examples -> product v [n] -> [n] with its matrix, a `Partial` of its residuals
_Linear = Callable[[tuple], Callable]


@explained
def hessian(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    examples: PyTree = None,
    chunk_size: int | None = None,
) -> Operator:
    """Make the Hessian of a loss by the parameters, as products with vectors.

    Args:
        loss: (params) -> scalar, of any model; or (params, examples) -> mean over the examples, as
            from `objective` for a chain.
        params: any pytree, differentiated by its floating leaves, see `ravel`.
        examples: pytree whose leaves have a leading axis of examples; None if the loss takes none.
        chunk_size: number of examples at a time, >= 1; None for as many as fit into BYTES = 256
            MiB, at least one. A loss that mixes examples (BatchNorm) takes each chunk as a batch.

    Returns:
        The symmetric operator, with vectors in the order of `ravel`.

    Raises:
        ValueError: if the loss is not a real scalar, there are no examples, chunk_size < 1, or
            params have no floating leaf or a complex leaf.

    Example:
        >>> operator = hessian(lambda w: w[0] ** 2 + 3 * w[0] * w[1], jnp.ones(2))
        >>> operator.matvec(jnp.asarray([1.0, 0.0])).tolist()
        [2.0, 3.0]
    """
    vector, unravel = ravel(params)
    given = _given(examples)
    _check_scalar(jax.eval_shape(lambda: loss(params, *given)))

    def linear(chunk: tuple) -> Callable:
        def gradient(vector: Float[Array, " n"]) -> Float[Array, " n"]:
            return jax.grad(lambda vector: loss(unravel(vector), *chunk))(vector)

        return jax.linearize(gradient, vector)[1]

    return symmetric(linear, vector, given, chunk_size)


@explained
def hessian_by_gradient(
    gradient: Callable[..., PyTree],
    params: PyTree,
    examples: PyTree = None,
    chunk_size: int | None = None,
) -> Operator:
    """Make the Hessian from a gradient that is not computed by `jax.grad`.

    `training.value_and_grad` is such a gradient; its depth may be traced, so that one program serves
    every depth.

    Args:
        gradient: (params), or (params, examples) -> gradient of a mean loss, a pytree with an entry
            for each trained parameter.
        params: as in `hessian`.
        examples: as in `hessian`.
        chunk_size: as in `hessian`.

    Returns:
        The operator.

    Raises:
        ValueError: as `hessian`; or if gradient and parameters differ in their number of entries.

    Example:
        >>> operator = hessian_by_gradient(lambda w: w**2, jnp.ones(2))
        >>> operator.matvec(jnp.asarray([1.0, 0.0])).tolist()
        [2.0, 0.0]
    """
    vector, unravel = ravel(params)
    given = _given(examples)
    flat = jax.eval_shape(lambda: ravel(gradient(params, *given))[0])
    if flat.shape != vector.shape:
        raise ValueError(f"gradient must have {vector.size} entries, as params, got {flat.size}")

    def linear(chunk: tuple) -> Callable:
        return jax.linearize(lambda v: ravel(gradient(unravel(v), *chunk))[0], vector)[1]

    return symmetric(linear, vector, given, chunk_size)


@explained
def gauss_newton(
    objective: Objective,
    params: PyTree,
    examples: tuple[PyTree, PyTree],
    chunk_size: int | None = None,
) -> Operator:
    """Make the generalised Gauss-Newton matrix of a mean loss, as products (Schraudolph 2002).

    For cross-entropy, and for |y - t|^2 / 2 as the likelihood of unit Gaussian noise, the matrix is
    the true Fisher matrix of the model (Martens 2020, section 9.2). It is positive semidefinite if
    the loss is convex in the outputs.

    Args:
        objective: from `objective`.
        params: as in `hessian`.
        examples: inputs and targets.
        chunk_size: as in `hessian`.

    Returns:
        The operator.

    Raises:
        ValueError: as `hessian`; or if the objective is not from `objective`.

    Example:
        >>> from jaxstab import curvature
        >>> goal = curvature.objective(lambda w, x: jnp.tanh(x @ w), "squared")
        >>> operator = gauss_newton(goal, jnp.zeros((2, 1)), (jnp.eye(2), jnp.ones((2, 1))))
        >>> operator.matvec(jnp.asarray([1.0, 0.0])).tolist()
        [0.5, 0.0]
    """
    _check_objective(objective)
    vector, unravel = ravel(params)
    given = _given(examples)
    _check_scalar(jax.eval_shape(lambda: objective(params, examples)))

    def linear(chunk: tuple) -> Callable:
        x, targets = chunk[0]
        y, push = jax.linearize(lambda v: objective.outputs(unravel(v), x), vector)
        curve = jax.linearize(jax.grad(lambda y: objective.loss(y, targets)), y)[1]
        return Partial(_between, push, curve, vector)

    return symmetric(linear, vector, given, chunk_size)


@explained
def empirical_fisher(
    objective: Objective,
    params: PyTree,
    examples: tuple[PyTree, PyTree],
    chunk_size: int | None = None,
) -> Operator:
    """Make the empirical Fisher matrix, the mean of g_b g_b^T with g_b the gradient of one example's loss.

    The matrix is the second moment of single examples' gradients at the given labels. The true
    Fisher matrix, at labels drawn from the model, is `gauss_newton`.

    Args:
        objective: from `objective`; the loss is called with one example at a time.
        params: as in `hessian`.
        examples: inputs and targets.
        chunk_size: as in `hessian`.

    Returns:
        The operator.

    Raises:
        ValueError: as `gauss_newton`.

    Example:
        >>> from jaxstab import curvature
        >>> goal = curvature.objective(lambda w, x: x @ w, "squared")
        >>> operator = empirical_fisher(goal, jnp.zeros((2, 1)), (jnp.eye(2), 3 * jnp.ones((2, 1))))
        >>> operator.matvec(jnp.asarray([1.0, 0.0])).tolist()
        [4.5, 0.0]
    """
    _check_objective(objective)
    vector, unravel = ravel(params)
    given = _given(examples)
    _check_scalar(jax.eval_shape(lambda: objective(params, examples)))

    def one(y: PyTree, targets: PyTree) -> Float[Array, ""]:
        alone = jax.tree.map(lambda leaf: leaf[None], (y, targets))
        return objective.loss(*alone)

    def linear(chunk: tuple) -> Callable:
        x, targets = chunk[0]

        def losses(vector: Float[Array, " n"]) -> Float[Array, " batch"]:
            return jax.vmap(one)(objective.outputs(unravel(vector), x), targets)

        push = jax.linearize(losses, vector)[1]
        return Partial(_between, push, Partial(_shared, examples_of(chunk)), vector)

    return symmetric(linear, vector, given, chunk_size)


def _between(
    push: Callable, curve: Callable, like: Array, v: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Compute J^T C J v."""
    return jax.linear_transpose(push, like)(curve(push(v)))[0]


def _shared(count: int, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
    return t / count


def symmetric(
    linear: _Linear,
    vector: Float[Array, " n"],
    given: tuple,
    chunk_size: int | None,
) -> Operator:
    """Make the operator of a mean over chunks of examples.

    Args:
        linear: chunk -> product with the chunk's matrix.
        vector: the parameters.
        given: tuple of the examples; empty without examples.
        chunk_size: as in `hessian`.

    Returns:
        The symmetric operator.
    """
    size = _chunk_size(linear, given, chunk_size)

    @at_full_precision
    def apply(v: Float[Array, "k n"]) -> Scaled:
        def product(chunk: tuple) -> Float[Array, "k n"]:
            return jax.lax.map(linear(chunk), v)

        values = mean_over_chunks(product, given, size)
        return scaled(values, jnp.zeros(len(v), jnp.int32))

    return Operator(apply, apply, vector.size, vector.size, vector.dtype)


def _chunk_size(linear: _Linear, given: tuple, chunk_size: int | None) -> int:
    if not given:
        return 1
    count = examples_of(given)
    if chunk_size is not None:
        return min(check_count("chunk_size", chunk_size, 1), count)
    return max(1, min(count, BYTES * count // _kept(linear, given)))


def _kept(linear: _Linear, chunk: tuple) -> int:
    """Count the bytes of residuals of a chunk's linearised gradient."""
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(linear, chunk))
    )


def _given(examples: PyTree) -> tuple:
    """Return the examples as arguments that follow the parameters."""
    if examples is None:
        return ()
    examples = jax.tree.map(jnp.asarray, examples)
    examples_of(examples)
    return (examples,)


def _check_scalar(loss: Any) -> None:
    shapes = [leaf.shape for leaf in jax.tree.leaves(loss)]
    if shapes != [()]:
        raise ValueError(f"loss must be one scalar, a mean over examples, got shapes {shapes}")
    check_floating("loss", jax.tree.leaves(loss)[0].dtype)


def _check_objective(objective: Any) -> None:
    if not isinstance(objective, Objective):
        raise ValueError(
            "objective must be from curvature.objective(model, loss), got a "
            f"{type(objective).__name__}"
        )
