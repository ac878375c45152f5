"""The registry: what each paper says, and how a measured value becomes a verdict.

A paper is described by `notebooks/<family>/<slug>.toml`; the slug is the file's name. A claim is
written there before it is measured, with its pass condition; a notebook only supplies the value.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import WorkbenchError
from workbench.paths import notebooks_folder

FAMILIES = (
    "tail_risk",
    "conformal",
    "decoding",
    "budgeted_rl",
    "verifiers",
    "learning",
    "causal",
    "applied",
    "audits",
)
KINDS = ("method", "theory", "benchmark", "audit", "survey", "application", "ours")
STATUSES = ("planned", "draft", "ready")
MODES = ("exact", "scaled", "gpu")
BARS = ("prototype", "theory", "paper")
SCALES = ("quick", "full", "gpu")
MEASURED_VERDICTS = ("reproduced", "consistent", "not reproduced")
VERDICTS = (*MEASURED_VERDICTS, "needs gpu", "not run")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_ONE_SIDED = re.compile(rf"^(>=|<=|>|<)\s*({_NUMBER})$")
_TWO_SIDED = re.compile(rf"^in\s*\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]$")


@dataclass(frozen=True)
class Condition:
    """A pass condition: `>= x`, `> x`, `<= x`, `< x` or `in [a, b]` (both ends included)."""

    text: str

    def __post_init__(self) -> None:
        two = _TWO_SIDED.match(self.text)
        if not two and not _ONE_SIDED.match(self.text):
            raise WorkbenchError(f"passes is {self.text!r} but must read like '>= 3', '< 0.05' or 'in [0.9, 1.1]'.")
        if two and float(two[1]) > float(two[2]):
            raise WorkbenchError(f"passes is {self.text!r} but its first number must not exceed its second; swap them.")

    def holds(self, value: float) -> bool:
        two = _TWO_SIDED.match(self.text)
        if two:
            return float(two[1]) <= value <= float(two[2])
        sign, bar = _ONE_SIDED.match(self.text).groups()  # type: ignore[union-attr]
        bar = float(bar)
        return {">=": value >= bar, ">": value > bar, "<=": value <= bar, "<": value < bar}[sign]

    def verdict(self, value: float, low: float, high: float) -> str:
        """`reproduced` if every value in [low, high] passes, `consistent` if only the point does."""
        if self.holds(low) and self.holds(high):
            return "reproduced"
        return "consistent" if self.holds(value) else "not reproduced"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure of a paper that we measure again.

    id           short name, unique within the paper, e.g. "C1a"
    statement    what the paper says, in a sentence
    source       where it says so (table, figure, section, theorem)
    paper        the paper's figure, as printed
    mode         exact (no sampling error that matters) | scaled (smaller than the paper's) | gpu
    measure      what we compute, in a sentence
    passes       the condition on the measured value
    control      what replaces the method under --control, where the claim must fail; empty if none
    bar          where the pass condition comes from: prototype | theory | paper
    expected     the worst verdict that is not an alarm
    note         what a reader of the verdict should know
    """

    id: str
    statement: str
    source: str
    paper: str
    mode: str
    measure: str
    passes: str
    bar: str
    control: str = ""
    expected: str = "reproduced"
    note: str = ""

    @property
    def condition(self) -> Condition:
        return Condition(self.passes)

    def expects(self, control: bool) -> str:
        """The worst verdict that is no alarm; with the method switched off the claim must fail."""
        return "not reproduced" if control and self.control else self.expected

    def alarming(self, verdict: str, *, control: bool = False) -> bool:
        """Whether `verdict` is worse than expected; under control, better than "not reproduced" is worse."""
        if verdict == "needs gpu":
            return self.mode != "gpu"
        if verdict == "not run":
            return True
        if control and self.control:
            return verdict != "not reproduced"
        return MEASURED_VERDICTS.index(verdict) > MEASURED_VERDICTS.index(self.expected)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and its claims, as its TOML states them. `seconds` is the notebook's usual time by scale."""

    slug: str
    title: str
    authors: tuple[str, ...]
    year: int
    family: str
    kind: str
    status: str
    summary: str
    path: Path
    arxiv: str = ""
    doi: str = ""
    venue: str = ""
    code: str = ""
    data: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    @property
    def notebook(self) -> Path:
        return self.path.with_suffix(".ipynb")

    @property
    def citation(self) -> str:
        by = ", ".join(self.authors[:3]) + (" et al." if len(self.authors) > 3 else "")
        where = f"arXiv:{self.arxiv}" if self.arxiv else (self.venue or self.doi)
        return ". ".join(part for part in (by.rstrip("."), f"{self.title} ({self.year})", where) if part) + "."

    @property
    def url(self) -> str:
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else self.code

    def claim(self, claim_id: str) -> Claim:
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        ids = ", ".join(claim.id for claim in self.claims) or "none yet"
        raise WorkbenchError(
            f"{self.slug} has no claim {claim_id!r} (it has {ids}); write it into {self.path.name} before measuring it."
        )

    def summary_dict(self) -> dict[str, Any]:
        """What `workbench list --json` prints: everything but the file's place."""
        data = msgspec.to_builtins({name: getattr(self, name) for name in self.__dataclass_fields__ if name != "path"})
        return data | {"url": self.url}


def _fail(path: Path, where: str, problem: str, cure: str) -> WorkbenchError:
    shown = Path(path.parent.name) / path.name
    return WorkbenchError(f"{shown}: {where}{problem}; {cure}.")


