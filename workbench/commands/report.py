"""`workbench report` and `workbench gallery`.

Does: find the runs that were named, build their pages, say where they are. Does not: run notebooks.
"""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.errors import WorkbenchError, refuse


def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN [RUN]]", help="A run, or two to compare; default: the latest.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder in which the runs lie.")] = Path("runs"),
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    to: Annotated[
        Path | None, typer.Option(help="Write the pages there, ready to be published; default: into the run's folder.")
    ] = None,
) -> None:
    """Build the report of a run as pages that need no network, or show what moved between two runs."""
    from workbench.reproduce.history import find_run, latest_run, recorded_run
    from workbench.reproduce.report import build_site

    trouble: list[str] = []
    if names and len(names) > 2:
        raise WorkbenchError(f"'workbench report' takes one run, or two to compare, but got {len(names)}; name two.")
    if to is not None and to.exists() and not to.is_dir():
        raise refuse("--to", str(to), "be a folder", "choose another")
    if names and len(names) == 2:
        path = _compare(*(recorded_run(find_run(runs, name)) for name in names), to=to)
    else:
        run, trouble = (recorded_run(find_run(runs, names[0])), []) if names else latest_run(runs)
        path, left_out = build_site(run, to)
        trouble = list(dict.fromkeys([*trouble, *left_out]))
        unfinished = sum(one.state in ("waiting", "running") for one in run.notebooks.values())
        if unfinished:
            print(
                f"Run {run.id} is under way, or was cut short: {unfinished} of {len(run.notebooks)} notebook runs have not ended. "
                f"Build the report again later, or go on with: workbench reproduce --resume --run {run.id} --out {runs}",
                file=sys.stderr,
            )
    for sentence in trouble:
        print(f"workbench: left out: {sentence}", file=sys.stderr)
    print(f"Report: {path}")
    if open_ and not webbrowser.open(path.resolve().as_uri()):
        print("workbench: no browser could be opened; open the file above by hand.", file=sys.stderr)


def _compare(old: Any, new: Any, *, to: Path | None) -> Path:
    from workbench.reproduce.compare import compare, counts, notes, write_comparison
    from workbench.reproduce.drawing import said

    changes = compare(old, new)
    path = write_comparison(old, new, to)
    found = counts(changes)
    for change in changes:
        if change.moved or change.verdict_changed or change.bar_changed:
            before, after = (said(row) if row else "" for row in (change.old, change.new))
            verdicts = " -> ".join(dict.fromkeys(row["verdict"] for row in (change.old, change.new) if row))
            bar = f"; passes if {change.old['passes']} -> {change.new['passes']}" if change.bar_changed else ""  # type: ignore[index]
            print(f"{change.name}: {before or 'nothing'} -> {after or 'nothing'} ({change.kind}); {verdicts}{bar}")
    for note in notes(old, new):
        print(note, file=sys.stderr)
    print(
        f"{len(changes)} claims: {found['apart'] + found['outside']} moved beyond their earlier interval "
        f"({found['apart']} with no point in common), {found['better']} verdicts better, {found['worse']} worse."
    )
    return path


def gallery(
    pictures: Annotated[
        str, typer.Option("--pictures", help='Also make each paper\'s picture anew from this run ("latest" or its id).')
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder in which the runs lie.")] = Path("runs"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if the gallery is stale.")] = False,
) -> None:
    """Write notebooks/README.md from the TOMLs."""
    from workbench.papers import find_paper
    from workbench.paths import notebooks_folder
    from workbench.reproduce.gallery import gallery_text, write_gallery, write_thumbnail
    from workbench.reproduce.history import find_run, latest_run, recorded_run

    if check:
        readme = notebooks_folder() / "README.md"
        if not readme.is_file() or readme.read_text(encoding="utf-8") != gallery_text():
            print("notebooks/README.md is stale; write it with 'workbench gallery'.", file=sys.stderr)
            raise typer.Exit(1)
        return
    if pictures:
        run = latest_run(runs)[0] if pictures == "latest" else recorded_run(find_run(runs, pictures))
        for slug in run.slugs:
            if run.notebooks[slug].state == "done" and not write_thumbnail(
                find_paper(slug), run.folder / f"{slug}.ipynb"
            ):
                print(f"workbench: {slug} shows no figure, so it has no picture.", file=sys.stderr)
    print(f"Gallery: {write_gallery()}")
