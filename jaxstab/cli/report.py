"""`jaxstab report`: draw the report of a store anew."""

from pathlib import Path, PurePosixPath

import xarray as xr

from jaxstab import report, store, sweeps
from jaxstab.analysis import summarise
from jaxstab.cli import history
from jaxstab.cli.faults import reading, users_fault
from jaxstab.cli.settings import Report
from jaxstab.store import files

# the name that `jaxstab sweep` gives its store in a folder of its own
_SWEEP = "store.zarr"


def write_report(settings: Report) -> None:
    """Run `jaxstab report`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the store is missing or damaged, or the page cannot be written.
    """
    url = settings.store
    if "://" not in url and (Path(url) / _SWEEP).exists():
        url = str(Path(url) / _SWEEP)
    target = settings.out or _page(url)
    with users_fault():
        files.check_file(target)
    with reading(url):
        dataset = store.load_groups(url)
        # what a sweep holds, and no store of trainings does
        of_sweep = "verdict" in dataset
        if of_sweep:
            page = report.write(dataset.assign_attrs(history.told(url)), target)
        else:
            page = report.write_trained(_summary(url), target)
    print(f"report: {page}")


def _page(url: str) -> Path:
    """Where a store's page goes unless told: beside it, and named after it where others may lie there too."""
    name = PurePosixPath(url).name
    if "://" in url:
        folder = Path()
    else:
        folder = Path(url).parent
    if name == _SWEEP:
        return folder / "report.html"
    return folder / f"{name.removesuffix('.zarr') or 'report'}.html"


def _summary(url: str) -> xr.Dataset:
    """The summary of trainings, with who ran them."""
    runs = sweeps.load(url)
    if "data_chance" not in runs.attrs:
        raise ValueError(f"{url}: not a store of trainings, which a page can be drawn of")
    return summarise(runs, runs.attrs["data_chance"]).assign_attrs(history.told(url))
