"""Frame of every page: a self-contained HTML file with figures, their data and the provenance.

Text from a store reaches a page only through templates that escape it, or inside a figure, which is
an image.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from jaxstab.report.panels import COLUMNS, INK, MUTED, PAPER
from jaxstab.tables import plain_cell

# colours of a figure on a dark page
_DARK = {INK: "#e3e7ec", MUTED: "#a3adb9", PAPER: "#14181d"}
# pixels of a page per inch of a figure
_PIXELS = 92
# most characters of one value of the provenance
_LONGEST = 2000


class Picture(NamedTuple):
    """Figure of a page, with its data.

    Attributes:
        name: name of the file of data.
        alt: description of the figure in words.
        wide: data URI of the figure with its panels in rows.
        narrow: data URI of the figure with its panels in one column.
        width: largest width of the wide figure, in pixels.
        table: data URI of the data behind the figure, comma-separated.
    """

    name: str
    alt: str
    wide: str
    narrow: str
    width: int
    table: str


def picture(draw: Callable[[int], Figure], name: str, alt: str, table: pd.DataFrame) -> Picture:
    """Draw a figure for wide and for narrow pages.

    Args:
        draw: function of the number of panels in a row that returns the figure.
        name: name of the file of data.
        alt: description of the figure in words.
        table: data behind the figure.

    Returns:
        The figure in both widths, with its data.
    """
    figure = draw(COLUMNS)
    width = round(_PIXELS * figure.get_figwidth())
    comma_separated = table.map(plain_cell).to_csv(index=False, float_format="%.6g")
    return Picture(
        name,
        alt,
        _uri("image/svg+xml", _svg(figure)),
        _uri("image/svg+xml", _svg(draw(1))),
        width,
        _uri("text/csv", comma_separated),
    )


def page(
    template: str,
    title: str,
    settings: str,
    attributes: Mapping[str, Any],
    content: Mapping[str, Any],
) -> str:
    """Fill a template with escaped values.

    Args:
        template: file name of the template.
        title: question that the page answers.
        settings: one sentence on the computation.
        attributes: provenance from the dataset, which reproduces the computation.
        content: other variables of the template.

    Returns:
        HTML text of the page.
    """
    environment = Environment(
        loader=PackageLoader("jaxstab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    provenance = [(name, _text(value)) for name, value in attributes.items()]
    return environment.get_template(template).render(
        title=title, settings=settings, provenance=provenance, **content
    )


def _svg(figure: Figure) -> str:
    """Convert a figure to SVG that follows the reader's preference for dark pages."""
    buffer = io.StringIO()
    # a fixed salt and no date make the text of a figure reproducible
    with mpl.rc_context({"svg.hashsalt": "jaxstab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg [^>]*>)", lambda match: match[1] + style, buffer.getvalue(), count=1)


def _uri(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _text(value: Any) -> str:
    """Format a value of the provenance, with a single checksum for all source files."""
    text = str(value)
    if '"sources"' in text:
        try:
            code = json.loads(text)
            sources = json.dumps(code.pop("sources"), sort_keys=True)
            digest = hashlib.sha256(sources.encode()).hexdigest()[:16]
            text = ", ".join(
                [f"sources {digest}", *(f"{name} {version}" for name, version in code.items())]
            )
        except (ValueError, TypeError, AttributeError, KeyError):
            pass
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]} ..."
