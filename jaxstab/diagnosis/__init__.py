"""Diagnosis of any model at one batch: its faults, their places, and measured cures.

report = diagnosis.diagnose(model, params, x, loss)
print(report)
params = report.apply()

`watch` follows a training run, and `writers` send its summaries to a file or a service.
"""

from jaxstab.diagnosis import writers
from jaxstab.diagnosis.diagnosing import diagnose
from jaxstab.diagnosis.findings import Diagnosis, Finding, Prescription
from jaxstab.diagnosis.intervals import Interval
from jaxstab.diagnosis.watching import Watched, watch

__all__ = [
    "Diagnosis",
    "Finding",
    "Interval",
    "Prescription",
    "Watched",
    "diagnose",
    "watch",
    "writers",
]
