"""Cells of comma-separated tables, which spreadsheets open too."""

from typing import Any

# for the other packages of jaxstab only
__all__ = ()

# a cell that begins so is a formula, and may run a program
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_cell(value: Any) -> Any:
    """Make a cell that no spreadsheet takes for a formula, and that ends no row.

    Args:
        value: a cell.

    Returns:
        A text that would begin a formula, behind an apostrophe; other values as they are. Carriage
        returns, which writers of tables leave unquoted, become spaces.

    Example:
        >>> plain_cell("=1+1"), plain_cell("tanh"), plain_cell(-0.5)
        ("'=1+1", 'tanh', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")
    if value.startswith(_FORMULA):
        return f"'{text}"
    return text
