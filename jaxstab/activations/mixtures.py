"""Layers whose units differ in their activation."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab.activations.activation import Activation
from jaxstab.activations.named import AnyActivation, get


@jax.tree_util.register_pytree_node_class
class Mixture(Activation):
    r"""Mixture of activations: a share p of a layer's units has phi_2, all others phi_1.

    Second moments are means over units (Lesser & Chowdhury 2026): E phi^2 = (1 - p) E phi_1^2 +
    p E phi_2^2. A mixture is not the activation (1 - p) phi_1 + p phi_2. It is a pytree, whose
    leaves are p and the parameters of both activations.

    Attributes:
        share: p, in [0, 1].
        first: phi_1.
        second: phi_2.

    Example:
        >>> half = mixture("relu", "identity", 0.5)
        >>> half(-jnp.ones(4)).tolist()
        [-1.0, -1.0, 0.0, 0.0]
        >>> float(half.average(lambda phi: phi(jnp.asarray(-2.0))))
        -1.0
    """

    elementwise = False

    def __init__(self, first: Activation, second: Activation, share: ArrayLike) -> None:
        """Describe a mixture; `mixture` also takes names and checks the share.

        Args:
            first: phi_1.
            second: phi_2.
            share: p, in [0, 1].
        """
        self.first = first
        self.second = second
        self.share: Any = share
        self.name = f"{first.name}+{second.name}"
        self.kinks = tuple(sorted({*first.kinks, *second.kinks}))
        self.parameters = {"share": share}

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple]:
        """Split into parameters and static fields."""
        leaves, structure = jax.tree.flatten((self.first, self.second, self.share))
        return tuple(leaves), (structure,)

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: Iterable[Any]) -> "Mixture":
        """Rebuild the mixture from what `tree_flatten` returned."""
        return cls(*jax.tree.unflatten(static[0], leaves))

    @property
    def fn(self) -> Callable[[Array], Array]:
        """Raise ValueError, as units of a mixture have different functions."""
        raise ValueError(
            f"the mixture {self.name!r} has no single function; use its `average` of a moment"
        )

    @property
    def static_fn(self) -> Callable[..., Array]:
        """Raise ValueError, as `fn` does."""
        return self.fn

    @property
    def kernel(self) -> Callable[[Array, Array], tuple[Array, Array]] | None:
        """Mean of the two kernels; None where either is unknown."""
        if self.first.kernel is None or self.second.kernel is None:
            return None
        return self._kernel_of_both

    def _kernel_of_both(self, q: Array, c: Array) -> tuple[Array, Array]:
        def kernel(phi: Activation) -> tuple[Array, Array]:
            assert phi.kernel is not None
            return phi.kernel(q, c)

        covariance, slope = self.average(kernel)
        return covariance, slope

    def average(self, moment: Callable[[Activation], PyTree[ArrayLike]]) -> Any:
        """Average a function of a unit's activation over the units.

        Args:
            moment: function of phi that returns a pytree of arrays.

        Returns:
            (1 - p) moment(phi_1) + p moment(phi_2).
        """

        def mean(first: ArrayLike, second: ArrayLike) -> Array:
            one = jnp.asarray(first)
            other = jnp.asarray(second)
            share = jnp.asarray(self.share, jnp.result_type(one))
            return (1 - share) * one + share * other

        return jax.tree.map(mean, moment(self.first), moment(self.second))

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply phi_2 to the first p n of the n units in the last axis, phi_1 to the rest.

        Where p n is not an integer, one unit has a blend of both activations, so that networks are
        continuous and differentiable in p. Averaged over an interval 1/n of p, the derivative is
        the effect of changing that unit's activation.

        Args:
            z: pre-activations of a layer.

        Returns:
            Activations of the layer.
        """
        return self._by_unit(self.first(z), self.second(z))

    def derivative(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Compute phi'(z) of each unit."""
        return self._by_unit(self.first.derivative(z), self.second.derivative(z))

    def steepest(self, dtype: DTypeLike) -> Float[Array, ""]:
        """Compute the largest |phi'(z)| of both activations."""
        return jnp.maximum(self.first.steepest(dtype), self.second.steepest(dtype))

    def _by_unit(self, first: Array, second: Array) -> Array:
        if first.ndim == 0:
            raise ValueError(f"the mixture {self.name!r} needs an axis of units, got a scalar")
        units = first.shape[-1]
        index = jnp.arange(units, dtype=first.dtype)
        part = jnp.asarray(self.share, first.dtype) * units - index
        part = jnp.broadcast_to(jnp.minimum(jnp.maximum(part, 0.0), 1.0), first.shape)
        return (1.0 - part) * first + part * second

    def __repr__(self) -> str:
        """Return parts and share."""
        return f"Mixture({self.first!r}, {self.second!r}, share={self.share!r})"


def mixture(first: AnyActivation, second: AnyActivation, share: ArrayLike) -> Mixture:
    """Make a mixture of two activations over the units of a layer.

    Args:
        first: phi_1, as name, `Activation` or elementwise callable.
        second: phi_2, as name, `Activation` or elementwise callable.
        share: share p of units with phi_2, in [0, 1]; may be traced.

    Returns:
        The mixture.

    Raises:
        ValueError: if share is not one number in [0, 1], or an activation is a mixture.

    Example:
        >>> mixture("tanh", "swish", 0.9).name
        'tanh+silu'
    """
    if not isinstance(share, jax.core.Tracer):
        known = np.asarray(share)
        if known.ndim != 0 or not 0 <= known <= 1:
            raise ValueError(f"share must be one number in [0, 1], got {share}")
    parts = get(first), get(second)
    if any(isinstance(part, Mixture) for part in parts):
        raise ValueError("a mixture needs two plain activations, got a mixture")
    return Mixture(*parts, share)
