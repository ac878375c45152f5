"""How often does a language model's answer to one prompt hit an event?

Does: plain draws, and draws from a steered, mixed and switched proposal with their log-weights.
Does not: choose the proposal, or weigh anything; see `workbench.methods.tail_risk`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np

from workbench.budget import charge
from workbench.errors import LacksCapability, refuse, require_choice, require_integer
from workbench.models import (
    GrammarModel,
    LanguageModel,
    PrefixTree,
    Steering,
    Tilt,
    codeword_grammar,
    codeword_prompts,
    load,
    mean_difference_direction,
    prefix_tree,
)
from workbench.models.base import prompt_lists
from workbench.models.grammars import CODEWORD, COMPLY
from workbench.models.sampling import PairedSamples, sample, sample_mixture
from workbench.models.tabulate import tabulate
from workbench.models.timeline import OUTCOMES, outcome_risk, timeline_grammar, timeline_histories
from workbench.streams import Stream


def generates(token_ids: Sequence[int], completions: np.ndarray) -> np.ndarray:
    """(rows,) bool: whether any of `token_ids` is among a row's tokens (rows, T), padded with -1."""
    return np.asarray(np.isin(completions, list(token_ids)).any(axis=1))


class ModelEvent:
    """P(event | prompt) when an answer is sampled from `model` at temperature 1.

    model           a LanguageModel
    prompt          a text or token ids
    judge           completions (rows, T) int64, padded with -1 -> (rows,) bool: which hit the event
    max_new_tokens  length at which an answer is cut
    name            identifies the question; it keys the random numbers
    stop_ids        tokens that end an answer besides the model's own end (kept in the answer)
    steer           strength -> a steered model that shares the weights; needed by importance sampling
    truth           the exact probability, or a function that computes it when first asked; None if unknown
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str | Sequence[int],
        judge: Callable[[np.ndarray], np.ndarray],
        *,
        max_new_tokens: int,
        name: str,
        stop_ids: Sequence[int] = (),
        steer: Callable[[float], LanguageModel] | None = None,
        truth: float | Callable[[], float] | None = None,
    ) -> None:
        require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
        [tokens] = prompt_lists(model, [prompt] if isinstance(prompt, str) else [list(prompt)], max_new_tokens)
        self.model, self.prompt, self.judge = model, tuple(int(token) for token in tokens), judge
        self.max_new_tokens, self.stop_ids, self.steer, self._truth = max_new_tokens, tuple(stop_ids), steer, truth
        self.name = name

    @property
    def replay(self) -> str:
        return self.model.replay

    @cached_property
    def truth(self) -> float | None:
        return self._truth() if callable(self._truth) else self._truth

    def sample(self, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,) bool, "tokens": (n,)}: n answers; tokens counts prompt and answer."""
        drawn = sample(
            self.model, [self.prompt], n=n, max_new_tokens=self.max_new_tokens, stream=stream, stop_ids=self.stop_ids
        )
        return {"hit": self._hits(drawn.tokens), "tokens": len(self.prompt) + drawn.lengths}

    def sample_from(self, proposal: Any, n: int, stream: Stream) -> dict[str, np.ndarray]:
        """{"hit": (n,), "log_weight": (n,), "tokens": (n,)} from a proposal with strength, mixture and switch.

        tokens counts what both models read: the steered one stops at the switch.
        """
        drawn = self.mixed(proposal.strength, proposal.mixture, proposal.switch, n, stream)
        switch = self.max_new_tokens if proposal.switch is None else proposal.switch
        tokens = len(self.prompt) + drawn.lengths
        if switch > 0:
            tokens = tokens + len(self.prompt) + np.minimum(drawn.lengths, switch)
        return {"hit": self._hits(drawn.tokens), "log_weight": drawn.log_weights, "tokens": tokens}

    def pilot_from(
        self,
        strength: float,
        mixture: np.ndarray,
        switch: np.ndarray,
        n: int,
        stream: Stream,
        score_under: Sequence[float],
    ) -> dict[str, np.ndarray]:
        """As `sample_from`, with a mixture and switch (n,) for each draw; also what a choice of proposal needs.

        log_p (n, T) and log_q (n, strengths, T): log-probability of each token of the hits under the base model and
        under the model steered with each strength of `score_under`, padded with 0. Only hits are scored (the others
        stay 0), and they pay for it.
        """
        drawn = self.mixed(strength, mixture, switch, n, stream)
        hit = self._hits(drawn.tokens)
        tokens = 2 * len(self.prompt) + drawn.lengths + np.minimum(drawn.lengths, switch)
        log_q = np.zeros((n, len(score_under), self.max_new_tokens))
        if hit.any():
            for number, other in enumerate(score_under):
                log_q[hit, number] = _score(self.steered(other), self.prompt, drawn.tokens[hit])
            tokens = tokens + hit * (len(self.prompt) + drawn.lengths) * len(score_under)
        return {
            "hit": hit,
            "log_weight": drawn.log_weights,
            "log_p": np.where(hit[:, None], drawn.log_p, 0.0),
            "log_q": log_q,
            "tokens": tokens,
        }

    def mixed(self, strength: float, mixture: Any, switch: Any, n: int, stream: Stream) -> PairedSamples:
        """n answers from the base model (share `mixture`) and the steered one, token by token until `switch`."""
        return sample_mixture(
            self.model,
            self.steered(strength),
            [self.prompt],
            mixture=mixture,
            switch=switch,
            n=n,
            max_new_tokens=self.max_new_tokens,
            stream=stream,
            stop_ids=self.stop_ids,
        )

    def steered(self, strength: float) -> LanguageModel:
        """The steered model; the last one asked for is kept."""
        if self.steer is None:
            raise LacksCapability(
                f"{self.name} can't be steered, so it has no proposal; give the event steer=..., or use plain Monte Carlo."
            )
        kept = getattr(self, "_steered", None)
        if kept is None or kept[0] != strength:
            # One assignment, and the answer is not read back: another worker may ask for another strength.
            kept = self._steered = (strength, self.steer(strength))
        return kept[1]

    def _hits(self, completions: np.ndarray) -> np.ndarray:
        hit = np.asarray(self.judge(completions))
        if hit.dtype != bool or hit.shape != (len(completions),):
            told, must = f"{hit.dtype} of shape {hit.shape}", f"be bool of shape ({len(completions)},)"
            raise refuse("the judge's answer", told, must, "return whether each row hits, e.g. scores >= 0.75")
        return hit

    def __repr__(self) -> str:
        return f"<ModelEvent {self.name}>"


