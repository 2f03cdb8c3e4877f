"""Gains: find the weights of layers and scale them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from jaxstab.checks import check_gains
from jaxstab.networks.chains import Params, Segments, layers_of, with_network
from jaxstab.networks.layers import Layer, as_layer, with_trained
from jaxstab.norms.paths import named_leaves

# function of the path of a parameter within its layer, True for a weight
Kernels = Callable[[tuple[str, ...]], bool]


def is_kernel(path: tuple[str, ...]) -> bool:
    """Check by its name whether a parameter is a weight: `kernel`, or a layer of one array.

    Args:
        path: path of the parameter within its layer.

    Returns:
        True for a weight.
    """
    return not path or path[-1] == "kernel"


def count_kernels(theta: PyTree, kernels: Kernels | None = None) -> int:
    """Count the weights of one layer: parameters of two axes or more that the rule names.

    Args:
        theta: parameters of the layer.
        kernels: function of a path within the layer, True for weights; None for `is_kernel`.

    Returns:
        Number of weights.
    """
    return sum(_which(theta, kernels, 2))


def scale_layer(theta: PyTree, factor: ArrayLike, kernels: Kernels | None = None) -> PyTree:
    """Multiply the weights of one layer.

    Args:
        theta: parameters of the layer.
        factor: factor of the weights.
        kernels: as in `count_kernels`.

    Returns:
        The parameters, of the same dtypes.
    """
    return _scaled(theta, jnp.asarray(factor), _which(theta, kernels, 2))


@with_network
def rescale(
    params: Params,
    sigma_w: ArrayLike,
    sigma_b: ArrayLike = 1.0,
    kernels: Kernels | None = None,
) -> Params:
    """Multiply weights by sigma_w and biases by sigma_b; norms, gates and alphas stay.

    Parameters of unit gain, init(..., sigma_w=1, sigma_b=1), get these gains. Flax's default
    kernels also have variance 1/fan_in (`lecun_normal`). A bound gain is multiplied into the
    weights: rescale(params, 1) holds the weights that the network applies.

    Args:
        params: parameters of a chain, depth L, bound or not.
        sigma_w: factor of the weights, >= 0: one number, or one for the embedding, one per block
            and one for the readout; may be traced.
        sigma_b: factor of the biases, >= 0; 1 for layers of the user's own, whose biases stay.
        kernels: function of a path within a layer, True for parameters of two axes or more that are
            weights; None for W in an MLP, and for parameters called `kernel` or layers of one array
            among the user's own.

    Returns:
        Parameters of the same dtypes, bound like `params`.

    Raises:
        ValueError: if a concrete factor is negative or not finite, or has another shape, no layer
            has a weight, or sigma_b is given for layers of the user's own.

    Example:
        >>> from flax import linen as nn
        >>> from jaxstab import networks
        >>> chain = networks.from_linen([nn.Dense(4), *[nn.Sequential([nn.tanh, nn.Dense(4)])] * 3, nn.Dense(2)])
        >>> params = chain.init(jax.random.key(0), jnp.ones(4, jnp.float32))
        >>> louder = rescale(params, 1.5)
        >>> bool(jnp.all(louder.embed["kernel"] == 1.5 * params.embed["kernel"]))
        True
    """
    check_gains(sigma_w, sigma_b)
    if kernels is None and _of_family(params):
        if jnp.ndim(sigma_b) != 0:
            raise ValueError(f"sigma_b must be one number, got shape {jnp.shape(sigma_b)}")
        whole = params.restacked([_with_gain(stack) for stack in params.stacks])
        scaled = _scaled_layers(whole, sigma_w, _is_weight, 2)
        return _scaled_layers(scaled, sigma_b, _is_bias, 1)
    if isinstance(sigma_b, jax.core.Tracer) or np.any(np.asarray(sigma_b) != 1):
        raise ValueError(
            f"sigma_b must be 1 for layers of your own, whose biases keep their size, got {sigma_b}"
        )
    return _scaled_layers(params, sigma_w, kernels, 2)


def _of_family(params: Params) -> bool:
    """Check for parameters of an MLP, whose layers have W in a module called "dense"."""
    if isinstance(params.blocks, Segments):
        return False
    layers = [as_layer(stack).params for stack in params.stacks]
    return all(isinstance(layer, Mapping) and "dense" in layer for layer in layers)


def _with_gain(stack: PyTree) -> PyTree:
    """Multiply the gain of a bound layer, or of a stack of layers, into the weights."""
    if not isinstance(stack, Layer) or stack.sigma_w is None:
        return stack
    dense = stack.params["dense"]
    kernel = dense["kernel"] * stack.sigma_w[..., None, None]
    return stack._replace(params=stack.params | {"dense": dense | {"kernel": kernel}}, sigma_w=None)


def _is_weight(path: tuple[str, ...]) -> bool:
    return path == ("dense", "kernel")


def _is_bias(path: tuple[str, ...]) -> bool:
    return path == ("dense", "bias")


def _scaled_layers(params: Params, factors: ArrayLike, rule: Kernels | None, least: int) -> Params:
    """Multiply leaves that a rule selects, with at least `least` axes, by one factor or one per layer."""
    shape = jnp.shape(factors)
    if shape not in ((), (params.depth + 2,)):
        raise ValueError(
            f"sigma_w must be one number, or one per layer, [{params.depth + 2}], got shape {shape}"
        )
    layers = [as_layer(stack) for stack in params.stacks]
    # parameters of blocks carry a layer axis
    axes = [0, *[1] * (len(layers) - 2), 0]
    which = [
        _which(layer.params, rule, least + extra) for layer, extra in zip(layers, axes, strict=True)
    ]
    if not any(map(any, which)):
        names = {path[-1] for layer in layers for path, _ in named_leaves(layer.params) if path}
        raise ValueError(
            "kernels must select a parameter of two axes or more, such as by lambda path: path[-1] "
            f"== 'kernel'; there are {', '.join(sorted(names))}"
        )
    scaled = []
    first = 0
    for stack, layer, extra, leaves in zip(params.stacks, layers, axes, which, strict=True):
        factor = jnp.asarray(factors, float)
        if shape and extra:
            many = layers_of(stack)
            factor = factor[first : first + many]
            first += many
        elif shape:
            factor = factor[first]
            first += 1
        scaled.append(with_trained(stack, _scaled(layer.params, factor, leaves)))
    return params.restacked(scaled)


def _which(theta: PyTree, kernels: Kernels | None, axes: int) -> list[bool]:
    """Flag the leaves that are weights, in the order of `jax.tree.leaves`."""
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
