"""The notebooks as the lab's server hands them out: the index with its output, the bundled ones trusted.

Does: fill in the index when it is opened and strip it when it is saved, and sign bundled notebooks. Does not: trust
outputs that came with a file, which may be anybody's; those of a notebook that the user ran and saved are trusted by
Jupyter itself, as everywhere.
"""

from __future__ import annotations

from typing import Any

import nbformat
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

from workbench.lab.index_page import index_html
from workbench.paths import notebooks_folder
from workbench.reproduce.tidy import tidied

INDEX = "index.ipynb"


class LabContents(AsyncLargeFileManager):
    """Jupyter's own files, but the index arrives with its output, and is stored without it."""

    async def get(self, path: str, content: bool = True, *args: Any, **kwargs: Any) -> Any:
        model = await super().get(path, content, *args, **kwargs)
        if path.strip("/") == INDEX and model.get("type") == "notebook" and model.get("content"):
            show_index(model["content"])
        return model

    def run_pre_save_hooks(self, model: Any, path: str, **kwargs: Any) -> None:
        super().run_pre_save_hooks(model=model, path=path, **kwargs)
        if path.strip("/") == INDEX and model.get("type") == "notebook":
            model["content"] = nbformat.from_dict(tidied(model["content"]))


def show_index(notebook: dict[str, Any]) -> None:
    """Put the index into the cell that shows it, as running the cell would."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            shown = {"text/html": index_html(), "text/plain": "The index of the papers"}
            cell["outputs"] = [nbformat.v4.new_output("display_data", shown)]
            cell["metadata"]["trusted"] = True


def trust_bundled(notary: Any) -> list[str]:
    """Sign the papers' notebooks and the index where they hold no output; the names of those that were signed."""
    folder, signed = notebooks_folder(), []
    papers = (path for path in sorted(folder.glob("*/*.ipynb")) if path.with_suffix(".toml").is_file())
    for path in (folder / INDEX, *papers):
        try:
            notebook = nbformat.read(path, as_version=4)
        except (OSError, ValueError, AttributeError):
            continue  # Opening it says what is wrong with it.
        if not any(cell.get("outputs") for cell in notebook.cells):
            notary.sign(notebook)
            signed.append(path.name)
    return signed
