"""One code for NumPy and JAX: concrete numbers are computed at once in NumPy, traced ones become part of a program.

Quadrature and root finding take arrays of either kind. Only the activation itself is JAX code in
both: on concrete numbers one small program evaluates it, for all lengths and all gains.
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

# points that one call of a program takes: few are padded, and for many it is worth optimising
_FEW = 4096
_MANY = 2**15
# points from which on they are many
_ENOUGH = 2**17


def namespace(*arrays: Any) -> ModuleType:
    """The module whose functions apply to these arrays.

    Args:
        arrays: NumPy or JAX arrays, or numbers.

    Returns:
        `jax.numpy` if one is a JAX array, traced or not, else `numpy`.
    """
    if any(isinstance(array, jax.Array) for array in arrays):
        return jnp
    return np


def is_traced(tree: Any) -> bool:
    """Whether a pytree has traced leaves.

    Args:
        tree: the pytree.

    Returns:
        Whether.
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def held(x: Any) -> Any:
    """The number itself, without derivative where it is traced.

    Args:
        x: the number.

    Returns:
        It.
    """
    if isinstance(x, jax.Array):
        return jax.lax.stop_gradient(x)
    return x


def repeat(count: int, step: Callable[[Any], tuple[Any, Any]], state: Any) -> Any:
    """Take a step so many times: a Python loop, or a loop of a program where something is traced.

    Args:
        count: of steps, >= 1.
        step: state -> (state, output).
        state: at the start.

    Returns:
        The last output.
    """
    if namespace(*jax.tree.leaves(state)) is jnp:
        outputs = jax.lax.scan(lambda state, _: step(state), state, None, length=count)[1]
        return jax.tree.map(lambda values: values[-1], outputs)
    for _ in range(count):
        state, output = step(state)
    return output


def running_maximum(values: Any) -> Any:
    """The largest of the values so far.

    Args:
        values: along one axis.

    Returns:
        As many.
    """
    if isinstance(values, jax.Array):
        return jax.lax.cummax(values)
    return np.maximum.accumulate(values)


@functools.lru_cache(maxsize=256)
def value_and_slope(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """phi and phi' as a function of NumPy arrays of any shape, in float64.

    Args:
        phi: an activation without traced parameters.

    Returns:
        The function.
    """

    def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))

    return _on_host(both)


@functools.lru_cache(maxsize=256)
def with_curvature(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """phi, phi' and phi'' as a function of NumPy arrays of any shape, in float64.

    Args:
        phi: an activation without traced parameters.

    Returns:
        The function.
    """

    def slope(z: jax.Array) -> jax.Array:
        return jax.jvp(phi.fn, (z,), (jnp.ones_like(z),))[1]

    def all_three(z: jax.Array) -> tuple[jax.Array, ...]:
        return phi.fn(z), *jax.jvp(slope, (z,), (jnp.ones_like(z),))

    return _on_host(all_three)


@functools.lru_cache(maxsize=256)
def kernel(phi: Activation) -> Callable[..., tuple[np.ndarray, ...]]:
    """The closed form of a kernel as a function of NumPy arrays (q, c), in float64.

    Args:
        phi: an activation with a closed form, without traced parameters.

    Returns:
        The function. It gives E phi(z1) phi(z2) and E phi'(z1) phi'(z2), and their derivatives in
        ln q.
    """

    def logarithmic(q: jax.Array, c: jax.Array) -> tuple[jax.Array, ...]:
        assert phi.kernel is not None
        values, slopes = jax.jvp(phi.kernel, (q, c), (q, jnp.zeros_like(c)))
        return *values, *slopes

    return _on_host(logarithmic)


def _on_host(
    function: Callable[..., tuple[jax.Array, ...]],
) -> Callable[..., tuple[np.ndarray, ...]]:
    """An elementwise JAX function as a function of NumPy arrays, also where something around is being traced."""
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
    """Compile a function as `jax.jit` does, at half the cost where its arguments are known.

    Args:
        function: of arrays; its derivatives are not needed where the arguments are known.
        static: names of the arguments that are static.

    Returns:
        The function.
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
        # at once, also where something around is being traced
        with jax.core.eval_context():
            return outermost()(*arguments, **settings)

    return call


def quick_options() -> dict[str, bool | int] | None:
    """Options that make compiling four times cheaper, if this XLA knows them.

    Returns:
        The options, None where it does not.
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
    """The place of the first that holds in each row, 0 in a row without any.

    Args:
        rows: booleans, [row, place].

    Returns:
        The places, in int32: JAX's own choice of an integer changes with its mode, within which
        this may be traced.
    """
    if isinstance(rows, np.ndarray):
        return np.argmax(rows, 1).astype(np.int32)
    return jax.lax.argmax(rows.astype(np.int8), 1, np.int32)


def order(numbers: AnyArray) -> AnyArray:
    """The permutation that sorts numbers, stable.

    Args:
        numbers: in one axis.

    Returns:
        The places in ascending order, in int32.
    """
    places = np.arange(len(numbers), dtype=np.int32)
    if isinstance(numbers, np.ndarray):
        return np.argsort(numbers, kind="stable").astype(np.int32)
    return jax.lax.sort((numbers, jnp.asarray(places)), num_keys=1)[1]
