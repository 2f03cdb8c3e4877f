"""Steps of a traced function: marks, where values are read and shifted, and equations between."""

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
    """Compute x + shift, with every bit of x kept where the shift is zero.

    Args:
        x: values.
        shift: shift to add, of the same shape.

    Returns:
        Sum, whose derivative by the shift is one, also at zero.
    """
    # -0.0 + 0.0 would be 0.0
    return jnp.where(shift == 0, x, x + shift)


@shifted.defjvp
def _shifted_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return shifted(*primals), tangents[0] + tangents[1]


class Loop(NamedTuple):
    """Scan around a tag.

    Attributes:
        number: identifier of the scan.
        length: number of steps.
        reverse: True if the scan runs from the last step to the first.
    """

    number: int
    length: int
    reverse: bool


class Mark(NamedTuple):
    """Tag in a traced function.

    Attributes:
        name: name of the tag.
        shape: shape of the value read out, with the axes of scans before the value's own.
        dtype: dtype of the value.
        loops: scans around the tag, the outermost first.
        activation: name of the activation applied to the value; None where none is known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[Loop, ...]
    activation: str | None


class Unreached(NamedTuple):
    """Tag within a construct whose inner values cannot be read.

    Attributes:
        name: name of the tag.
        construct: JAX's name of the construct.
    """

    name: str
    construct: str


@dataclass(frozen=True)
class Step:
    """Part of a traced function.

    Attributes:
        inputs: variables and literals that the step reads.
        outputs: variables that the step sets.
        run: function of (values of the inputs, shifts by mark, marks to read) that returns the
            values of the outputs and of the marks.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    run: Callable[[list, Shifts, frozenset[int]], tuple[Sequence[Any], dict[int, Array]]]


def marked(number: int, given: Any, named: Any) -> Step:
    """Make the step of a mark: an identity whose value can be shifted and read.

    Args:
        number: number of the mark.
        given: variable that the step reads.
        named: variable that the step sets.

    Returns:
        Step of the mark.
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
    """Make a step of consecutive equations that run unchanged.

    Args:
        jaxpr: jaxpr of the equations.
        equations: the equations.
        end: number of the first equation after the step.
        last_read: number of the last equation that reads each variable.

    Returns:
        Step whose outputs are the variables that later equations read.
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
        jaxpr: the whole jaxpr.
        steps: steps of the jaxpr, in order of execution.

    Returns:
        Function of (values of constants and inputs, shifts, marks to read) that returns the results
        and the values of the marks.
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
