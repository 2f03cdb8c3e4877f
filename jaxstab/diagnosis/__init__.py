"""Any model: measure it at one batch, say what is wrong and where, and what was seen to help.

report = diagnosis.diagnose(model, params, x, loss)
print(report)
params = diagnosis.apply(report)
"""

from jaxstab.diagnosis.diagnosing import apply, diagnose
from jaxstab.diagnosis.findings import Diagnosis, Finding, Interval, Prescription

__all__ = ["Diagnosis", "Finding", "Interval", "Prescription", "apply", "diagnose"]
