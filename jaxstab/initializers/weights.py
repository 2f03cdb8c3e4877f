"""Initialisers at the critical gain, and networks that are linear at initialisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from jaxstab.activations import Activation, get
from jaxstab.arguments import explained
from jaxstab.checks import check_gains
from jaxstab.networks import MLP, WEIGHTS, Chain, Params
from jaxstab.networks.blocks import UNIT_WEIGHTS
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import init, module_of
from jaxstab.theory.finite_width import critical_width_gain
from jaxstab.theory.gains import gain

AnyActivation = str | Activation | Callable[[Array], Array]
Initializer = Callable[..., Array]


@explained
def critical(
    activation: AnyActivation,
    sigma_b: float = 0.0,
    weights: str = "gaussian",
    width: int | None = None,
) -> Initializer:
    """Make an initialiser on the critical line: sigma_w of `gain` times unit weights.

    At finite width n typical gradients of this gain shrink by exp(-O(1/n)) per layer. With `width`
    the mean of ln |J u| is 0 instead; that gain is known exactly for phi linear on either side of
    0.

    Args:
        activation: activation of the layers, as name, `Activation` or elementwise callable.
        sigma_b: bias standard deviation of the network, >= 0.
        weights: one of `networks.blocks.UNIT_WEIGHTS`, such as "gaussian" or "orthogonal".
        width: units per layer, for relu, leaky_relu and similar activations; None for infinite
            width.

    Returns:
        Initialiser (key, shape, dtype) -> weights, for `MLP(weights=...)` or a Flax layer's
        kernel_init.

    Raises:
        ValueError: if the activation has no critical gain at this sigma_b or width, or `weights` is
            not a law of unit gain.

    Example:
        >>> import flax.linen as nn
        >>> layer = nn.Dense(64, kernel_init=critical("tanh", weights="orthogonal"))
        >>> typical = nn.Dense(64, kernel_init=critical("relu", width=64))
    """
    if weights not in UNIT_WEIGHTS:
        *most, last = UNIT_WEIGHTS
        raise ValueError(f"weights must be {', '.join(most)} or {last}, got {weights!r}")
    if width is not None:
        check_gains(0.0, sigma_b)
        return _scaled(weights, critical_width_gain(activation, width, weights))
    known = gain(activation, sigma_b)
    if not known.critical:
        name = get(activation).name
        raise ValueError(
            f"{name} has no critical gain at sigma_b = {sigma_b}; use gain({name!r}, {sigma_b}), "
            "which keeps the length"
        )

    return _scaled(weights, known.sigma_w)


def _scaled(weights: str, sigma_w: float) -> Initializer:
    """Make an initialiser of unit weights times a gain."""

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        drawn = WEIGHTS[weights](key, shape, dtype)
        return drawn * jnp.asarray(sigma_w, drawn.dtype)

    return draw


@with_network
def looks_linear(
    network: MLP | Chain,
    key: Array,
    x: Float[Array, "*batch d_in"],
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
) -> Params:
    """Draw parameters that make a relu-like network equal to a linear one of half the width.

    Weights are W = [[A, -A], [-A, A]]/c, where phi(z) - phi(-z) = c z (Balduzzi et al. 2017,
    section 4) and A is drawn by the network's `weights`. The output and the singular values of
    dy/dx are those of the linear network. The state h = (g, -g) contains the linear network's state
    g twice, so that derivatives of h carry a factor sqrt 2. With orthogonal A, relu and no skip,
    half of the singular values of dh_L/dh_l are sqrt(2) sigma_w^(L - l) and half are 0. Those of
    dh_L/dx are sqrt(2) sigma_w^(L + 1) for d_in = width / 2.

    Args:
        network: network of `networks.mlp` of even width, without norm, with skip None, "sum",
            "scaled" or "rezero", and relu, leaky_relu, gelu, silu, softplus or similar.
        key: random key.
        x: input, used for its size and dtype.
        sigma_w: gain of A.
        sigma_b: standard deviation of the biases, which are mirrored too.

    Returns:
        Parameters of the network.

    Raises:
        ValueError: if the network does not meet these conditions.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=50, width=16, activation="relu", weights="orthogonal")
        >>> params = looks_linear(net, jax.random.key(0), jnp.ones(8))
        >>> kernel = params.blocks["dense"]["kernel"][0]
        >>> bool(jnp.all(kernel[:8, :8] == -kernel[:8, 8:]))
        True
    """
    mlp = module_of(network)
    phi = get(mlp.activation)
    z = np.linspace(0.1, 3.0, 4)
    # evaluates concrete numbers inside a trace too
    with jax.ensure_compile_time_eval():
        odd = np.asarray(phi(jnp.asarray(z)) - phi(jnp.asarray(-z))) / z
    if not (np.allclose(odd, odd[0], rtol=1e-5) and abs(odd[0]) > 1e-5):
        raise ValueError(
            f"looks_linear needs phi(z) - phi(-z) = c z, such as relu and gelu, got {phi.name}"
        )
    if mlp.width % 2 or mlp.norm or mlp.skip not in (None, "sum", "scaled", "rezero"):
        raise ValueError(
            "looks_linear needs an even width, no norm, and skip None, sum, scaled or rezero, got "
            f"width {mlp.width}, norm {mlp.norm}, skip {mlp.skip}"
        )
    half = init(
        mlp.clone(width=mlp.width // 2, activation="identity", dropout=False),
        key,
        x,
        sigma_w,
        sigma_b,
    )

    def mirrored(a: Array, axis: int) -> Array:
        return jnp.concatenate([a, -a], axis)

    def columns(layer: dict) -> dict:
        return layer | {"dense": jax.tree.map(lambda a: mirrored(a, -1), layer["dense"])}

    def rows(layer: dict) -> dict:
        kernel = mirrored(layer["dense"]["kernel"] / odd[0], -2)
        return layer | {"dense": layer["dense"] | {"kernel": kernel}}

    return Params(columns(half.embed), columns(rows(half.blocks)), rows(half.readout))
