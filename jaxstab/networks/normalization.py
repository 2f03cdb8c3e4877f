"""Norms of a block, as a table.

A new norm is one entry of NORMS: grids and commands take it from there.

A norm maps the features of a layer, the last axis, to features of the same shape. Its parameters
are its own.
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
        epsilon: added to variances, >= 0.
        momentum: of running statistics, in [0, 1].
        train: whether statistics are those of the batch at hand.
        dtype: of the features and the parameters.
        name: of the module.
    """

    epsilon: float
    momentum: float
    train: bool
    dtype: DTypeLike
    name: str = "norm"


class BatchNorm(nn.Module):
    """(h - mean) / sqrt(var + epsilon) scale + bias over a batch (Ioffe & Szegedy 2015).

    Statistics have the dtype of the input; flax's own are float32 whatever it is.

    Attributes:
        epsilon: added to the variance.
        momentum: of the running statistics.
        train: whether the statistics are those of the batch at hand.
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
    """A norm that a block can have.

    Attributes:
        module: settings -> the Flax module, of the name that they say.
        over_batch: whether training normalises over the examples of a batch, and keeps running
            statistics.
        on_branch: whether the branch W a + b is normalised too, before it joins its skip.
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
