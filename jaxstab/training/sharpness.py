r"""Sharpness of networks of several depths that share their layers.

The network of depth D is the first D blocks with the same embedding and readout. One program serves
all depths: the gradient takes a traced depth, and the Hessian is its derivative.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.checks import Depths, check_count, check_depths
from jaxstab.curvature.products import hessian_by_gradient, symmetric
from jaxstab.curvature.symmetric import Largest, largest
from jaxstab.curvature.vectors import ravel
from jaxstab.networks import Chain, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.layers import as_layer
from jaxstab.records import Sharpness
from jaxstab.spectra.operators import Operator
from jaxstab.training.gradient import value_and_grad

# products for a largest eigenvalue: at initialisation, with few outliers, half as many would do
PRODUCTS = 12

Depth = Int[Array, ""] | int | None


@with_network
def sharpness(
    chain: Chain,
    params: Params,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    depths: Depths | None = None,
    products: int = PRODUCTS,
) -> Sharpness:
    """Compute the largest eigenvalue of a loss's Hessian and Gauss-Newton matrix at every depth.

    Args:
        chain: the network, in training mode.
        params: parameters of the network, of depth L; bound gains and masks are held constant.
        x: one input, or a batch that the chain takes.
        loss: scalar function of the output.
        depths: wanted depths, each in [0, L]; None for depth L alone, without a depth axis.
        products: number of products with each matrix, >= 1.

    Returns:
        Logarithms of the eigenvalues, [depth], or scalars for depths=None.

    Raises:
        ValueError: if depths are not ascending integers in [0, L], products < 1, or a depth other
            than L is wanted where states change their shape from block to block.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=8, features_out=1)
        >>> params = net.init(jax.random.key(0), jnp.ones(3))
        >>> found = sharpness(net, params, jnp.ones(3), lambda y: y[0] ** 2, [1, 2])
        >>> found.log_sharpness.shape
        (2,)
    """
    check_count("products", products, 1)
    # running statistics have no effect in training mode
    chain = chain._replace(update=None)
    bound = params.restacked([as_layer(stack) for stack in params.stacks])
    if depths is None:
        return _Network(chain, bound, x, loss, None).sharpness(products)
    depths = check_depths(depths, params.depth)
    if depths == (params.depth,):
        record = _Network(chain, bound, x, loss, None).sharpness(products)
        return jax.tree.map(lambda leaf: leaf[None], record)
    if not chain.prefixes:
        each = [
            _Network(chain, prefix(bound, depth), x, loss, None).sharpness(products)
            for depth in depths
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def one(depth: Int[Array, ""]) -> Sharpness:
        return _Network(chain, bound, x, loss, depth).sharpness(products)

    return jax.lax.map(one, jnp.asarray(depths))


def prefix(params: Params, depth: int) -> Params:
    """Take the parameters of a shallower network.

    Args:
        params: parameters of equal blocks, bound or not, of depth L.
        depth: number of blocks, in [0, L].

    Returns:
        Parameters of the embedding, the first blocks and the readout.
    """
    shallower = jax.tree.map(lambda leaf: leaf[:depth], params.blocks)
    return params._replace(blocks=shallower)


class _Network(NamedTuple):
    """Network of one depth, with its inputs and loss."""

    chain: Chain
    params: Params
    x: PyTree
    loss: Callable
    depth: Depth

    def sharpness(self, products: int) -> Sharpness:
        def top(operator: Operator) -> Largest:
            return largest(operator, jax.random.key(0), products)

        whole = top(hessian_by_gradient(lambda params: self.pull(params, self.loss), self.params))
        error = whole.error / jnp.abs(whole.value)
        return Sharpness(_log(whole), error, _log(top(self.gauss_newton())))

    def pull(self, params: Params, of_output: Callable[[PyTree], Array]) -> PyTree:
        """Compute the gradient of a scalar of the output by the parameters."""
        return value_and_grad(self.chain, params, self.x, of_output, self.depth).params

    def gauss_newton(self) -> Operator:
        """Operator of J^T (d^2 loss / dy^2) J."""
        vector, unravel = ravel(self.params)

        def outputs(vector: Float[Array, " n"]) -> PyTree:
            return self.chain.apply(unravel(vector), self.x, self.depth)

        def linear(_: tuple) -> Partial:
            curve = jax.linearize(jax.grad(self.loss), outputs(vector))[1]
            return Partial(product, curve)

        def product(curve: Callable, v: Float[Array, " n"]) -> Float[Array, " n"]:
            cotangent = curve(jax.jvp(outputs, (vector,), (v,))[1])

            def along(y: PyTree) -> Float[Array, ""]:
                return optax.tree.vdot(y, cotangent)

            return ravel(self.pull(self.params, along))[0]

        return symmetric(linear, vector, (), None)


def _log(eigenvalue: Largest) -> Float[Array, ""]:
    """ln of an eigenvalue; -inf where it is not positive."""
    positive = jnp.where(eigenvalue.value < 0, jnp.zeros_like(eigenvalue.value), eigenvalue.value)
    exponent = eigenvalue.exponent.astype(positive.dtype)
    return jnp.log(positive) + exponent * math.log(2)
