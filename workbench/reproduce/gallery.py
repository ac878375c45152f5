"""The gallery, notebooks/README.md: every paper with its picture, its verdicts and its links.

Does: write it from the TOMLs (the verdicts are the ones that they expect), and make a small picture of a paper's best
figure from its executed notebook. Does not: run notebooks.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError
from workbench.papers import FAMILIES, VERDICTS, Paper, all_papers, how_many
from workbench.paths import notebooks_folder

THUMBNAIL_BYTES = 40_000
_WIDTH = 480  # pixels; shown at half of it


def gallery_text() -> str:
    """notebooks/README.md as the TOMLs and the pictures that are there have it."""
    papers = all_papers()
    ready = [paper for paper in papers.values() if paper.status == "ready"]
    lines = [
        "# Gallery",
        "",
        "<!-- Written by `workbench gallery`; change the TOMLs, not this file. -->",
        "",
        f"{len(ready)} of {how_many(papers.values())} are ready. The verdicts are those that each paper's TOML expects, and a run "
        "that measures a worse one says so; `make reproduce` measures them, `make control` runs each paper with its method "
        "switched off. The seconds are those of scale `quick`.",
        "",
    ]
    for family in FAMILIES:
        members = [paper for paper in papers.values() if paper.family == family]
        done = [paper for paper in members if paper.status == "ready"]
        planned = [paper for paper in members if paper.status != "ready"]
        if members:
            lines += [f"## {family.replace('_', ' ').capitalize()}", ""]
        if done:
            lines += ["| | paper | claims, as expected | time | files |", "|---|---|---|---|---|"]
            lines += [_row(paper) for paper in done]
            lines.append("")
        if planned:
            lines += ["Planned: " + ", ".join(_planned(paper) for paper in planned) + ".", ""]
    return "\n".join(lines)


def _row(paper: Paper) -> str:
    place = f"{paper.family}/{paper.slug}"
    picture = (
        f'<img src="{place}.png" width="240" alt="A figure of {paper.slug}">' if thumbnail(paper).is_file() else ""
    )
    about = f"**[{_cell(paper.title)}]({place}.ipynb)** ({paper.year})<br>{_cell(paper.summary)}"
    expected = ["needs gpu" if claim.mode == "gpu" else claim.expected for claim in paper.claims]
    claims = ", ".join(f"{expected.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in expected)
    seconds = f"{paper.seconds['quick']:g} s" if "quick" in paper.seconds else ""
    name = paper.slug.replace("-", "_")
    method = f"../workbench/methods/{paper.family}/{name}.py"
    links = [f"[notebook]({place}.ipynb)", f"[claims]({place}.toml)"]
    links += [f"[method]({method})"] if (notebooks_folder() / method).is_file() else []
    links += [f"[paper]({paper.url})"] if paper.url else []
    return f"| {picture} | {about} | {claims} | {seconds} | {' · '.join(links)} |"


def _planned(paper: Paper) -> str:
    return f"[{paper.slug}]({paper.url})" if paper.url else paper.slug


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def thumbnail(paper: Paper) -> Path:
    return paper.path.with_suffix(".png")


def write_gallery() -> Path:
    """Write notebooks/README.md and give back its path."""
    path = notebooks_folder() / "README.md"
    try:
        write_atomically(path, gallery_text().encode())
    except OSError as error:
        raise WorkbenchError(f"The gallery {path} can't be written ({error.strerror}); make it writable.") from None
    return path


def write_thumbnail(paper: Paper, executed: Path) -> bool:
    """Make `<slug>.png` of the executed notebook's best figure; False if it has none.

    The best figure is that of the first cell tagged "thumbnail", else the first after the heading that begins with
    "The reproduction", else the first.
    """
    import nbformat

    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, AttributeError) as error:
        raise WorkbenchError(
            f"The executed notebook {executed} can't be read ({type(error).__name__}); run {paper.slug} again with --fresh."
        ) from None
    figure = _best_figure(cells)
    if figure is None:
        return False
    write_atomically(thumbnail(paper), small_png(base64.b64decode(figure)))
    return True


def _best_figure(cells: list[Any]) -> str | None:
    figures, reproducing = [], False
    for cell in cells:
        if cell.cell_type == "markdown":
            reproducing = reproducing or cell.source.lstrip("# ").lower().startswith("the reproduction")
            continue
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                rank = 0 if "thumbnail" in cell.metadata.get("tags", []) else 1 if reproducing else 2
                figures.append((rank, png))
    return min(figures, key=lambda figure: figure[0])[1] if figures else None


def small_png(png: bytes) -> bytes:
    """The picture at 480 pixels' width or less, in so few colours that it takes at most 40 kB."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.thumbnail((_WIDTH, 2 * _WIDTH), Image.Resampling.LANCZOS)
    small = png
    for colours in (128, 64, 32, 16, 8):
        buffer = io.BytesIO()
        picture.quantize(colours, method=Image.Quantize.MEDIANCUT).save(buffer, "PNG", optimize=True)
        small = buffer.getvalue()
        if len(small) <= THUMBNAIL_BYTES:
            break
    return small
