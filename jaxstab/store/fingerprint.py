"""Identity of a run: plain settings, descriptions of differences, the machine and the code."""

import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.linalg  # noqa: F401  a BLAS is asked for its kernels once it is loaded
from threadpoolctl import threadpool_info

# folders and files that results do not depend on
_NUMBERLESS = (
    "__main__.py", "analysis", "cli", "datasets.py", "extras.py", "report", "store",
)  # fmt: skip
_PACKAGES = ("jaxstab", "jax", "jaxlib", "flax", "optax", "numpy")
# beginnings of the names of vector instructions, on x86 and Arm
_VECTOR = ("sse", "ssse", "avx", "fma", "amx", "asimd", "sve")
# flags of XLA that do not change results
_BITLESS = ("--xla_force_host_platform_device_count", "--xla_dump")
# differences named in one line
_SHOWN = 6
_ABSENT = object()


def code_version() -> dict[str, Any]:
    """Return versions of packages, and a digest of every source file that results depend on.

    Files of the command line, data loading, reports and stores are left out, so that a change to
    them keeps an unfinished sweep valid.

    Returns:
        Versions by package, and under `sources` the first 12 hexadecimal digits of each file's
        SHA-256.

    Example:
        >>> sorted(code_version())
        ['flax', 'jax', 'jaxlib', 'jaxstab', 'numpy', 'optax', 'sources']
    """
    root = Path(__file__).parent.parent
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    sources = {
        path.as_posix(): hashlib.sha256((root / path).read_bytes()).hexdigest()[:12]
        for path in files
        if not {path.parts[0], path.as_posix()} & {*_NUMBERLESS}
    }
    return {name: importlib.metadata.version(name) for name in _PACKAGES} | {"sources": sources}


def machine() -> dict[str, Any]:
    """Describe the machine. Machines of equal description give the same bits.

    The order of sums depends on vector instructions. The BLAS chooses its kernels by processor.
    Flags of XLA can allow reordering (fast-math) or restrict instructions.

    Returns:
        The device; for a CPU, its vector instructions and the BLAS's kernels; flags of XLA and of
        JAX that change programs.

    Example:
        >>> sorted(machine())
        ['blas', 'device', 'flags', 'instructions']
    """
    device = jax.devices()[0]
    kernels = {
        str(lib.get("architecture"))
        for lib in threadpool_info()
        if lib["internal_api"] == "openblas"
    }
    words = [
        word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(_BITLESS)
    ]
    if jax.config.read("jax_disable_most_optimizations"):
        words.append("jax_disable_most_optimizations")
    traits = {
        "device": device.device_kind,
        "instructions": "",
        "blas": "",
        "flags": " ".join(sorted(words)),
    }
    if device.platform == "cpu":
        traits["instructions"] = " ".join(_instructions())
        traits["blas"] = " ".join(sorted(kernels))
    return traits


def _instructions() -> list[str]:
    """List this CPU's vector instructions on Linux; the processor's name on other systems."""
    lines = (
        line.split(":", 1)[1].split()
        for line in _cpu().splitlines()
        if line.startswith(("flags", "Features"))
    )
    known = sorted({word for word in next(lines, []) if word.startswith(_VECTOR)})
    return known or [platform.machine(), platform.processor()]


def _cpu() -> str:
    """Read Linux's description of its CPUs."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return ""
    return described.read_text()


def plain(value: Any, name: str = "settings") -> Any:
    """Convert settings to JSON's types.

    Tuples become lists, NumPy numbers become Python's, and inf and nan become strings.

    Args:
        value: None, a bool, number or string, or a mapping, list, tuple or array of such.
        name: name of the value, for errors.

    Returns:
        The value for strict JSON, unchanged by a round trip.

    Raises:
        ValueError: if the value holds anything else.

    Example:
        >>> plain({"clip": np.inf, "sigma_w": (0.5, 1.0)})
        {'clip': 'inf', 'sigma_w': [0.5, 1.0]}
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(
        f"{name} must be plain values (numbers, strings, lists, mappings), got "
        f"{type(value).__name__}"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe in one line the differences between two sets of settings.

    Args:
        old: plain settings, nested to any depth.
        new: plain settings, likewise.

    Returns:
        `name: old -> new`, joined by semicolons; empty if nothing changed.

    Example:
        >>> old = {"grid": {"sigma_w": [0.5, 1.0, 2.0, 4.0], "width": 128}, "versions": {"jax": "0.10.2"}}
        >>> new = {"grid": {"sigma_w": [0.5, 2.0], "width": 128}, "versions": {"jax": "0.11.0"}}
        >>> differences(old, new)
        'sigma_w: 4 values 0.5..4 -> 0.5, 2; jax: 0.10.2 -> 0.11.0'
    """
    before = _leaves(old)
    after = _leaves(new)
    paths = [*before, *(path for path in after if path not in before)]
    names = [path[-1] for path in paths]
    changed = []
    for path in paths:
        a = before.get(path, _ABSENT)
        b = after.get(path, _ABSENT)
        if a is _ABSENT or b is _ABSENT or a != b:
            name = path[-1]
            if names.count(name) > 1:
                name = ".".join(path)
            changed.append(f"{name}: {_change(a, b)}")
    shown = changed[:_SHOWN]
    if len(changed) > _SHOWN:
        shown.append(f"and {len(changed) - _SHOWN} more")
    return "; ".join(shown)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """List values by their path; mappings are flattened and lists kept whole."""
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= _leaves(value, (*path, key))
        else:
            leaves[*path, key] = value
    return leaves


def _change(old: Any, new: Any) -> str:
    """Describe the change of one value; for long values, of the first entry that differs."""
    before = _short(old)
    after = _short(new)
    if before == after and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        first = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        return f"{before}, value {first}: {old[first]!r} -> {new[first]!r}"
    if before == after:
        return f"{old!r} -> {new!r}"
    return f"{before} -> {after}"


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, list) and len(value) > 3:
        return f"{len(value)} values {_short(value[0])}..{_short(value[-1])}"
    if isinstance(value, list):
        return ", ".join(map(_short, value)) or "no values"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if len(text) > 40:
        return f"{text[:12]}..."
    return text
