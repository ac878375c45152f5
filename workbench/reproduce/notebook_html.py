"""An executed notebook as a piece of HTML that can stand inside a page of ours.

Does: converts with nbconvert, sets formulas as MathML, scrubs paths and keys, and lets the whole through one
sanitiser, so that nothing a notebook holds (markdown, outputs, errors, attachments) can run or fetch anything.
Does not: keep widgets, JavaScript or frames; what was displayed beside them as text, table or picture stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import nh3

from workbench.reproduce.formulas import mathml
from workbench.reproduce.scrub import scrubber

LONGEST_OUTPUT = 100_000
"""Characters of one output that are shown; the rest stays in the executed notebook."""

_LONG_FORMULA = 30  # characters of TeX; browsers don't break formulas over lines, so a long one may have to scroll
_SHOWN = ("text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain")
_IMAGE = re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+")
_LINK = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_STYLES = {
    "background-color", "border", "border-bottom", "border-collapse", "border-color", "border-left", "border-radius",
    "border-right", "border-style", "border-top", "border-width", "color", "font-family", "font-size", "font-style",
    "font-weight", "line-height", "margin", "margin-left", "margin-right", "margin-top", "max-width", "min-width",
    "padding", "padding-left", "padding-right", "text-align", "text-decoration", "vertical-align", "white-space", "width",
}  # fmt: skip
_MATHS = {
    "math", "menclose", "merror", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mphantom", "mroot",
    "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder",
    "munderover",
}  # fmt: skip
_MATH_ATTRIBUTES = {
    "accent", "columnalign", "columnspacing", "display", "displaystyle", "fence", "form", "linethickness", "lspace",
    "mathvariant", "maxsize", "minsize", "movablelimits", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy",
    "width",
}  # fmt: skip


def notebook_html(notebook: Any) -> str:
    """The cells of `notebook` (an nbformat 4 node) as sanitised HTML, without html, head or body elements."""
    converted, _ = _exporter().from_notebook_node(_prepared(notebook))
    return _sanitised(_focusable(converted))


@cache
def _exporter() -> Any:
    from nbconvert.exporters.html import HTMLExporter
    from nbconvert.exporters.templateexporter import TemplateExporter
    from nbconvert.filters import Highlight2HTML

    class Exporter(HTMLExporter):
        """nbconvert's, without its passes of BeautifulSoup and bleach: they take most of its time, and one sanitiser
        of ours sees the whole anyway."""

        def from_notebook_node(self, nb: Any, resources: Any = None, **kwargs: Any) -> tuple[str, Any]:
            self.register_filter("filter_data_type", lambda data: list(data))
            self.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3", parent=self))
            return TemplateExporter.from_notebook_node(self, nb, resources, **kwargs)

    exporter = Exporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", _markdown)
    exporter.register_filter("clean_html", lambda markup: markup)
    return exporter


def _markdown(source: str) -> str:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def heading(self, text: str, level: int, **attrs: Any) -> str:
            level = min(level + 2, 6)  # the page has its own first and second level
            return f"<h{level}>{text}</h{level}>\n"

        def inline_math(self, body: str) -> str:
            formula = mathml(body, block=False)
            return f'<span class="long" tabindex="0">{formula}</span>' if len(body) > _LONG_FORMULA else formula

        def block_math(self, body: str) -> str:
            return f'<span class="formula" tabindex="0">{mathml(body, block=True)}</span>'

        def latex_environment(self, name: Any, body: Any = None) -> str:
            return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


def _prepared(notebook: Any) -> Any:
    """A copy with scrubbed texts, one shown form of each output, and each figure's caption as its description."""
    from nbformat import from_dict

    scrub, cells = scrubber(), []
    for number, cell in enumerate(notebook.cells):
        source = scrub(cell.source)
        if cell.cell_type == "markdown":
            source = _with_attachments(source, cell.get("attachments", {}))
        kept: dict[str, Any] = {"id": f"cell-{number}", "cell_type": cell.cell_type, "source": source, "metadata": {}}
        if cell.cell_type == "code":
            caption = _caption(notebook.cells[number + 1 : number + 2])
            outputs = [_output(output, caption, scrub) for output in cell.get("outputs", [])]
            kept |= {"execution_count": None, "outputs": [output for output in outputs if output]}
        cells.append(kept)
    return from_dict({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def _with_attachments(source: str, attachments: dict[str, dict[str, str]]) -> str:
    for name, bundle in attachments.items():
        for kind, data in bundle.items():
            source = source.replace(f"(attachment:{name})", f"(data:{kind};base64,{data})")
    return source


def _caption(following: list[Any]) -> str:
    """The caption under a figure: the paragraph in italics that opens the next markdown cell."""
    text = following[0].source.strip() if following and following[0].cell_type == "markdown" else ""
    first = text.split("\n\n")[0]
    return (
        first.strip("*").replace("$", "") if first.startswith("*") else "Figure; the text around it says what it shows"
    )


def _output(output: Any, caption: str, scrub: Callable[[str], str]) -> dict[str, Any] | None:
    kind = output.output_type
    if kind == "stream":
        return {"output_type": kind, "name": output.name, "text": _cut(scrub(_joined(output.text)))}
    if kind == "error":
        lines = [scrub(line) for line in output.get("traceback", [])] or [scrub(f"{output.ename}: {output.evalue}")]
        return {"output_type": kind, "ename": "", "evalue": "", "traceback": [_cut("\n".join(lines))]}
    data = {shown: _joined(value) for shown, value in output.get("data", {}).items() if shown in _SHOWN}
    if "text/html" in data and len(data["text/html"]) > 10 * LONGEST_OUTPUT:
        del data["text/html"]
    shown = next((name for name in _SHOWN if name in data), None)
    if shown is None:
        return None
    text = data[shown]
    if shown == "text/latex":
        shown, text = "text/markdown", scrub(text)
    elif shown == "text/plain":
        text = _cut(scrub(text))
    elif shown in ("text/html", "text/markdown", "image/svg+xml"):
        text = scrub(text)
    metadata = {shown: {"alt": caption}} if shown.startswith("image/") else {}
    return {"output_type": "display_data", "data": {shown: text}, "metadata": metadata}


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def _cut(text: str) -> str:
    if len(text) <= LONGEST_OUTPUT:
        return text
    return f"{text[:LONGEST_OUTPUT]}\n[cut here: {len(text) - LONGEST_OUTPUT:,} more characters are in the executed notebook]"


def _focusable(converted: str) -> str:
    """Wide code and tables scroll inside their own box, which the keyboard must reach. Runs before the sanitiser:
    an edit of text must not open what it closed."""
    boxed = re.sub(r"<pre(?=[\s>])", '<pre tabindex="0"', converted)
    boxed = re.sub(r"<img(?![^>]*\salt=)", '<img alt="Picture without a description"', boxed)
    boxed = re.sub(r"<table(?=[\s>])", '<div class="scroll" tabindex="0"><table', boxed)
    return boxed.replace("</table>", "</table></div>")


def _attribute(tag: str, name: str, value: str) -> str | None:
    if name in ("src", "href"):
        allowed = _IMAGE if tag == "img" else _LINK
        return value if allowed.match(value) else None
    if name == "tabindex":
        return value if value == "0" else None
    return value


def _sanitised(markup: str) -> str:
    attributes: dict[str, set[str]] = {tag: set(_MATH_ATTRIBUTES) for tag in _MATHS}
    attributes |= {"img": {"src", "alt", "width", "height"}, "a": {"href", "title"}}
    attributes |= {tag: {"colspan", "rowspan", "scope"} for tag in ("td", "th")}
    attributes["*"] = {"class", "style", "tabindex"}
    return nh3.clean(
        markup,
        tags=nh3.ALLOWED_TAGS | _MATHS,
        clean_content_tags={"script", "style", "iframe", "object", "embed", "template", "noscript"},
        attributes=attributes,
        attribute_filter=_attribute,
        url_schemes={"http", "https", "mailto", "data"},
        filter_style_properties=_STYLES,
    )
