"""Page of a diagnosis: findings, measured cures, and the numbers at every place."""

import math
from collections.abc import Mapping
from pathlib import Path

from jaxstab.diagnosis import Diagnosis
from jaxstab.report.diagnosis_figures import along_the_model, table_of
from jaxstab.report.document import page, picture
from jaxstab.store.files import whole_file


def write(
    diagnosis: Diagnosis, path: str | Path, subject: str, attributes: Mapping[str, str]
) -> Path:
    """Write the page of a diagnosis, with escaped names of the model's modules.

    Args:
        diagnosis: the diagnosis.
        path: path of the HTML file; an existing file is replaced once the new one is complete.
        subject: description of the model and its batch.
        attributes: provenance that reproduces the diagnosis, by name.

    Returns:
        Path of the file.

    Raises:
        OSError: if the file cannot be written.
    """
    content = {
        "summary": diagnosis.summary,
        "figure": picture(
            lambda columns: along_the_model(diagnosis, columns),
            "along_the_model",
            _alt(diagnosis),
            table_of(diagnosis),
        ),
        "findings": diagnosis.findings,
        "cures": [
            {
                "name": cure.name,
                "change": cure.change,
                "quantity": cure.quantity,
                "before": _short(cure.before),
                "after": _short(cure.after),
            }
            for cure in diagnosis.prescriptions
        ],
        "places": _places(diagnosis),
        "missed": [str(missed) for missed in diagnosis.missed],
    }
    text = page("diagnosis.html", "What is wrong with this model?", subject, attributes, content)
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return Path(path)


def _alt(diagnosis: Diagnosis) -> str:
    """Describe the figure in words."""
    where = "; ".join(f"{finding.fault} at {finding.where}" for finding in diagnosis.findings)
    return f"Gradient and signal at {len(diagnosis.measured.rows)} places; {where or 'no finding'}."


def _short(value: float) -> str:
    """Format with three digits, and rounding errors as 0."""
    if abs(value) > 1e-3:
        return f"{value:.3g}"
    return "0"


def _places(diagnosis: Diagnosis) -> list[dict[str, str]]:
    """List signal and gradient at every place, in order of execution."""
    measured = diagnosis.measured
    return [
        {
            "name": row.name,
            "kind": site.kind,
            "log_q": _number(float(measured.signal.log_q[i])),
            "log_grad_h": _number(measured.log_grad_h[i]),
            "log_grad_theta": _number(measured.log_grad_theta[i]),
        }
        for i, (row, site) in enumerate(zip(measured.rows, measured.sites, strict=True))
    ]


def _number(value: float) -> str:
    """Format with four digits, and NaN as a dash."""
    if math.isnan(value):
        return "\N{EN DASH}"
    return f"{value:.4g}"
