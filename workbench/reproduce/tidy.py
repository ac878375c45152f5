"""How a paper's notebook is stored, and what it must hold: looked at, and mended where a program can.

Does: strip outputs and execution counts, reduce metadata to what decides how the notebook runs, name the kernel; and
tell what only a person can mend: the order of the sections, the parameters cell, long functions, paths of one
machine, claims that are not measured or not in the TOML, links that lead nowhere.

Does not: change prose or code, look at links to the web, or run anything.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError
from workbench.papers import Paper, load_paper
from workbench.paths import home, notebooks_folder
from workbench.reproduce.asked import check_notebook

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LONGEST = 5  # lines of a function's body in a notebook
# A section is known by words of its heading; the reproduction may be told in several, and "Verdicts" comes last.
SECTIONS = (
    ("the idea", r"\bidea\b"),
    ("a first look", r"\bfirst look\b"),
    ("the reproduction", r"\breproduction\b"),
    ("what could not be reproduced", r"\bnot be reproduced\b"),
    ("the same on your own", r"\byour own\b"),
    ("exercises", r"\bexercises?\b"),
)
_MACHINE_PATH = re.compile(
    r"""(?<![\w/:.])(?:/(?:root|home/\w|Users/\w|work/|tmp/|mnt/|opt/)|[A-Z]:\\\\?\w)[^\s"')]*"""
)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


def find_notebooks(paths: list[Path]) -> list[Path]:
    """The notebooks that `paths` name, folders with all that is in them; by default all papers'."""
    found: list[Path] = []
    for path in paths or [notebooks_folder()]:
        if path.is_dir():
            found += sorted(file for file in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in file.parts)
        elif path.suffix == ".ipynb" and path.is_file():
            found.append(path)
        else:
            raise WorkbenchError(f"{path} is no notebook and no folder; pass files that end in .ipynb, or folders.")
    return list(dict.fromkeys(found))


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as stored, or a sentence."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert notebook["nbformat"] == 4 and all("".join(cell["source"]) is not None for cell in notebook["cells"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise WorkbenchError(
            f"The notebook {path} is not a valid notebook ({type(error).__name__}); open it in JupyterLab and save it again."
        ) from None
    return notebook


def tidied(notebook: dict[str, Any]) -> dict[str, Any]:
    """The same notebook without outputs, counts and metadata that decide nothing; same prose, code, ids and tags."""
    cells = []
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        kept = {"cell_type": cell["cell_type"]} | ({"id": cell["id"]} if "id" in cell else {})
        if "attachments" in cell:
            kept["attachments"] = cell["attachments"]
        kept["metadata"] = {"tags": tags} if tags else {}
        kept["source"] = "".join(cell["source"]).splitlines(keepends=True)
        cells.append(kept | ({"execution_count": None, "outputs": []} if cell["cell_type"] == "code" else {}))
    kernel = notebook.get("metadata", {}).get("kernelspec", {})
    metadata = {"kernelspec": KERNEL if kernel.get("language", "python") == "python" else kernel}
    metadata["language_info"] = {"name": metadata["kernelspec"].get("language", "python")}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": notebook.get("nbformat_minor", 5)}


def untidy(notebook: dict[str, Any]) -> list[str]:
    """What `tidied` would mend, a phrase each."""
    said = []
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    if any(cell.get("outputs") or cell.get("execution_count") is not None for cell in code):
        said.append("it holds outputs or execution counts")
    clean = tidied(notebook)
    if not notebook.get("metadata", {}).get("kernelspec", {}).get("name"):
        said.append("it names no kernel")
    elif notebook["metadata"] != clean["metadata"] or any(
        old.get("metadata") != new["metadata"] for old, new in zip(notebook["cells"], clean["cells"], strict=True)
    ):
        said.append("it holds metadata that decide nothing")
    return said


