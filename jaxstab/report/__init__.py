"""Figures and report pages."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.report.writing import write

__all__ = ["write"]
