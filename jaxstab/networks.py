"""Networks as chains: embed, one block per layer, readout. The only room where Flax lives.

The pre-activation h is the state: h_0 = W x + b, then block: h -> W phi(h) + b, readout: y = W phi(h) + b.
Weights are drawn at unit gain and scaled, W ~ N(0, sigma_w^2 / fan_in) or sigma_w times orthogonal, biases
N(0, sigma_b^2): gains can be traced, and all gains of one key share one draw.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab.activations import Activation, get
from jaxstab.checks import check_floating, check_gains

WEIGHTS = {
    # not truncated: theory is about Gaussian weights
    "gaussian": initializers.variance_scaling(1.0, "fan_in", "normal"),
    "orthogonal": initializers.orthogonal(),
}


class Params(NamedTuple):
    """Parameters of a chain.

    Attributes:
        embed: pytree of the map from input to h_0.
        blocks: pytree whose leaves carry a leading layer axis [depth, ...].
        readout: pytree of the map from h_L to the output.
    """

    embed: PyTree
    blocks: PyTree
    readout: PyTree

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return jax.tree.leaves(self.blocks)[0].shape[0]


class Chain(NamedTuple):
    """A network as pure functions; every measurement is a fold over `block`.

    Attributes:
        embed: (params, x [d_in]) -> h_0 [width].
        block: (params.blocks at one layer, h [width]) -> h [width], pre-activation to pre-activation.
        readout: (params, h [width]) -> y [d_out].
        activation: phi, the nonlinearity at the head of each block, for saturation and dead units.
    """

    embed: Callable[[Params, Array], Array]
    block: Callable[[PyTree, Array], Array]
    readout: Callable[[Params, Array], Array]
    activation: Activation


class _Block(nn.Module):
    """phi, then a dense layer; shaped as the body of `nn.scan`."""

    features: int
    activation: Activation
    kernel_init: Callable

    @nn.compact
    def __call__(self, h: Array, _: None = None) -> tuple[Array, None]:
        dense = nn.Dense(
            self.features,
            kernel_init=self.kernel_init,
            bias_init=initializers.normal(1.0),
            dtype=h.dtype,
            param_dtype=h.dtype,
            name="dense",
        )
        return dense(self.activation(h)), None


class MLP(nn.Module):
    """A fully connected network, h_0 = W x + b, h_l = W phi(h_{l-1}) + b for l = 1..depth, y = W phi(h_depth) + b.

    Attributes:
        depth: number of blocks L >= 1, excluding embed and readout.
        width: units per layer, >= 1.
        activation: name, `Activation` or elementwise callable.
        features_out: outputs, >= 1.
        weights: "gaussian" or "orthogonal".

    Example:
        >>> mlp = MLP(depth=8, width=32, activation="relu")
        >>> params = init(mlp, jax.random.key(0), jnp.ones(784), sigma_w=2**0.5)
        >>> params.blocks["dense"]["kernel"].shape, mlp.apply(variables(params), jnp.ones(784)).shape
        ((8, 32, 32), (10,))
    """

    depth: int
    width: int
    activation: str | Activation | Callable[[Array], Array] = "tanh"
    features_out: int = 10
    weights: str = "gaussian"

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if a size is not a positive integer, or activation or weights are unknown.
        """
        for field in ("depth", "width", "features_out"):
            size = getattr(self, field)
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{field} must be an integer >= 1, got {size!r}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        get(self.activation)
        super().__post_init__()

    def _layer(self, activation: str | Activation | Callable[[Array], Array], features: int) -> _Block:
        return _Block(features, get(activation), WEIGHTS[self.weights], parent=None)

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """The network's output, all layers in one pass."""
        h, _ = self._layer("identity", self.width).clone(name="embed", parent=self)(x)
        scanned = nn.scan(_Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)(
            self.width, get(self.activation), WEIGHTS[self.weights], name="blocks"
        )
        h, _ = scanned(h, None)
        return self._layer(self.activation, self.features_out).clone(name="readout", parent=self)(h)[0]


def chain(mlp: MLP) -> Chain:
    """The fold's view of a network: its embed, block and readout as pure functions.

    Args:
        mlp: the network.

    Returns:
        A chain that computes what `mlp.apply` does, layer by layer.
    """
    embed = mlp._layer("identity", mlp.width)
    block = mlp._layer(mlp.activation, mlp.width)
    readout = mlp._layer(mlp.activation, mlp.features_out)
    return Chain(
        embed=lambda params, x: embed.apply({"params": params.embed}, x)[0],
        block=lambda layer, h: block.apply({"params": layer}, h)[0],
        readout=lambda params, h: readout.apply({"params": params.readout}, h)[0],
        activation=get(mlp.activation),
    )


def init(
    mlp: MLP, key: Array, x: Float[Array, "*batch d_in"], sigma_w: ArrayLike = 1.0, sigma_b: ArrayLike = 0.0
) -> Params:
    """Draw parameters: weights of gain sigma_w, biases of standard deviation sigma_b, every layer alike.

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
    drawn: dict[str, Any] = mlp.init(key, x)["params"]
    return rescale(Params(**drawn), sigma_w, sigma_b)


def rescale(params: Params, sigma_w: ArrayLike, sigma_b: ArrayLike) -> Params:
    """Multiply all weights by sigma_w and all biases by sigma_b.

    Args:
        params: parameters, usually of unit gains, init(..., sigma_w=1, sigma_b=1).
        sigma_w: factor of the weights.
        sigma_b: factor of the biases.

    Returns:
        Parameters of the same dtypes.
    """
    factors = {"kernel": sigma_w, "bias": sigma_b}
    return jax.tree.map_with_path(lambda path, leaf: leaf * jnp.asarray(factors[path[-1].key], leaf.dtype), params)


def variables(params: Params) -> dict[str, Any]:
    """Parameters as `mlp.apply` takes them.

    Args:
        params: parameters.

    Returns:
        {"params": ...}.
    """
    return {"params": params._asdict()}
