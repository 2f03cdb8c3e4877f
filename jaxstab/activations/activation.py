"""The class of activations: a function with its kinks, its kernel and its parameters."""

import functools
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

Kernel = Callable[..., tuple[Array, Array]]


class _ByIdentity:
    """Wrap a callable without a hash, such as a dataclass, so that it equals itself alone."""

    def __init__(self, wrapped: Callable) -> None:
        self.wrapped = wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.wrapped is other.wrapped

    def __hash__(self) -> int:
        return id(self.wrapped)


def _hashable(f: Callable) -> Callable:
    try:
        hash(f)
    except TypeError:
        return _ByIdentity(f)
    return f


@jax.tree_util.register_pytree_node_class
class Activation:
    r"""Elementwise activation phi, with its kinks and closed-form kernel for theory.

    An activation is a pytree. Its leaves are the parameters of phi, which can be traced, mapped
    over and differentiated; all other fields are static. An activation whose parameters are Python
    numbers, or which has none, is hashable and can be a static argument.

    Attributes:
        elementwise: whether all units have the same function; a class attribute.
        name: name in tables, stores and error messages.
        kinks: ascending points z where phi or one of its derivatives jumps. A missing kink costs
            theory accuracy (algebraic instead of exponential convergence) and leaves measurements
            unchanged.
        parameters: parameters of phi by name, scalars.

    Example:
        >>> shifted = Activation("shifted_relu", lambda z: jax.nn.relu(z - 1.0), kinks=(1.0,))
        >>> float(shifted(jnp.asarray(3.0)))
        2.0
        >>> def bent(z, steepness):
        ...     return jnp.arctan(steepness * z)
        >>> steep = Activation("bent", bent, parameters={"steepness": 3.0})
        >>> by_parameter = jax.grad(lambda phi: phi(jnp.asarray(1.0)))(steep)
        >>> f"{by_parameter.parameters['steepness']:.3f}"
        '0.100'
    """

    elementwise = True

    def __init__(
        self,
        name: str,
        fn: Callable[..., Array],
        kinks: Iterable[ArrayLike] = (),
        kernel: Kernel | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Describe an activation.

        Args:
            name: name of the activation.
            fn: function phi(z, **parameters), elementwise in z and differentiable by JAX. The
                parameters are passed in z's dtype.
            kinks: points where phi or a derivative jumps, see the attributes.
            kernel: closed form (q, c, **parameters) -> (E phi(z1) phi(z2), E phi'(z1) phi'(z2)) for
                jointly normal z1, z2 of mean 0, variance q and correlation c; None where none is
                known.
            parameters: values of the parameters, which may be traced.

        Raises:
            ValueError: if the kinks are not finite, ascending numbers.
            TypeError: if fn is not callable.
        """
        if not callable(fn):
            raise TypeError(f"fn of activation {name!r} must be callable, got {type(fn).__name__}")
        self.name = name
        self.kinks = _numbers(name, kinks)
        self.parameters: dict[str, Any] = dict(sorted((parameters or {}).items()))
        self._fn = _hashable(fn)
        self._kernel = None if kernel is None else _hashable(kernel)

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple]:
        """Split into parameters and static fields."""
        static = (self.name, self._fn, self.kinks, self._kernel, tuple(self.parameters))
        return tuple(self.parameters.values()), static

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: Iterable[Any]) -> "Activation":
        """Rebuild the activation from what `tree_flatten` returned."""
        new = object.__new__(cls)
        new.name, new._fn, new.kinks, new._kernel, names = static
        new.parameters = dict(zip(names, leaves, strict=True))
        return new

    @property
    def fn(self) -> Callable[[Array], Array]:
        """Function phi(z), with the parameters at their values."""
        if not self.parameters:
            return self._fn
        return functools.partial(_bound, self._fn, self.parameters)

    @property
    def kernel(self) -> Callable[[Array, Array], tuple[Array, Array]] | None:
        """Closed form of the kernel as a function of (q, c); None where none is known."""
        if self._kernel is None or not self.parameters:
            return self._kernel
        return functools.partial(_bound, self._kernel, self.parameters)

    @property
    def static_fn(self) -> Callable[..., Array]:
        """Function phi(z, **parameters)."""
        return self._fn

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Apply phi, elementwise."""
        return self.fn(z)

    def derivative(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """Compute phi'(z), elementwise, by forward differentiation."""
        return jax.jvp(self.fn, (z,), (jnp.ones_like(z),))[1]

    def steepest(self, dtype: DTypeLike) -> Float[Array, ""]:
        """Compute the largest |phi'(z)| over z in [-20, 20], the reference of saturation."""
        return jnp.max(jnp.abs(self.derivative(probe(dtype))))

    def __eq__(self, other: object) -> bool:
        """Compare static fields and parameters, numbers by value and arrays by identity."""
        if not isinstance(other, Activation) or type(self) is not type(other):
            return NotImplemented
        (own, static), (others, static_of_other) = self.tree_flatten(), other.tree_flatten()
        return static == static_of_other and all(map(_same, own, others))

    def __hash__(self) -> int:
        """Hash name, function, kinks, kernel and parameters.

        Returns:
            The hash.

        Raises:
            TypeError: if a parameter is an array, which may be traced.
        """
        leaves, static = self.tree_flatten()
        if not all(isinstance(leaf, numbers.Number) for leaf in leaves):
            raise TypeError(
                f"activation {self.name!r} has arrays as parameters and no hash: pass it as a "
                "pytree, not as a static "
                f"argument, or give it Python numbers"
            )
        return hash((static, leaves))

    def __repr__(self) -> str:
        """Return name and parameters."""
        values = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({self.name!r}{values})"


def concrete(phi: Activation) -> Activation:
    """Replace array parameters of an activation by Python numbers, if none is traced.

    Args:
        phi: activation.

    Returns:
        Hashable activation; phi itself where a parameter is traced.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(phi)):
        return phi
    return jax.tree.map(float, phi)


def _bound(f: Callable, parameters: dict[str, Any], first: Array, *rest: Array) -> Any:
    """Call f(first, *rest, **parameters) with the parameters in the dtype of first."""
    dtype = jnp.result_type(first)
    return f(
        first, *rest, **{name: jnp.asarray(value, dtype) for name, value in parameters.items()}
    )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    numbers_both = isinstance(one, numbers.Number) and isinstance(other, numbers.Number)
    return numbers_both and one == other


def _numbers(name: str, kinks: Iterable[ArrayLike]) -> tuple[float, ...]:
    try:
        known = tuple(float(np.asarray(kink)) for kink in kinks)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"kinks of activation {name!r} must be numbers known before tracing, got {kinks!r}"
        ) from error
    if not all(map(math.isfinite, known)) or list(known) != sorted(set(known)):
        raise ValueError(f"kinks of activation {name!r} must ascend and be finite, got {known}")
    return known


def probe(dtype: DTypeLike) -> Float[Array, " n"]:
    """Make points 1/800 apart over [-20, 20], so that usual kinks fall between two of them.

    Args:
        dtype: dtype of the points.

    Returns:
        Points, ascending.
    """
    return (jnp.arange(32_000, dtype=dtype) - 15_999.5) / 800
