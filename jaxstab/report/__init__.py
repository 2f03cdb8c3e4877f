"""Figures and report pages."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.report.diagnosis_page import write_diagnosis
    from jaxstab.report.page import write
    from jaxstab.report.trained_page import write_trained

__all__ = ["write", "write_diagnosis", "write_trained"]
