"""A paper's first look as an app: its widgets on a page of their own, without the code.

Does: cut a notebook down to its title and promise, what its first look needs, and the first look; serve it through
Voila on loopback, behind a token, with kernels that are pre-imported and one that has run already. Does not: run the
reproduction, store anything, or load anything from another host.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.lab.server import LOOPBACK, checked_port, preimport
from workbench.papers import Paper
from workbench.reproduce.asked import check_notebook, choose_papers
from workbench.reproduce.provisioner import NAME, stop_mother
from workbench.reproduce.tidy import KERNEL, as_text, read_notebook

SHARE = Path(__file__).resolve().parent / "share"
_FIRST_LOOK = re.compile(r"^##\s.*\bfirst look\b", re.IGNORECASE | re.MULTILINE)
_SECTION = re.compile(r"^##\s", re.MULTILINE)


def app_notebook(paper: Paper) -> dict[str, Any]:
    """The paper's notebook from its title to the end of its first look, with the code between but not the prose."""
    cells = read_notebook(paper.notebook)["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    prose = [i for i, cell in enumerate(cells) if cell["cell_type"] == "markdown"]
    start = next((i for i in prose if _FIRST_LOOK.search(texts[i])), None)
    if start is None:
        raise WorkbenchError(
            f"The notebook of {paper.slug} has no first look to serve; give it a section '## A first look'."
        )
    end = next((i for i in prose if i > start and _SECTION.search(texts[i])), len(cells))
    setup = [cell | {"metadata": {"tags": ["setup"]}} for cell in cells[:start] if cell["cell_type"] == "code"]
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "title": paper.title}
    return {"cells": [cells[0], *setup, *cells[start:end]], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def serve_app(slug: str, port: int | None = None, browser: bool = True) -> None:
    """Serve a paper's first look, print its address, and stay until Ctrl-C."""
    [paper], _ = choose_papers([slug])
    check_notebook(paper.notebook)
    notebook = app_notebook(paper)
    try:
        from voila.app import Voila
    except ImportError as error:
        raise WorkbenchError(
            f"Voila is not installed ({error.name} is missing); "
            "install it with \"pip install 'research-workbench[app]'\"."
        ) from None
    port, token = checked_port(port), secrets.token_hex(24)
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(SHARE), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    preimport()
    with tempfile.TemporaryDirectory(prefix="workbench-app-") as folder:
        path = Path(folder) / f"{slug}.ipynb"
        path.write_text(as_text(notebook), encoding="utf-8")
        voila = Voila()
        voila.initialize(
            [
                str(path),
                f"--Voila.ip={LOOPBACK}",
                f"--Voila.port={port}",
                "--Voila.port_retries=0",
                f"--Voila.token={token}",
                f"--Voila.open_browser={browser}",
                "--Voila.log_level=ERROR",
                "--VoilaConfiguration.template=workbench",
                "--VoilaConfiguration.allow_template_override=NO",
                "--VoilaConfiguration.allow_theme_override=NO",
                "--VoilaConfiguration.show_tracebacks=True",
                "--VoilaConfiguration.preheat_kernel=True",
                f"--KernelProvisionerFactory.default_provisioner_name={NAME}",
            ]
        )
        # A page that is left ends its kernel with a request that can't carry the cookie's twin; who knows the kernel's
        # random name has seen the page.
        voila.tornado_settings = {"disable_check_xsrf": True}
        preimport(wait=True)
        print(f"{paper.title}: http://{LOOPBACK}:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
        try:
            voila.start()
        finally:
            stop_mother()
