"""The devices that compute, a program spread over them, and the threads of the BLAS beneath."""

import contextlib
import os
from collections.abc import Callable

import jax
import scipy.linalg  # noqa: F401  jaxlib loads its BLAS at the first decomposition; only a loaded one can be limited
from jax.sharding import Mesh
from jaxtyping import PyTree
from threadpoolctl import threadpool_limits


def usable_devices() -> list[jax.Device]:
    """All local devices; of a CPU made into several only the first, unless XLA's pool has two threads for each.

    Two host devices inside batched decompositions wait for each other for ever on a pool of two threads. The
    environment's NPROC sizes the pool, if set before JAX first computes; `jaxstab` on the command line sees to it.

    Returns:
        The devices.
    """
    devices = jax.local_devices()
    threads = os.environ.get("NPROC", "")
    enough = threads.isdigit() and int(threads) >= 2 * len(devices)
    return devices if devices[0].platform != "cpu" or enough else devices[:1]


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Take its own threads from the BLAS: under XLA's pool they make decompositions slower by factors, and can stall.

    Returns:
        A context manager.

    Example:
        >>> with one_blas_thread():
        ...     s = jax.numpy.linalg.svd(jax.numpy.eye(3), compute_uv=False)
    """
    return threadpool_limits(1, user_api="blas")


def spread(function: Callable, mesh: Mesh, in_specs: PyTree, out_specs: PyTree) -> jax.stages.Wrapped:
    """A function as a program of several devices, each of which computes on its own part.

    On a CPU in program order: two batched decompositions side by side can deadlock a small thread pool.

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
        >>> mesh, cells = Mesh(np.array(usable_devices()), ("cell",)), PartitionSpec("cell")
        >>> int(spread(lambda x: x**2, mesh, (cells,), cells)(jnp.arange(16))[11])
        121
    """
    shared = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    ordered = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
    return jax.jit(shared, compiler_options=ordered if mesh.devices.flat[0].platform == "cpu" else None)
