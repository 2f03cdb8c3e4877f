"""Calls of `curvature` on a batch of three inputs and their labels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxstab import curvature, networks

Call = Callable[[networks.Params, jax.Array, jax.Array], Any]


def calls(mlp: networks.MLP) -> dict[str, Call]:
    """Make the calls.

    Args:
        mlp: a network of two outputs.

    Returns:
        Functions of (params, x, key), by the name of the public one.
    """
    return of_hessian(mlp) | of_kernels(mlp)


def batch(x: jax.Array) -> jax.Array:
    """Three inputs."""
    return jnp.stack([x, -x, 2 * x])


def of_hessian(mlp: networks.MLP) -> dict[str, Call]:
    """Calls of what takes an objective, or a symmetric operator on parameters."""
    goal = curvature.objective(networks.chain(mlp))
    labels = jnp.asarray([0, 1, 1])

    def unit(p: PyTree) -> PyTree:
        return jax.tree.map(jnp.ones_like, p)

    def hessian(p: PyTree, x: jax.Array) -> Any:
        return curvature.hessian(goal, p, (batch(x), labels), chunk_size=2)

    def product(operator: Any, p: PyTree) -> jax.Array:
        return operator.matvec(curvature.ravel(p)[0])

    def adam(p: PyTree) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(jnp.asarray(3), unit(p), unit(p))

    def monitored(p: PyTree, x: jax.Array) -> Any:
        monitor = curvature.monitor_sharpness(lambda p: hessian(p, x), steps=2, products=2)
        return monitor.update(p, monitor.init(p), p)[1]

    def gradient(p: PyTree) -> PyTree:
        return jax.tree.map(jnp.tanh, p)

    def density(p: PyTree, x: jax.Array, key: jax.Array) -> Any:
        found = curvature.density(hessian(p, x), key, 2, 3)
        return found, found.cdf(x)

    return {
        "curvature.adam_preconditioner": lambda p, x, key: curvature.adam_preconditioner(adam(p)),
        "curvature.critical_sharpness": lambda p, x, key: curvature.critical_sharpness(
            goal, p, unit(p), (batch(x), labels), passes=2, chunk_size=2
        ),
        "curvature.density": density,
        "curvature.directional_sharpness": lambda p, x, key: curvature.directional_sharpness(
            hessian(p, x), unit(p)
        ),
        "curvature.empirical_fisher": lambda p, x, key: product(
            curvature.empirical_fisher(goal, p, (batch(x), labels)), p
        ),
        "curvature.extremes": lambda p, x, key: curvature.extremes(hessian(p, x), key, 2, 1, 2, 2),
        "curvature.gauss_newton": lambda p, x, key: product(
            curvature.gauss_newton(goal, p, (batch(x), labels)), p
        ),
        "curvature.hessian": lambda p, x, key: product(hessian(p, x), p),
        "curvature.hessian_by_gradient": lambda p, x, key: product(
            curvature.hessian_by_gradient(gradient, p), p
        ),
        "curvature.largest": lambda p, x, key: curvature.largest(hessian(p, x), key, 4),
        "curvature.largest_stable_rate": lambda p, x, key: curvature.largest_stable_rate(x),
        "curvature.monitor_sharpness": lambda p, x, key: monitored(p, x),
        "curvature.objective": lambda p, x, key: goal(p, (batch(x), labels)),
        "curvature.preconditioned": lambda p, x, key: product(
            curvature.preconditioned(hessian(p, x), unit(p)), p
        ),
        "curvature.ravel": lambda p, x, key: curvature.ravel(p)[0],
        "curvature.trace": lambda p, x, key: curvature.trace(hessian(p, x), key, 3),
    }


def of_kernels(mlp: networks.MLP) -> dict[str, Call]:
    """Calls of what takes the Jacobian of outputs by parameters, or a kernel."""
    chain = networks.chain(mlp)

    def jacobian(p: PyTree, x: jax.Array) -> Any:
        return curvature.parameter_jacobian(chain, p, batch(x))

    return {
        "curvature.gauss_newton_eigenvalues": lambda p, x, key: curvature.gauss_newton_eigenvalues(
            chain, p, batch(x)
        ),
        "curvature.parameter_jacobian": lambda p, x, key: jacobian(p, x).rmatvec(x[:6]),
        "curvature.tangent_kernel": lambda p, x, key: curvature.tangent_kernel(chain, p, batch(x)),
    }
