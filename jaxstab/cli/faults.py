"""What a user got wrong, and what every command needs of the machine."""

import contextlib
import os
from collections.abc import Iterator


class UserError(Exception):
    """Something the user can put right; its message is the one line they see."""


def divide_cpu(parts: int | None, decomposing: bool = True) -> None:
    """Make the CPU several devices, each busy with networks of its own: small products fill no more than one core.

    Args:
        parts: how many; None for one per core.
        decomposing: whether matrices are to be decomposed, see `sweeps.usable_devices`.

    Raises:
        UserError: if there are none, or more than the cores can serve.
    """
    import jax  # slow to import, and no part of `jaxstab --help`

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = cores if parts is None else parts
    most = max(8, 2 * cores)
    if not 1 <= parts <= most:
        raise UserError(f"--cpu-devices must be in 1..{most} on {cores} cores, got {parts}")
    os.environ.setdefault("NPROC", str(max(cores, (1 + decomposing) * parts)))
    # too late where JAX has computed before, as in a notebook: then the devices stay what they are
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", parts)


@contextlib.contextmanager
def users_fault() -> Iterator[None]:
    """What the floors below refuse while they look at the user's input is the user's to mend.

    Yields:
        Nothing.

    Raises:
        UserError: in place of what they raise, in one line.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError) as error:
        raise UserError(" ".join(str(error).split())) from error
