"""Sharpness along a training run, recorded in the state of an optax transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_count
from jaxstab.curvature.symmetric import extremes
from jaxstab.curvature.vectors import ravel
from jaxstab.norms.meshes import varying_like
from jaxstab.spectra.operators import Operator

# default products per record, with the last eigenvector as the start
PRODUCTS = 10


class SharpnessState(NamedTuple):
    """State of `monitor_sharpness`.

    Attributes:
        updates: number of updates so far.
        sharpness: largest eigenvalue before updates 0, every, 2 every, ...; NaN for future records.
        error: bound on the distance of each sharpness to an eigenvalue.
        vector: the last eigenvector, the start of the next measurement.
    """

    updates: Int[Array, ""]
    sharpness: Float[Array, " record"]
    error: Float[Array, " record"]
    vector: Float[Array, "1 n"]


@explained
def monitor_sharpness(
    operator: Callable[[PyTree], Operator],
    steps: int,
    every: int = 1,
    products: int = PRODUCTS,
) -> optax.GradientTransformation:
    """Record the sharpness of a loss during training; updates pass unchanged.

    Chain it with an optimiser in any training loop; `training.train` includes it as
    `curvature_every`. A measurement starts from the last eigenvector, so that few products suffice.
    Between records nothing is computed, except under `jax.vmap` over runs, which computes both
    branches; use `jax.lax.map` over runs instead.

    Args:
        operator: parameters -> symmetric operator, such as the `hessian` of the loss.
        steps: number of updates of the run, >= 1.
        every: number of updates from one record to the next, >= 1.
        products: number of products with the operator for each record, >= 1.

    Returns:
        The transformation; `optax.tree.get(state, "sharpness")` reads its `SharpnessState`.

    Raises:
        ValueError: if a count is not an integer >= 1; from the update, if parameters are not given.

    Example:
        >>> from jaxstab import curvature
        >>> loss = lambda w: jnp.sum(jnp.asarray([1.0, 3.0]) * w**2) / 2
        >>> monitor = monitor_sharpness(lambda w: curvature.hessian(loss, w), steps=10, every=5, products=2)
        >>> tx, w = optax.chain(monitor, optax.sgd(0.1)), jnp.ones(2)
        >>> state = tx.init(w)
        >>> for _ in range(6):
        ...     updates, state = tx.update(jax.grad(loss)(w), state, w)
        >>> [round(float(value), 3) for value in optax.tree.get(state, "sharpness")]
        [3.0, 3.0]
    """
    check_count("steps", steps, 1)
    check_count("every", every, 1)
    check_count("products", products, 1)

    def init(params: PyTree) -> SharpnessState:
        return begun(params, -(-steps // every))

    def update(
        updates: PyTree, state: SharpnessState, params: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, SharpnessState]:
        if params is None:
            raise ValueError(
                "monitor_sharpness needs the parameters: tx.update(updates, state, params)"
            )

        def measure() -> SharpnessState:
            return measured(state, operator(params), state.updates // every, products)

        due = (state.updates % every == 0) & (state.updates < steps)
        after = jax.lax.cond(due, measure, lambda: state)
        return updates, after._replace(updates=state.updates + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def begun(params: PyTree, records: int) -> SharpnessState:
    """Make the state before the first measurement.

    Args:
        params: any pytree.
        records: number of measurements.

    Returns:
        The state, with a random vector.
    """
    vector, _ = ravel(params)
    unknown = jnp.full(records, jnp.nan, vector.dtype)
    start = jax.random.normal(jax.random.key(0), (1, vector.size), vector.dtype)
    state = SharpnessState(jnp.zeros((), jnp.int32), unknown, unknown, start)
    # within shard_map the state varies over the mesh as parameters do
    return varying_like(state, vector)


def measured(
    state: SharpnessState, operator: Operator, record: Int[Array, ""], products: int = PRODUCTS
) -> SharpnessState:
    """Measure the sharpness, starting from the last eigenvector.

    Args:
        state: state after earlier measurements.
        operator: symmetric operator.
        record: number of the record.
        products: number of products with the operator, >= 1.

    Returns:
        The state with the new record.
    """
    top = extremes(operator, jax.random.key(0), steps=products, start=state.vector)
    # parameters that are not finite have no eigenvector
    vector = jnp.where(jnp.isnan(top.largest_vectors), state.vector, top.largest_vectors)
    return state._replace(
        sharpness=state.sharpness.at[record].set(top.largest[0]),
        error=state.error.at[record].set(top.largest_error[0]),
        vector=vector,
    )
