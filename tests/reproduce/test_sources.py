"""Which files a notebook depends on: neither too few nor too many."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.reproduce import sources
from workbench.reproduce.cache import code_cells
from workbench.reproduce.sources import Sources

ROOT = Path(__file__).resolve().parents[2]
STORED = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*/*.ipynb"))}
FOUR = {"batch-pi", "best-of-majority", "lm-tail-risk", "saber"}


@pytest.fixture(scope="module")
def memo(tmp_path_factory):
    """Facts are kept by content, so that all copies may share them."""
    return tmp_path_factory.mktemp("memo") / "memo.json"


@pytest.fixture
def package(tmp_path, monkeypatch, memo):
    """A copy of the package that may be changed."""
    copy = tmp_path / "workbench"
    shutil.copytree(ROOT / "workbench", copy, ignore=shutil.ignore_patterns("__pycache__"))
    if memo.exists():
        shutil.copy(memo, tmp_path / "memo.json")
    monkeypatch.setattr(sources, "PACKAGE", copy)
    yield copy
    if not memo.exists():
        shutil.copy(tmp_path / "memo.json", memo)


def reached(package: Path) -> dict[str, dict[str, str]]:
    looked = Sources(package.parent / "memo.json")
    found = {slug: looked.reached("\n".join(code_cells(path)), path.parent) for slug, path in STORED.items()}
    looked.keep()
    return {slug: found[slug] for slug in sorted(FOUR)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} no longer holds {old!r}: mend this test"
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    "file, dependants",
    [
        ("methods/tail_risk/saber.py", {"saber"}),
        ("methods/tail_risk/monte_carlo.py", {"lm-tail-risk"}),
        ("methods/tail_risk/proportions.py", {"saber", "lm-tail-risk"}),
        ("methods/conformal/batch_pi.py", {"batch-pi"}),
        ("methods/decoding/best_of_majority.py", {"best-of-majority"}),
        ("problems/event.py", {"lm-tail-risk"}),
        ("models/sampling.py", FOUR - {"batch-pi"}),
        ("plots/__init__.py", FOUR),
        ("streams.py", FOUR),
        ("models/recipes/chat.py", set()),
        ("models/endpoint_check.py", set()),
        ("reproduce/engine.py", set()),
        ("cli.py", set()),
    ],
)
def test_a_changed_file_changes_exactly_its_dependants(package, file, dependants):
    before = reached(package)
    with (package / file).open("a") as source:
        source.write("\n_CHANGED = 1\n")
    after = reached(package)
    assert {slug for slug in FOUR if before[slug] != after[slug]} == dependants
    name = f"workbench/{file}"
    assert all(
        before[slug].keys() == after[slug].keys() and (name in after[slug]) == (slug in dependants) for slug in FOUR
    )


def test_comments_layout_and_docstrings_change_nothing(package):
    before = reached(package)
    path = package / "methods" / "tail_risk" / "saber.py"
    path.write_text(
        '"""Another docstring."""\n# a comment\n' + path.read_text().split('"""', 2)[2].replace("\n\n\n", "\n\n")
    )
    edit(package / "budget.py", '"""', '"""Changed: ')
    assert reached(package) == before


def test_docstrings_count_where_code_reads_them(package):
    with (package / "streams.py").open("a") as source:
        source.write("\nSHOWN = Stream.__doc__\n")
    before = reached(package)
    edit(package / "budget.py", '"""', '"""Changed: ')
    assert all(before[slug] != found for slug, found in reached(package).items())


@pytest.mark.parametrize("slug", ["best-of-majority", "saber"])
def test_nothing_that_is_imported_is_missed(slug):
    """Against Python itself: the modules that are there once a notebook's import statements have run, and the names
    that it takes from workbench.models have been looked up."""
    cells = "\n".join(code_cells(STORED[slug]))
    script = (
        "import ast, json, sys\n"
        "tree = ast.parse(sys.stdin.read())\n"
        "for node in ast.walk(tree):\n"
        "    if isinstance(node, (ast.Import, ast.ImportFrom)): exec(ast.unparse(node))\n"
        "for node in ast.walk(tree):\n"
        "    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == 'models': getattr(models, node.attr)\n"
        "print(json.dumps([m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'workbench']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=cells, capture_output=True, text=True, cwd=ROOT, check=True
    )
    imported = {Path(file).relative_to(ROOT).as_posix() for file in json.loads(done.stdout)}
    found = Sources(Path(os.devnull)).reached(cells, STORED[slug].parent)
    assert imported <= found.keys(), sorted(imported - found.keys())


TREE = {
    "__init__.py": "",
    "lazy/__init__.py": (
        "from importlib import import_module\n_HOME = {'one': ('first', 'uno'), 'two': ('second',)}\n"
        "def __getattr__(name): return getattr(import_module(f'{__name__}.{name}'), name)\n"
    ),
    "lazy/one.py": "first = uno = 1",
    "lazy/two.py": "from workbench import far\nsecond = 2",
    "far.py": "",
    "typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from workbench import far\n",
    "inner.py": "def f():\n    from . import far\n",
    "named.py": "from importlib import import_module\nimport_module('workbench.far')",
    "computed.py": (
        "from importlib import import_module\ndef _one(n): return import_module(f'workbench.lazy.{n}')\n"
        "def build(n): return _one(n)\ndef other(): pass\n"
    ),
    "at_once.py": "from importlib import import_module\nfor n in ('one',): import_module(f'workbench.lazy.{n}')\n",
}


@pytest.mark.parametrize(
    "code, files",
    [
        ("import workbench.lazy", {"lazy/__init__"}),
        ("from workbench.lazy import first", {"lazy/__init__", "lazy/one"}),
        ("from workbench import lazy\nlazy.uno", {"lazy/__init__", "lazy/one"}),
        ("import workbench as wb\nwb.lazy.second", {"lazy/__init__", "lazy/two", "far"}),
        ("from workbench import lazy as l\ngetattr(l, name)", {"lazy/__init__", "lazy/one", "lazy/two", "far"}),
        ("from workbench.lazy import *", {"lazy/__init__", "lazy/one", "lazy/two", "far"}),
        ("from workbench.lazy import unknown", {"lazy/__init__", "lazy/one", "lazy/two", "far"}),
        ("import workbench.typed", {"typed"}),
        ("def f():\n    import workbench.inner", {"inner", "far"}),
        ("%matplotlib inline\n!ls\nimport workbench.named", {"named", "far"}),
        ("from workbench.computed import other", {"computed"}),
        ("from workbench.computed import build", {"computed", "lazy/__init__", "lazy/one", "lazy/two", "far"}),
        ("import workbench.at_once", {"at_once", "lazy/__init__", "lazy/one", "lazy/two", "far"}),
        ("import beside", {"inner", "far"}),
    ],
)
def test_ways_to_import(tmp_path, monkeypatch, code, files):
    for name, text in TREE.items():
        path = tmp_path / "workbench" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "beside.py").write_text("from workbench import inner")
    monkeypatch.setattr(sources, "PACKAGE", tmp_path / "workbench")
    found = Sources(tmp_path / "memo.json").reached(code, tmp_path / "books")
    expected = {f"workbench/{name}.py" for name in files | {"__init__"}} | (
        {"beside.py"} if "beside" in code else set()
    )
    assert found.keys() == expected


def test_a_damaged_memo_is_as_good_as_none(package):
    before = reached(package)
    (package.parent / "memo.json").write_text("{")
    assert reached(package) == before
    for content in ("[]", "null"):
        (package.parent / "memo.json").write_text(content)
        assert Sources(package.parent / "memo.json").reached("import math", package) == {}
