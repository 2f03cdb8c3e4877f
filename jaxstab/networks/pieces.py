"""Pieces of a traced function, between and at the values in it that are read and shifted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

Shifts = dict[int, Array]


@jax.custom_jvp
def shifted(x: Array, shift: Array) -> Array:
    """x + shift, every bit of x kept where the shift is zero.

    Args:
        x: values.
        shift: added to them.

    Returns:
        The sum; its derivative by the shift is one, also at zero.
    """
    # -0.0 + 0.0 would be 0.0
    return jnp.where(shift == 0, x, x + shift)


@shifted.defjvp
def _shifted_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return shifted(*primals), tangents[0] + tangents[1]


class Loop(NamedTuple):
    """A scan.

    Attributes:
        number: that tells it from others.
        length: steps.
        reverse: whether it begins with the last.
    """

    number: int
    length: int
    reverse: bool


class Mark(NamedTuple):
    """A tag met in a traced function.

    Attributes:
        name: as it was given.
        shape: of the value that leaves the function, axes of scans before the value's own.
        dtype: of the value.
        loops: the scans around it, the outermost first.
        activation: name of the elementwise function that reads the value; None where there is none,
            or it is not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[Loop, ...]
    activation: str | None


class Unreached(NamedTuple):
    """A tag within a construct that nothing can be read out of.

    Attributes:
        name: as it was given.
        construct: JAX's name of the construct.
    """

    name: str
    construct: str


@dataclass(frozen=True)
class Step:
    """Part of a function.

    Attributes:
        inputs: variables and literals that it reads.
        outputs: variables that it sets.
        run: (values of the inputs, shifts by mark, marks that are read) -> values of the outputs,
            and of the marks.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    run: Callable[[list, Shifts, frozenset[int]], tuple[Sequence[Any], dict[int, Array]]]


def marked(number: int, given: Any, named: Any) -> Step:
    """Make the step of a mark: an identity that shifts its value, and can be read.

    Args:
        number: of the mark.
        given: the variable that it reads.
        named: the variable that it sets.

    Returns:
        The step.
    """

    def run(inputs: list, shifts: Shifts, wanted: frozenset[int]) -> tuple[list, dict[int, Array]]:
        value = inputs[0]
        if number in shifts:
            value = shifted(value, shifts[number])
        if number in wanted:
            return [value], {number: value}
        return [value], {}

    return Step([given], [named], run)


def plain(jaxpr: Any, equations: list[Any], end: int, last_read: dict[Any, int]) -> Step:
    """Make a step of consecutive equations that run as they stand.

    Args:
        jaxpr: that they are of.
        equations: the equations.
        end: number of the first equation behind them.
        last_read: number of the last equation that reads each variable.

    Returns:
        The step; its outputs are read later.
    """
    made: dict[Any, None] = {}
    needed: dict[Any, None] = {}
    for equation in equations:
        needed |= {
            atom: None
            for atom in equation.invars
            if not isinstance(atom, Literal) and atom not in made
        }
        made |= dict.fromkeys(equation.outvars)
    outputs = [variable for variable in made if last_read.get(variable, -1) >= end]
    part = Jaxpr((), list(needed), outputs, equations, debug_info=jaxpr.debug_info)
    function = jaxpr_as_fun(ClosedJaxpr(part, ()))

    def run(
        inputs: list, shifts: Shifts, wanted: frozenset[int]
    ) -> tuple[Sequence[Any], dict[int, Array]]:
        return function(*inputs), {}

    return Step(list(needed), outputs, run)


def in_order(jaxpr: Any, steps: Sequence[Step]) -> Callable:
    """Make the function of a jaxpr that has been divided into steps.

    Args:
        jaxpr: the whole.
        steps: its steps, in order of execution.

    Returns:
        (values of constants and inputs, shifts, marks that are read) -> results, and values of the
        marks.
    """

    def run(inputs: list, shifts: Shifts, wanted: frozenset[int]) -> tuple[list, dict[int, Array]]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))
        read: dict[int, Array] = {}
        for step in steps:
            outputs, values_read = step.run(
                [_value(values, atom) for atom in step.inputs], shifts, wanted
            )
            values.update(zip(step.outputs, outputs, strict=True))
            read |= values_read
        return [_value(values, atom) for atom in jaxpr.outvars], read

    return run


def _value(values: dict, atom: Any) -> Any:
    if isinstance(atom, Literal):
        return atom.val
    return values[atom]
