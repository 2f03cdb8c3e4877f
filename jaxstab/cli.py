"""Arguments in, exit codes out: `jaxstab sweep`, `jaxstab theory`, `jaxstab report`.

What a user got wrong is one line on stderr and exit code 2; nothing they have is lost.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jaxtyping import Array
from tqdm import tqdm

from jaxstab import activations, datasets, report, store, survey, sweeps, theory
from jaxstab.checks import check_gains

_DEFAULTS = sweeps.Grid()


class UserError(Exception):
    """Something the user can put right; its message is the one line they see."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Measure a grid of networks on real digits, predict the same, and write a store and a report.

    For every depth, gain, activation and seed: the forward profile (length, correlation, saturation, dead units),
    the gradient of the loss at every layer, and the singular values of the input-output Jacobian; beside each its
    mean-field prediction (of plain networks: no norm, skip or dropout). The defaults take about two minutes on two
    cores.
    """

    out: Path = Path("runs/main")
    """Folder for the results: OUT/store.zarr (labelled arrays) and OUT/report.html."""
    data: str = "mnist-5k"
    """mnist-5k, digits, mnist (with --data-path), or an .npz file holding x and y."""
    data_path: Path | None = None
    """Folder of the four MNIST IDX files, for --data mnist (scripts/fetch_mnist makes one)."""
    depths: tuple[int, ...] = _DEFAULTS.depths
    """Depths at which gradients and spectra are read, ascending."""
    sigma_w: tuple[float, ...] = _DEFAULTS.sigma_w
    """Weight gains, ascending: standard deviation of the weights times the square root of fan-in."""
    activations: tuple[str, ...] = tuple(str(name) for name in _DEFAULTS.activations)
    """Activations by name: identity relu leaky_relu tanh sigmoid erf hard_tanh gelu silu softplus elu selu sin."""
    seeds: int = _DEFAULTS.seeds
    """Independent networks per cell; the standard errors are over them."""
    sigma_b: float = _DEFAULTS.sigma_b
    """Standard deviation of the biases."""
    width: int = _DEFAULTS.width
    """Units per layer."""
    inputs: int = _DEFAULTS.inputs
    """Digits per network."""
    weights: str = _DEFAULTS.weights
    """gaussian, orthogonal, or {lecun,glorot,he}_{normal,uniform}."""
    norm: str | None = _DEFAULTS.norm
    """batch, layer or rms: norm in every block; batch needs --batch."""
    norm_after: bool = _DEFAULTS.norm_after
    """Norm after the activation instead of before it."""
    skip: str | None = _DEFAULTS.skip
    """sum, scaled, rezero, highway or dense: skip connection around every block."""
    dropout: float = _DEFAULTS.dropout
    """Share of features dropped."""
    batch: int | None = _DEFAULTS.batch
    """Digits that go through the network together, as one input."""
    dtype: str = _DEFAULTS.dtype
    """float32 or float64 of the measurement; theory is always float64."""
    chunk_size: int | None = None
    """Networks computed at once; fitted to memory unless given."""
    cpu_devices: int | None = None
    """Parts into which JAX divides the CPU; one per core unless given."""
    overwrite: bool = False
    """Replace an existing store."""
    config: Path | None = None
    """TOML file with any of these settings; flags override it."""

    def grid(self) -> sweeps.Grid:
        """The grid of these settings."""
        fields = {field.name for field in dataclasses.fields(sweeps.Grid)}
        return sweeps.Grid(**{k: v for k, v in dataclasses.asdict(self).items() if k in fields})


@dataclasses.dataclass(frozen=True)
class Theory:
    """Print what mean-field theory says of one activation at one point (sigma_w, sigma_b)."""

    activation: str = "tanh"
    """Name of the activation."""
    sigma_w: float = 1.0
    """Weight gain."""
    sigma_b: float = 0.0
    """Standard deviation of the biases."""
    q0: float = 1.0
    """Mean square of the input; matters where there are several fixed points, or none."""
    json: bool = False
    """Print JSON (infinity as the string "inf", an undefined number as null)."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the report of a stored sweep anew."""

    store: Annotated[Path, tyro.conf.Positional]
    """The store, such as runs/main/store.zarr, or the folder that holds it."""
    out: Path | None = None
    """The HTML file; beside the store unless given."""


