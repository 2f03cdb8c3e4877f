"""Traced functions divided at their tags, so that tagged values can be read and shifted.

A tag is JAX's own `checkpoint_name`: an identity that leaves its name in the traced function,
through `jit`, `scan`, `vmap` and `checkpoint`. A tag costs nothing outside of a probe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from jaxstab.networks.pieces import Loop, Mark, Shifts, Step, Unreached, in_order, marked, plain
from jaxstab.networks.recognised import (
    JITS,
    activation_of,
    averages,
    closing_scopes,
    last_read,
    names_within,
    opened,
    readers_of,
    scan_arguments,
    scopes_within,
    softmaxes,
    softmaxes_within,
    used_in,
)

# names of the primitive of `jax.checkpoint` in the versions of JAX
_REMATS = ("checkpoint", "remat", "remat2")


def tag(name: str, tree: PyTree) -> PyTree:
    """Name values within a function, so that `networks.probe` can read and shift them.

    Outside of a probe a tag is the identity.

    Args:
        name: name of the site; for a tree of several arrays, the key of each array is appended.
        tree: pytree of arrays; other leaves are not tagged.

    Returns:
        The same values.

    Example:
        >>> import jax.numpy as jnp
        >>> def model(params, x):
        ...     h = tag("hidden", jnp.tanh(x @ params["w"]))
        ...     return h @ params["v"]
        >>> model({"w": jnp.ones((3, 4)), "v": jnp.ones(4)}, jnp.zeros(3)).tolist()
        0.0
    """
    several = sum(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)) > 1

    def named(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return checkpoint_name(leaf, name + jax.tree_util.keystr(path) if several else name)

    return jax.tree_util.tree_map_with_path(named, tree)


@dataclass
class Program:
    """Traced function divided at its tags.

    Attributes:
        marks: tags that can be read and shifted, in order of execution; the place in this list is
            the number of the mark.
        unreached: tags that cannot be read.
        sliced: numbers of the arguments that scans slice in each step, such as stacked parameters.
    """

    marks: list[Mark] = field(default_factory=list)
    unreached: list[Unreached] = field(default_factory=list)
    sliced: set[int] = field(default_factory=set)
    _loops: int = 0
    _softmax: Callable[[str], str] | None = None
    _attention: bool = False
    _scope: Callable[[str], str] | None = None
    _arguments: dict[Any, int] = field(default_factory=dict)
    _body: Callable = lambda *_: None

    @classmethod
    def of(
        cls,
        closed: Any,
        softmax: Callable[[str], str] | None = None,
        attention: bool = False,
        scope: Callable[[str], str] | None = None,
    ) -> "Program":
        """Divide a traced function.

        Args:
            closed: closed jaxpr, from `jax.make_jaxpr`.
            softmax: function of a name stack that names the mark of the logits of a softmax over
                the last axis; None for no such marks.
            attention: True to mark only softmaxes whose weights average over positions.
            scope: function of a path that names the mark of a value that leaves a
                `jax.named_scope`; None for no such marks.

        Returns:
            The divided function.
        """
        program = cls(_softmax=softmax, _attention=attention, _scope=scope)
        jaxpr, consts = opened(closed)
        program._arguments = {variable: i for i, variable in enumerate(jaxpr.invars)}
        body = program._divided(jaxpr, ())

        def run(
            inputs: list, shifts: Shifts, wanted: frozenset[int]
        ) -> tuple[Sequence[Any], dict[int, Array]]:
            return body([*consts, *inputs], shifts, wanted)

        program._body = run
        return program

    def run(
        self, inputs: Sequence[Array], shifts: Shifts, wanted: Sequence[int]
    ) -> tuple[Sequence[Array], Shifts]:
        """Run the function.

        Args:
            inputs: flat arguments of the function.
            shifts: shifts of the values by number of the mark.
            wanted: numbers of the marks to read, after their shifts.

        Returns:
            Flat results of the function, and the values by number of the mark.
        """
        return self._body(list(inputs), shifts, frozenset(wanted))

    def _divided(
        self,
        jaxpr: Any,
        loops: tuple[Loop, ...],
        place: str = "",
        averaging: frozenset = frozenset(),
    ) -> Callable:
        """Divide a jaxpr with constants first; `averaging`: results that average outside of it."""
        steps: list[Step] = []
        waiting: list[Any] = []
        read_last = last_read(jaxpr)
        readers = readers_of(jaxpr)
        used = used_in(jaxpr)
        closing = closing_scopes(jaxpr, read_last) if self._scope else {}
        numbers = softmaxes(jaxpr) if self._softmax else {}
        if self._attention:
            numbers = {
                i: weights
                for i, weights in numbers.items()
                if averages(weights, readers, averaging)
            }

        def flush(before: int) -> None:
            if waiting:
                steps.append(plain(jaxpr, list(waiting), before, read_last))
                waiting.clear()

        for i, equation in enumerate(jaxpr.eqns):
            if i not in used:
                # nn.scan traces its body a second time for values that are equal in all steps
                self.unreached += [Unreached(name, "unused") for name in names_within(equation)]
                continue
            here = f"{place}/{equation.source_info.name_stack}"
            if i in numbers:
                flush(i)
                steps.append(self._logits(equation.invars[0], loops, here))
            step = self._opened_step(equation, loops, readers, here, averaging)
            if step is None:
                waiting.append(equation)
            else:
                flush(i)
                steps.append(step)
            for scope, variables in closing.get(i, []):
                flush(i + 1)
                steps += self._leaving(f"{place}/{scope}", variables, loops, readers)
        flush(len(jaxpr.eqns))
        return in_order(jaxpr, steps)

    def _opened_step(
        self,
        equation: Any,
        loops: tuple[Loop, ...],
        readers: dict[Any, list],
        here: str,
        averaging: frozenset,
    ) -> Step | None:
        """Make the step of a tag, or of an equation around tags; None for a plain equation."""
        name = equation.primitive.name
        if name == "name":
            return self._marked(equation, loops, readers)
        inside = list(names_within(equation))
        if self._softmax:
            inside += [self._softmax(here)] * softmaxes_within(equation)
        if self._scope:
            inside += map(self._scope, scopes_within(equation))
        if not inside:
            return None
        if name in JITS or name in _REMATS:
            around = _jitted if name in JITS else _checkpointed(equation.params)
            within = self._averaging_within(equation, readers, averaging)
            return self._called(equation, loops, around, here, within)
        if name == "scan":
            return self._scanned(equation, loops, here)
        self.unreached += [Unreached(tagged, name) for tagged in inside]
        return None

    def _leaving(
        self, scope: str, variables: list, loops: tuple[Loop, ...], readers: dict[Any, list]
    ) -> list[Step]:
        """Make the marks of the values that leave a scope."""
        assert self._scope is not None
        name = self._scope("/".join(part for part in scope.split("/") if part))
        if len(variables) > 1:
            ends = [f"[{i}]" for i in range(len(variables))]
        else:
            ends = [""]
        return [
            self._mark(name + end, variable, variable, loops, activation_of(variable, readers))
            for end, variable in zip(ends, variables, strict=True)
        ]

    def _averaging_within(
        self, equation: Any, readers: dict[Any, list], averaging: frozenset
    ) -> frozenset:
        """Find the results of an equation's function that average over positions outside of it."""
        if not self._attention:
            return frozenset()
        inner, _ = opened(equation.params["jaxpr"])
        return frozenset(
            one
            for one, made in zip(inner.outvars, equation.outvars, strict=True)
            if not isinstance(one, Literal) and averages([made], readers, averaging)
        )

    def _marked(self, equation: Any, loops: tuple[Loop, ...], readers: dict[Any, list]) -> Step:
        given, value = equation.invars[0], equation.outvars[0]
        return self._mark(
            equation.params["name"], given, value, loops, activation_of(value, readers)
        )

    def _logits(self, variable: Any, loops: tuple[Loop, ...], here: str) -> Step:
        """Make the mark of a softmax's logits, whose later readers all get the shifted logits."""
        assert self._softmax is not None
        return self._mark(self._softmax(here), variable, variable, loops, None)

    def _mark(
        self, name: str, given: Any, named: Any, loops: tuple[Loop, ...], activation: str | None
    ) -> Step:
        shape = (*(loop.length for loop in loops), *named.aval.shape)
        self.marks.append(Mark(name, shape, named.aval.dtype, loops, activation))
        return marked(len(self.marks) - 1, given, named)

    def _called(
        self,
        equation: Any,
        loops: tuple[Loop, ...],
        around: Callable[[Callable], Callable],
        here: str,
        averaging: frozenset,
    ) -> Step:
        """Make the step of a called function; `around` restores its transformation, such as jit."""
        jaxpr, consts = opened(equation.params["jaxpr"])
        first = len(self.marks)
        body = self._divided(jaxpr, loops, here, averaging)
        own = range(first, len(self.marks))

        def run(
            inputs: list, shifts: Shifts, wanted: frozenset[int]
        ) -> tuple[list, dict[int, Array]]:
            def called(inputs: list, shifts: Shifts) -> tuple[list, dict[int, Array]]:
                return body([*consts, *inputs], shifts, wanted)

            return around(called)(inputs, {k: shift for k, shift in shifts.items() if k in own})

        return Step(equation.invars, equation.outvars, run)

    def _scanned(self, equation: Any, loops: tuple[Loop, ...], here: str) -> Step:
        """Make the step of a scan, whose tagged values get an axis of steps in front."""
        params = equation.params
        jaxpr, closed_over = opened(params["jaxpr"])
        first = len(self.marks)
        num_consts, num_carry = scan_arguments(params)
        slices = equation.invars[num_consts + num_carry :]
        self.sliced |= {self._arguments[atom] for atom in slices if atom in self._arguments}
        self._loops += 1
        body = self._divided(
            jaxpr, (*loops, Loop(self._loops, params["length"], params["reverse"])), here
        )
        own = range(first, len(self.marks))

        def run(
            inputs: list, shifts: Shifts, wanted: frozenset[int]
        ) -> tuple[list, dict[int, Array]]:
            consts = inputs[:num_consts]
            start = inputs[num_consts : num_consts + num_carry]

            def one(
                carry: list, slices: tuple[list, Shifts]
            ) -> tuple[list, tuple[list, dict[int, Array]]]:
                xs, shifts = slices
                outputs, read = body([*closed_over, *consts, *carry, *xs], shifts, wanted)
                return outputs[:num_carry], (outputs[num_carry:], read)

            within = {k: shift for k, shift in shifts.items() if k in own}
            carry, (ys, read) = jax.lax.scan(
                one,
                start,
                (inputs[num_consts + num_carry :], within),
                length=params["length"],
                reverse=params["reverse"],
                unroll=params["unroll"],
            )
            return [*carry, *ys], read

        return Step(equation.invars, equation.outvars, run)


def _jitted(function: Callable) -> Callable:
    # without jit XLA would fuse the user's jitted function differently, and round differently
    return jax.jit(function)


def _checkpointed(params: dict[str, Any]) -> Callable[[Callable], Callable]:
    def around(function: Callable) -> Callable:
        return jax.checkpoint(function, prevent_cse=params["prevent_cse"], policy=params["policy"])

    return around
