"""Activations chosen among several by a traced number."""

from collections.abc import Callable, Sequence

import jax
from jaxtyping import Array, ArrayLike

from jaxstab.activations.activation import Activation, concrete
from jaxstab.activations.named import AnyActivation, get


class _Switch:
    """Function phi(z, index) with one branch per activation; equal for equal activations."""

    def __init__(self, choices: tuple[Activation, ...]) -> None:
        self._choices = choices

    def __call__(self, z: Array, index: Array) -> Array:
        branches: list[Callable[[Array], Array]] = list(self._choices)
        return jax.lax.switch(index.astype(int), branches, z)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Switch) and self._choices == other._choices

    def __hash__(self) -> int:
        return hash(self._choices)


def one_of(choices: Sequence[AnyActivation], index: ArrayLike) -> Activation:
    """Choose an activation by a number, so that networks that differ in it share a program.

    Only the chosen activation is computed, unless `jax.vmap` maps over the number: then all are.

    Args:
        choices: names, `Activation`s or elementwise callables, no mixtures.
        index: index into the choices, from 0; may be traced.

    Returns:
        The chosen activation, with the index as a parameter.

    Raises:
        ValueError: if `choices` is empty or contains a mixture.

    Example:
        >>> import jax.numpy as jnp
        >>> choose = jax.jit(lambda index, z: one_of(("tanh", "relu"), index)(z))
        >>> [f"{float(choose(index, jnp.asarray(2.0))):.3f}" for index in (0, 1)]
        ['0.964', '2.000']
    """
    known = tuple(concrete(get(choice)) for choice in choices)
    mixed = [phi.name for phi in known if not phi.elementwise]
    if mixed or not known:
        raise ValueError(f"choices must be one or more elementwise activations, got {mixed}")
    kinks = sorted({kink for phi in known for kink in phi.kinks})
    name = f"one of {', '.join(phi.name for phi in known)}"
    return Activation(name, _Switch(known), kinks, parameters={"index": index})
