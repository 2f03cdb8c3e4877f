"""Report pages of surveys, trainings and diagnoses."""

from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from jaxstab.diagnosis import Diagnosis
from jaxstab.report import diagnosis_page, page, trained_page


def write(
    result: xr.Dataset | Diagnosis,
    path: str | Path,
    subject: str = "",
    attributes: Mapping[str, str] | None = None,
) -> Path:
    """Write a report page, one self-contained HTML file with all figures and their data inside.

    Args:
        result: a survey, fresh or loaded; a summary of trainings, from `analysis.summarise`; or a
            diagnosis.
        path: path of the HTML file; an existing file is replaced once the new one is complete.
        subject: description of the model and the batch of a diagnosis.
        attributes: provenance of a diagnosis, by name. A dataset carries its own.

    Returns:
        Path of the file.

    Raises:
        ValueError: if the dataset is neither a survey nor a summary of trainings.
        OSError: if the file cannot be written.
    """
    if isinstance(result, Diagnosis):
        return diagnosis_page.write(result, path, subject, attributes or {})
    if "train_accuracy" in result:
        return trained_page.write(result, path)
    return page.write(result, path)
