"""`workbench lab`: JupyterLab on the papers."""

from __future__ import annotations

from typing import Annotated

import typer


def lab(
    port: Annotated[int | None, typer.Option(help="Port on this machine; default: a free one.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
) -> None:
    """Open JupyterLab on the index of the papers."""
    from workbench.lab.server import open_lab

    open_lab(port, browser)
