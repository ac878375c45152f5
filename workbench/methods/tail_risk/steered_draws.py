"""What one proposal does to one event, as arrays: draws with their weights, exact variances, exact hazards.

For Angell et al. (arXiv 2604.22167), beside `lm_tail_risk` (the estimators) and `exact_risk` (sums over answers):
Does: draw answers with the ratio of every token; sum the variance ratio over a grid of strengths and switches; say
what an estimate tends to that leaves the end-of-sequence ratio out; say how likely the event still is at each token.
Does not: choose a proposal or report an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np

from workbench.errors import LacksCapability, WorkbenchError, require_integer
from workbench.methods.tail_risk import exact_risk
from workbench.methods.tail_risk.lm_tail_risk import LEAST_ESS, Proposal
from workbench.models import GrammarModel, PrefixTree, bigram, prefix_tree
from workbench.models.grammars import CODEWORD
from workbench.models.sampling import PairedSamples
from workbench.problems.event import ModelEvent, generates
from workbench.streams import Stream


@dataclass(frozen=True)
class Weighed:
    """k answers from a proposal: `samples`, which `hit` (k,), and their `log_weight` (k,), sum of log p - log q."""

    samples: PairedSamples
    hit: np.ndarray
    log_weight: np.ndarray

    @cached_property
    def terms(self) -> np.ndarray:
        """(k,) w h: the weight of each hit, 0 for the others."""
        return np.where(self.hit, np.exp(self.log_weight), 0.0)

    @property
    def value(self) -> float:
        """sum of w h / k."""
        return float(self.terms.mean())

    @property
    def std_error(self) -> float:
        """Standard error of `value`: the terms' standard deviation / sqrt(k)."""
        return float(self.terms.std(ddof=1) / np.sqrt(len(self.terms)))

    @property
    def ess(self) -> float:
        """Effective number of hits, (sum w h)^2 / sum (w h)^2; 0 without a hit."""
        return float(self.terms.sum() ** 2 / (self.terms**2).sum()) if self.terms.any() else 0.0

    @property
    def trusted(self) -> bool:
        """Whether the estimators of `lm_tail_risk` would call the interval reliable by its effective hits."""
        return self.ess >= LEAST_ESS


def weigh(event: ModelEvent, proposal: Proposal, k: int, stream: Stream, *, end_ratio: bool = True) -> Weighed:
    """k answers drawn from `proposal` with their weights.

    end_ratio=False leaves the ratio of the end-of-sequence token out, as the released sampler does; the estimate then
    tends to `risk_without_end_ratio`. An answer that stops at the event has no such token, and nothing changes.
    Raises LacksCapability where the event can't be steered.
    """
    require_integer("k", k, low=2, cure="draw at least two answers, one has no spread")
    drawn = event.mixed(proposal.strength, proposal.mixture, proposal.switch, k, stream)
    counted = np.ones(drawn.tokens.shape, dtype=bool) if end_ratio else ~np.isin(drawn.tokens, event.model.eos_ids)
    return Weighed(drawn, event.judge(drawn.tokens), ((drawn.log_p - drawn.log_q) * counted).sum(axis=1))


def enumerated_ratios(
    event: ModelEvent, strengths: Sequence[float], mixture: float, switches: Sequence[int | None]
) -> np.ndarray:
    """(strengths, switches) exact VR = Var_MC / Var_IS, by going through all answers; the answers are kept."""
    at = [event.max_new_tokens if switch is None else min(switch, event.max_new_tokens) for switch in switches]
    rows = [exact_risk.variance_ratios(_paths(event, strength), [mixture])[0, at] for strength in strengths]
    return np.stack(rows)


def grammar_ratios(
    event: ModelEvent,
    token: int,
    strengths: Sequence[float],
    mixture: float,
    switches: Sequence[int | None],
) -> np.ndarray:
    """As `enumerated_ratios` for "a grammar generates `token`", by dynamic programming, whatever the length."""
    grammar, risk = _grammar(event), event.truth
    assert risk is not None
    stops = token in event.stop_ids
    moments = [
        [
            grammar.second_moment(
                _grammar(event, strength),
                event.prompt,
                token,
                event.max_new_tokens,
                mixture=mixture,
                switch=switch,
                stop_at_event=stops,
            )
            for switch in switches
        ]
        for strength in strengths
    ]
    return (risk - risk**2) / (np.array(moments) - risk**2)


