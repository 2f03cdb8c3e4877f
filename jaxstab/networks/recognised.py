"""What is recognised in a traced function: inner functions, who reads what, activations, softmaxes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

# what the versions of JAX call it
JITS = ("jit", "pjit")
# primitives -> activations that saturate; relu is a maximum with zero
_ACTIVATIONS = {"tanh": "tanh", "logistic": "sigmoid"}
# what makes something else of a value before or beside its activation
_GATES = ("mul", "div", "integer_pow", "pow", "square")
# what a softmax does to the maximum before it is taken off, and where some entries are left out
_OF_MAXIMUM = (
    "max",
    "broadcast_in_dim",
    "stop_gradient",
    "reshape",
    "transpose",
    "convert_element_type",
)
_OF_EXPONENT = ("select_n", "convert_element_type")


def opened(function: Any) -> tuple[Any, Sequence[Any]]:
    """Open a closed jaxpr; an open one stays.

    Args:
        function: the jaxpr.

    Returns:
        The jaxpr and its constants.
    """
    return getattr(function, "jaxpr", function), getattr(function, "consts", ())


def inner_of(value: Any) -> Iterator[Any]:
    """List the functions in the parameters of an equation.

    Args:
        value: the parameters.

    Yields:
        Open jaxprs.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from inner_of(item)
    elif hasattr(opened(value)[0], "eqns"):
        yield opened(value)[0]


def readers_of(jaxpr: Any) -> dict[Any, list]:
    """List the equations that read each variable.

    Args:
        jaxpr: the traced function.

    Returns:
        The equations by variable.
    """
    readers: dict[Any, list] = {}
    for equation in jaxpr.eqns:
        for atom in equation.invars:
            if not isinstance(atom, Literal):
                readers.setdefault(atom, []).append(equation)
    return readers


def activation_of(variable: Any, readers: dict[Any, list]) -> str | None:
    """Find the activation that reads a variable.

    Its equation, or the function within, must carry its name.

    Args:
        variable: the variable.
        readers: of every variable.

    Returns:
        Its name; None where none is known.
    """
    equations = readers.get(variable, [])
    if any(equation.primitive.name in _GATES for equation in equations):
        # silu is z times sigmoid
        return None
    for equation in equations:
        primitive = equation.primitive.name
        at_zero = any(
            isinstance(atom, Literal) and np.ndim(atom.val) == 0 and atom.val == 0
            for atom in equation.invars
        )
        if primitive in _ACTIVATIONS or (primitive == "max" and at_zero):
            return _ACTIVATIONS.get(primitive, "relu")
        if primitive == "name":
            known = activation_of(equation.outvars[0], readers)
            if known is not None:
                return known
        for inner in inner_of(equation.params):
            if len(inner.invars) == len(equation.invars) and primitive in (
                *JITS,
                "custom_jvp_call",
            ):
                known = activation_of(
                    inner.invars[equation.invars.index(variable)], readers_of(inner)
                )
                if known is not None:
                    return known
    return None


def softmaxes_within(equation: Any) -> int:
    """Number of softmaxes in the functions within an equation.

    Args:
        equation: the equation.

    Returns:
        Count.
    """
    return sum(
        len(softmaxes(inner)) + sum(softmaxes_within(within) for within in inner.eqns)
        for inner in inner_of(equation.params)
    )


def softmaxes(jaxpr: Any) -> set[int]:
    """Find the equations z - max z of exp(z - max z) / sum exp(z - max z) over the last axis.

    Args:
        jaxpr: the traced function.

    Returns:
        Their numbers.
    """
    readers = readers_of(jaxpr)
    makers = {made: equation for equation in jaxpr.eqns for made in equation.outvars}
    return {
        i
        for i, equation in enumerate(jaxpr.eqns)
        if equation.primitive.name == "sub"
        and _is_without_maximum(equation, makers)
        and _is_normalised(equation.outvars[0], readers)
    }


def _is_without_maximum(less: Any, makers: dict[Any, Any]) -> bool:
    z, largest = less.invars
    maker = None if isinstance(largest, Literal) else makers.get(largest)
    while maker is not None and maker.primitive.name in _OF_MAXIMUM:
        known = [atom for atom in maker.invars if not isinstance(atom, Literal) and atom in makers]
        maker = makers[known[0]] if known else None
    if maker is None or maker.primitive.name != "reduce_max" or isinstance(z, Literal):
        return False
    whole = maker.invars[0]
    last = whole.aval.ndim - 1
    if tuple(maker.params["axes"]) != (last,):
        return False
    if z is whole:
        return True
    made = makers.get(z)
    # vmap moves axes
    return (
        made is not None
        and made.primitive.name == "transpose"
        and made.invars[0] is whole
        and made.params["permutation"][-1] == last
    )


def _is_normalised(difference: Any, readers: dict[Any, list]) -> bool:
    for power in _followed(difference, _OF_EXPONENT, readers):
        if power.primitive.name == "exp":
            weights = _followed(power.outvars[0], _OF_EXPONENT, readers)
            if {"reduce_sum", "div"} <= {equation.primitive.name for equation in weights}:
                return True
    return False


def _followed(variable: Any, through: Sequence[str], readers: dict[Any, list]) -> list[Any]:
    """Equations that read a variable, and those that read what these make of it."""
    found = []
    for equation in readers.get(variable, []):
        found.append(equation)
        if equation.primitive.name in through:
            found += _followed(equation.outvars[0], through, readers)
    return found
