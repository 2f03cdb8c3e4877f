"""One layer of a chain at its input state, with output and derivatives as products."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
from jaxtyping import Array, Int, PyTree

from jaxstab.networks.layers import as_layer, with_trained
from jaxstab.networks.pullbacks import pullback

Index = Int[Array, ""] | int


@dataclass(frozen=True, eq=False)
class Here:
    """One layer at its input state.

    Derivatives are computed at their first use and kept. The first use must be in the step itself,
    since a value computed within a `vmap` or a `switch` cannot leave it.

    Attributes:
        layer: l; a Python integer for the embedding and the readout, traced where blocks are
            scanned.
        function: (bound, h) -> state above.
        bound: parameters of the layer, bound by `Chain.bind`.
        h: input state h_{l-1} of the layer, x for the embedding.
        segment: number of the segment of equal blocks, from the input on; None for the embedding
            and the readout.
        index: index of the block within its segment.
    """

    layer: Index
    function: Callable[[PyTree, PyTree], PyTree]
    bound: PyTree
    h: PyTree
    segment: int | None = None
    index: Index = 0

    def meeting(self, h: PyTree) -> "Here":
        """Return the same layer at another state.

        Args:
            h: input state of the layer.

        Returns:
            The layer at this state.
        """
        return replace(self, h=h)

    @property
    def theta(self) -> PyTree:
        """Trained parameters of the layer."""
        return as_layer(self.bound).params

    def f(self, theta: PyTree, h: PyTree) -> PyTree:
        """Apply the layer at other parameters or another state.

        Args:
            theta: trained parameters.
            h: input state.

        Returns:
            Output state.
        """
        return self.function(with_trained(self.bound, theta), h)

    @cached_property
    def out(self) -> PyTree:
        """Output state h_l = f(theta, h)."""
        if "_linear" in self.__dict__:
            return self._linear[0]
        return self.function(self.bound, self.h)

    @property
    def push(self) -> Callable[[PyTree], PyTree]:
        """Product with the Jacobian: v -> (dh_l/dh_{l-1}) v."""
        return self._linear[1]

    @cached_property
    def pull(self) -> Callable[[PyTree], PyTree]:
        """Product with the transposed Jacobian: u -> (dh_l/dh_{l-1})^T u."""
        return _transposed(partial(self.function, self.bound), self.h)

    @cached_property
    def push_theta(self) -> Callable[[PyTree], PyTree]:
        """Product with the Jacobian by the parameters: t -> (dh_l/dtheta_l) t."""
        return jax.linearize(partial(self._at_state, self.h), self.theta)[1]

    @cached_property
    def pull_theta(self) -> Callable[[PyTree], PyTree]:
        """Product with the transposed Jacobian by the parameters: u -> (dh_l/dtheta_l)^T u."""
        return _transposed(partial(self._at_state, self.h), self.theta)

    @cached_property
    def pull_both(self) -> Callable[[PyTree], tuple[PyTree, PyTree]]:
        """Both transposes: u -> (by theta, by h), dense kernels as `norms.logarithms.Product`."""
        return pullback(self.f, self.theta, self.h)

    @cached_property
    def _linear(self) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        return jax.linearize(partial(self.function, self.bound), self.h)

    def _at_state(self, h: PyTree, theta: PyTree) -> PyTree:
        return self.f(theta, h)


def _transposed(function: Callable[[PyTree], PyTree], point: PyTree) -> Callable[[PyTree], PyTree]:
    pull = jax.vjp(function, point)[1]

    def transposed(cotangent: PyTree) -> PyTree:
        return pull(cotangent)[0]

    return transposed
