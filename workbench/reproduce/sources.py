"""Which source files a notebook's code reaches, and a digest of each.

Does: follow import statements, wherever they stand (in functions too), through the package and through modules that
lie beside the notebook, without running or importing anything. A package that loads its names when first used (a
module-level `__getattr__` over a literal table {submodule: (names, ...)}) is followed to the submodules whose names
are used. A computed import (`import_module(f"...{name}")`) counts as all modules that it could mean, once a name that
leads to it is used from another file.

Does not: see imports in `exec`, in `%run` or in a subprocess. Under `if TYPE_CHECKING:` nothing is imported, so
nothing there counts.

A file's digest is of its syntax tree: comments and layout are not in it. Docstrings are left out too, unless some
file on the way reads docstrings or sources at run time (`__doc__`, `getdoc`, `getsource`).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.checkpoint import write_atomically

PACKAGE = Path(__file__).resolve().parents[1]
# Facts of a file, kept from run to run under the digest of its bytes; this number changes with their meaning.
_FACTS = f"2, Python {platform.python_version()}"
_READS_ITSELF = {"__doc__", "getdoc", "getsource", "getsourcelines", "getsourcefile"}
# Its computed import is of what the tables of its callers name.
_ATTACHES = f"{PACKAGE.name}.lazy"
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Sources:
    """One look at the source tree: a file is read once as long as the object lives.

    memo: a file where facts are kept from run to run, by content; it may be missing, damaged or unwritable.
    """

    def __init__(self, memo: Path) -> None:
        self._memo_file = memo
        self._memo = _read_memo(memo)
        self._used: dict[str, dict[str, Any]] = {}
        self._facts: dict[Path, dict[str, Any]] = {}
        self._modules: dict[tuple[str, Path], tuple[list[tuple[str, Path]], str]] = {}

    def reached(self, code: str, beside: Path) -> dict[str, str]:
        """{file: digest} of all modules that `code` reaches.

        code: Python, e.g. a notebook's cells. beside: the folder it runs in, where its own modules may lie. Files are
        named from the package's parent ("workbench/run.py"), or by their place under `beside`.
        """
        used = list(self._known(code, "__main__", False)["uses"])
        seen: dict[Path, dict[str, Any]] = {}
        asked: set[str] = set()
        while used:
            dotted = used.pop()
            if dotted in asked:
                continue
            asked.add(dotted)
            modules, rest = self._module(dotted, beside)
            for name, path in modules:
                if path not in seen:
                    seen[path] = self._of(path, name)
                    used += seen[path]["uses"]
            if modules and rest:
                name, path = modules[-1]
                used += _followed(name, rest, seen[path], path)
        documented = any(facts["reads_itself"] for facts in seen.values())
        return {_shown(path, beside): facts["text" if documented else "code"] for path, facts in seen.items()}

    def keep(self) -> None:
        """Leave the facts for the next run; those that were not used go when they have become many."""
        kept = self._memo | self._used
        if kept != self._memo:
            with contextlib.suppress(OSError):
                write_atomically(self._memo_file, json.dumps(kept if len(kept) < 5_000 else self._used).encode())

    def _of(self, path: Path, module: str) -> dict[str, Any]:
        if path not in self._facts:
            source = path.read_text(encoding="utf-8", errors="replace")
            self._facts[path] = self._known(source, module, path.name == "__init__.py")
        return self._facts[path]

    def _known(self, source: str, module: str, is_package: bool) -> dict[str, Any]:
        key = hashlib.sha256(f"{_FACTS} {module} {source}".encode()).hexdigest()
        self._used[key] = self._memo.get(key) or self._used.get(key) or facts_of(source, module, is_package)
        return self._used[key]

    def _module(self, dotted: str, beside: Path) -> tuple[list[tuple[str, Path]], str]:
        """The module that `dotted` begins with, after the packages above it, and the attribute that follows."""
        parts = dotted.split(".")
        if len(parts) == 1:
            root = PACKAGE.parent if dotted == PACKAGE.name else beside
            return _step([], root, dotted)
        key = (dotted, beside if parts[0] != PACKAGE.name else PACKAGE)
        if key not in self._modules:
            above, rest = self._module(".".join(parts[:-1]), beside)
            inside = above and not rest and above[-1][1].name == "__init__.py"
            self._modules[key] = _step(above, above[-1][1].parent, parts[-1]) if inside else (above, rest or parts[-1])
        return self._modules[key]


def _step(above: list[tuple[str, Path]], folder: Path, part: str) -> tuple[list[tuple[str, Path]], str]:
    for path in (folder / part / "__init__.py", folder / f"{part}.py"):
        if path.is_file():
            return [*above, (".".join([*(name for name, _ in above[-1:]), part]), path)], ""
    return above, part


def _followed(module: str, attribute: str, facts: dict[str, Any], path: Path) -> list[str]:
    """What using `attribute` of a module brings in beyond the module itself."""
    table = facts["lazy"]
    if table is not None and attribute not in facts["defines"]:
        homes = [home for home, names in table.items() if attribute in names] or list(table)
        return [f"{module}.{home}.{attribute}" for home in homes] or _below(module, path)
    prefixes = facts["computed"].get(attribute, [])
    return [name for prefix in prefixes for name in _below(prefix.rstrip("."), path)]


def _below(package: str, path: Path) -> list[str]:
    """All modules of `package`, which is the one at `path` or a name below the workbench's own."""
    folder = PACKAGE.parent.joinpath(*package.split("."))
    folder = folder if folder.is_dir() else path.parent
    parts = [file.relative_to(folder).with_suffix("").parts for file in sorted(folder.rglob("*.py"))]
    return [".".join((package, *inner)).removesuffix(".__init__") for inner in parts]