def as_text(notebook: dict[str, Any]) -> str:
    """As Jupyter stores it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def tidy(path: Path) -> list[str]:
    """Mend what can be mended, on disk; what was mended, a phrase each."""
    mended = untidy_file(path)
    if mended:
        write_atomically(path, as_text(tidied(read_notebook(path))).encode())
    return mended


def untidy_file(path: Path) -> list[str]:
    """What `tidy` would mend in a file, a phrase each."""
    notebook = read_notebook(path)
    stored = as_text(notebook) == path.read_text(encoding="utf-8")
    return untidy(notebook) or ([] if stored else ["it is not stored as Jupyter stores it"])


def problems(path: Path) -> list[str]:
    """What only a person can mend, a sentence each with its cure."""
    notebook = read_notebook(path)
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    code = [source for kind, source in cells if kind == "code"]
    prose = [source for kind, source in cells if kind == "markdown"]
    found = [*_long_functions(code), *_machine_paths(cells), *_dead_links(prose, path)]
    if path.resolve() == (notebooks_folder() / "index.ipynb").resolve():
        return found  # It is about all papers, and has the sections of none.
    found = [*_disorder(cells), *found]
    if not path.with_suffix(".toml").is_file():
        return found
    try:
        found += _claims(load_paper(path.with_suffix(".toml")), code)
        if not any("names no kernel" in phrase for phrase in untidy(notebook)):
            check_notebook(path)
    except WorkbenchError as error:
        found.append(str(error).rstrip("."))
    return found


def _disorder(cells: list[tuple[str, str]]) -> Iterator[str]:
    if not cells or cells[0][0] != "markdown" or not cells[0][1].startswith("# "):
        yield "it does not begin with its title; make the first cell markdown that starts with '# '"
    if len(cells) < 2 or cells[1][0] != "code":
        yield "the parameters cell does not follow the title; move it there"
    headings = [
        line for kind, text in cells if kind == "markdown" for line in text.splitlines() if line.startswith("## ")
    ]
    places = []
    for name, pattern in SECTIONS:
        at = next((i for i, heading in enumerate(headings) if re.search(pattern, heading, re.IGNORECASE)), None)
        if at is None:
            yield f"it has no section for {name}; add a heading '## {name[0].upper()}{name[1:]}'"
        else:
            places.append((at, name))
    for (earlier, name), (later, following) in itertools.pairwise(places):
        if later < earlier:
            yield f"the section for {following} stands before that for {name}; swap them"


def _long_functions(code: list[str]) -> Iterator[str]:
    for source in code:
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue  # magics; a cell that Python can't read fails when it is run
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno
                if lines > LONGEST:
                    yield f"the function {node.name} has {lines} lines; move it into the package, where it is tested"


def _machine_paths(cells: list[tuple[str, str]]) -> Iterator[str]:
    for _, source in cells:
        for path in _MACHINE_PATH.findall(source):
            yield f"it holds the path {path} of one machine; use a relative path or a parameter"


def _claims(paper: Paper, code: list[str]) -> Iterator[str]:
    """A claim counts as measured if its id stands in the code: `measure` may be called in a loop over ids."""
    source = "\n".join(code)
    known = {claim.id for claim in paper.claims}
    named = set(re.findall(r"""["']([A-Z]\d+[a-z]?)["']""", source))
    measured = set(re.findall(r"""\bmeasure\(\s*["']([^"']+)["']""", source))
    for claim in paper.claims:
        if claim.mode != "gpu" and claim.id not in named | measured:
            yield f"claim {claim.id} is in the TOML but is not measured; measure it, or take it out of {paper.path.name}"
    for name in sorted(measured - known):
        yield f"claim {name} is measured but is not in {paper.path.name}; write it there before measuring it"


def _dead_links(prose: list[str], path: Path) -> Iterator[str]:
    for target in (target for source in prose for target in _LINK.findall(source)):
        if re.match(r"[a-z][a-z0-9+.-]*:|//|#", target, re.IGNORECASE):
            continue
        place = (path.parent / unquote(target.partition("#")[0])).resolve()
        if not place.is_relative_to(home().resolve()):
            yield f"the link {target} leads out of the repository; link to the web, or to a file inside"
        elif not place.exists():
            yield f"the link {target} leads nowhere; mend it"
