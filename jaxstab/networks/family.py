"""Chains of `networks.MLP`, with parameters drawn at given gains."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab.activations import Activation
from jaxstab.arguments import explained
from jaxstab.checks import check_floating, check_gains
from jaxstab.networks.blocks import Block
from jaxstab.networks.chains import Chain, Params, with_network
from jaxstab.networks.gains import rescale
from jaxstab.networks.layers import Layer, as_layer
from jaxstab.networks.normalization import NORMS
from jaxstab.networks.perceptron import MLP

# settings of a network that theory knows, by their names in `theory.law`
_LAW = ("norm", "norm_after", "skip", "weights", "depth", "epsilon", "gate_bias")


def _apply(module: Block, layer: PyTree, h: Array) -> Array:
    bound = as_layer(layer)
    if module.norm and NORMS[module.norm].over_batch and not module.train:
        _check_statistics(bound)
    return jnp.asarray(module.apply(_variables(bound), h))


def _statistics_after(module: Block, layer: PyTree, h: Array) -> PyTree:
    """Compute the running statistics of a layer after a batch in training mode."""
    bound = as_layer(layer)
    _check_statistics(bound)
    return module.apply(_variables(bound), h, mutable=["batch_stats"])[1]["batch_stats"]


def _check_statistics(layer: Layer) -> None:
    if not layer.batch_stats:
        raise ValueError("BatchNorm needs running statistics: chain.bind(params, stats=...)")


def _variables(layer: Layer) -> dict[str, Any]:
    """Return the collections of a layer for Flax, with no gradient for bound values but sigma_w."""
    collections: dict[str, Any] = {"params": layer.params}
    if layer.batch_stats:
        collections["batch_stats"] = jax.lax.stop_gradient(layer.batch_stats)
    if layer.dropout:
        collections["dropout"] = layer.dropout._asdict()
    if layer.sigma_w is not None:
        collections["gains"] = {"sigma_w": layer.sigma_w}
    return collections


@with_network
def chain(mlp: MLP, train: bool = True) -> Chain:
    """Make a chain of a Flax module: its embedding, block and readout as pure functions.

    Norms, dropout and skips are part of the blocks. BatchNorm in training mode mixes examples: x
    and h are then a whole batch, [batch, d_in] and [batch, width]. `flatten` gives it a Jacobian.

    Args:
        mlp: the network.
        train: True for training mode, in which BatchNorm uses statistics of the batch and dropout
            the bound masks; False for inference, with bound running statistics and no dropout.

    Returns:
        A chain that computes the same as `mlp.apply`, layer by layer.
    """
    embed, block, readout = mlp.layers(train)
    update = None
    if mlp.mixes_examples:
        update = _update(mlp)
    in_inference = None
    if train and (mlp.dropout or mlp.mixes_examples):
        in_inference = chain(mlp, train=False)

    def start(params: Params, x: Array) -> Array:
        h = _apply(embed, params.embed, x)
        return jnp.concatenate([h, *[jnp.zeros_like(h)] * (mlp.sources - 1)], axis=-1)

    return Chain(
        embed=start,
        block=lambda layer, h: _apply(block, layer, h),
        readout=lambda params, h: _apply(readout, params.readout, h),
        activation=block.activation,
        init=partial(init, mlp),
        update=update,
        in_inference=in_inference,
        prefixes=not mlp.of_one_depth,
        family=mlp,
        law=FrozenDict(activation=block.activation, **{name: getattr(mlp, name) for name in _LAW}),
        precision=mlp.precision,
    )


def _update(mlp: MLP) -> Chain:
    """Make the chain whose layers return their running statistics after a batch."""
    _, block, readout = mlp.layers(train=True)

    def nothing(params: Params, x: Array) -> Any:
        return None

    return Chain(
        embed=nothing,
        block=partial(_statistics_after, block),
        readout=lambda params, h: _statistics_after(readout, params.readout, h),
        activation=None,
    )


@explained
def mlp(
    depth: int,
    width: int,
    activation: str | Activation | Callable[[Array], Array] = "tanh",
    *,
    features_out: int = 10,
    weights: str | Callable[..., Array] = "gaussian",
    norm: str | None = None,
    norm_after: bool = False,
    dropout: bool = False,
    skip: str | None = None,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    gate_bias: float = -2.0,
    precision: str | None = "highest",
) -> Chain:
    """Make a fully connected network: embedding, `depth` equal blocks, readout.

    With a = phi(norm(h)), thinned by dropout in training,

        h_0 = W x + b,    h_l = skip(h_{l-1}, W a + b),    y = W a + b  of h_depth.

    `networks.MLP` is the same network as a Flax module.

    Args:
        depth: number of blocks L >= 1, excluding embedding and readout.
        width: units per layer, >= 1.
        activation: phi, by name, as an `Activation` or as an elementwise function.
        features_out: number of outputs, >= 1.
        weights: one of `networks.WEIGHTS`, or an initialiser as jax.nn.initializers has them.
        norm: None or one of `networks.NORMS`. With "batch" in training, x is a batch.
        norm_after: whether the norm follows phi instead of preceding it.
        dropout: whether training drops features; `Chain.bind` sets key and rate.
        skip: None or one of `networks.SKIPS`.
        epsilon: added to variances in a norm, >= 0.
        momentum: of BatchNorm's running statistics, in [0, 1].
        gate_bias: initial bias of a highway's gates.
        precision: of matrix products in everything that takes the chain, see `networks.Chain`.

    Returns:
        The chain. `init(key, x, sigma_w, sigma_b)` draws its parameters, `apply(params, x)` is its
        output, and every measurement of the package takes it.

    Raises:
        ValueError: if a size is not a positive integer, a setting is out of range, or a name is
            unknown.

    Example:
        >>> net = mlp(depth=8, width=32, activation="relu", norm="layer", skip="sum")
        >>> params = net.init(jax.random.key(0), jnp.ones(784), sigma_w=2**0.5)
        >>> params.depth, net.apply(params, jnp.ones(784)).shape
        (8, (10,))
    """
    return chain(
        MLP(
            depth,
            width,
            activation,
            features_out,
            weights,
            norm,
            norm_after,
            dropout,
            skip,
            epsilon,
            momentum,
            gate_bias,
            precision,
        )
    )


@with_network
def chain_of(network: MLP | Chain) -> Chain:
    """Return the chain of a network.

    Args:
        network: a chain, or a Flax module of our own family.

    Returns:
        The chain.
    """
    if isinstance(network, Chain):
        return network
    return chain(network)


@with_network
def module_of(network: MLP | Chain) -> MLP:
    """Return the Flax module of a network of our own family.

    Args:
        network: the module itself, or a chain of it.

    Returns:
        The module.

    Raises:
        ValueError: if the chain is of other layers.
    """
    if isinstance(network, MLP):
        return network
    if network.family is None:
        raise ValueError(
            "network must be a networks.mlp(...) or a networks.MLP, got a chain of other layers"
        )
    return network.family


@with_network
def init(
    mlp: MLP,
    key: Array,
    x: Float[Array, "*batch d_in"],
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
) -> Params:
    """Draw parameters: weights of gain sigma_w, biases of standard deviation sigma_b.

    Args:
        mlp: the network.
        key: PRNG key; the same key gives the same draw at every gain.
        x: an input, for its size and its dtype (float32 or float64), which the parameters take.
        sigma_w: weight gain, >= 0; may be traced.
        sigma_b: bias standard deviation, >= 0; may be traced.

    Returns:
        Parameters.

    Raises:
        ValueError: if x is not floating, or a concrete gain is negative or not finite.
    """
    check_floating("x", jnp.result_type(x))
    check_gains(sigma_w, sigma_b)
    try:
        hash(mlp)
    except TypeError:
        # its activation has parameters that are arrays
        return _drawn(mlp, key, x, sigma_w, sigma_b)
    return _drawn_by_program(mlp, key, x, sigma_w, sigma_b)


def _drawn(mlp: MLP, key: Array, x: Array, sigma_w: ArrayLike, sigma_b: ArrayLike) -> Params:
    drawn: dict[str, Any] = mlp.init(key, x)["params"]
    return rescale(Params(**drawn), sigma_w, sigma_b)


# one program for each network: without it, Flax's scan compiles at every call
_drawn_by_program = jax.jit(_drawn, static_argnums=0)