def _shown(path: Path, beside: Path) -> str:
    root = PACKAGE.parent if path.is_relative_to(PACKAGE) else beside
    return path.relative_to(root).as_posix()


def _read_memo(path: Path) -> dict[str, Any]:
    try:
        memo = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def facts_of(source: str, module: str, is_package: bool) -> dict[str, Any]:
    """What a file says about imports, as JSON can hold it.

    uses         dotted names of modules, or of what is used of them ("workbench.models.load"; "*" is everything)
    lazy         {submodule: [names]} if names are loaded when first used, else null
    defines      names at the top of the file
    computed     {top-level name: [prefixes]} for computed imports that using the name may bring about
    code, text   digests without and with docstrings
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        # A cell with magics, or a file that can't be imported anyway: its text stands for itself.
        lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError:
            tree = ast.Module([], [])
    package = module if is_package else module.rpartition(".")[0]
    nodes = list(_executed(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    lazy = _table(tree) if "__getattr__" in _top_names(tree) else None
    computed = _computed(tree, package) if lazy is None and module != _ATTACHES else {}
    uses = _uses(nodes, package)
    for prefix in computed.pop("", []):
        uses.append(f"{prefix}*")
    text = _digest(tree, source)
    _strip_docstrings(tree)
    return {
        "uses": sorted(set(uses)),
        "lazy": lazy,
        "defines": sorted(_top_names(tree)),
        "computed": computed,
        "reads_itself": bool(names & _READS_ITSELF),
        "text": text,
        "code": _digest(tree, source),
    }


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """`ast.walk` without what stands under `if TYPE_CHECKING:`."""
    yield node
    checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in node.orelse if checking and isinstance(node, ast.If) else ast.iter_child_nodes(node):
        yield from _executed(child)


def _uses(nodes: list[ast.AST], package: str) -> list[str]:
    """Dotted names of what is imported, with the attributes that are used of what was bound."""
    found: list[str] = []
    bound: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(alias.name)
                name = alias.name if alias.asname else alias.name.split(".")[0]
                bound[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                found.append(f"{origin}.{alias.name}")
                bound[alias.asname or alias.name] = f"{origin}.{alias.name}"
        elif isinstance(node, ast.Call) and _is_import_call(node) and isinstance(node.args[0], ast.Constant):
            found.append(str(node.args[0].value))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if id(node) in inner:
            continue
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in bound:
            found.append(".".join([bound[node.id], *(attributes[::-1] or ["*"])]))
    return found


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__") and bool(node.args)


def _computed(tree: ast.Module, package: str) -> dict[str, list[str]]:
    """{top-level name: prefixes} of computed imports, followed through the file; "" is code outside any definition."""
    direct: dict[str, set[str]] = {}
    mentions: dict[str, set[str]] = {}
    for statement in tree.body:
        name = statement.name if isinstance(statement, _Functions) else ""
        for node in _executed(statement):
            if isinstance(node, ast.Call) and _is_import_call(node) and not isinstance(node.args[0], ast.Constant):
                direct.setdefault(name, set()).add(_prefix(node.args[0]) or f"{package}.")
            if isinstance(node, ast.Name):
                mentions.setdefault(name, set()).add(node.id)
    grown = True
    while grown:
        grown = False
        for name, said in mentions.items():
            more = set().union(*(direct.get(other, set()) for other in said if other != name))
            if not more <= direct.get(name, set()):
                direct.setdefault(name, set()).update(more)
                grown = True
    return {name: sorted(prefixes) for name, prefixes in direct.items()}


def _prefix(argument: ast.expr) -> str:
    """The constant beginning of an f-string."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else None
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _table(tree: ast.Module) -> dict[str, list[str]]:
    """The literal {submodule: (names, ...)} at the top of a file."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            try:
                table = ast.literal_eval(statement.value)
            except ValueError:
                continue
            if all(isinstance(key, str) and isinstance(names, tuple | list) for key, names in table.items()):
                return {key: [str(name) for name in names] for key, names in table.items()}
    return {}


def _top_names(tree: ast.Module) -> set[str]:
    names = {statement.name for statement in tree.body if isinstance(statement, _Functions)}
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        inner = [node for target in targets if target is not None for node in ast.walk(target)]
        names |= {node.id for node in inner if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
    return names


def _strip_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *_Functions)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def _digest(tree: ast.Module, source: str) -> str:
    return hashlib.sha256((ast.dump(tree) if tree.body else source).encode()).hexdigest()[:16]
