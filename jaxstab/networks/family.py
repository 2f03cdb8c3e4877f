"""Networks of our own family as chains: their parameters drawn, scaled and bound."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from jaxstab.activations import Activation
from jaxstab.checks import check_floating, check_gains
from jaxstab.networks.blocks import Block
from jaxstab.networks.chains import Chain, Dropout, Layer, Params, Updates, with_network
from jaxstab.networks.gains import rescale
from jaxstab.networks.layers import as_layer
from jaxstab.networks.normalization import NORMS
from jaxstab.networks.perceptron import MLP
from jaxstab.networks.skips import present


def _apply(module: Block, layer: PyTree, h: Array) -> Array:
    bound = as_layer(layer)
    if module.norm and NORMS[module.norm].over_batch and not module.train:
        bound = _known(bound)
    return jnp.asarray(module.apply(bound.variables(), h))


def _known(layer: Layer) -> Layer:
    """Check that a layer has running statistics."""
    if not layer.batch_stats:
        raise ValueError(
            "BatchNorm needs running statistics: networks.bind(mlp, params, stats=...)"
        )
    return layer


@with_network
def chain(mlp: MLP, train: bool = True) -> Chain:
    """Make a chain of a Flax module: its embedding, block and readout as pure functions.

    Norms, dropout and skips are part of the blocks. BatchNorm in training mode mixes examples: x
    and h are then a whole batch, [batch, d_in] and [batch, width]. `flatten` gives it a Jacobian.

    Args:
        mlp: the network.
        train: training mode: BatchNorm takes the statistics of the batch, dropout the masks that
            `bind` gave. Inference mode takes running statistics from `bind` and drops nothing.

    Returns:
        A chain that computes what `mlp.apply` does, layer by layer.
    """
    embed, block, readout = mlp.layers(train)
    exists = None
    if mlp.sources > 1:
        exists = partial(present, sources=mlp.sources)
    update = None
    if mlp.mixes_examples:
        update = Updates(None, *statistics(mlp))
    inference = None
    if train and (mlp.dropout or mlp.mixes_examples):
        inference = chain(mlp, train=False)

    def start(params: Params, x: Array) -> Array:
        h = _apply(embed, params.embed, x)
        return jnp.concatenate([h, *[jnp.zeros_like(h)] * (mlp.sources - 1)], axis=-1)

    return Chain(
        embed=start,
        block=lambda layer, h: _apply(block, layer, h),
        readout=lambda params, h: _apply(readout, params.readout, h),
        activation=block.activation,
        present=exists,
        init=partial(init, mlp),
        bind=partial(_bound, mlp),
        unbind=lambda params, x: (params, initial_stats(mlp, x)),
        update=update,
        inference=inference,
        prefixes=not mlp.of_one_depth,
        family=mlp,
        precision=mlp.precision,
    )


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
def bind(
    mlp: MLP,
    params: Params,
    *,
    stats: PyTree = None,
    key: Key[Array, ""] | None = None,
    rate: ArrayLike = 0.0,
    sigma_w: ArrayLike | None = None,
) -> Params:
    """Bind parameters to running statistics, masks of dropout, or a common gain.

    One key, one set of masks, whatever the rate: rates share their draws as gains do. A batch gets
    a mask per example; under a vmap over examples it is up to the caller to vmap keys too.

    With sigma_w a layer computes sigma_w W a + b without ever forming sigma_w W. A vmap over gains
    then has one copy of W for all, and one wide product in place of many. Values are those of
    `rescale(params, sigma_w, 1)`, and so are derivatives of every order: with respect to weights
    they are those with respect to sigma_w W (0 where sigma_w is 0), with respect to sigma_w those
    at fixed W. Only derivatives that mix the two depend on their order; `rescale` by 1 for these,
    which multiplies the gain in.

    Args:
        mlp: the network.
        params: what is trained.
        stats: BatchNorm's running statistics, from `initial_stats` or from
            `mlp.apply(..., mutable=["batch_stats"])[1]["batch_stats"]`.
        key: PRNG key of the masks.
        rate: share of features dropped, in [0, 1]: one, or one per block and one for the readout;
            may be traced.
        sigma_w: factor of the weights, >= 0: one, or one for the embedding, one per block and one
            for the readout; may be traced.

    Returns:
        Parameters for a chain.

    Raises:
        ValueError: if a key is given to a network without dropout, a concrete rate is outside [0,
            1], a concrete sigma_w is negative or not finite, or sigma_w has another shape.

    Example:
        >>> mlp = MLP(depth=4, width=8, dropout=True)
        >>> params = init(mlp, jax.random.key(0), jnp.ones(5))
        >>> wet = bind(mlp, params, key=jax.random.key(1), rate=0.1)
        >>> chain(mlp).apply(wet, jnp.ones(5)).shape
        (10,)
    """
    blocks = Layer(params.blocks)
    readout = Layer(params.readout)
    if stats:
        blocks = blocks._replace(batch_stats=stats["blocks"])
        readout = readout._replace(batch_stats=stats["readout"])
    if key is not None:
        if not mlp.dropout:
            raise ValueError(
                "a key is for the masks of dropout, and this network has none: MLP(..., "
                "dropout=True)"
            )
        if not isinstance(rate, jax.core.Tracer) and not np.all(
            (np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)
        ):
            raise ValueError(f"rate must be in [0, 1], got {rate}")
        keys = jax.random.split(key, mlp.depth + 1)
        rates = jnp.broadcast_to(jnp.asarray(rate, float), mlp.depth + 1)
        # the first is the readout's, so that networks of all depths share their masks
        blocks = blocks._replace(dropout=Dropout(keys[1:], rates[:-1]))
        readout = readout._replace(dropout=Dropout(keys[0], rates[-1]))
    embed = params.embed
    if sigma_w is not None:
        check_gains(sigma_w, 0.0)
        if jnp.shape(sigma_w) not in ((), (mlp.depth + 2,)):
            raise ValueError(
                f"sigma_w must be one, or one per layer, [{mlp.depth + 2}], got shape "
                f"{jnp.shape(sigma_w)}"
            )
        factors = jnp.broadcast_to(
            jnp.asarray(sigma_w, params.embed["dense"]["kernel"].dtype), mlp.depth + 2
        )
        embed = Layer(embed, sigma_w=factors[0])
        blocks = blocks._replace(sigma_w=factors[1:-1])
        readout = readout._replace(sigma_w=factors[-1])
    return Params(embed, blocks, readout)


def _bound(
    mlp: MLP, params: Params, *, key: Key[Array, ""] | None = None, **besides: Any
) -> Params:
    """Call `bind`; a network without dropout ignores the key."""
    return bind(mlp, params, key=key if mlp.dropout else None, **besides)


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


@with_network
def initial_stats(mlp: MLP, x: Float[Array, "*batch d_in"]) -> PyTree:
    """Make BatchNorm's running statistics before training: mean 0, variance 1.

    Args:
        mlp: the network.
        x: an input, for its size and dtype.

    Returns:
        The Flax collection "batch_stats"; empty without BatchNorm.
    """
    shapes = jax.eval_shape(mlp.init, jax.random.key(0), x).get("batch_stats", {})
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype), shapes
    )


@with_network
def statistics(
    mlp: MLP,
) -> tuple[Callable[[Layer, Array], PyTree], Callable[[Layer, Array], PyTree]]:
    """Make the functions that update BatchNorm's running statistics, of a block and of the readout.

    Args:
        mlp: the network.

    Returns:
        Two functions (layer as `bind` gives it, h [batch, width]) -> its new batch_stats; empty
        without BatchNorm.
    """

    def after(module: Block) -> Callable[[Layer, Array], PyTree]:
        if not mlp.mixes_examples:
            return lambda layer, h: {}
        return lambda layer, h: module.apply(_known(layer).variables(), h, mutable=["batch_stats"])[
            1
        ]["batch_stats"]

    _, block, readout = mlp.layers(True)
    return after(block), after(readout)