def _checked(path: Path, where: str, table: dict[str, Any], kind: type, given: dict[str, Any]) -> Any:
    """`table` as an instance of `kind`, or one sentence with file, key and cure."""
    known = [name for name in kind.__dataclass_fields__ if name not in given]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            cure = f"did you mean '{near[0]}'" if near else f"the keys are {', '.join(known)}"
            raise _fail(path, where, f"unknown key '{key}'", cure)
    try:
        return msgspec.convert(table | given, kind, dec_hook=lambda wanted, value: value)
    except msgspec.ValidationError as error:
        text = str(error)
        missing = re.search(r"missing required field `(\w+)`", text)
        if missing:
            raise _fail(path, where, f"key '{missing[1]}' is missing", f'add a line {missing[1]} = "..."') from None
        at = re.search(r"at `\$\.(.+?)`", text)
        key = at[1] if at else "?"
        problem = text.split(" - at")[0].replace("`", "'").lower()
        raise _fail(
            path, where, f"key '{key}' has the wrong type ({problem})", "see CONTRIBUTING.md for each key's type"
        ) from None


def _one_of(path: Path, where: str, key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _fail(path, where, f"key '{key}' is {value!r}", f"it must be one of {', '.join(allowed)}")


def load_paper(path: Path) -> Paper:
    """Read and check one `<slug>.toml`."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise _fail(
            path, "", f"not valid TOML ({error})", "mend that line: text in double quotes, lists in [ ]"
        ) from None
    except UnicodeDecodeError:
        raise _fail(path, "", "not UTF-8 text", "save the file as UTF-8") from None
    except OSError as error:
        raise _fail(
            path, "", f"can't be read ({error.strerror})", "check that the file is there and readable"
        ) from None
    raw_claims = table.pop("claims", [])
    if not isinstance(raw_claims, list) or not all(isinstance(raw, dict) for raw in raw_claims):
        raise _fail(path, "", "key 'claims' has the wrong type", "write each claim under its own [[claims]]")
    claims = []
    for number, raw in enumerate(raw_claims, start=1):
        where = f"claim {raw.get('id', number)}: "
        claim = _checked(path, where, raw, Claim, {})
        _one_of(path, where, "mode", claim.mode, MODES)
        _one_of(path, where, "bar", claim.bar, BARS)
        _one_of(path, where, "expected", claim.expected, MEASURED_VERDICTS)
        try:
            Condition(claim.passes)
        except WorkbenchError as error:
            raise _fail(path, where, str(error).rstrip("."), "mend the pass condition") from None
        if any(claim.id == other.id for other in claims):
            raise _fail(path, where, f"id {claim.id!r} is used twice", "give each claim its own id")
        claims.append(claim)
    paper = _checked(path, "", table, Paper, {"slug": path.stem, "path": path, "claims": tuple(claims)})
    _one_of(path, "", "family", paper.family, FAMILIES)
    _one_of(path, "", "kind", paper.kind, KINDS)
    _one_of(path, "", "status", paper.status, STATUSES)
    if paper.family != path.parent.name:
        raise _fail(
            path,
            "",
            f"key 'family' is {paper.family!r} but the file lies in {path.parent.name}/",
            "move the file or change the key",
        )
    if paper.status == "ready" and not claims:
        raise _fail(
            path, "", "key 'status' is 'ready' but there is no claim", 'add [[claims]], or set status = "planned"'
        )
    for scale in paper.seconds:
        _one_of(path, "seconds: ", "scale", scale, SCALES)
    return paper


@cache
def _registry(folder: Path) -> dict[str, Paper]:
    papers: dict[str, Paper] = {}
    for family in FAMILIES:
        for path in sorted((folder / family).glob("*.toml")):
            paper = load_paper(path)
            if paper.slug in papers:
                raise _fail(
                    path,
                    "",
                    f"slug {paper.slug!r} is also in {papers[paper.slug].family}/",
                    "rename one of the two files",
                )
            papers[paper.slug] = paper
    return papers


def all_papers() -> dict[str, Paper]:
    """Every paper by slug, in the order of the families."""
    return dict(_registry(notebooks_folder()))


def how_many(papers: Iterable[Paper]) -> str:
    """ "98 papers", or "98 papers and 1 of our own", where kind "ours" is among them."""
    kinds = [paper.kind for paper in papers]
    own = kinds.count("ours")
    return f"{len(kinds) - own} papers" + (f" and {own} of our own" if own else "")


def find_paper(slug: str) -> Paper:
    """The paper with this slug, or a refusal that names the nearest ones. Other papers' files are not read."""
    folder = notebooks_folder()
    for family in FAMILIES:
        path = folder / family / f"{slug}.toml"
        if re.fullmatch(r"[a-z0-9-]+", slug) and path.is_file():
            return load_paper(path)
    slugs = [path.stem for family in FAMILIES for path in (folder / family).glob("*.toml")]
    near = get_close_matches(slug, slugs, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "'workbench list' shows all slugs."
    raise WorkbenchError(f"There is no paper with the slug {slug!r}; {hint}")


def check_measured(claim: Claim, value: float, interval: tuple[float, float] | None) -> tuple[float, float, float]:
    """(value, low, high) as floats, or a refusal; a claim with sampling error needs its interval."""
    if interval is None and claim.mode != "exact":
        raise WorkbenchError(
            f"Claim {claim.id} was measured without an interval but its mode is {claim.mode!r}; pass interval=(low, high)."
        )
    low, high = interval if interval is not None else (value, value)
    numbers = [float(value), float(low), float(high)]
    if not all(math.isfinite(number) for number in numbers):
        raise WorkbenchError(
            f"Claim {claim.id} was measured as {value} in ({low}, {high}) but all three must be finite; look for a division by zero or an empty sample."
        )
    if not numbers[1] <= numbers[0] <= numbers[2]:
        raise WorkbenchError(
            f"Claim {claim.id} was measured as {value:g}, outside its own interval ({low:g}, {high:g}); check the order of the interval's ends."
        )
    return numbers[0], numbers[1], numbers[2]
