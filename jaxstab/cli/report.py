"""`jaxstab report`: draw the report of a store again."""

from pathlib import Path, PurePosixPath

import xarray as xr

from jaxstab import report, sweeps
from jaxstab.analysis import summarise
from jaxstab.cli import history
from jaxstab.cli.faults import reading, users_fault
from jaxstab.cli.settings import Report
from jaxstab.store import files
from jaxstab.store.reading import load_groups

# name of the store in the folder of `jaxstab sweep`
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
        dataset = load_groups(url)
        # only the store of a sweep has verdicts
        if "verdict" in dataset:
            result = dataset.assign_attrs(history.described(url))
        else:
            result = _summary(url)
        page = report.write(result, target)
    print(f"report: {page}")


def _page(url: str) -> Path:
    """Return the default path of a store's page: beside the store, report.html or X.html of X.zarr."""
    name = PurePosixPath(url).name
    if "://" in url:
        folder = Path()
    else:
        folder = Path(url).parent
    if name == _SWEEP:
        return folder / "report.html"
    return folder / f"{name.removesuffix('.zarr') or 'report'}.html"


def _summary(url: str) -> xr.Dataset:
    """Summarise trainings, with the history of their runs."""
    runs = sweeps.load(url)
    if "data_chance" not in runs.attrs:
        raise ValueError(f"{url}: must be a store of `jaxstab sweep` or of trainings")
    return summarise(runs, runs.attrs["data_chance"]).assign_attrs(history.described(url))
