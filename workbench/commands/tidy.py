"""`workbench tidy`: notebooks as they are stored.

Does: mend what a program can, tell what a person must. Exit status 1 if something is left, or under --check if
anything would have been mended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from workbench.errors import WorkbenchError


def tidy(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Notebooks, or folders of them; default: all papers'.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what would be changed.")] = False,
) -> None:
    """Strip notebooks of outputs and idle metadata, and say what else is wrong with them."""
    from workbench.reproduce import tidy as notebooks

    found = notebooks.find_notebooks(paths or [])
    mended = left = 0
    for path in found:
        try:
            phrases = notebooks.untidy_file(path) if check else notebooks.tidy(path)
            sentences = notebooks.problems(path)
        except (WorkbenchError, OSError) as error:
            phrases, sentences = [], [str(error).rstrip(".")]
        mended, left = mended + bool(phrases), left + bool(sentences)
        for phrase in phrases:
            print(f"{path}: {phrase}{' (run: workbench tidy)' if check else ': mended'}")
        for sentence in sentences:
            print(f"{path}: {sentence}")
    state = f"{mended} {'to mend' if check else 'mended'}, {left} with something left to do"
    print(
        f"{len(found)} notebook{'s' * (len(found) != 1)}: {state if mended or left else 'all tidy'}.", file=sys.stderr
    )
    raise typer.Exit(1 if left or (check and mended) else 0)
