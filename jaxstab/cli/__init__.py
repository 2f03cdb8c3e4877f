"""Arguments in, exit codes out: `jaxstab sweep`, `train`, `status`, `theory`, `report`.

What a user got wrong is one line on stderr and exit code 2; nothing they have is lost.
"""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxstab.cli.faults import UserError
from jaxstab.extras import MissingExtraError, extra

__all__ = ["UserError", "main"]


class _Command(NamedTuple):
    """A command, named and not imported: help and version need no JAX, which takes a second to import.

    Attributes:
        summary: the first line of its settings' docstring.
        settings: class of the settings, in the module of the command's name.
        run: function from the settings, in the same module.
    """

    summary: str
    settings: str
    run: str


_COMMANDS = {
    "sweep": _Command(
        "Measure a grid of networks on real digits, predict the same, and write a store and a report.",
        "Sweep",
        "sweep",
    ),
    "train": _Command(
        "Train networks of every depth, gain, learning rate, ... on real digits, and keep what each did.",
        "Train",
        "train",
    ),
    "status": _Command(
        "Say how far a store of trainings is, who works on it, and what failed.",
        "Status",
        "print_status",
    ),
    "theory": _Command(
        "Print what mean-field theory says of one activation at one point (sigma_w, sigma_b).",
        "Theory",
        "print_theory",
    ),
    "report": _Command(
        "Draw the report of a stored sweep, or of trainings finished or not.",
        "Report",
        "write_report",
    ),
}
_DESCRIPTION = (
    "Will signal and gradient survive the depth of a network? Predict, measure, train, report. "
    "`jaxstab COMMAND --help` lists the flags of a command, `jaxstab --version` prints the version."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; None for those of the process.

    Returns:
        The exit code: 0, 2 for what a user got wrong, 130 when interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        from jaxstab import __version__

        print(f"jaxstab {__version__}")
        return 0
    try:
        with extra("run"):
            settings, run = _parsed(words)
        run(settings)
    except (UserError, MissingExtraError) as error:
        print(f"jaxstab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"jaxstab: interrupted, {stop or 'nothing written'}", file=sys.stderr)
        return 130
    return 0


def _parsed(words: Sequence[str]) -> tuple[Any, Callable[[Any], None]]:
    """The settings that the words ask for, and what to call with them."""
    from jaxstab.cli.arguments import parse

    name = words[0] if words else "--help"
    if name not in _COMMANDS:
        summaries = {known: _stub(command.summary) for known, command in _COMMANDS.items()}
        return parse(summaries, _DESCRIPTION, [name, *words[1:]]), print
    command = _COMMANDS[name]
    module = importlib.import_module(f"jaxstab.cli.{name}")
    _use_float64()
    settings = parse({name: getattr(module, command.settings)}, _DESCRIPTION, words)
    return settings, getattr(module, command.run)


def _use_float64() -> None:
    """Switch JAX's float64 on: theory is computed in it."""
    import jax

    jax.config.update("jax_enable_x64", True)


def _stub(summary: str) -> type:
    """Settings without fields: what the list of commands shows of one."""
    return dataclasses.make_dataclass("Summary", (), namespace={"__doc__": summary})
