"""Checks of the user's callables, whose closed-over traced values become parameters."""

import weakref
from collections.abc import Callable
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array

from jaxstab.activations.activation import Activation

# functions that passed the check; weak references do not keep them alive
_elementwise: weakref.WeakSet = weakref.WeakSet()
# off the integers, so that no probe sits on a usual kink
_PROBES = np.array([-2.3, -0.7, 0.4, 1.6])


def checked(phi: Activation) -> Activation:
    """Check that the function of an activation is elementwise.

    A function that closes over traced values would keep them alive as a key of caches. Here these
    values become parameters of the activation, so that its function is static and only its leaves
    are traced.

    Args:
        phi: activation.

    Returns:
        The activation, or an equal one whose closed-over traced values are parameters.

    Raises:
        ValueError: if the function fails on a vector, or is not elementwise.
    """
    if _passed(phi.static_fn):
        return phi
    try:
        # evaluates concrete numbers inside a trace too
        with jax.ensure_compile_time_eval():
            outputs = [
                jnp.asarray(phi.fn(jnp.asarray(z))) for z in (_PROBES, _PROBES[::-1], _PROBES[1:2])
            ]
    except Exception as error:
        raise ValueError(
            f"activation {phi.name!r} fails on a vector of four floats: {error}"
        ) from error
    traced = any(isinstance(output, jax.core.Tracer) for output in outputs)
    if not _same_entries(outputs, traced):
        raise ValueError(
            f"activation {phi.name!r} is not elementwise: each output must depend on its own input "
            "alone "
            f"and keep its shape (softmax, for one, is not an activation here)"
        )
    if not traced:
        _check_traceable(phi)
        _remember(phi.static_fn)
        return phi
    of_parameters = any(isinstance(value, jax.core.Tracer) for value in phi.parameters.values())
    if of_parameters:
        return phi
    return _hoisted(phi)


def _check_traceable(phi: Activation) -> None:
    """Check that JAX can trace the function: NumPy takes arrays of numbers alone, and so does `if`."""
    try:
        jax.eval_shape(phi.fn, jax.ShapeDtypeStruct(_PROBES.shape, jnp.result_type(float)))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"activation {phi.name!r} cannot be traced by JAX: write it with jax.numpy, and jnp.where "
            f"for branches ({reason})"
        ) from error


def _same_entries(outputs: list[Array], traced: bool) -> bool:
    """Check that each output depends on its own input alone; check only shapes of traced ones."""
    if [output.shape for output in outputs] != [(4,), (4,), (1,)]:
        return False
    if traced:
        return True
    whole, reordered, part = map(np.asarray, outputs)
    turned = np.allclose(whole[::-1], reordered, 1e-5, equal_nan=True)
    return turned and np.allclose(whole[1:2], part, 1e-5, equal_nan=True)


def _passed(fn: Callable) -> bool:
    try:
        return fn in _elementwise
    except TypeError:
        return False


def _remember(fn: Callable) -> None:
    try:
        _elementwise.add(fn)
    except TypeError:
        # NumPy's functions take no weak references and are checked every time
        return


def _hoisted(phi: Activation) -> Activation:
    fn, values = _freed("fn", phi.fn, 1)
    kernel = None
    if phi.kernel is not None:
        kernel, values_of_kernel = _freed("kernel", phi.kernel, 2)
        values = values | values_of_kernel
    return Activation(phi.name, fn, phi.kinks, kernel, values)


def _freed(name: str, f: Callable, arity: int) -> tuple["_Program", dict[str, Any]]:
    """Return f with its traced values as keyword arguments, and these values."""
    programs: dict[Any, tuple[list[str], ClosedJaxpr]] = {}
    values: dict[str, Any] = {}
    failed: Exception | None = None
    for dtype in (jnp.dtype("float32"), jnp.dtype("float64")):
        try:
            # theory computes in float64 whatever JAX's default is
            with jax.enable_x64(True):
                closed = jax.make_jaxpr(f)(*[jnp.zeros(1, dtype)] * arity)
        except (TypeError, ValueError) as error:
            # under strict promotion a function may take only one of the two dtypes
            failed = error
            continue
        traced = [isinstance(const, jax.core.Tracer) for const in closed.consts]
        names = [f"{name}_{dtype}_{i}" for i in range(sum(traced))]
        values |= dict(zip(names, compress(closed.consts, traced), strict=True))
        programs[dtype] = (names, _retraced(closed, traced, dtype, arity))
    if not programs and failed is not None:
        raise failed
    return _Program(programs, arity), values


def _retraced(closed: ClosedJaxpr, traced: list[bool], dtype: Any, arity: int) -> ClosedJaxpr:
    """Trace a program again as a function of its traced values and arrays, holding no values."""
    fixed = [
        None if is_traced else const for const, is_traced in zip(closed.consts, traced, strict=True)
    ]
    jaxpr = closed.jaxpr

    def program(values: list[Array], *z: Array) -> list[Array]:
        given = iter(values)
        consts = [
            next(given) if is_traced else const
            for const, is_traced in zip(fixed, traced, strict=True)
        ]
        return jax.core.eval_jaxpr(jaxpr, consts, *z)

    avals = [const.aval for const in compress(closed.consts, traced)]
    values = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
    with jax.enable_x64(True):
        return jax.make_jaxpr(program)(values, *[jnp.zeros(1, dtype)] * arity)


class _Program:
    """An elementwise function of arrays, with the formerly traced values as keyword arguments.

    The function was traced at one number in each floating dtype and is mapped over arrays of any
    shape. It holds no traced value, so that caches may hold the function.
    """

    def __init__(self, programs: dict[Any, tuple[list[str], ClosedJaxpr]], arity: int) -> None:
        self.programs = programs
        self.arity = arity

    def __call__(self, *args: Array, **values: Array) -> Any:
        given = args[0].dtype
        dtype = given
        if given not in self.programs:
            dtype = max(self.programs, key=lambda dtype: dtype.itemsize)
        names, closed = self.programs[dtype]
        hoisted = [
            jnp.asarray(values[name], aval.dtype)
            for name, aval in zip(names, closed.in_avals, strict=False)
        ]
        shape = jnp.broadcast_shapes(*map(jnp.shape, args))
        rows = [jnp.broadcast_to(arg, shape).astype(dtype).reshape(-1, 1) for arg in args]

        def at_one(*row: Array) -> tuple[Array, ...]:
            return tuple(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *hoisted, *row))

        outputs = jax.vmap(at_one)(*rows)
        whole = tuple(output.reshape(shape).astype(given) for output in outputs)
        if self.arity == 1:
            return whole[0]
        return whole
