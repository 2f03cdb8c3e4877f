"""Norms of a block, as a table.

A new norm is one entry of NORMS: grids and commands take it from there.

A norm maps the features of a layer, the last axis, to features of the same shape, with parameters
of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array


class NormSettings(NamedTuple):
    """Settings of a norm.

    Attributes:
        epsilon: number added to variances, >= 0.
        momentum: momentum of running statistics, in [0, 1].
        train: True for statistics of the batch, False for running statistics.
        dtype: dtype of features and parameters.
        name: name of the module.
    """

    epsilon: float
    momentum: float
    train: bool
    dtype: DTypeLike
    name: str = "norm"


class BatchNorm(nn.Module):
    """(h - mean) / sqrt(var + epsilon) scale + bias over a batch (Ioffe & Szegedy 2015).

    Statistics have the dtype of the input, while those of flax are always float32.

    Attributes:
        epsilon: number added to the variance.
        momentum: momentum of the running statistics.
        train: True for statistics of the batch, False for running statistics.
    """

    epsilon: float
    momentum: float
    train: bool

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Normalise each feature over the batch."""
        axes = tuple(range(h.ndim - 1))
        features = h.shape[-1:]
        if self.train and not axes and not self.is_initializing():
            raise ValueError(
                "BatchNorm in training mode mixes examples: it needs a batch [batch, width], got "
                f"{h.shape}"
            )
        scale = self.param("scale", initializers.ones, features, h.dtype)
        bias = self.param("bias", initializers.zeros, features, h.dtype)
        if self.train:
            mean = jnp.mean(h, axes)
            var = jnp.var(h, axes)
        if not self.train or self.is_mutable_collection("batch_stats"):
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, features, h.dtype)
            running_var = self.variable("batch_stats", "var", jnp.ones, features, h.dtype)
            if not self.train:
                mean = running_mean.value
                var = running_var.value
            elif not self.is_initializing():
                running_mean.value += (1 - self.momentum) * (mean - running_mean.value)
                running_var.value += (1 - self.momentum) * (var - running_var.value)
        lead = (None,) * len(axes)
        return (h - mean[lead]) * (jax.lax.rsqrt(var + self.epsilon) * scale)[lead] + bias[lead]


class Squash(nn.Module):
    """Elementwise norm without statistics: scale f(alpha h) + bias.

    Attributes:
        function: f, odd and bounded.
        alpha: initial alpha, one for all features.
    """

    function: Callable[[Array], Array]
    alpha: float

    @nn.compact
    def __call__(self, h: Array) -> Array:
        """Squash each feature."""
        alpha = self.param("alpha", initializers.constant(self.alpha), (), h.dtype)
        scale = self.param("scale", initializers.ones, h.shape[-1:], h.dtype)
        bias = self.param("bias", initializers.zeros, h.shape[-1:], h.dtype)
        lead = (None,) * (h.ndim - 1)
        return self.function(alpha * h) * scale[lead] + bias[lead]


def _batch(settings: NormSettings) -> nn.Module:
    return BatchNorm(settings.epsilon, settings.momentum, settings.train, name=settings.name)


def _layer(settings: NormSettings) -> nn.Module:
    return nn.LayerNorm(
        settings.epsilon,
        settings.dtype,
        settings.dtype,
        use_fast_variance=False,
        force_float32_reductions=False,
        name=settings.name,
    )


def _rms(settings: NormSettings) -> nn.Module:
    return nn.RMSNorm(
        settings.epsilon,
        settings.dtype,
        settings.dtype,
        force_float32_reductions=False,
        name=settings.name,
    )


def _dyt(settings: NormSettings) -> nn.Module:
    return Squash(jnp.tanh, 0.5, name=settings.name)


def _derf(settings: NormSettings) -> nn.Module:
    return Squash(jax.scipy.special.erf, 0.5, name=settings.name)


class Norm(NamedTuple):
    """Norm of a block.

    Attributes:
        module: settings -> Flax module with the name in the settings.
        over_batch: True if training normalises over the examples of a batch, and keeps running
            statistics.
        on_branch: True if the branch W a + b is also normalised, before it joins its skip.
    """

    module: Callable[[NormSettings], nn.Module]
    over_batch: bool = False
    on_branch: bool = False


NORMS = {
    "batch": Norm(_batch, over_batch=True),
    "layer": Norm(_layer),
    "rms": Norm(_rms),
    # Kim et al. 2025, arXiv 2502.02732: LayerNorm around every branch
    "peri": Norm(_layer, on_branch=True),
    # Zhu et al. 2025, "Transformers without normalization"
    "dyt": Norm(_dyt),
    # the same with erf
    "derf": Norm(_derf),
}
