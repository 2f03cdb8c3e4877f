"""matfree: partial bidiagonalisation of the network's Jacobian, linearised once; one vector at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp, eig

from jaxstab import networks
from jaxstab.networks import Params


def largest(
    chain: networks.Chain, params: Params, x: jax.Array, top: int, steps: int
) -> Callable[[], np.ndarray]:
    """The largest singular values of dh_L/dx."""
    svd = eig.svd_partial(decomp.bidiag(steps))

    def run(params: Params, x: jax.Array) -> jax.Array:
        def h(x: jax.Array) -> jax.Array:
            return jax.lax.scan(
                lambda h, block: (chain.block(block, h), None),
                chain.embed(params, x),
                params.blocks,
            )[0]

        with jax.default_matmul_precision("highest"):
            _, push = jax.linearize(h, x)
            return svd(push, jnp.ones_like(x))[1][:top]

    compiled = jax.jit(run).lower(params, x).compile()
    return lambda: np.asarray(compiled(params, x))