def _divide_cpu(parts: int | None) -> None:
    """Make the CPU several devices, each busy with networks of its own: small products fill no more than one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parts = cores if parts is None else parts
    if parts < 1:
        raise UserError(f"--cpu-devices must be >= 1, got {parts}")
    os.environ.setdefault("NPROC", str(max(cores, 2 * parts)))
    # too late where JAX has computed before, as in a notebook: then the devices stay what they are
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", parts)


def sweep(settings: Sweep) -> None:
    """Run `jaxstab sweep`.

    Args:
        settings: the flags.

    Raises:
        UserError: if settings, data or place do not fit.
    """
    place, page = settings.out / "store.zarr", settings.out / "report.html"
    _divide_cpu(settings.cpu_devices)
    with _users_fault():
        grid = settings.grid()
        store.check_writable(place, settings.overwrite)
        data = datasets.load(settings.data, settings.data_path)
        sweeps.samples(grid, data)
        devices = sweeps.usable_devices()
        plan = sweeps.estimate(grid, data.x.shape[1], settings.chunk_size, len(devices))
    print(
        f"{plan.cells} networks ({len(grid.names)} activations x {len(grid.sigma_w)} gains x {grid.seeds} seeds), each "
        f"read at {len(grid.depths)} depths to {max(grid.depths)}; 2 measures, {plan.compiles} compiles each; "
        f"{plan.chunk[0] * plan.chunk[1]} networks at once in about {plan.memory / 2**20:.0f} MiB "
        f"on {len(devices)} {devices[0].platform} device{'s' * (len(devices) > 1)}",
        flush=True,
    )
    with tqdm(total=2 * plan.chunks + 2 * plan.compiles, unit="step", dynamic_ncols=True, mininterval=0.5) as bar:
        dataset = survey.survey(grid, data, chunk_size=settings.chunk_size, progress=_progress(bar))
    with _users_fault():
        store.save(dataset, place, settings.overwrite)
        report.write(store.load(place), page)
    print(f"store:  {place}\nreport: {page}")


def _progress(bar: tqdm) -> sweeps.Progress:
    """One bar over the steps of measuring and predicting."""

    def wrap(steps: Sequence[Any]) -> Any:
        for step in steps:
            yield step
            bar.update()

    return wrap


def print_theory(settings: Theory) -> None:
    """Run `jaxstab theory`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the activation is unknown or a gain out of range.
    """
    if not (math.isfinite(settings.q0) and settings.q0 > 0):
        raise UserError(f"q0 must be finite and > 0, got {settings.q0}")
    with _users_fault():
        check_gains(settings.sigma_w, settings.sigma_b)
        phi = activations.get(settings.activation)
    # one program, which leaves out what is not printed
    point, lengths, critical, usable = jax.device_get(
        jax.jit(lambda w, b, q0: _theory(phi, w, b, q0))(settings.sigma_w, settings.sigma_b, settings.q0)
    )
    answer: dict[str, Any] = {
        "activation": settings.activation,
        "sigma_w": settings.sigma_w,
        "sigma_b": settings.sigma_b,
        **{field: float(value) for field, value in point._asdict().items() if field != "stable"},
        "stability": _stability(float(point.xi_q), bool(point.stable)),
        "critical_sigma_w": float(usable),
        "fixed_points": [
            {"q": float(q), "stability": _stability(float(xi), bool(stable))}
            for q, xi, stable in zip(*lengths, strict=True)
            if not np.isnan(q)
        ],
        "critical_points": [
            {"sigma_w": float(w), "q": float(q), "usable": bool(use)}
            for w, q, use in zip(*critical, strict=True)
            if not np.isnan(q)
        ],
    }
    if settings.json:
        print(json.dumps(_strict(answer), indent=2))
        return
    lists = ("fixed_points", "critical_points")
    for key, value in answer.items():
        if key not in lists:
            print(f"{key:17} {value:.8g}" if isinstance(value, float) else f"{key:17} {value}")
    for key in lists:
        rows = (
            ", ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            for row in answer[key]
        )
        print(f"{key:17} {'; '.join(rows) or 'none'}")


def _theory(phi: activations.Activation, sigma_w: Array, sigma_b: Array, q0: Array) -> tuple[Any, ...]:
    everywhere = theory.fixed_points(phi, sigma_w, sigma_b, q0)
    return (
        theory.fixed_point(phi, sigma_w, sigma_b, q0),
        (everywhere.q, everywhere.xi_q, everywhere.stable),
        theory.critical_points(phi, sigma_b),
        theory.critical_sigma_w(phi, sigma_b),
    )


def _stability(xi_q: float, stable: bool) -> str:
    return "stable" if stable else "marginal" if math.isinf(xi_q) else "unstable"


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN: the string "inf" and null stand for them."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def write_report(settings: Report) -> None:
    """Run `jaxstab report`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the store is missing or damaged, or the page cannot be written.
    """
    place = settings.store
    if (place / "store.zarr").exists():
        place = place / "store.zarr"
    with _users_fault():
        page = report.write(store.load(place), settings.out or place.parent / "report.html")
    print(f"report: {page}")


@contextlib.contextmanager
def _users_fault() -> Any:
    """What the floors below refuse while they look at the user's input is the user's to mend."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _from_toml(path: Path) -> dict[str, Any]:
    """Settings of a sweep from a TOML file, checked against the flags' names and types."""
    try:
        text = path.read_text(encoding="utf-8")
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        end = f"line {len(text.splitlines())}, end of document"
        raise UserError(f"{path}: {str(error).replace('end of document', end)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    fields = {field.name: field for field in dataclasses.fields(Sweep) if field.name != "config"}
    read: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"{path}: unknown key {key!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        read[name] = _converted(path, key, value, fields[name].type)
    return read


def _converted(path: Path, key: str, value: Any, wanted: Any) -> Any:
    """A TOML value as the setting's type: lists become tuples, strings paths, integers floats."""
    checks: dict[type, Callable[[Any], bool]] = {
        float: lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        int: lambda v: isinstance(v, int) and not isinstance(v, bool),
        str: lambda v: isinstance(v, str),
        bool: lambda v: isinstance(v, bool),
        Path: lambda v: isinstance(v, str),
    }
    for kind, fits in checks.items():
        if wanted in (kind, kind | None) and fits(value):
            return kind(value)
        if wanted == GenericAlias(tuple, (kind, ...)) and isinstance(value, list) and all(map(fits, value)):
            return tuple(map(kind, value))
    described = re.sub(r"<class '(.*)'>", r"\1", str(wanted)).replace("pathlib.", "")
    raise UserError(f"{path}: {key} must be {described}, got {value!r}")


_COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "sweep": (Sweep, sweep),
    "theory": (Theory, print_theory),
    "report": (Report, write_report),
}
_DESCRIPTION = "Will signal and gradient survive the depth of a network? Predict, measure, report."


