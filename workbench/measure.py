"""A paper as its notebook sees it: parameters, randomness, and `measure`, which turns a value into a verdict.

What `measure` records travels in the notebook's own outputs (mime type CLAIM_MIME), so that every
runner of notebooks keeps it, a half-finished notebook included.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from typing import Any, TypeVar

from workbench import reads
from workbench.budget import Meter, Spend
from workbench.errors import require_choice
from workbench.papers import SCALES, Claim, Paper, check_measured, find_paper
from workbench.paths import datasets_folder, home
from workbench.streams import Stream

CLAIM_MIME = "application/vnd.workbench.claim+json"
_COLOURS = {"reproduced": "#0b7a55", "consistent": "#8a6d00", "not reproduced": "#b3402a"}
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """A claim's measured value with its interval, verdict, and what it cost since the previous claim."""

    slug: str
    claim: Claim
    value: float
    low: float
    high: float
    verdict: str
    scale: str
    seed: int
    controlled: bool
    spend: Spend
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """One entry of claims.json."""
        return {
            "slug": self.slug,
            "claim": self.claim.id,
            "mode": self.claim.mode,
            "statement": self.claim.statement,
            "paper": self.claim.paper,
            "measure": self.claim.measure,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "passes": self.claim.passes,
            "verdict": self.verdict,
            "expected": self.claim.expects(self.controlled),
            "control": self.claim.control or None,
            "controlled": self.controlled,
            "seed": self.seed,
            "scale": self.scale,
            "seconds": round(self.spend.seconds, 3),
            "tokens": int(self.spend.tokens),
            "note": " ".join(part for part in (self.claim.note, self.note) if part),
        }

    @property
    def interval(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def __str__(self) -> str:
        control = f" [control: {self.claim.control}]" if self.controlled and self.claim.control else ""
        return f"{self.claim.id} {self.verdict}{control}: {self.claim.measure} = {self.interval}; passes {self.claim.passes}; the paper: {self.claim.paper}"

    def _repr_html_(self) -> str:
        say = html.escape
        colour = _COLOURS[self.verdict]
        control = f"<br><em>Control: {say(self.claim.control)}.</em>" if self.controlled and self.claim.control else ""
        notes = "".join(f"<br><small>{say(note)}</small>" for note in (self.claim.note, self.note) if note)
        return (
            f'<div style="border-left:4px solid {colour};padding:.3em .8em;margin:.4em 0;max-width:46em">'
            f'<strong style="color:{colour}">{say(self.claim.id)}: {say(self.verdict)}</strong>'
            f" &nbsp; {say(self.claim.statement)}{control}<br>"
            f"<small>{say(self.claim.measure)}:</small> <strong>{say(self.interval)}</strong>"
            f" &nbsp;<small>passes if {say(self.claim.passes)} &nbsp;·&nbsp; the paper ({say(self.claim.source)}): {say(self.claim.paper)}</small>"
            f"{notes}</div>"
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        record = self.to_dict() | {"reads": reads.seen(home())}
        return {"text/plain": str(self), "text/html": self._repr_html_(), CLAIM_MIME: record}


class Reproduction:
    """One run of one paper's notebook. Made by `workbench.paper(slug, scale=..., seed=..., control=...)`."""

    def __init__(self, paper: Paper, scale: str, seed: int, control: bool) -> None:
        self.paper, self.scale, self.seed, self.control = paper, scale, seed, control
        self.stream = Stream.of(seed, paper.slug)
        self.measured: dict[str, Measured] = {}
        # Left open on purpose: it counts all that the notebook's kernel spends.
        self._meter = Meter().__enter__()
        self._counted = Spend()

    def pick(self, quick: T, full: T, gpu: T | None = None) -> T:
        """The value for this run's scale; `gpu` falls back to `full`."""
        return {"quick": quick, "full": full, "gpu": full if gpu is None else gpu}[self.scale]

    def measure(self, claim_id: str, value: float, interval: tuple[float, float] | None = None, note: str = "") -> None:
        """Record and show a claim's measured value.

        interval: (low, high), 95 % unless the claim says otherwise; may be left out for mode "exact".
        Raises a sentence when the claim is not in the TOML, the value is not finite, or lies outside.
        """
        claim = self.paper.claim(claim_id)
        value, low, high = check_measured(claim, value, interval)
        now = self._meter.spend
        spent, self._counted = now - self._counted, now
        verdict = claim.condition.verdict(value, low, high)
        measured = Measured(
            self.paper.slug, claim, value, low, high, verdict, self.scale, self.seed, self.control, spent, note
        )
        self.measured[claim_id] = measured
        show(measured)

    def verdicts(self) -> VerdictTable:
        """The table of all claims, for a notebook's last cell."""
        return VerdictTable(self)

    def __str__(self) -> str:
        return f"{self.paper.title}\n{self.paper.citation}\n{self.paper.summary}"

    def _repr_html_(self) -> str:
        paper, say = self.paper, html.escape
        links = " · ".join(
            f'<a href="{say(link)}">{name}</a>' for name, link in (("paper", paper.url), ("code", paper.code)) if link
        )
        state = f"scale {self.scale}, seed {self.seed}" + (
            ", <strong>control: the method is switched off</strong>" if self.control else ""
        )
        return (
            f"<p><strong>{say(paper.citation)}</strong> {links}<br>{say(paper.summary)}<br><small>{state}</small></p>"
        )


class VerdictTable:
    """All claims of a paper with what was measured in this run."""

    def __init__(self, run: Reproduction) -> None:
        self.rows = []
        for claim in run.paper.claims:
            got = run.measured.get(claim.id)
            verdict = got.verdict if got else ("needs gpu" if claim.mode == "gpu" else "not run")
            self.rows.append((claim.id, claim.measure, claim.paper, got.interval if got else "", claim.passes, verdict))

    def __str__(self) -> str:
        return "\n".join(f"{row[0]:5} {row[5]:15} {row[3]:28} passes {row[4]:16} {row[1]}" for row in self.rows)

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th style="text-align:left">{name}</th>'
            for name in ("claim", "measure", "the paper", "measured", "passes if", "verdict")
        )
        body = ""
        for row in self.rows:
            cells = "".join(
                f'<td style="text-align:left;white-space:normal">{html.escape(cell)}</td>' for cell in row[:5]
            )
            colour = _COLOURS.get(row[5], "inherit")
            body += f'<tr>{cells}<td style="color:{colour};text-align:left"><strong>{row[5]}</strong></td></tr>'
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def show(thing: Any) -> None:
    """Display richly in a notebook, print elsewhere."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(thing)
    else:
        display(thing)


def paper(slug: str, *, scale: str = "quick", seed: int = 0, control: bool = False) -> Reproduction:
    """Open a paper for measuring: the first call of every notebook."""
    require_choice("scale", scale, SCALES)
    found = find_paper(slug)
    if os.environ.get("WORKBENCH_HEADLESS"):
        reads.watch(datasets_folder(), found.path.parent)
    return Reproduction(found, scale, seed, bool(control))