def _score(model: LanguageModel, prompt: Sequence[int], tokens: np.ndarray) -> np.ndarray:
    """(rows, T) log-probability of each token of answers (rows, T) padded with -1; the padding gets 0."""
    session, out = model.start([list(prompt)] * len(tokens)), np.zeros(tokens.shape)
    for step in range(tokens.shape[1]):
        rows = np.flatnonzero(tokens[:, step] >= 0)
        out[rows, step] = session.log_probs.cpu().numpy()[rows, tokens[rows, step]]
        if step + 1 < tokens.shape[1]:
            session.advance(np.where(tokens[:, step + 1] >= 0, tokens[:, step], -1))
    charge(tokens=len(tokens))
    return out


def _tilt(model: GrammarModel, strength: float) -> GrammarModel:
    return model.steered(Tilt(COMPLY, strength))


def codeword_event(source: str = "grammar", prompt: Sequence[int] = (7, 7, 7), max_new_tokens: int = 5) -> ModelEvent:
    """The event "the harmless codeword X is generated" of Angell et al., scaled down; truth is exact.

    source: "grammar" (truth by dynamic programming; steering raises the log-odds of `comply`) or
    "embedded" (the trained model `embedded/codeword`, truth by enumeration; steering adds a direction).
    prompt: three fillers, token ids 4 to 8; the larger their sum, the likelier the event.
    """
    require_choice("source", source, ("grammar", "embedded"))
    name = f"codeword({source}, {' '.join(str(token) for token in prompt)}, T={max_new_tokens})"
    judge, stop = partial(generates, (CODEWORD,)), (CODEWORD,)
    if source == "grammar":
        grammar = codeword_grammar()
        return ModelEvent(
            grammar,
            prompt,
            judge,
            max_new_tokens=max_new_tokens,
            name=name,
            stop_ids=stop,
            steer=partial(_tilt, grammar),
            truth=partial(grammar.event_probability, list(prompt), CODEWORD, max_new_tokens),
        )
    model, direction = embedded_codeword()
    return ModelEvent(
        model,
        prompt,
        judge,
        max_new_tokens=max_new_tokens,
        name=name,
        stop_ids=stop,
        steer=partial(_add, model, direction),
        truth=partial(_enumerated, model, tuple(prompt), max_new_tokens),
    )


