"""Devices of a CPU, programs spread over devices, and threads of the BLAS.

Small matrix products use one core, so a CPU becomes one device per core, each with networks of its
own. XLA's thread pool has one thread per core, or per device if there are more devices. A larger
pool slows products down by up to a half, because each product is handed to threads that must wake.

`jaxstab.decompositions` decomposes matrices one at a time on a CPU and needs no spare thread. A
user's own decompositions of stacks need one: on two devices at once they can deadlock such a pool.
"""

import contextlib
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

# the rest is for the other rooms
__all__ = ("divide_cpu", "memory", "spread")

# a decomposition of a stack of matrices, in the text of a program
_STACKED = re.compile(r"@lapack_\w+\([^\n]*tensor<(\d+x){3}")


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        The number.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def divide_cpu(parts: int | None = None) -> None:
    """Make the CPU several JAX devices; call it before JAX first computes.

    Where JAX has computed before, as in a notebook, the devices stay what they are.

    Args:
        parts: how many; None for one per core.

    Raises:
        ValueError: if there are none, or more than the cores can serve.
    """
    most = max(8, 2 * cores())
    if parts is None:
        parts = cores()
    if not 1 <= parts <= most:
        raise ValueError(f"parts must be in 1..{most} on {cores()} cores, got {parts}")
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", parts)


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Limit every BLAS of the process to one thread, until the context ends.

    Under XLA's pool a BLAS's own threads make decompositions slower by factors, and can stall.

    Returns:
        A context manager.

    Example:
        >>> with one_blas_thread():
        ...     s = jax.numpy.linalg.svd(jax.numpy.eye(3), compute_uv=False)
    """
    # jaxlib loads its BLAS at the first decomposition; only a loaded one can be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


@functools.cache
def one_lapack_thread() -> None:
    """Limit the BLAS that jaxlib decomposes with, SciPy's, to one thread.

    Threads of its own make decompositions of width 128 twice as long on idle cores, at four times
    the processor time, and ten times as long on busy ones; they help from width 768 on. Called once
    per process, by the first decomposition of a narrower matrix on a CPU; `threadpoolctl` can give
    the threads back afterwards.
    """
    # jaxlib loads its BLAS at the first decomposition; only a loaded one can be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()
    paths = [library["filepath"] for library in libraries.info() if library["user_api"] == "blas"]
    others = [
        path
        for path in paths
        if not any(part.startswith("numpy") for part in Path(path).parts[-3:])
    ]
    libraries.select(filepath=others).limit(limits=1)


def spread(
    function: Callable, mesh: Mesh, in_specs: PyTree, out_specs: PyTree
) -> jax.stages.Wrapped:
    """Make a function a program of several devices, each of which computes on its own part.

    On a CPU in program order: two decompositions of stacks side by side can deadlock a small thread
    pool.

    Args:
        function: what each device computes, of the part of the arguments that is its own.
        mesh: the devices.
        in_specs: along which axes each argument is shared out, as `jax.shard_map` has it.
        out_specs: along which the results are put together.

    Returns:
        The program, jitted: to be called, or lowered.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from jax.sharding import PartitionSpec
        >>> mesh, cells = Mesh(np.array(jax.devices()), ("cell",)), PartitionSpec("cell")
        >>> int(spread(lambda x: x**2, mesh, (cells,), cells)(jnp.arange(16))[11])
        121
    """
    shared = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    options = None
    if mesh.devices.flat[0].platform == "cpu":
        options = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return jax.jit(shared, compiler_options=options)


def memory(function: Callable, *arguments: PyTree) -> int:
    """Ask XLA for the bytes that a function needs at its peak, besides its arguments.

    The function is compiled, not run. On a device of its own kind XLA states other bytes: a CPU and
    a GPU fuse differently.

    Args:
        function: of the arguments; those that decide a shape stand inside, as in a lambda.
        arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.

    Returns:
        Bytes of what lies between arguments and results, and of the results.

    Raises:
        NotImplementedError: if the backend states none.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxstab import networks
        >>> net, x = networks.mlp(depth=64, width=128), jnp.ones(128)
        >>> params = jax.eval_shape(net.init, jax.random.key(0), x)
        >>> weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
        >>> 0 < memory(net.apply, params, x) < weights
        True
    """
    return stated_memory(jax.jit(function).lower(*arguments).compile())


def stated_memory(program: jax.stages.Compiled) -> int:
    """Read what XLA says of a program's memory.

    Args:
        program: a compiled one.

    Returns:
        Bytes on each of its devices, of its arguments not.

    Raises:
        NotImplementedError: if the backend states none.
    """
    analysis: Any = program.memory_analysis()
    if analysis is None:
        raise NotImplementedError(f"{jax.default_backend()} does not state a program's memory")
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def can_hang(lowered: jax.stages.Lowered, mesh: Mesh) -> bool:
    """Tell whether a program may hang: it decomposes stacks of matrices on several CPU devices.

    Args:
        lowered: the program.
        mesh: its devices.

    Returns:
        Whether it does.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> stack, mesh = jnp.ones((2, 3, 3)), Mesh(np.array(jax.devices()[:1] * 2), ("cell",))
        >>> can_hang(jax.jit(jnp.linalg.eigvalsh).lower(stack), mesh)
        True
    """
    several = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return several and _STACKED.search(lowered.as_text()) is not None
