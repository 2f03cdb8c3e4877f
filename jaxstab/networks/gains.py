"""Gains of layers of the user's own: find their weights and scale them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from jaxstab.checks import check_gains
from jaxstab.networks.chains import Params, layers_of, with_network
from jaxstab.networks.layers import as_layer, with_trained
from jaxstab.norms.paths import named_leaves

# from the path of a parameter within its layer to whether it is a weight
Kernels = Callable[[tuple[str, ...]], bool]


def is_kernel(path: tuple[str, ...]) -> bool:
    """Tell by its name whether a parameter is a weight: `kernel`, or a layer that is one array.

    Args:
        path: of the parameter within its layer.

    Returns:
        Whether it is.
    """
    return not path or path[-1] == "kernel"


def count_kernels(theta: PyTree, kernels: Kernels | None = None) -> int:
    """Count the weights of one layer: parameters of two axes or more that the rule names.

    Args:
        theta: the layer's parameters.
        kernels: which are weights, by their paths within the layer; None for `is_kernel`.

    Returns:
        How many there are.
    """
    return sum(_which(theta, kernels, 2))


def scale_layer(theta: PyTree, factor: ArrayLike, kernels: Kernels | None = None) -> PyTree:
    """Multiply the weights of one layer.

    Args:
        theta: the layer's parameters.
        factor: of its weights.
        kernels: which are weights, as in `count_kernels`.

    Returns:
        The parameters, of the same dtypes.
    """
    return _scaled(theta, jnp.asarray(factor), _which(theta, kernels, 2))


@with_network
def scale_kernels(params: Params, sigma_w: ArrayLike, kernels: Kernels | None = None) -> Params:
    """Multiply the weights of layers of the user's own by a gain.

    Flax's default kernels have variance 1/fan_in (`lecun_normal`): sigma_w is then the gain.

    Args:
        params: parameters of a chain, depth L.
        sigma_w: factor, >= 0: one, or one for the embedding, one per block and one for the readout;
            may be traced.
        kernels: which parameters of two axes or more are weights, by their paths within their
            layer; None for those called `kernel`, and for a layer that is one array.

    Returns:
        Parameters of the same dtypes.

    Raises:
        ValueError: if a concrete sigma_w is negative or not finite, or has another shape, or no
            layer has a weight.

    Example:
        >>> from flax import linen as nn
        >>> from jaxstab import networks
        >>> chain = networks.from_linen([nn.Dense(4), *[nn.Sequential([nn.tanh, nn.Dense(4)])] * 3, nn.Dense(2)])
        >>> params = chain.init(jax.random.key(0), jnp.ones(4, jnp.float32))
        >>> louder = scale_kernels(params, 1.5)
        >>> bool(jnp.all(louder.embed["kernel"] == 1.5 * params.embed["kernel"]))
        True
    """
    check_gains(sigma_w, 0.0)
    if jnp.shape(sigma_w) not in ((), (params.depth + 2,)):
        raise ValueError(
            f"sigma_w must be one, or one per layer, [{params.depth + 2}], got shape {jnp.shape(sigma_w)}"
        )
    gains = jnp.broadcast_to(jnp.asarray(sigma_w, float), params.depth + 2)
    layers = [as_layer(stack) for stack in params.stacks]
    # parameters of blocks carry a layer axis
    axes = [2, *[3] * (len(layers) - 2), 2]
    chosen = [
        _which(layer.params, kernels, least) for layer, least in zip(layers, axes, strict=True)
    ]
    if not any(map(any, chosen)):
        names = {path[-1] for layer in layers for path, _ in named_leaves(layer.params) if path}
        raise ValueError(
            f"no parameter of two axes or more is a weight by this rule; there are {', '.join(sorted(names))}: "
            "kernels=lambda path: path[-1] == ... says which"
        )
    scaled = []
    first = 0
    for i, (stack, layer, which) in enumerate(zip(params.stacks, layers, chosen, strict=True)):
        if 0 < i < len(layers) - 1:
            many = layers_of(stack)
            gain = gains[first : first + many]
        else:
            many = 1
            gain = gains[first]
        scaled.append(with_trained(stack, _scaled(layer.params, gain, which)))
        first += many
    return params.restacked(scaled)


def _which(theta: PyTree, kernels: Kernels | None, axes: int) -> list[bool]:
    """Tell which leaves are weights, in the order of `jax.tree.leaves`."""
    rule = kernels or is_kernel
    return [bool(np.ndim(leaf) >= axes and rule(path)) for path, leaf in named_leaves(theta)]


def _scaled(theta: PyTree, factor: Array, which: list[bool]) -> PyTree:
    leaves, tree = jax.tree.flatten(theta)

    def times(leaf: Array) -> Array:
        return leaf * factor.astype(leaf.dtype).reshape(
            factor.shape + (1,) * (leaf.ndim - factor.ndim)
        )

    chosen = [times(leaf) if kernel else leaf for leaf, kernel in zip(leaves, which, strict=True)]
    return jax.tree.unflatten(tree, chosen)
