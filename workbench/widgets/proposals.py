"""Explorers of a proposal: its weights and exact variances, and one of its generations token by token.

Does: join an event's draws with exact sums, for events whose sums are known. Does not: draw or sum; see
`methods.tail_risk.steered_draws`, `plots.proposals` and `plots.tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

from workbench.errors import require_choice
from workbench.methods.tail_risk import steered_draws
from workbench.methods.tail_risk.lm_tail_risk import Proposal
from workbench.models.grammars import CODEWORD
from workbench.plots.proposals import proposal_figure
from workbench.plots.tokens import token_table
from workbench.problems.event import ModelEvent, codeword_event
from workbench.streams import Stream
from workbench.widgets.controls import Choice, Slider, Tick
from workbench.widgets.explorer import explore

_NEVER = "never"


@dataclass(frozen=True)
class SteeredQuestion:
    """An event with what is exactly known of its proposals.

    ratios    (strengths, mixture, switches) -> (strengths, switches) exact variance ratios
    hazards   tokens -> (T + 1,) chance of the event before the first token and after each
    biased    what an estimate without the end's ratio tends to, by proposal
    switches  of the map, None = never; strengths of the map
    """

    event: ModelEvent
    ratios: Callable[[Sequence[float], float, Sequence[int | None]], np.ndarray]
    hazards: Callable[[Sequence[int]], np.ndarray]
    biased: Callable[[Proposal], float | None]
    switches: tuple[int | None, ...]
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def grammar_question(event: ModelEvent, token: int = CODEWORD, **grid: Any) -> SteeredQuestion:
    """A question about a grammar's `token`; every sum is over states. `grid` may give switches and strengths."""
    switches = grid.pop("switches", (*range(1, event.max_new_tokens), None))
    return SteeredQuestion(
        event,
        partial(steered_draws.grammar_ratios, event, token),
        partial(steered_draws.grammar_hazards, event, token),
        partial(steered_draws.risk_without_end_ratio, event, token),
        switches,
        **grid,
    )


def enumerated_question(event: ModelEvent, **grid: Any) -> SteeredQuestion:
    """A question about an event whose answers are few enough to go through, and stop at the event if they hit it."""
    switches = grid.pop("switches", (*range(1, event.max_new_tokens), None))
    grid = {"strengths": (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0)} | grid
    ratios, hazards = partial(steered_draws.enumerated_ratios, event), partial(steered_draws.hazards, event)
    return SteeredQuestion(event, ratios, hazards, lambda proposal: event.truth, switches, **grid)


def codeword_questions(prompts: Mapping[str, Sequence[int]] | None = None) -> dict[str, SteeredQuestion]:
    """The codeword grammar's prompts, one of the model trained on it, and the bigram that runs on after the event."""
    prompts = prompts or {"f1 f2 f2": (5, 6, 6), "f0 f0 f0": (4, 4, 4), "f4 f4 f4": (8, 8, 8)}
    found = {name: grammar_question(codeword_event("grammar", prompt)) for name, prompt in prompts.items()}
    found["f1 f2 f2, trained model"] = enumerated_question(codeword_event("embedded", (5, 6, 6)))
    running = steered_draws.running_on_event()
    # Its steering moves every token, not the first alone: what is mild elsewhere is wild here.
    strengths = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
    found["20 words, X does not end them"] = grammar_question(
        running, switches=(1, 2, 3, 5, 10, None), strengths=strengths
    )
    return found


def proposal_view(
    question: SteeredQuestion,
    strength: float,
    mixture: float,
    switch: int | None,
    draws: int,
    drop_end: bool,
    stream: Stream,
) -> Figure:
    """`draws` answers from the proposal, weighed, beside the exact variance ratios around it."""
    proposal = Proposal(strength, mixture, switch)
    found = steered_draws.weigh(question.event, proposal, draws, stream, end_ratio=not drop_end)
    switches = question.switches if switch in question.switches else (*question.switches, switch)
    names = [_NEVER if each is None else str(each) for each in switches]
    strengths = sorted({*question.strengths, strength})
    own = float(question.ratios([strength], mixture, [switch])[0, 0])
    said = f"{draws:,} draws count like {draws * own:,.0f} plain ones (exact); effective hits {found.ess:.0f}"
    said += "" if found.trusted else ", too few to trust"
    truth, tends_to = question.event.truth, question.biased(proposal) if drop_end else None
    if tends_to is not None and truth is not None and math.isclose(tends_to, truth, rel_tol=1e-9):
        said, tends_to = f"{said}; no hit has an end to leave out, so nothing changes", None
    elif tends_to is not None:
        said += "; the exact ratios are those of the right weights"
    return proposal_figure(
        found.log_weight,
        found.hit,
        question.ratios(strengths, mixture, switches),
        strengths,
        names,
        at=(strengths.index(strength), switches.index(switch)),
        value=found.value,
        std_error=found.std_error,
        truth=truth,
        tends_to=tends_to,
        said=said,
    )


