"""Cells of comma-separated tables, safe for spreadsheets."""

from typing import Any

# for the other packages of jaxstab only
__all__ = ()

# beginnings of a spreadsheet's formula, which may run a program
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_cell(value: Any) -> Any:
    """Make a cell that is no formula of a spreadsheet and holds no end of a row.

    Args:
        value: value of the cell.

    Returns:
        Text with an apostrophe before the beginning of a formula, and spaces for carriage returns,
        which writers of tables leave unquoted; other values unchanged.

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
