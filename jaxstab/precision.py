"""Precision of matrix products, whose inputs recent GPUs and TPUs round by default."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

# for the other packages of jaxstab only
__all__ = ()

FULL = "highest"


def check_precision(name: str, value: Any) -> None:
    """Check that JAX knows a precision of matrix products.

    Args:
        name: name of the argument.
        value: the precision; None for JAX's setting.

    Raises:
        ValueError: if JAX does not know the precision.
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
    """Set the precision of matrix products to that of a network.

    Args:
        network: a chain, or a Flax module of our own; other values keep JAX's setting.

    Returns:
        Context manager of the precision.
    """
    precision = getattr(network, "precision", None)
    if precision is None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision(precision)


def at_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function multiply matrices without rounding their entries.

    Layers of a chain that run within the function keep the precision of the chain.

    Args:
        function: an algorithm of linear algebra, or a derivative rule.

    Returns:
        Function with the same arguments and results.
    """

    @functools.wraps(function)
    def full(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision(FULL):
            return function(*args, **kwargs)

    return full
