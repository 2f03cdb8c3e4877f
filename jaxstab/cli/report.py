"""`jaxstab report`: draw the report of a store anew."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxstab import report, store, trainability
from jaxstab.cli.faults import users_fault


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the report of a stored sweep, or of trainings finished or not."""

    store: Annotated[str, tyro.conf.Positional]
    """The store, such as runs/main/store.zarr or the folder that holds it, runs/trained.zarr, or an fsspec URL."""
    out: Path | None = None
    """The HTML file; report.html beside the store unless given."""


def write_report(settings: Report) -> None:
    """Run `jaxstab report`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the store is missing or damaged, or the page cannot be written.
    """
    place, remote = Path(settings.store), "://" in settings.store
    with users_fault():
        if not remote and (place / "store.zarr").exists():
            place = place / "store.zarr"
        found = store.load_groups(settings.store) if remote else store.load(place)
        beside = Path() if remote else place.parent
        target = settings.out or beside / "report.html"
        if "verdict" in found:
            page = report.write(found, target)
        else:
            runs = trainability.restored(found)
            data = json.loads(runs.attrs["data"])
            summary = trainability.summarise(runs, data["chance"] if "chance" in data else 1 / data["classes"])
            page = report.write_trained(summary, target)
    print(f"report: {page}")
