"""What a method says of logs, in one form: sentences, a table, a figure, and a page that needs no network."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Page:
    """title; said: sentences above the table; columns and rows of words; figure with its alt text; source: whose
    method it is and what it takes for granted; numbers: the same answers, ready for JSON."""

    title: str
    said: list[str]
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    figure: Figure
    alt: str
    source: str
    numbers: dict[str, Any]

    def html(self, figure_png: bytes) -> str:
        """One HTML page with everything on it."""
        return _HTML.format(
            title=html.escape(self.title),
            said="".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.said),
            head="".join(f"<th>{html.escape(name)}</th>" for name in self.columns),
            rows="".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows),
            alt=html.escape(self.alt),
            picture=base64.b64encode(figure_png).decode(),
            source=html.escape(self.source),
        )


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
img {{ max-width: 100%; }}
</style></head><body>
<h1>{title}</h1>
{said}
<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>
<img alt="{alt}" src="data:image/png;base64,{picture}">
<p>{source}</p>
</body></html>
"""
