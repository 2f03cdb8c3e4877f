"""Recognition of inner functions, readers of variables, activations and softmaxes in a jaxpr."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

# names of the primitive of `jax.jit` in the versions of JAX
JITS = ("jit", "pjit")
# primitives -> activations that saturate; relu is a maximum with zero
_ACTIVATIONS = {"tanh": "tanh", "logistic": "sigmoid"}
# primitives that read z beside its activation and make another one of it: silu is z times sigmoid
_GATES = ("mul", "div", "integer_pow", "pow", "square")
# primitives that a softmax applies to the maximum before subtracting it
_OF_MAXIMUM = (
    "max",
    "broadcast_in_dim",
    "stop_gradient",
    "reshape",
    "transpose",
    "convert_element_type",
)
# primitives that a softmax applies around exp, such as a mask
_OF_EXPONENT = ("select_n", "convert_element_type")
# primitives between a softmax's weights and their product: dropout, casts, changes of axes
_OF_WEIGHTS = (
    "convert_element_type",
    "mul",
    "div",
    "select_n",
    "transpose",
    "reshape",
    "broadcast_in_dim",
    "name",
)


def opened(function: Any) -> tuple[Any, Sequence[Any]]:
    """Split a closed jaxpr into an open jaxpr and constants.

    Args:
        function: a closed or an open jaxpr.

    Returns:
        Open jaxpr and its constants.
    """
    return getattr(function, "jaxpr", function), getattr(function, "consts", ())


def inner_of(value: Any) -> Iterator[Any]:
    """List the functions in the parameters of an equation.

    Args:
        value: parameters of the equation.

    Yields:
        Open jaxprs of the functions.
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
        Equations by variable.
    """
    readers: dict[Any, list] = {}
    for equation in jaxpr.eqns:
        for atom in equation.invars:
            if not isinstance(atom, Literal):
                readers.setdefault(atom, []).append(equation)
    return readers


def activation_of(variable: Any, readers: dict[Any, list]) -> str | None:
    """Find the activation that is applied to a variable.

    The primitive of a reading equation, or of a function within it, identifies the activation.

    Args:
        variable: the variable.
        readers: equations that read each variable.

    Returns:
        Name of the activation; None where none is known.
    """
    equations = readers.get(variable, [])
    if any(equation.primitive.name in _GATES for equation in equations):
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
    """Count the softmaxes in the functions within an equation.

    Args:
        equation: the equation.

    Returns:
        Number of softmaxes.
    """
    return sum(
        len(softmaxes(inner)) + sum(softmaxes_within(within) for within in inner.eqns)
        for inner in inner_of(equation.params)
    )


def softmaxes(jaxpr: Any) -> dict[int, list[Any]]:
    """Find softmaxes over the last axis, exp(z - max z) / sum exp(z - max z) or exp z / sum exp z.

    Args:
        jaxpr: the traced function.

    Returns:
        Variables of the weights by the number of the equation z - max z, or of exp z.
    """
    readers = readers_of(jaxpr)
    makers = {made: equation for equation in jaxpr.eqns for made in equation.outvars}
    found: dict[int, list[Any]] = {}
    known: list[Any] = []
    for i, equation in enumerate(jaxpr.eqns):
        name = equation.primitive.name
        if name == "sub" and _is_without_maximum(equation, makers):
            powers = _followed(equation.outvars[0], _OF_EXPONENT, readers)
            powers = [power for power in powers if power.primitive.name == "exp"]
            known += powers
        elif name == "exp" and not any(equation is power for power in known):
            powers = [equation]
        else:
            continue
        weights = [made for power in powers for made in _weights(power, readers)]
        if weights:
            found[i] = weights
    return found


def averages(
    weights: Sequence[Any], readers: dict[Any, list], outside: frozenset = frozenset()
) -> bool:
    """Check if weights average over positions, as attention does.

    Such weights enter a product that sums over one of their axes and keeps another. A router's
    weights, one sum per position, do not.

    Args:
        weights: variables of the weights.
        readers: equations that read each variable of the function.
        outside: results of the function that average outside of it.

    Returns:
        Boolean: True if any of the weights averages over positions.
    """
    waiting = list(weights)
    seen = set()
    while waiting:
        variable = waiting.pop()
        if variable in outside:
            return True
        if variable in seen:
            continue
        seen.add(variable)
        for equation in readers.get(variable, []):
            name = equation.primitive.name
            if name == "dot_general" and _keeps_an_axis(equation, variable):
                return True
            if name in JITS:
                inner, _ = opened(equation.params["jaxpr"])
                within = inner.invars[equation.invars.index(variable)]
                further = {
                    one
                    for one, made in zip(inner.outvars, equation.outvars, strict=True)
                    if not isinstance(one, Literal) and averages([made], readers, outside)
                }
                if averages([within], readers_of(inner), frozenset(further)):
                    return True
            elif name in _OF_WEIGHTS and equation.outvars[0].aval.size == variable.aval.size:
                waiting += equation.outvars
    return False


def _keeps_an_axis(product: Any, weights: Any) -> bool:
    contracted, batch = product.params["dimension_numbers"]
    side = product.invars.index(weights)
    return bool(len(contracted[side]) + len(batch[side]) < weights.aval.ndim)


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


def _weights(power: Any, readers: dict[Any, list]) -> list[Any]:
    """List the variables of exp z over its sum along the last axis; empty without the sum."""
    read = _followed(power.outvars[0], _OF_EXPONENT, readers)
    last = (power.outvars[0].aval.ndim - 1,)
    names = [equation.primitive.name for equation in read]
    sums = [
        equation
        for equation, name in zip(read, names, strict=True)
        if name == "reduce_sum" and tuple(equation.params["axes"]) == last
    ]
    quotients = [
        equation.outvars[0] for equation, name in zip(read, names, strict=True) if name == "div"
    ]
    if sums:
        return quotients
    return []


def _followed(variable: Any, through: Sequence[str], readers: dict[Any, list]) -> list[Any]:
    """List the equations that read a variable, and the readers behind the primitives `through`."""
    followed = []
    for equation in readers.get(variable, []):
        followed.append(equation)
        if equation.primitive.name in through:
            followed += _followed(equation.outvars[0], through, readers)
    return followed


def last_read(jaxpr: Any) -> dict[Any, int]:
    """Find the last equation that reads each variable.

    Args:
        jaxpr: the traced function.

    Returns:
        Number of the equation by variable; for results, the number of equations.
    """
    last: dict[Any, int] = {}
    for i, equation in enumerate(jaxpr.eqns):
        last |= {atom: i for atom in equation.invars if not isinstance(atom, Literal)}
    return last | {atom: len(jaxpr.eqns) for atom in jaxpr.outvars if not isinstance(atom, Literal)}


def scan_arguments(params: dict[str, Any]) -> tuple[int, int]:
    """Count the constants and the carried values of a scan.

    Args:
        params: parameters of the scan's equation.

    Returns:
        Number of constants and number of carried values.
    """
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def names_within(equation: Any) -> Iterator[str]:
    """List the tags of an equation and of the functions within it.

    Args:
        equation: the equation.

    Yields:
        Names of the tags.
    """
    if equation.primitive.name == "name":
        yield equation.params["name"]
    for inner in inner_of(equation.params):
        for within in inner.eqns:
            yield from names_within(within)


def scopes_of(equation: Any) -> tuple[str, ...]:
    """List the scopes of `jax.named_scope` around an equation.

    Args:
        equation: the equation.

    Returns:
        Names of the scopes, the outermost first.
    """
    return tuple(part for part in str(equation.source_info.name_stack).split("/") if part)


def scopes_within(equation: Any) -> Iterator[str]:
    """List the scopes in the functions within an equation.

    Args:
        equation: the equation.

    Yields:
        Paths of the scopes.
    """
    for inner in inner_of(equation.params):
        for within in inner.eqns:
            scopes = scopes_of(within)
            if scopes:
                yield "/".join(scopes)
            yield from scopes_within(within)


def closing_scopes(jaxpr: Any, read_last: dict[Any, int]) -> dict[int, list[tuple[str, list]]]:
    """Find the scopes that end with each equation.

    Args:
        jaxpr: the traced function.
        read_last: last reader of each variable, from `last_read`.

    Returns:
        Paths of the scopes, the innermost first, with the variables that leave them, by number of
        the equation.
    """
    ends: dict[int, list[tuple[str, list]]] = {}
    opened_at: list[int] = []
    paths = [scopes_of(equation) for equation in jaxpr.eqns]
    for i, path in enumerate(paths):
        opened_at += [i] * (len(path) - len(opened_at))
        after = paths[i + 1] if i + 1 < len(paths) else ()
        shared = 0
        while shared < min(len(path), len(after)) and path[shared] == after[shared]:
            shared += 1
        for level in range(len(path), shared, -1):
            made = [
                variable
                for equation in jaxpr.eqns[opened_at[level - 1] : i + 1]
                for variable in equation.outvars
                if read_last.get(variable, -1) > i
            ]
            if made:
                ends.setdefault(i, []).append(("/".join(path[:level]), made))
        del opened_at[shared:]
    return ends


def used_in(jaxpr: Any) -> set[int]:
    """Find the equations that results depend on, or that have side effects.

    Args:
        jaxpr: the traced function.

    Returns:
        Numbers of the equations.
    """
    read = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    used = set()
    for i in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[i]
        if equation.effects or any(variable in read for variable in equation.outvars):
            used.add(i)
            read |= {atom for atom in equation.invars if not isinstance(atom, Literal)}
    return used