def risk_without_end_ratio(event: ModelEvent, token: int, proposal: Proposal) -> float:
    """What the estimate tends to, k to infinity, if the end-of-sequence ratio is left out, for a grammar's `token`.

    E_q[w' h] with w' = the product of p / q over all tokens but the end: backwards over the states,
    M_t(s, hit) = sum_v r_t(v|s) M_{t+1}(s', hit or v = token), r_t = p but for the end, where r_t = q_t.
    """
    grammar, pushed = _grammar(event), _grammar(event, proposal.strength)
    with np.errstate(divide="ignore"):
        mixed = np.exp(
            np.logaddexp(np.log1p(-proposal.mixture) + pushed.table, np.log(proposal.mixture) + grammar.table)
        )
    law, ends = np.exp(grammar.table), list(grammar.eos_ids)
    kept = law.copy()
    kept[:, ends] = mixed[:, ends]
    switch = event.max_new_tokens if proposal.switch is None else proposal.switch
    stops = token in event.stop_ids
    missed, hit = np.zeros(len(law)), np.ones(len(law))
    for step in reversed(range(event.max_new_tokens)):
        terms = kept if step < switch else law
        onward_missed, onward_hit = missed[grammar.transition], hit[grammar.transition]
        onward_missed[:, ends], onward_hit[:, ends] = 0.0, 1.0
        onward_missed[:, token] = 1.0 if stops else onward_hit[:, token]
        missed, hit = (terms * onward_missed).sum(axis=1), (terms * onward_hit).sum(axis=1)
    return float(missed[grammar.state_after([event.prompt])[0]])


def hazards(event: ModelEvent, tokens: Sequence[int]) -> np.ndarray:
    """(len(tokens) + 1,) P(event | prompt and the first t tokens) under the model, by going through all answers."""
    tree, mass, reached = _hazard_tree(event)
    node, found = 0, [mass[0] / reached[0]]
    for token in tokens:
        children = np.flatnonzero((tree.parent == node) & (tree.token == token))
        if not children.size:
            raise WorkbenchError(f"tokens holds {token} where {event.name} can't give it; pass tokens that were drawn.")
        node = int(children[0])
        found.append(mass[node] / reached[node])
    return np.clip(found, 0.0, 1.0)


def grammar_hazards(event: ModelEvent, token: int, tokens: Sequence[int]) -> np.ndarray:
    """As `hazards` for "a grammar generates `token`", by dynamic programming, whatever the length."""
    grammar, found = _grammar(event), []
    for read in range(len(tokens) + 1):
        before = list(tokens[:read])
        left = event.max_new_tokens - read
        if token in before:
            found.append(1.0)
        elif left == 0 or any(end in before for end in grammar.eos_ids):
            found.append(0.0)
        else:
            found.append(grammar.event_probability([*event.prompt, *before], token, left))
    return np.array(found)


def running_on_event(max_new_tokens: int = 20) -> ModelEvent:
    """X among up to 20 words of the bigram grammar, which runs on after X and so may end by its own end token.

    Steering with strength s raises the log-odds of X by s and lowers those of the end by 2 s / 3: the proposal
    stops later than the model does, and an estimate without the end's ratio is wrong.
    """
    language = bigram()
    return ModelEvent(
        language,
        [2],
        partial(generates, (CODEWORD,)),
        max_new_tokens=max_new_tokens,
        name=f"bigram(X among {max_new_tokens} words)",
        steer=lambda strength: language.steered({0: -2 * strength / 3, CODEWORD: strength}),
        truth=lambda: language.event_probability([2], CODEWORD, max_new_tokens),
    )


def _grammar(event: ModelEvent, strength: float | None = None) -> GrammarModel:
    model = event.model if strength is None else event.steered(strength)
    if not isinstance(model, GrammarModel):
        raise LacksCapability(f"{event.name} is no grammar, so nothing sums over its states; enumerate its answers.")
    return model


@lru_cache(maxsize=8)
def _tree(event: ModelEvent) -> tuple[PrefixTree, np.ndarray]:
    tree = prefix_tree(event.model, [list(event.prompt)], event.max_new_tokens, stop_ids=event.stop_ids)
    return tree, event.judge(tree.tokens)


@lru_cache(maxsize=128)
def _paths(event: ModelEvent, strength: float) -> exact_risk.EventPaths:
    tree, hits = _tree(event)
    return exact_risk.event_paths(tree, hits, tree.log_probs_under(event.steered(strength)))


@lru_cache(maxsize=8)
def _hazard_tree(event: ModelEvent) -> tuple[PrefixTree, np.ndarray, np.ndarray]:
    """The tree, each node's share of the event's probability, and its own."""
    tree, hits = _tree(event)
    mass = np.where(tree.is_leaf & hits, np.exp(tree.path_log_prob), 0.0)
    for depth in range(int(tree.depth.max()), 0, -1):
        nodes = np.flatnonzero(tree.depth == depth)
        np.add.at(mass, tree.parent[nodes], mass[nodes])
    return tree, mass, np.exp(tree.path_log_prob)
