"""The precision of matrix products: recent GPUs and TPUs round their inputs unless told not to."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

# all of it is for the other rooms
__all__ = ()

FULL = "highest"


def check_precision(name: str, value: Any) -> None:
    """Check that JAX knows a precision of matrix products.

    Args:
        name: of the argument.
        value: the precision; None leaves JAX's setting.

    Raises:
        ValueError: if it is another.
    """
    if value is None:
        return
    try:
        with jax.default_matmul_precision(value):
            return
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be None or one that jax.default_matmul_precision takes, such as "
            '"highest" '
            f'or "default", got {value!r}'
        ) from error


def at_precision_of(network: Any) -> contextlib.AbstractContextManager:
    """Multiply matrices at the precision of a network.

    Args:
        network: a chain, or a Flax module of our own; anything else leaves JAX's setting.

    Returns:
        The context.
    """
    precision = getattr(network, "precision", None)
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def at_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Multiply matrices within a function without rounding their entries.

    What a chain does within keeps the precision of the chain.

    Args:
        function: an algorithm of linear algebra, or a derivative rule.

    Returns:
        The function.
    """

    @functools.wraps(function)
    def full(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(FULL):
            return function(*args, **kwargs)

    return full
