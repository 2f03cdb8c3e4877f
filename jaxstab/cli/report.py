"""`jaxstab report`: draw the report of a store anew."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxstab import report, store
from jaxstab.cli.faults import users_fault


@dataclasses.dataclass(frozen=True)
class Report:
    """Draw the report of a stored sweep anew."""

    store: Annotated[Path, tyro.conf.Positional]
    """The store, such as runs/main/store.zarr, or the folder that holds it."""
    out: Path | None = None
    """The HTML file; beside the store unless given."""


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
    with users_fault():
        page = report.write(store.load(place), settings.out or place.parent / "report.html")
    print(f"report: {page}")