def _parse(arguments: Sequence[str]) -> Any:
    """The settings that the arguments ask for; flags override a config file, which overrides the defaults."""
    name, rest = (arguments[0] if arguments else "--help"), list(arguments[1:])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if name not in _COMMANDS:
                kinds: dict[str, Callable[..., Any]] = {name: kind for name, (kind, _) in _COMMANDS.items()}
                return tyro.extras.subcommand_cli_from_dict(
                    kinds, prog="jaxstab", description=_DESCRIPTION, args=[name, *rest]
                )
            kind = _COMMANDS[name][0]
            settings: Any = tyro.cli(kind, prog=f"jaxstab {name}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))
            if not (isinstance(settings, Sweep) and settings.config):
                return settings
            return tyro.cli(
                Sweep,
                prog=f"jaxstab {name}",
                args=rest,
                default=dataclasses.replace(Sweep(), **_from_toml(settings.config)),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(said.getvalue())) from stop


def _one_line(boxed: str) -> str:
    """A parser's message out of its frame, in one line, without the frame's title and the hint at --help."""
    lines = [
        re.sub(r"[\u2500-\u257f]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip() for line in boxed.splitlines()
    ]
    text = " ".join(line for line in lines[1:] if line)
    return " ".join(re.sub(r"(Argument helptext: .*)?For full helptext, .*", "", text).split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after the program's name; None for those of the process.

    Returns:
        The exit code: 0, 2 for what a user got wrong, 130 when interrupted.
    """
    jax.config.update("jax_enable_x64", True)
    try:
        settings = _parse(sys.argv[1:] if arguments is None else arguments)
        dict(_COMMANDS.values())[type(settings)](settings)
    except UserError as error:
        print(f"jaxstab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxstab: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0
