"""What is asked of a run, checked before anything is spent.

Does: find the papers that were named, and say of a notebook or a parameter what is wrong with it, and the cure.
Does not: run anything, or mend a notebook (see `tidy`).
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.papers import FAMILIES, Paper, all_papers, find_paper
from workbench.paths import notebooks_folder


def choose_papers(slugs: list[str]) -> tuple[list[Paper], list[str]]:
    """The papers to run: those named, or all that are ready; and a sentence for each whose TOML can't be used.

    A slug that does not exist, a planned paper, or no usable paper at all is refused.
    """
    papers, trouble = [], []
    folder = notebooks_folder()
    paths = [path for family in FAMILIES for path in sorted((folder / family).glob("*.toml"))]
    for slug in dict.fromkeys(slugs or [path.stem for path in paths]):
        try:
            paper = find_paper(slug)
        except WorkbenchError as error:
            if not any(path.stem == slug for path in paths):
                raise
            trouble.append(str(error).rstrip("."))
            continue
        if paper.status == "ready" or (slugs and paper.status == "draft"):
            papers.append(paper)
        elif slugs:
            ready = ", ".join(slug for slug, other in all_papers().items() if other.status == "ready")
            raise WorkbenchError(f"{paper.slug} is planned and has no notebook yet; ready are: {ready}.")
    if trouble and not papers:
        raise WorkbenchError("; ".join(trouble) + ".")
    return papers, trouble


def check_notebook(path: Path, parameters: dict[str, Any] | None = None) -> None:
    """Refuse a notebook that can't be parameterised or has no Python kernel, or lacks one of `parameters`."""
    shown = f"{path.parent.name}/{path.name}"
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {})) for cell in notebook["cells"]]
        kernel = notebook["metadata"].get("kernelspec", {}).get("name", "")
        language = notebook["metadata"].get("language_info", {}).get("name", "python")
    except OSError as error:
        raise WorkbenchError(
            f'The notebook {shown} can\'t be read ({error.strerror}); restore it or set status = "planned" in its TOML.'
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkbenchError(
            f"The notebook {shown} is not a valid notebook ({type(error).__name__}); open it in JupyterLab and save it again."
        ) from None
    if not kernel or language != "python":
        named = "names no kernel" if not kernel else f"has a kernel for {language}"
        raise WorkbenchError(
            f"The notebook {shown} {named}; choose Python 3 in JupyterLab, or run: workbench tidy {path}"
        )
    tagged = [source for kind, source, metadata in cells if kind == "code" and "parameters" in metadata.get("tags", [])]
    if len(tagged) != 1:
        count = "no cell" if not tagged else f"{len(tagged)} cells"
        raise WorkbenchError(
            f"The notebook {shown} has {count} tagged 'parameters'; tag exactly one cell, which sets scale, seed and control."
        )
    there = re.findall(r"^(\w+)\s*(?::[^=\n]*)?=(?!=)", tagged[0], flags=re.MULTILINE)
    for name, usual in (("scale", '"quick"'), ("seed", "0"), ("control", "False")):
        if name not in there:
            raise WorkbenchError(f"The parameters cell of {shown} does not set {name}; add the line {name} = {usual}")
    for name in parameters or {}:
        if name not in there:
            raise WorkbenchError(f"The notebook {shown} has no parameter {name!r}; it has {', '.join(there)}.")


def read_parameters(settings: list[str]) -> dict[str, Any]:
    """{"name": value} from "name=value" as given to --set; a value that is no Python literal is text."""
    parameters: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise WorkbenchError(f"--set is {setting!r} but must read name=value; pass e.g. --set budget=500")
        if name in ("scale", "seed", "control"):
            raise WorkbenchError(f"--set can't set {name}; use --{name}, which the records know of.")
        try:
            parameters[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[name] = text
    return parameters
