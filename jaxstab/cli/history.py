"""History of the runs that filled a store: a line per run in the file STORE.runs beside the store.

The store itself holds no time, host or order, so that its bytes do not depend on the runs.
"""

import contextlib
import json
from pathlib import Path

from jaxstab.store.dataset import provenance

# bytes read from the end of the file
_READ = 2**16
# number of runs described
_SHOWN = 5
_KEPT = ("created", "command", "processor", "device", "platform", "python")


def note(out: str, networks: int) -> None:
    """Add this run to the history, unless the store is behind a URL or the file is not writable.

    Args:
        out: the store.
        networks: number of networks computed by this run.
    """
    if "://" in out or not networks:
        return
    known = provenance()
    line = json.dumps({"networks": networks} | {name: known[name] for name in _KEPT})
    # one write at the end of the file: lines of several processes do not mix
    with contextlib.suppress(OSError), _file(out).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def described(out: str) -> dict[str, str]:
    """Describe the last runs, for the provenance of a page.

    Args:
        out: the store.

    Returns:
        Descriptions by "run 1", "run 2", ...; empty without a history. Invalid lines are left out.
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