def timeline_event(source: str = "grammar", outcome: str = "fault", horizon: int = 20, length: int = 8) -> ModelEvent:
    """The outcome "fault" (spontaneous) or "crash" (announced by smoke) within `horizon` tokens of one history of
    `length` tokens; truth by dynamic programming over the grammar.

    source: "grammar", or "embedded" for the trained model `embedded/timeline`, whose own risk differs a little from the
    grammar's and is not known.
    """
    require_choice("source", source, ("grammar", "embedded"))
    [history] = timeline_histories(1, Stream.of(0, "timeline-event"), length=length)
    token = OUTCOMES[require_choice("outcome", outcome, tuple(OUTCOMES))]
    return ModelEvent(
        timeline_grammar() if source == "grammar" else load("embedded/timeline"),
        history,
        partial(generates, (token,)),
        max_new_tokens=horizon,
        name=f"timeline({source}, {outcome} within {horizon} of {length})",
        stop_ids=(token,),
        truth=partial(outcome_risk, history, outcome, horizon) if source == "grammar" else None,
    )


@cache
def embedded_codeword() -> tuple[LanguageModel, np.ndarray]:
    """The model `embedded/codeword` and its comply direction: the difference of mean residuals at the input of
    layer 1, last prompt token, of prompts inclined to comply (ids summing to 20 or more) and to refuse (16 or less).
    """
    model = load("embedded/codeword")
    prompts = codeword_prompts()
    inclined = [prompt for prompt in prompts if sum(prompt) >= 20]
    averse = [prompt for prompt in prompts if sum(prompt) <= 16]
    return model, mean_difference_direction(model, inclined, averse, layer=1)


def _add(model: LanguageModel, direction: np.ndarray, strength: float) -> LanguageModel:
    return model.steered(Steering(direction, strength, kind="add", layer=1))


def _enumerated(model: LanguageModel, prompt: tuple[int, ...], max_new_tokens: int) -> float:
    tree = prefix_tree(model, list(prompt), max_new_tokens, stop_ids=(CODEWORD,))
    return tree.probability(tree.contains(CODEWORD))


@dataclass(frozen=True)
class Tabulated:
    """An event whose every answer has been enumerated, so that truths are sums and draws are table look-ups.

    event: the same question with tables in the model's place (same law; spend is that of a one-token prompt);
    tree: all answers; log_q: by strength, log q(token | prefix) of the steered model at each node of the tree.
    """

    event: ModelEvent
    tree: PrefixTree
    log_q: dict[float, np.ndarray]

    @property
    def hits(self) -> np.ndarray:
        """(N,) bool: the nodes of the tree whose tokens hit the event."""
        return self.event.judge(self.tree.tokens)


def tabulate_event(event: ModelEvent, strengths: Sequence[float] = ()) -> Tabulated:
    """Enumerate `event` under its model and under the model steered with each strength."""
    tree = prefix_tree(event.model, [list(event.prompt)], event.max_new_tokens, stop_ids=event.stop_ids)
    log_q = {strength: tree.log_probs_under(event.steered(strength)) for strength in strengths}
    steered = {strength: tabulate(tree, event.model, values) for strength, values in log_q.items()}
    table = ModelEvent(
        tabulate(tree, event.model),
        [0],
        event.judge,
        max_new_tokens=event.max_new_tokens,
        name=f"{event.name}, tabulated",
        stop_ids=event.stop_ids,
        steer=steered.__getitem__,
        truth=tree.probability(event.judge(tree.tokens)),
    )
    return Tabulated(table, tree, log_q)
