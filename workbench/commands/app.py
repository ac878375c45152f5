"""`workbench app`: a paper's first look as a page of its own."""

from __future__ import annotations

from typing import Annotated

import typer


def app(
    slug: Annotated[str, typer.Argument(help="A paper that is ready.")],
    port: Annotated[int | None, typer.Option(help="Port on this machine; default: a free one.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
) -> None:
    """Serve a paper's first look as a page: its widgets, without the code."""
    from workbench.lab.app import serve_app

    serve_app(slug, port, browser)
