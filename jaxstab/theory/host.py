"""Functions that take NumPy and JAX arrays alike.

NumPy computes concrete numbers at once; traced numbers become part of a program. Quadrature and
root finding take both kinds of arrays. The activation alone is JAX code in both cases: for concrete
numbers one small compiled program evaluates it, for all lengths and gains.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.activations import Activation

# a NumPy or a JAX array
AnyArray = Any

# points that one call of a program takes: the small one compiles fast, the large one runs fast
_FEW = 4096
_MANY = 2**15
# number of points from which on the large program is used
_ENOUGH = 2**17


def namespace(*arrays: Any) -> ModuleType:
    """Choose the module whose functions apply to the arrays.

    Args:
        arrays: NumPy or JAX arrays, or numbers.

    Returns:
        `jax.numpy` if any array is a JAX array, traced or not; else `numpy`.
    """
    if any(isinstance(array, jax.Array) for array in arrays):
        return jnp
    return np


def is_traced(tree: Any) -> bool:
    """Check for traced leaves in a pytree.

    Args:
        tree: any pytree.

    Returns:
        True if at least one leaf is traced.
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def held(x: Any) -> Any:
    """Stop the gradient of a number.

    Args:
        x: NumPy or JAX array, or number.

    Returns:
        The same value, without derivative where x is a JAX array.
    """
    if isinstance(x, jax.Array):
        return jax.lax.stop_gradient(x)
    return x


def repeat(count: int, step: Callable[[Any], tuple[Any, Any]], state: Any) -> Any:
    """Repeat a step, by `jax.lax.scan` for JAX arrays and by a Python loop otherwise.

    Args:
        count: number of steps, >= 1.
        step: function state -> (state, output).
        state: initial state.

    Returns:
        Output of the last step.
    """
    if namespace(*jax.tree.leaves(state)) is jnp:
        outputs = jax.lax.scan(lambda state, _: step(state), state, None, length=count)[1]
        return jax.tree.map(lambda values: values[-1], outputs)
    for _ in range(count):
        state, output = step(state)
    return output


def running_maximum(values: Any) -> Any:
    """Compute the running maximum along an axis.

    Args:
        values: array of one axis.

    Returns:
        Array of the same length.
    """
    if isinstance(values, jax.Array):
        return jax.lax.cummax(values)
    return np.maximum.accumulate(values)


@functools.lru_cache(maxsize=256)
def value_and_slope(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """Make a function of NumPy arrays that evaluates phi and phi' in float64.

    Args:
        phi: activation without traced parameters.

    Returns:
        Function of an array of any shape.
    """

    def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))

    return _on_host(both)


@functools.lru_cache(maxsize=256)
def with_curvature(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """Make a function of NumPy arrays that evaluates phi, phi' and phi'' in float64.

    Args:
        phi: activation without traced parameters.

    Returns:
        Function of an array of any shape.
    """

    def slope(z: jax.Array) -> jax.Array:
        return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))[1]

    def all_three(z: jax.Array) -> tuple[jax.Array, ...]:
        return phi.fn(z), *jax.jvp(slope, (z,), (jnp.ones_like(z),))

    return _on_host(all_three)


@functools.lru_cache(maxsize=256)
def kernel(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """Make a function of NumPy arrays (q, c) that evaluates a closed-form kernel in float64.

    Args:
        phi: activation with a closed-form kernel, without traced parameters.

    Returns:
        Function that returns E phi(z1) phi(z2), E phi'(z1) phi'(z2), and the derivatives of the two
        in ln q.
    """

    def logarithmic(q: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
        assert phi.kernel is not None
        values, slopes = jax.jvp(phi.kernel, (q, c), (q, jnp.zeros_like(c)))
        return *values, *slopes

    return _on_host(logarithmic)


def _on_host(
    function: Callable[..., tuple[jax.Array, ...]],
) -> Callable[..., tuple[np.ndarray, ...]]:
    """Make a function of NumPy arrays from an elementwise JAX function; it works inside a trace."""
    quick = jax.jit(function, compiler_options=quick_options())
    fast = jax.jit(function)

    def call(*arrays: AnyArray) -> tuple[np.ndarray, ...]:
        shape = np.broadcast_shapes(*map(np.shape, arrays))
        flat = [np.broadcast_to(array, shape).ravel() for array in arrays]
        program, size = (fast, _MANY) if flat[0].size > _ENOUGH else (quick, _FEW)
        parts = []
        for start in range(0, max(flat[0].size, 1), size):
            some = [array[start : start + size] for array in flat]
            count = len(some[0])
            padded = [np.concatenate([array, np.ones(size - count)]) for array in some]
            with jax.enable_x64(True), jax.ensure_compile_time_eval():
                parts.append([np.asarray(values)[:count] for values in program(*padded)])
        return tuple(np.concatenate(values).reshape(shape) for values in zip(*parts, strict=True))

    return call


def program(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
    """Compile a function like `jax.jit`, in half the time where its arguments are concrete.

    Args:
        function: function of arrays, not differentiated where the arguments are concrete.
        static: names of the static arguments.

    Returns:
        Compiled function.
    """
    within = jax.jit(function, static_argnames=static)

    @functools.cache
    def outermost() -> Callable[..., Any]:
        options = _options(xla_backend_optimization_level=3)
        return jax.jit(function, static_argnames=static, compiler_options=options)

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        if is_traced(arguments):
            return within(*arguments, **settings)
        # evaluates concrete arguments inside a trace too
        with jax.core.eval_context():
            return outermost()(*arguments, **settings)

    return call


def quick_options() -> dict[str, bool | int] | None:
    """Choose compiler options that make compiling four times faster.

    Returns:
        Options; None where this version of XLA rejects them.
    """
    return _options(xla_backend_optimization_level=0)


@functools.cache
def _options(xla_backend_optimization_level: int) -> dict[str, bool | int] | None:
    options = {
        "xla_backend_optimization_level": xla_backend_optimization_level,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    try:
        with jax.ensure_compile_time_eval():
            jax.jit(jnp.negative, compiler_options=options)(np.zeros(1, np.float32))
    except RuntimeError:
        return None
    return options


def first_true(rows: AnyArray) -> AnyArray:
    """Find the first True in each row.

    Args:
        rows: booleans of shape [row, place].

    Returns:
        Places; 0 in a row without True. The dtype is int32 in every mode of JAX.
    """
    if isinstance(rows, np.ndarray):
        return np.argmax(rows, 1).astype(np.int32)
    return jax.lax.argmax(rows.astype(np.int8), 1, np.int32)


def order(numbers: AnyArray) -> AnyArray:
    """Compute the permutation that sorts numbers; the sort is stable.

    Args:
        numbers: array of one axis.

    Returns:
        Places in ascending order of the numbers, int32.
    """
    places = np.arange(len(numbers), dtype=np.int32)
    if isinstance(numbers, np.ndarray):
        return np.argsort(numbers, kind="stable").astype(np.int32)
    return jax.lax.sort((numbers, jnp.asarray(places)), num_keys=1)[1]
