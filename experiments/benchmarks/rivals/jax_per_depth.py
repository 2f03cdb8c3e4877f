"""JAX's own transformations, one program per depth: jacfwd of the network, and grad with a tap at every layer.

In their best form: layers in a scan, cells vmapped and spread over devices as ours are, all activations in a program.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from spectral.problem import CELLS

from jaxstab.networks import Params


def _stacked(problem: Any, one: Callable) -> Callable:
    """Of (chain, params, x, labels), over activations and cells."""

    def program(params: Params, x: jax.Array, labels: jax.Array) -> Any:
        found = [
            jax.vmap(lambda p, x, y, chain=chain: one(chain, p, x, y), in_axes=(CELLS, 0, 0))(
                params, x, labels
            )
            for chain in problem.chains
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    return program


def _up_to(params: Params, depth: int) -> Params:
    return params._replace(blocks=jax.tree.map(lambda leaf: leaf[:depth], params.blocks))


def spectra(problem: Any, placed: Any) -> Callable[[], np.ndarray]:
    """Singular values [activation, cell, depth, n]."""

    def values(depth: int) -> Callable:
        def one(chain: Any, params: Params, x: jax.Array, _: jax.Array) -> jax.Array:
            def h(x: jax.Array) -> jax.Array:
                step = lambda h, block: (chain.block(block, h), None)
                return jax.lax.scan(step, chain.embed(params, x), _up_to(params, depth).blocks)[0]

            return jnp.linalg.svd(jax.jacfwd(h)(x), compute_uv=False)

        return _stacked(problem, one)

    with jax.default_matmul_precision("highest"):
        programs = [placed.compile(values(depth)) for depth in problem.depths]
    # one in flight
    return lambda: np.stack([np.asarray(program()) for program in programs], axis=2)


def gradients(problem: Any, placed: Any) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """ln of the norms of dL/dh_l and dL/dtheta_l [activation, cell, depth, layer]."""

    def norms(depth: int) -> Callable:
        def one(
            chain: Any, params: Params, x: jax.Array, labels: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            params = _up_to(params, depth)

            def loss(params: Params, taps: jax.Array) -> jax.Array:
                step = lambda h, at: (chain.block(at[0], h) + at[1], None)
                h = chain.embed(params, x) + taps[0]
                logits = chain.readout(params, jax.lax.scan(step, h, (params.blocks, taps[1:]))[0])
                return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

            taps = jnp.zeros((depth + 1, *x.shape), x.dtype)
            theta, h = jax.grad(loss, argnums=(0, 1))(params, taps)
            squares = lambda leaf: jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1)
            blocks = sum(map(squares, jax.tree.leaves(theta.blocks)))
            embed = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta.embed))
            return jnp.log(squares(h)) / 2, jnp.log(jnp.concatenate([embed[None], blocks])) / 2

        return _stacked(problem, one)

    with jax.default_matmul_precision("highest"):
        programs = [placed.compile(norms(depth)) for depth in problem.depths]
    length = max(problem.depths) + 1

    def run() -> tuple[np.ndarray, np.ndarray]:
        found = [[np.asarray(part) for part in program()] for program in programs]
        pad = lambda a: np.pad(
            a, ((0, 0), (0, 0), (0, length - a.shape[-1])), constant_values=np.nan
        )
        return tuple(np.stack([pad(pair[i]) for pair in found], axis=2) for i in range(2))

    return run
