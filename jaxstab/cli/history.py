"""Which runs filled a store of trainings: a line each in a file beside it, STORE.runs.

The store itself holds nothing of time, host or order, so that it is the same however it was made.
"""

import contextlib
import json
from pathlib import Path

from jaxstab.store.dataset import provenance

# bytes that are read of it, from its end, and runs that are told
_READ = 2**16
_SHOWN = 5
_KEPT = ("created", "command", "processor", "device", "platform", "python")


def note(out: str, networks: int) -> None:
    """Add this run; behind a URL, and where the file cannot be written, nothing is kept.

    Args:
        out: the store.
        networks: how many this run trained.
    """
    if "://" in out or not networks:
        return
    known = provenance()
    line = json.dumps({"networks": networks} | {name: known[name] for name in _KEPT})
    # one write at the end of the file: lines of several processes do not mix
    with contextlib.suppress(OSError), _file(out).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def told(out: str) -> dict[str, str]:
    """The last runs in words, for the provenance of a page.

    Args:
        out: the store.

    Returns:
        By "run 1", ...; empty where there is no such file. Lines that are no runs are left out.
    """
    if "://" in out or not _file(out).is_file():
        return {}
    with _file(out).open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - _READ))
        lines = file.read(_READ).decode(errors="replace").splitlines()
    runs = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            run = dict(json.loads(line))
            runs.append(
                f"{run.get('created')}: {run.get('command')} ({run.get('networks')} networks on "
                f"{run.get('device')}, "
                f"{run.get('processor')}, {run.get('platform')}, Python {run.get('python')})"
            )
    first = max(0, len(runs) - _SHOWN)
    return {f"run {first + number + 1}": run for number, run in enumerate(runs[first:])}


def _file(out: str) -> Path:
    place = Path(out)
    return place.with_name(f"{place.name}.runs")