def token_view(
    question: SteeredQuestion,
    strength: float,
    mixture: float,
    switch: int | None,
    which: int,
    hits_only: bool,
    price: float,
    stream: Stream,
) -> HTML:
    """The draw number `which` of the proposal (of those that hit), with its ratios, its cost and its hazards."""
    event, many = question.event, 2000 if hits_only else max(which, 2)
    found = steered_draws.weigh(event, Proposal(strength, mixture, switch), many, stream)
    rows = np.flatnonzero(found.hit) if hits_only else np.arange(many)
    if not rows.size:
        return HTML("<p>None of 2,000 draws from this proposal hit the event; steer more, or untick hits.</p>")
    row = int(rows[(which - 1) % rows.size])
    length = int(found.samples.lengths[row])
    tokens = found.samples.tokens[row, :length]
    until = event.max_new_tokens if switch is None else switch
    # The base model reads the prompt and every token, the steered one up to the switch.
    step = np.arange(1, length + 1)
    spent = len(event.prompt) + step + (len(event.prompt) + np.minimum(step, until)) * (until > 0)
    words = [event.model.decode([token]) for token in tokens]
    caption = f"Prompt: {event.model.decode(event.prompt)}. " + ("Hits the event." if found.hit[row] else "No hit.")
    return HTML(
        token_table(
            words,
            found.samples.log_p[row, :length],
            found.samples.log_q[row, :length],
            spent=spent,
            hazard=question.hazards(tokens.tolist()),
            usd_per_1000_tokens=price,
            caption=caption,
        )
    )


def explore_proposals(
    questions: Mapping[str, SteeredQuestion], stream: Stream, *, static: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Strength, mixture, switch and number of draws against weights, estimate and exact variance ratios.

    Raises WorkbenchError as `explore` does, LacksCapability where an event can't be steered.
    """

    def draw(prompt: str, drop_end: bool, **proposal: Any) -> Figure:
        return proposal_view(_asked(questions, prompt), drop_end=drop_end, stream=stream, **proposal)

    explore(
        draw,
        alt="Left: histogram of the draws' weights. Right: exact variance ratio over steering strength and switch",
        static=static,
        **_controls(questions),
        draws=Slider(50, 5000, 500, label="draws k", unit="answers", log=True),
        drop_end=Tick(False, label="leave the end-of-sequence ratio out"),
    )


def explore_tokens(questions: Mapping[str, SteeredQuestion], stream: Stream) -> None:
    """One generation at a time: each token's log-ratio, what was spent, and the chance of the event after it."""

    def draw(prompt: str, **rest: Any) -> HTML:
        return token_view(_asked(questions, prompt), stream=stream, **rest)

    explore(
        draw,
        **_controls(questions),
        which=Slider(1, 200, 1, label="draw", unit="number"),
        hits_only=Tick(True, label="only draws that hit"),
        price=Slider(1e-5, 0.1, 0.002, label="price", unit="USD per 1,000 tokens", log=True),
    )


def _controls(questions: Mapping[str, SteeredQuestion]) -> dict[str, Any]:
    return {
        "prompt": Choice(list(questions), label="prompt"),
        "strength": Slider(0.0, 20.0, 5.0, label="steering strength"),
        "mixture": Slider(0.0, 1.0, 0.2, label="mixture", unit="share of the base model"),
        "switch": Choice({"1": 1, "2": 2, "3": 3, "4": 4, _NEVER: None}, label="switch to the base model after token"),
    }


def _asked(questions: Mapping[str, SteeredQuestion], prompt: str) -> SteeredQuestion:
    return questions[require_choice("prompt", prompt, questions)]
