"""The frame of every page: one self-contained HTML file, its figures and their data inside, its provenance at the end.

Whatever comes from a store reaches a page through templates that escape it, or inside a figure,
which is an image.
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

# what a figure's colours become where the reader prefers dark pages
_DARK = {INK: "#e3e7ec", MUTED: "#a3adb9", PAPER: "#14181d"}
# pixels of a page's width for an inch of a figure
_PIXELS = 92
# characters of one value of the provenance
_LONGEST = 2000


class Picture(NamedTuple):
    """A figure as a page shows it.

    Attributes:
        name: of its file of data.
        alt: what is seen, in words.
        wide: data URI of the figure, panels in rows.
        narrow: the same, panels in one column.
        width: pixels of the wide one at most.
        table: data URI of the data behind it, comma-separated.
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
        draw: the figure with so many panels in a row.
        name: of its file of data.
        alt: what is seen, in words.
        table: the data behind it.

    Returns:
        The picture.
    """
    figure = draw(COLUMNS)
    width = round(_PIXELS * figure.get_figwidth())
    comma_separated = table.to_csv(index=False, float_format="%.6g")
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
    """Fill a template; every value is escaped.

    Args:
        template: its file.
        title: what the page asks.
        settings: what was computed.
        attributes: of the dataset: what another needs to repeat it.
        content: what else the template names.

    Returns:
        The whole HTML text.
    """
    environment = Environment(
        loader=PackageLoader("jaxstab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    provenance = [(name, _told(value)) for name, value in attributes.items()]
    return environment.get_template(template).render(
        title=title, settings=settings, provenance=provenance, **content
    )


def _svg(figure: Figure) -> str:
    """A figure as an image that follows the reader's preference for dark pages."""
    buffer = io.StringIO()
    # the same figure is the same text, whenever and wherever it is drawn
    with mpl.rc_context({"svg.hashsalt": "jaxstab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg [^>]*>)", lambda found: found[1] + style, buffer.getvalue(), count=1)


def _uri(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _told(value: Any) -> str:
    """A value of the provenance; the checksums of all source files become one."""
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
