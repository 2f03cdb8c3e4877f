"""Functions with a derivative rule that JAX keeps through every transformation.

Before 0.12, JAX forgets the rule of a `jax.custom_jvp` in the body of a scan once the scan is
differentiated in reverse: a second derivative then goes through the function itself. A primitive
keeps its rule, so that `WithRule` makes the function a primitive there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

# for the other packages of jaxstab only
__all__ = ()

Rule = Callable[[tuple, tuple], tuple[PyTree, PyTree]]
FlatRule = Callable[[Sequence[Any], Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]]

# name of the primitive in jaxprs
NAME = "with_rule"
_primitive = Primitive(NAME)
_primitive.multiple_results = True


class WithRule:
    """Function of pytrees with a derivative rule; `jax.custom_jvp` without its options.

    Example:
        >>> square = WithRule(lambda x: x**2)
        >>> rule = square.defjvp(lambda primals, tangents: (square(*primals), 7.0 * tangents[0]))
        >>> float(jax.grad(square)(3.0))
        7.0
    """

    def __init__(self, fun: Callable[..., PyTree]) -> None:
        """Wrap a function without a rule; `defjvp` sets the rule.

        Args:
            fun: function of positional arguments.
        """
        self.fun = fun
        self.rule: Rule | None = None
        self.__doc__ = fun.__doc__
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)

    def defjvp(self, rule: Rule) -> Rule:
        """Set the derivative rule.

        Args:
            rule: function of (primals, tangents) that returns (results, tangents of the results),
                linear in the tangents. Tangents of integers and booleans have dtype float0.

        Returns:
            The rule itself, for use as a decorator.
        """
        self.rule = rule
        return rule

    def __call__(self, *args: PyTree) -> Any:
        """Apply the function."""
        leaves, inputs = jax.tree.flatten(args)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        rule = self.rule
        assert rule is not None, f"{self.__name__} has no derivative rule"

        def flat(*leaves: Any) -> PyTree:
            return self.fun(*jax.tree.unflatten(inputs, leaves))

        def flat_rule(
            primals: Sequence[Any], tangents: Sequence[Any]
        ) -> tuple[Sequence[Any], Sequence[Any]]:
            moved = [
                _float0(p) if t is None else jnp.asarray(t)
                for p, t in zip(primals, tangents, strict=True)
            ]
            # JAX passes literals without converting them to arrays
            arrays = [jnp.asarray(primal) for primal in primals]
            results, changes = rule(
                jax.tree.unflatten(inputs, arrays), jax.tree.unflatten(inputs, moved)
            )
            return jax.tree.leaves(results), jax.tree.leaves(changes)

        program, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        results = _primitive.bind(*leaves, call_jaxpr=program, rule=flat_rule)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _float0(primal: Array) -> np.ndarray:
    return np.zeros(jnp.shape(primal), jax.dtypes.float0)


def _evaluated(*leaves: Any, call_jaxpr: ClosedJaxpr, rule: FlatRule) -> list[Array]:
    return jax.core.eval_jaxpr(call_jaxpr.jaxpr, call_jaxpr.consts, *leaves)


def _abstract(*leaves: Any, call_jaxpr: ClosedJaxpr, rule: FlatRule) -> list[Any]:
    return list(call_jaxpr.out_avals)


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], *, call_jaxpr: ClosedJaxpr, rule: FlatRule
) -> tuple[Sequence[Any], Sequence[Any]]:
    floating = [jnp.issubdtype(jnp.result_type(primal), jnp.floating) for primal in primals]
    moved = [
        ad.instantiate_zeros(t) if is_float else None
        for t, is_float in zip(tangents, floating, strict=True)
    ]
    return rule(primals, moved)


def _batched(
    leaves: Sequence[Any], axes: Sequence[int | None], *, call_jaxpr: ClosedJaxpr, rule: FlatRule
) -> tuple[list[Array], list[int]]:
    axes = tuple(axes)

    def each(*leaves: Any) -> list[Array]:
        return jax.vmap(
            lambda *leaves: _evaluated(*leaves, call_jaxpr=call_jaxpr, rule=rule), axes
        )(*leaves)

    def rule_of_each(
        primals: Sequence[Any], tangents: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        return jax.vmap(rule, (list(axes), list(axes)))(list(primals), list(tangents))

    program = jax.make_jaxpr(each)(*leaves)
    results = _primitive.bind(*leaves, call_jaxpr=program, rule=rule_of_each)
    return results, [0] * len(results)


_primitive.def_impl(_evaluated)
_primitive.def_abstract_eval(_abstract)
ad.primitive_jvps[_primitive] = _differentiated
batching.primitive_batchers[_primitive] = _batched
mlir.register_lowering(_primitive, mlir.lower_fun(_evaluated, multiple_results=True))


def _kept_by_jax() -> bool:
    return jax.__version_info__ >= (0, 12)


# decorator of a function whose derivative rule is set by its `defjvp`
custom_jvp: Callable[[Callable[..., PyTree]], Any] = jax.custom_jvp if _kept_by_jax() else WithRule
