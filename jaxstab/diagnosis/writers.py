"""Writers of `diagnosis.watch` summaries to a table, TensorBoard or Weights & Biases.

Each function returns a `send` for `diagnosis.watch`. Nothing is written by default.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxstab.extras import extra
from jaxstab.tables import plain_cell

Write = Callable[[int, dict[str, float]], None]


def csv(path: str | Path) -> Write:
    """Append a line "step,name,value" for every number to a comma-separated file.

    Args:
        path: path of the file; its content is kept.

    Returns:
        Function `send` of (number of the update, numbers by name).

    Raises:
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "watched.csv"
        ...     csv(file)(10, {"log_update/dense": -2.5})
        ...     print(file.read_text(), end="")
        step,name,value
        10,log_update/dense,-2.5
    """
    place = Path(path)
    try:
        with place.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write("step,name,value\n")
    except OSError as error:
        raise OSError(f"cannot write {place}: {error.strerror or error}") from error

    def write(step: int, numbers: dict[str, float]) -> None:
        lines = [f"{step},{_quoted(name)},{value!r}\n" for name, value in numbers.items()]
        with place.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    return write


def tensorboard(folder: str | Path) -> Write:
    """Add every finite number to TensorBoard's event files, flushed at each summary.

    Args:
        folder: folder of the run.

    Returns:
        Function `send` of (number of the update, numbers by name).

    Raises:
        ModuleNotFoundError: if tensorboardX is not installed.
    """
    with extra("tensorboard"):
        from tensorboardX import SummaryWriter
    writer = SummaryWriter(str(folder))

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, step)
        writer.flush()

    return write


def wandb(**settings: Any) -> Write:
    """Log every finite number to a new run of Weights & Biases.

    Args:
        settings: arguments of `wandb.init`, such as project="mine" or mode="offline".

    Returns:
        Function `send` of (number of the update, numbers by name).

    Raises:
        ModuleNotFoundError: if wandb is not installed.
    """
    with extra("wandb"):
        import wandb as client
    run = client.init(**settings)

    def write(step: int, numbers: dict[str, float]) -> None:
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        run.log(finite, step=step)

    return write


def _quoted(name: str) -> str:
    """Quote a field of a line, since names of parameters may hold commas or begin a formula."""
    name = plain_cell(name)
    if set(name).isdisjoint(',"\n'):
        return name
    return '"' + name.replace('"', '""') + '"'
