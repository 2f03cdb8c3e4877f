"""Gradient of a layer, the gradients of its kernels kept as two factors each."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core.tracers import current_trace
from jaxtyping import Array, PyTree

from jaxstab.norms.logarithms import Product


def pullback(
    f: Callable[[PyTree, Array], Array], params: PyTree, h: Array
) -> Callable[[Array], tuple[PyTree, Array]]:
    """Compute what `jax.vjp` does, without multiplying out the gradients of dense layers.

    The kernel of z = a W + b has the gradient a^T delta, with delta that of z: n_in n_out numbers
    out of n_in + n_out per example, and their norm needs no more than these (Goodfellow 2015,
    section 4). The a and delta are caught at each `nn.Dense` that f calls; a kernel read in any
    other way, or a second time, gets its gradient in full.

    Args:
        f: (params, h) -> array; pure, such as `Chain.block`.
        params: arrays.
        h: the other argument, floating.

    Returns:
        The function from a cotangent of f(params, h) to those of params and h, kernels' as
        `norms.logarithms.Product`.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=1, width=8)
        >>> params = net.init(jax.random.key(0), jnp.ones(5))
        >>> embed = lambda theta, x: net.embed(params._replace(embed=theta), x)
        >>> d_theta, d_x = pullback(embed, params.embed, jnp.ones(5))(jnp.ones(8))
        >>> d_theta["dense"]["kernel"].left.shape, d_theta["dense"]["kernel"].right.shape
        ((5,), (8,))
    """
    leaves, tree = jax.tree.flatten(params)

    def tapped(
        leaves: list[Array], h: Array, shifts: dict[int, Array]
    ) -> tuple[Array, dict[int, tuple]]:
        here = current_trace()
        taps = {}

        def tap(
            dense: Callable,
            args: tuple,
            kwargs: dict[str, Any],
            context: nn.module.InterceptorContext,
        ) -> Any:
            z = dense(*args, **kwargs)
            # inside a transformation of f's own, nothing may be carried out
            if (
                type(context.module) is nn.Dense
                and context.method_name == "__call__"
                and current_trace() == here
            ):
                kernel: Array = context.module.get_variable("params", "kernel")
                for i in (i for i, leaf in enumerate(leaves) if leaf is kernel):
                    taps[i] = (args[0], z)
                    if i in shifts:
                        z = z + shifts[i]
            return z

        with nn.intercept_methods(tap):
            return f(jax.tree.unflatten(tree, leaves), h), taps

    jaxpr, (_, taps) = jax.make_jaxpr(tapped, return_shape=True)(leaves, h, {})
    read = Counter(id(var) for eqn in jaxpr.eqns for var in eqn.invars)
    once = {i: z for i, (_, z) in taps.items() if read[id(jaxpr.jaxpr.invars[i])] == 1}
    shifts = {i: jnp.zeros(z.shape, z.dtype) for i, z in once.items()}
    _, pulled, taps = jax.vjp(tapped, leaves, h, shifts, has_aux=True)

    def factored(cotangent: Array) -> tuple[PyTree, Array]:
        d_leaves, d_h, deltas = pulled(cotangent)
        for i, delta in deltas.items():
            d_leaves[i] = Product(taps[i][0], delta)
        return jax.tree.unflatten(tree, d_leaves), d_h

    return factored
