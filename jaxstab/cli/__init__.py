"""Arguments in, exit codes out: `jaxstab sweep`, `train`, `status`, `theory`, `report`.

What a user got wrong is one line on stderr and exit code 2; nothing they have is lost.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxstab.cli.arguments import parse
from jaxstab.cli.faults import UserError
from jaxstab.cli.report import Report, write_report
from jaxstab.cli.status import Status, print_status
from jaxstab.cli.sweep import Sweep, sweep
from jaxstab.cli.theory import Theory, print_theory
from jaxstab.cli.train import Train, train

__all__ = ["UserError", "main"]

_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "sweep": (Sweep, sweep),
    "train": (Train, train),
    "status": (Status, print_status),
    "theory": (Theory, print_theory),
    "report": (Report, write_report),
}
_DESCRIPTION = "Will signal and gradient survive the depth of a network? Predict, measure, train, report."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; None for those of the process.

    Returns:
        The exit code: 0, 2 for what a user got wrong, 130 when interrupted.
    """
    jax.config.update("jax_enable_x64", True)
    try:
        kinds = {name: kind for name, (kind, _) in _COMMANDS.items()}
        settings = parse(kinds, _DESCRIPTION, sys.argv[1:] if arguments is None else arguments)
        dict(_COMMANDS.values())[type(settings)](settings)
    except UserError as error:
        print(f"jaxstab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"jaxstab: interrupted, {stop or 'nothing written'}", file=sys.stderr)
        return 130
    return 0
