"""The devices that compute, a program spread over them, and the threads of the BLAS beneath."""

import contextlib
import os
from collections.abc import Callable

import jax
import scipy.linalg  # noqa: F401  jaxlib loads its BLAS at the first decomposition; only a loaded one can be limited
from jax.sharding import Mesh
from jaxtyping import PyTree
from threadpoolctl import threadpool_limits


def usable_devices(decomposing: bool = True) -> list[jax.Device]:
    """All local devices; of a CPU made into several perhaps only the first.

    Two host devices inside batched decompositions wait for each other for ever on a pool of one thread for each, so
    these need two. All else is the slower for it, by up to a half: it wants one. The environment's NPROC sizes XLA's
    pool, if set before JAX first computes; `jaxstab` on the command line sees to it.

    Args:
        decomposing: whether programs decompose batches of matrices.

    Returns:
        The devices.
    """
    devices = jax.local_devices()
    threads = os.environ.get("NPROC", "")
    enough = not decomposing or (threads.isdigit() and int(threads) >= 2 * len(devices))
    return devices if devices[0].platform != "cpu" or enough else devices[:1]


def one_by_one(function: Callable) -> Callable:
    """`jax.vmap`, but on a CPU a loop: what is decomposed in it is one matrix at a time, and waits for no pool.

    Args:
        function: such as one that draws orthogonal weights.

    Returns:
        The function over a leading axis of all its arguments.

    Example:
        >>> one_by_one(lambda a, b: a @ b)(jax.numpy.ones((4, 3)), jax.numpy.ones((4, 3))).tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)


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
