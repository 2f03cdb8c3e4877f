"""Parser of command-line words and TOML files into settings, with errors of one line."""

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin

import tyro

from jaxstab.cli.faults import UserError

# flags that a config file cannot set
_NO_SETTINGS = ("config", "dry_run", "print_config")
# value in a config file that unsets a setting whose default is not None
_NOTHING = "none"
# American spellings of keys of a config file
_ALIASES = {"optimizer": "optimiser"}
# most bytes of a config file
_LONGEST_CONFIG = 2**20
# sizes and counts become int32
_LARGEST_INTEGER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Allowed values of a setting."""

    names: tuple[str | None, ...]


def choice(kind: Any, names: Iterable[str], *aliases: str) -> Any:
    """Annotate a setting with its allowed values, which the help lists and `parse` checks.

    Args:
        kind: type of the setting, str or str | None.
        names: allowed values.
        aliases: other flags of the setting.

    Returns:
        The annotated type.
    """
    values: tuple[str | None, ...] = tuple(names)
    if kind == str | None:
        values = (None, *values)
    shown = ",".join(map(str, values))
    flag = tyro.conf.arg(metavar=f"{{{shown}}}", aliases=aliases or None)
    return Annotated[kind, _Choice(values), flag]


def as_toml(settings: Any) -> str:
    """Write settings as a config file that reproduces them.

    Args:
        settings: settings of a command.

    Returns:
        TOML text, a line per setting; settings that are not set are comments.
    """
    lines = []
    for field in dataclasses.fields(settings):
        if field.name in _NO_SETTINGS:
            continue
        value = getattr(settings, field.name)
        if value is None and field.default is None:
            lines.append(f"# {field.name} is not set")
        else:
            lines.append(f"{field.name} = {_toml_value(value)}")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # TOML has no null, and its strings include those of JSON
    if value is None:
        return json.dumps(_NOTHING)
    return json.dumps(str(value))


def _read_config(path: Path) -> str:
    """Read a config file; a path that is no file, such as a device, may have no end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_CONFIG + 1)
        # editors on Windows begin a text with a byte-order mark
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > _LONGEST_CONFIG:
        raise UserError(f"{path}: must be at most {_LONGEST_CONFIG} bytes, is longer")
    return text


def _from_toml(path: Path, kind: Any) -> dict[str, Any]:
    """Read settings from a TOML file, checked against the names and types of the flags."""
    text = _read_config(path)
    try:
        settings = tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply") from error
    except ValueError as error:
        end = f"line {len(text.splitlines())}, end of document"
        raise UserError(f"{path}: {str(error).replace('end of document', end)}") from error
    fields = {
        field.name: field for field in dataclasses.fields(kind) if field.name not in _NO_SETTINGS
    }
    read: dict[str, Any] = {}
    for key, value in settings.items():
        name = _ALIASES.get(key, key.replace("-", "_"))
        if name not in fields:
            message = f"{path}: unknown key {key!r}"
            near = difflib.get_close_matches(name, fields, n=1)
            if near:
                message += f"; did you mean {near[0]!r}?"
            raise UserError(message)
        read[name] = _converted(path, key, value, fields[name].type)
    return read


def _converted(path: Path, key: str, value: Any, wanted: Any) -> Any:
    """Convert a TOML value to the setting's type: lists to tuples, strings to paths, integers to floats."""
    checks: dict[type, Callable[[Any], bool]] = {
        float: lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        int: lambda v: isinstance(v, int) and not isinstance(v, bool),
        str: lambda v: isinstance(v, str),
        bool: lambda v: isinstance(v, bool),
        Path: lambda v: isinstance(v, str) and v != "",
    }
    if get_origin(wanted) is Annotated:
        wanted = get_args(wanted)[0]
    if value == _NOTHING and type(None) in get_args(wanted):
        return None
    for kind, fits in checks.items():
        # an integer may be larger than any float
        with contextlib.suppress(OverflowError):
            if wanted in (kind, kind | None) and fits(value):
                return kind(value)
            if (
                wanted == GenericAlias(tuple, (kind, ...))
                and isinstance(value, list)
                and all(map(fits, value))
            ):
                return tuple(map(kind, value))
    described = re.sub(r"<class '(.*)'>", r"\1", str(wanted)).replace("pathlib.", "")
    raise UserError(f"{path}: {key} must be {described}, got {repr(value)[:80]}")


def parse(kinds: Mapping[str, type], description: str, words: Sequence[str]) -> Any:
    """Parse settings from words; flags override a config file, which overrides the defaults.

    Args:
        kinds: class of the settings by name of the command.
        description: description of the program, for its help.
        words: the command line.

    Returns:
        An instance of one of the kinds.

    Raises:
        UserError: if a word is invalid.
        SystemExit: with code 0, after printing help.
    """
    name, *rest = words or ["--help"]
    _check_words(rest)
    options: dict[str, Any] = {
        "prog": f"jaxstab {name}",
        "args": rest,
        "config": (tyro.conf.FlagCreatePairsOff,),
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if name not in kinds:
                commands: dict[str, Callable[..., Any]] = dict(kinds)
                return tyro.extras.subcommand_cli_from_dict(
                    commands, prog="jaxstab", description=description, args=[name, *rest]
                )
            settings: Any = tyro.cli(kinds[name], **options)
            config = getattr(settings, "config", None)
            if config is None:
                return _checked(settings)
            given = _from_toml(_expanded("--config", config), kinds[name])
            return _checked(
                tyro.cli(
                    kinds[name], default=dataclasses.replace(kinds[name](), **given), **options
                )
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from stop


def _check_words(words: Sequence[str]) -> None:
    """Check that no word is empty, as from an unset variable: an empty path is the current folder."""
    before = "the command"
    for word in words:
        if not word:
            raise UserError(f"empty argument after {before}")
        if word.startswith("--") and word.endswith("="):
            raise UserError(f"{word} needs a value")
        before = word


def _checked(settings: Any) -> Any:
    """Check integers and choices of settings, and expand `~` in paths."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        flag = f"--{field.name.replace('_', '-')}"
        value = getattr(settings, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            if isinstance(one, int) and abs(one) > _LARGEST_INTEGER:
                raise UserError(f"{flag} must be at most {_LARGEST_INTEGER} in size, got more")
        for choices in getattr(field.type, "__metadata__", ()):
            if isinstance(choices, _Choice) and value not in choices.names:
                known = ", ".join(map(str, choices.names))
                raise UserError(f"{flag} must be one of {known}, got {value!r}")
        if isinstance(value, Path | str):
            changed[field.name] = _expanded(flag, value)
    return dataclasses.replace(settings, **changed)


def _expanded(flag: str, value: Any) -> Any:
    """Expand a leading `~` to the home folder."""
    if not str(value).startswith("~"):
        return value
    expanded = os.path.expanduser(str(value))
    if expanded.startswith("~"):
        raise UserError(f"{flag}: no home folder is known for {str(value).split('/')[0]!r}")
    return type(value)(expanded)


def _one_line(boxed: str) -> str:
    """Reduce the parser's framed message to one line, without its title and its hint at --help."""
    lines = [
        re.sub(r"[\u2500-\u257f]+|-{5,}", " ", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip()
        for line in boxed.splitlines()
    ]
    text = " ".join(line for line in lines[1:] if line)
    return " ".join(re.sub(r"(Argument helptext: .*)?For full helptext, .*", "", text).split())
