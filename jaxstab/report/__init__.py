"""Figures and the report page of a survey; the only rooms that draw."""

from jaxstab.report.page import write

__all__ = ["write"]
