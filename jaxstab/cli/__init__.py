"""Command line: `jaxstab sweep`, `train`, `status`, `theory`, `phase`, `diagnose`, `report`.

An error of the user's is one line on stderr and exit code 2; files of the user's stay unchanged.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxstab.cli import interrupts
from jaxstab.cli.faults import UserError, printable
from jaxstab.cli.own import blamed
from jaxstab.extras import MissingExtraError, extra

__all__ = ["main"]

# exit code for a closed output pipe: 128 + SIGPIPE
UNREAD = 141
# most characters of an error message
_LONGEST = 1000


class _Command(NamedTuple):
    """Names of a command's parts, imported later: JAX takes a second to import, and help needs none.

    Attributes:
        summary: first line of the docstring of the settings.
        settings: class of the flags, in `cli.settings`.
        run: function of the settings, in the module of the command's name.
        float64: True if JAX computes in float64; a user's own model runs with JAX's default.
    """

    summary: str
    settings: str
    run: str
    float64: bool = True


_COMMANDS = {
    "sweep": _Command(
        "Measure and predict a grid of networks on real digits, and write a store and a report.",
        "Sweep",
        "sweep",
    ),
    "train": _Command(
        "Train a grid of networks on real digits, over depth, gain, learning rate and others, into "
        "a store.",
        "Train",
        "train",
    ),
    "status": _Command(
        "Print the progress of a sweep or a store of trainings, its running processes and failures.",
        "Status",
        "print_status",
    ),
    "theory": _Command(
        "Print mean-field predictions for one block, plain or with cures, at one point (sigma_w, "
        "sigma_b).",
        "Theory",
        "print_theory",
    ),
    "phase": _Command(
        "Draw the phase diagram of one block, plain or with cures: ln chi_1 over (sigma_w, "
        "sigma_b).",
        "Phase",
        "draw_phase",
    ),
    "diagnose": _Command(
        "Find the faults of a model of your own, and cures that are measured to help.",
        "Diagnose",
        "print_diagnosis",
        float64=False,
    ),
    "report": _Command(
        "Draw the report of a stored sweep or of trainings, finished or not.",
        "Report",
        "write_report",
    ),
}
_DESCRIPTION = (
    "Predict and measure whether signal and gradient survive the depth of a network, and train. "
    "`jaxstab COMMAND --help` lists the flags of a command, `jaxstab --version` prints the version."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Called without arguments, as the program, it handles Ctrl-C and SIGTERM from the beginning.

    Args:
        arguments: words after the program's name; None for the words of the process.

    Returns:
        The exit code: 0, 2 for an error of the user's, 130 for an interruption, 141 for a closed
        output pipe.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        interrupts.watch()
    words = list(arguments)
    try:
        try:
            return _answered(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return UNREAD
    except OSError as error:
        _discard_output()
        return _complained(f"cannot write to standard output: {error.strerror or error}")


def _answered(words: Sequence[str]) -> int:
    """Run a command, report errors and interruptions in one line, and return the exit code."""
    try:
        if words[:1] == ["--version"]:
            from jaxstab import __version__

            print(f"jaxstab {__version__}")
            return 0
        with extra("run"):
            settings = _parsed(words)
        if getattr(settings, "print_config", False):
            from jaxstab.cli.arguments import as_toml

            print(as_toml(settings))
            return 0
        with extra("run"):
            run = _imported(words[0])
        with blamed():
            run(settings)
    except (UserError, MissingExtraError) as error:
        return _complained(str(error))
    except OSError as error:
        # errors of printing have no file name
        if error.filename is None:
            raise
        return _complained(f"{error.filename}: {error.strerror}")
    except MemoryError as error:
        return _complained(f"out of memory: {error}".removesuffix(": "))
    except KeyboardInterrupt as stop:
        _complained(f"interrupted, {str(stop) or 'nothing was written'}")
        return interrupts.STOPPED
    return 0


def _complained(message: str) -> int:
    """Print one line on stderr without unprintable characters, and return exit code 2."""
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]} ..."
    print(f"jaxstab: {line}", file=sys.stderr)
    return 2


def _discard_output() -> None:
    """Discard further output; otherwise Python reports the closed pipe at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(words: Sequence[str]) -> Any:
    """Parse the settings from words without importing JAX, so that errors are reported at once."""
    from jaxstab.cli.arguments import parse

    words = words or ["--help"]
    name = words[0]
    if name not in _COMMANDS:
        kinds = {known: _stub(command.summary) for known, command in _COMMANDS.items()}
    else:
        flags = importlib.import_module("jaxstab.cli.settings")
        kinds = {name: getattr(flags, _COMMANDS[name].settings)}
    return parse(kinds, _DESCRIPTION, words)


def _imported(name: str) -> Callable[[Any], None]:
    """Import the function that runs a command."""
    command = _COMMANDS[name]
    module = importlib.import_module(f"jaxstab.cli.{name}")
    if command.float64:
        _use_float64()
    return getattr(module, command.run)


def _use_float64() -> None:
    """Enable float64 in JAX, since theory is computed in float64."""
    import jax

    jax.config.update("jax_enable_x64", True)


def _stub(summary: str) -> type:
    """Make settings without fields, for the list of commands."""
    return dataclasses.make_dataclass("Summary", (), namespace={"__doc__": summary})
