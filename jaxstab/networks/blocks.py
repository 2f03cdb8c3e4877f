"""One layer as a Flax module: norm, phi and dropout, a dense branch, and a skip connection."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxstab import decompositions
from jaxstab.activations import Activation
from jaxstab.derivatives import custom_jvp
from jaxstab.networks.normalization import NORMS, NormSettings
from jaxstab.networks.skips import SKIPS, present


def check_matrix_shape(shape: tuple[int, ...]) -> None:
    """Check that weights of this shape have inputs and outputs.

    Args:
        shape: shape of the weights, with the axis of outputs last.

    Raises:
        ValueError: if there are fewer than two axes, or an axis is empty.
    """
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"orthogonal weights need two axes or more, none of length 0, got shape {shape}"
        )


def _gaussian(key: Array, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
    # theory assumes Gaussian weights, and `*_normal` of jax.nn are truncated at two sigma. Drawn as
    # a vector, the same numbers compile faster: XLA unrolls short last axes, such as a readout's
    drawn = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    return drawn * jnp.sqrt(jnp.asarray(1 / math.prod(shape[:-1]), drawn.dtype))


def _orthogonal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
    # Haar-distributed. Orthonormal columns give E h^2 = E a^2 for h = W^T a. For fan_in < fan_out
    # rows are orthonormal, and the scale corrects for the length of a spread over more units
    check_matrix_shape(shape)
    fan_in = math.prod(shape[:-1])
    fan_out = shape[-1]
    gaussian = jax.random.normal(key, (max(fan_in, fan_out), min(fan_in, fan_out)), dtype)
    q, r = decompositions.qr(gaussian)
    # QR leaves the signs of columns arbitrary
    haar = q * jnp.sign(jnp.diagonal(r))[None]
    if fan_in < fan_out:
        haar = haar.T * jnp.sqrt(jnp.asarray(fan_out / fan_in, haar.dtype))
    return haar.reshape(shape)


WEIGHTS = {
    "gaussian": _gaussian,
    "orthogonal": _orthogonal,
    "lecun_normal": initializers.lecun_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
    "he_uniform": initializers.he_uniform(),
}
# weights of variance 1/fan_in, as mean-field theory assumes up to the factor sigma_w
UNIT_WEIGHTS = ("gaussian", "orthogonal", "lecun_normal", "lecun_uniform")


class Block(nn.Module):
    """h -> skip(h, W a + b), a = dropout(phi(norm(h))) or dropout(norm(phi(h))).

    Attributes:
        features: number of outputs of the branch.
        activation: phi.
        weights: initialiser of W.
        norm: None or one of NORMS.
        norm_after: True for a norm after phi, False for a norm before phi.
        dropout: True if training drops features of a.
        skip: None or one of SKIPS.
        depth: number of blocks, for the scale of "scaled" and the sources of "dense".
        sources: number of layers whose features h holds, newest first: 1, or depth + 1 for "dense".
        train: True if BatchNorm uses statistics of the batch and dropout drops.
        epsilon: number added to the variance in a norm.
        momentum: momentum of BatchNorm's running statistics.
        gate_bias: initial bias of a highway's gate.
        inner: True for a block, whose branch a norm may normalise; False for a readout.
    """

    features: int
    activation: Activation
    weights: Callable
    norm: str | None = None
    norm_after: bool = False
    dropout: bool = False
    skip: str | None = None
    depth: int = 1
    sources: int = 1
    train: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9
    gate_bias: float = -2.0
    inner: bool = True

    @nn.compact
    def __call__(self, h: Array, index: Array | int = 0) -> Array:
        """Apply the layer; `index` counts blocks from 0, for the draw of "dense" weights."""
        a = self._head(h)
        product = None
        if self.has_variable("gains", "sigma_w"):
            product = _times(self.get_variable("gains", "sigma_w"))
        dense = self.linear(
            "dense", initializers.normal(1.0), h.dtype, self._kernel_init(index), product
        )
        branch = dense(a)
        if self.inner and self.norm is not None and NORMS[self.norm].on_branch:
            branch = NORMS[self.norm].module(self._settings(h, "branch_norm"))(branch)
        if self.skip is None:
            return branch
        return SKIPS[self.skip].join(self, h, branch, a)

    def linear(
        self,
        name: str,
        bias: Callable,
        dtype: jnp.dtype,
        kernel: Callable = _gaussian,
        product: Callable | None = None,
    ) -> nn.Dense:
        """Make a dense layer of this block's features, W a + b.

        Args:
            name: name of the layer.
            bias: initialiser of b.
            dtype: dtype of features and parameters.
            kernel: initialiser of W.
            product: product of a and W; None for the plain product.

        Returns:
            The Flax module.
        """
        return nn.Dense(
            self.features,
            kernel_init=kernel,
            bias_init=bias,
            dtype=dtype,
            param_dtype=dtype,
            dot_general=product,
            name=name,
        )

    def _head(self, h: Array) -> Array:
        """Compute a, the input of the weights."""
        if self.norm_after:
            a = self._normalise(self.activation(h))
        else:
            a = self.activation(self._normalise(h))
        if self.sources > 1:
            a = jnp.where(present(h, self.sources), a, 0)
        if self.dropout and self.train and not self.is_initializing():
            return self._drop(a)
        return a

    def _normalise(self, h: Array) -> Array:
        if self.norm is None:
            return h
        chosen = NORMS[self.norm]
        norm = chosen.module(self._settings(h, "norm"))
        if chosen.over_batch:
            return norm(h)
        # features of each layer are normalised separately
        return norm(h.reshape(*h.shape[:-1], self.sources, -1)).reshape(h.shape)

    def _settings(self, h: Array, name: str) -> NormSettings:
        return NormSettings(self.epsilon, self.momentum, self.train, h.dtype, name)

    def _drop(self, a: Array) -> Array:
        if not self.has_variable("dropout", "key"):
            raise ValueError(
                "dropout in training mode needs a key and a rate: chain.bind(params, "
                "key=..., rate=...)"
            )
        rate: Array = jax.lax.stop_gradient(self.get_variable("dropout", "rate"))
        # drawn in float32 for any dtype of a, so that one key gives one mask
        keep = jax.random.uniform(
            self.get_variable("dropout", "key"), a.shape, jnp.float32
        ) >= rate.astype(jnp.float32)
        return jnp.where(keep, a / jnp.where(rate < 1, 1 - rate, 1).astype(a.dtype), 0)

    def _kernel_init(self, index: Array | int) -> Callable:
        """Return the initialiser of W.

        A block with "dense" skips draws W = [W_0 .. W_i] / sqrt(i + 1), one matrix for each
        layer below, and zeros for layers still to come.
        """
        # a readout of a "dense" network reads all sources, and is drawn as any other
        if self.skip is None or not SKIPS[self.skip].every_source:
            return self.weights

        def init(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
            size = (shape[0] // self.sources, shape[1])
            parts = jax.vmap(lambda key: self.weights(key, size, dtype))(
                jax.random.split(key, self.sources)
            )
            exists = (jnp.arange(self.sources) <= index)[:, None, None]
            return (jnp.where(exists, parts, 0) / jnp.sqrt(jnp.asarray(index + 1, dtype))).reshape(
                shape
            )

        return init


def _times(sigma_w: Array) -> Callable:
    """Make the product a (sigma_w W) as (sigma_w a) W, with the derivative by sigma_w W."""

    def product(a: Array, w: Array, dimensions: tuple, precision: jax.lax.PrecisionLike) -> Array:
        return jax.lax.dot_general(sigma_w * a, _drawn(w, sigma_w), dimensions, precision)

    return product


@custom_jvp
def _drawn(w: Array, sigma_w: Array) -> Array:
    """Return W. Its tangent is the change of sigma_w W divided by sigma_w."""
    return w


@_drawn.defjvp
def _drawn_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # the product multiplies by sigma_w once more
    w, sigma_w = primals
    zero = sigma_w == 0
    return _drawn(w, sigma_w), jnp.where(zero, 0, tangents[0] / jnp.where(zero, 1, sigma_w))
