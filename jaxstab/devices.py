"""Devices of a CPU, programs spread over devices, and threads of the BLAS.

Small matrix products use one core, so a CPU becomes one device per core, each with networks of its
own. XLA's thread pool has one thread per core, or per device if there are more devices. A larger
pool slows products down by up to a half, because each product is handed to threads that must wake.

`jaxstab.decompositions` decomposes matrices one at a time on a CPU and needs no spare thread.
A user's decompositions of stacks do need one: two at once, on two devices, can deadlock the pool.
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

# the other names are for the other packages of jaxstab
__all__ = ("divide_cpu", "memory", "spread")

# call that decomposes a stack of matrices, in the text of a lowered program
_STACKED = re.compile(r"@lapack_\w+\([^\n]*tensor<(\d+x){3}")


def cores() -> int:
    """Count the cores that this process may use.

    Returns:
        Number of cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def divide_cpu(parts: int | None = None) -> None:
    """Divide the CPU into several JAX devices.

    Call this before JAX first computes. Afterwards, as in a notebook, the call has no effect.

    Args:
        parts: number of devices; None for one per core.

    Raises:
        ValueError: if parts is below 1, or more than the cores can serve.
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

    Under XLA's pool the BLAS's own threads slow decompositions down several times, and can stall.

    Returns:
        Context manager of the limit.

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

    The BLAS's own threads make decompositions of width 128 twice as long on idle cores, at four
    times the processor time, and ten times as long on busy cores. They help from width 768 on. The
    first decomposition of a narrower matrix on a CPU calls this function, once per process.
    `threadpoolctl` can restore the threads afterwards.
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
    """Compile a function for several devices, each of which computes on its own part.

    On a CPU, operations run in program order, since two decompositions of stacks side by side can
    deadlock a small thread pool.

    Args:
        function: computation of each device on its own part of the arguments.
        mesh: the devices.
        in_specs: mesh axes along which each argument is divided, as for `jax.shard_map`.
        out_specs: mesh axes along which the results are joined.

    Returns:
        Jitted program.

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
    """Ask XLA for the peak memory of a function, besides its arguments.

    The function is compiled, but not run. The number depends on the kind of device: a CPU and a GPU
    fuse operations differently.

    Args:
        function: function of the arguments; close over arguments that determine a shape.
        arguments: arrays, or their shapes as `jax.ShapeDtypeStruct`.

    Returns:
        Bytes of temporary values and results.

    Raises:
        NotImplementedError: if the backend states no memory.

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
    """Read the memory of a compiled program from XLA's analysis.

    Args:
        program: a compiled program.

    Returns:
        Bytes of temporary values and results on each device, without arguments.

    Raises:
        NotImplementedError: if the backend states no memory.
    """
    analysis: Any = program.memory_analysis()
    if analysis is None:
        raise NotImplementedError(f"{jax.default_backend()} does not state a program's memory")
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def can_hang(lowered: jax.stages.Lowered, mesh: Mesh) -> bool:
    """Check if a program may hang, because it decomposes stacks of matrices on several CPU devices.

    Args:
        lowered: the program.
        mesh: devices of the program.

    Returns:
        Boolean: True if the program may hang.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> stack, mesh = jnp.ones((2, 3, 3)), Mesh(np.array(jax.devices()[:1] * 2), ("cell",))
        >>> can_hang(jax.jit(jnp.linalg.eigvalsh).lower(stack), mesh)
        True
    """
    several = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return several and _STACKED.search(lowered.as_text()) is not None
