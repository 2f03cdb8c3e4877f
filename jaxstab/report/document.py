"""The frame of every page: one self-contained HTML file, its figures inside, its provenance at the end."""

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2630;background:#fbfbfa;
margin:0 auto;max-width:1180px;padding:28px 24px 60px}
h1{font-size:25px;margin:0 0 2px} h2{font-size:18px;margin:38px 0 4px} p{margin:4px 0 10px;max-width:80ch}
.sub{color:#5c6672} img{width:100%;height:auto;display:block;background:#fff;border:1px solid #e4e6e9;border-radius:6px}
table{border-collapse:collapse;margin:14px 0;font-variant-numeric:tabular-nums;width:100%}
th{font-weight:600;text-align:left;color:#5c6672;font-size:13px;vertical-align:bottom}
td,th{padding:6px 14px 6px 0;border-bottom:1px solid #e4e6e9}
.bar{display:flex;height:22px;min-width:330px;border-radius:4px;overflow:hidden}
.bar span{color:#fff;min-width:34px;font-size:11.5px;
line-height:22px;text-align:center;overflow:hidden;white-space:nowrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;font-size:13px;color:#5c6672}
dd{margin:0;overflow-wrap:anywhere}
.warn{background:#fdf1e3;border-left:3px solid #e0823d;padding:8px 12px}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin:0 5px 0 12px}
"""


def document(title: str, settings: str, body: str, provenance: Mapping[str, Any]) -> str:
    """A page.

    Args:
        title: what it asks.
        settings: what was computed, HTML.
        body: HTML.
        provenance: what another needs to repeat it.

    Returns:
        The whole HTML text.
    """
    details = "".join(
        f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>" for key, value in provenance.items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>jaxstab: {title[0].lower() + title[1:]}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p class=sub>{settings}</p>{body}"
        f"<h2>Provenance</h2><dl>{details}</dl></html>"
    )


def section(title: str, caption: str, figure: Figure) -> str:
    """A figure under its heading.

    Args:
        title: the heading.
        caption: HTML.
        figure: the figure.

    Returns:
        HTML.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white")
    # a few panels are not blown up to the width of a full row
    width = f"max-width:{130 * figure.get_figwidth():.0f}px"
    image = base64.b64encode(buffer.getvalue()).decode()
    source = f"data:image/png;base64,{image}"
    return f"<h2>{title}</h2><p class=sub>{caption}</p><img alt='{title}' style='{width}' src='{source}'>"
