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
        # a store of groups is zarr's format 3, a survey's is 2
        if remote or (place / "zarr.json").is_file():
            found = trainability.restored(store.load_groups(settings.store))
            data = json.loads(found.attrs["data"])
            summary = trainability.summarise(found, data["chance"] if "chance" in data else 1 / data["classes"])
            beside = Path() if remote else place.parent
            page = report.write_trained(summary, settings.out or beside / "report.html")
        else:
            place = place / "store.zarr" if (place / "store.zarr").exists() else place
            page = report.write(store.load(place), settings.out or place.parent / "report.html")
    print(f"report: {page}")
