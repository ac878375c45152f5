"""Sampling, written once for every model: a sample's tokens depend on (seed, names, index) and nothing else.

Does: sample j draws its t-th token with number (j, t) of a counter-based stream, by inverting the
cumulative distribution in float64; so batch size, order, neighbours and restarts leave it alone.
Rows of one prompt length decode together, so no prompt is ever padded.
Does not: truncate the vocabulary (top-k, top-p): that breaks the support which importance weights need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.budget import charge
from workbench.errors import WorkbenchError, refuse, require_finite, require_integer, require_number
from workbench.models.base import LanguageModel, Session, by_length, check_tokens, prompt_lists, surviving_memory
from workbench.streams import Stream

_DRAWN_AHEAD = 16
Stop = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Samples:
    """Sampled completions; row r belongs to prompt r // n.

    tokens (rows, max_new_tokens) int64 padded with -1, the end-of-sequence token included; lengths (rows,);
    log_probs (rows, max_new_tokens) float64 under the law that was sampled from, padded with 0;
    finish_reasons (rows,): "eos", "stop" or "length".
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    finish_reasons: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def completions(self) -> list[np.ndarray]:
        """The tokens of each row without the padding."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]

    @property
    def log_prob(self) -> np.ndarray:
        """(rows,) log-probability of each whole completion."""
        return self.log_probs.sum(axis=1)


@dataclass(frozen=True)
class PairedSamples:
    """Samples from a proposal q, scored under q and the target p.

    tokens, lengths and finish_reasons as in `Samples`; log_p and log_q (rows, max_new_tokens) float64 padded
    with 0; log_weights (rows,) = sum over every generated token, end of sequence included, of log p - log q.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_p: np.ndarray
    log_q: np.ndarray
    log_weights: np.ndarray
    finish_reasons: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def completions(self) -> list[np.ndarray]:
        """The tokens of each row without the padding."""
        return [row[:length] for row, length in zip(self.tokens, self.lengths, strict=True)]


def sample(
    model: LanguageModel,
    prompts: Any,
    *,
    n: int = 1,
    max_new_tokens: int,
    stream: Stream,
    temperature: float = 1.0,
    greedy: bool = False,
    stop_ids: Iterable[int] = (),
    stop: Stop | None = None,
) -> Samples:
    """n completions of each prompt, by ancestral sampling.

    prompts: a text, a list of token ids, or a list of either. Row r is completion r % n of prompt r // n and
    uses row r of `stream`, i.e. its sample index is stream.first + r.
    temperature: the law is p^(1/temperature), renormalised; log_probs are under that law.
    greedy: the likeliest token each time (the lowest id on a tie); log_probs are then the model's own.
    stop_ids: token ids that end a completion and are kept in it. stop: a function of the tokens generated
    so far, (rows, t) int64, which returns (rows,) booleans; a row where it is true ends there.

    Raises WorkbenchError: an empty prompt, a token id outside the vocabulary, no room in the context,
    a temperature that is not positive, log-probs that are not numbers.
    """
    model.require("sample")
    if temperature == 0:
        raise refuse("temperature", temperature, "be greater than 0", "pass greedy=True for the likeliest token")
    temperature = require_number("temperature", temperature, low=0, open_low=True, cure="pass e.g. temperature=1.0")

    def begin(rows: np.ndarray, block: np.ndarray) -> _Plain:
        return _Plain(model, rows, temperature, greedy)

    tokens, lengths, scores, reasons = _decode(
        [model], begin, prompts, n, max_new_tokens, stream, greedy, stop_ids, stop
    )
    return Samples(tokens, lengths, scores[0], reasons)


def sample_mixture(
    base: LanguageModel,
    steered: LanguageModel,
    prompts: Any,
    *,
    mixture: Any,
    switch: Any,
    n: int,
    max_new_tokens: int,
    stream: Stream,
    stop_ids: Iterable[int] = (),
    stop: Stop | None = None,
) -> PairedSamples:
    """n completions of each prompt from a proposal made of two models, with importance weights against `base`.

    q_t = (1 - mixture) q_steered + mixture p for t < switch and q_t = p for t >= switch (where the ratio is
    exactly 1 and the steered model is not run); switch=None means never. mixture and switch may also be arrays
    (rows,), one entry for each completion: a pilot tries many proposals at once.
    Angell et al., "Estimating Tail Risks in Language Model Output Distributions" (arXiv 2604.22167).
    The weights are unbiased for any event decided by the tokens kept, since every generated token,
    end of sequence included, is in the ratio, and `stop` may look at nothing but the tokens so far.

    Raises WorkbenchError: as `sample`, and a mixture outside [0, 1], a negative switch, unlike vocabularies.
    """
    for model in (base, steered):
        model.require("sample")
    mixtures, switches = _mixtures(mixture), _switches(switch, max_new_tokens)
    if (base.vocab_size, base.eos_ids) != (steered.vocab_size, steered.eos_ids):
        raise WorkbenchError(
            f"steered is {steered.name} but must share the vocabulary of {base.name}; pass base.steered(...)."
        )

    def begin(rows: np.ndarray, block: np.ndarray) -> _Mixed:
        # A scalar switch of 0 needs no steered model; an array starts it for every row, so that what a row
        # costs does not depend on its neighbours' switches.
        needed = switches.ndim > 0 or bool(switches > 0)
        mixture_of, switch_of = _of_rows("mixture", mixtures, block), _of_rows("switch", switches, block)
        return _Mixed(base, steered if needed else None, rows, mixture_of, switch_of)

    tokens, lengths, scores, reasons = _decode(
        [base, steered], begin, prompts, n, max_new_tokens, stream, False, stop_ids, stop
    )
    log_q, log_p = scores
    return PairedSamples(tokens, lengths, log_p, log_q, (log_p - log_q).sum(axis=1), reasons)


class _Plain:
    """One model: the law to draw from is the only one recorded."""

    recorded = 1

    def __init__(self, model: LanguageModel, prompts: np.ndarray, temperature: float, greedy: bool) -> None:
        self.session, self.temperature, self.greedy = model.start(prompts), temperature, greedy
        charge(tokens=len(prompts))

    def laws(self, step: int) -> list[torch.Tensor]:
        log_p = self.session.log_probs
        if self.temperature == 1 or self.greedy:
            return [log_p]
        return [torch.log_softmax(log_p / self.temperature, dim=-1)]

    def advance(self, step: int, tokens: torch.Tensor) -> None:
        self.session.advance(tokens)

    def select(self, rows: np.ndarray) -> None:
        self.session = self.session.select(rows)


class _Mixed:
    """Two models in step over the same tokens; records the proposal q and the target p."""

    recorded = 2

    def __init__(
        self,
        base: LanguageModel,
        steered: LanguageModel | None,
        prompts: np.ndarray,
        mixture: np.ndarray,
        switch: np.ndarray,
    ) -> None:
        self.base = base.start(prompts)
        self.steered: Session | None = steered.start(prompts) if steered is not None else None
        with np.errstate(divide="ignore"):
            shares = np.stack([np.log1p(-mixture), np.log(mixture)], axis=1)
        self.log_shares, self.switch = torch.as_tensor(shares), torch.as_tensor(switch.copy())
        charge(tokens=len(prompts) + int((switch > 0).sum()))

    def laws(self, step: int) -> list[torch.Tensor]:
        log_p = self.base.log_probs
        mixing = (step < self.switch).to(log_p.device)
        if self.steered is None or not bool(mixing.any()):
            return [log_p, log_p]
        shares = self.log_shares.to(log_p.device)
        mixed = torch.logaddexp(shares[:, :1] + self.steered.log_probs, shares[:, 1:] + log_p)
        return [torch.where(mixing[:, None], mixed, log_p), log_p]

    def advance(self, step: int, tokens: torch.Tensor) -> None:
        self.base.advance(tokens)
        if self.steered is not None and bool((step + 1 < self.switch).any()):
            self.steered.advance(torch.where(step + 1 < self.switch, tokens, -1))

    def select(self, rows: np.ndarray) -> None:
        self.base = self.base.select(rows)
        self.log_shares, self.switch = self.log_shares[rows], self.switch[rows]
        if self.steered is not None:
            self.steered = self.steered.select(rows)


def _mixtures(mixture: Any) -> np.ndarray:
    given = require_finite("mixture", mixture, cure="pass the base model's share, e.g. mixture=0.2")
    for value in given.ravel():
        require_number("mixture", value, low=0, high=1, cure="pass the base model's share, e.g. mixture=0.2")
    return given


def _switches(switch: Any, never: int) -> np.ndarray:
    cure = "pass the first step that uses the base model alone, or None"
    given = np.asarray(never if switch is None else switch)
    for value in given.ravel():
        require_integer("switch", value, low=0, cure=cure)
    return given.astype(np.int64)


def _of_rows(argument: str, setting: np.ndarray, rows: np.ndarray) -> np.ndarray:
    if setting.ndim == 0:
        return np.broadcast_to(setting, rows.shape)
    if setting.ndim > 1 or len(setting) <= rows.max():
        cure = "pass one number for all completions or one for each"
        raise refuse(argument, f"of shape {setting.shape}", "have one entry for each completion", cure)
    return setting[rows]


def draw(log_probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(n,) token ids by inverting the cumulative distribution of log_probs (n, V) at uniforms (n,) in [0, 1).

    A token of probability 0 is never drawn: not at u = 0, and not where rounding puts u past the last step.
    """
    cdf = log_probs.exp().cumsum(dim=-1)
    total = cdf[:, -1:].contiguous()
    if not bool(((total - 1).abs() < 1e-3).all()):
        at = int(torch.nonzero(~((total[:, 0] - 1).abs() < 1e-3))[0])
        cure = "check the model's logits for NaN or infinity; a wider dtype usually helps"
        raise refuse(f"next-token probabilities of row {at}: their sum", float(total[at]), "be 1", cure)
    last = torch.searchsorted(cdf, total)
    return torch.minimum(torch.searchsorted(cdf, uniforms[:, None] * total, right=True), last)[:, 0]


def _decode(
    models: Sequence[LanguageModel],
    begin: Callable[[np.ndarray, np.ndarray], _Plain | _Mixed],
    prompts: Any,
    n: int,
    max_new_tokens: int,
    stream: Stream,
    greedy: bool,
    stop_ids: Iterable[int],
    stop: Stop | None,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
    n = require_integer("n", n, low=1, cure="ask for at least one completion")
    steps = require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
    model = models[0]
    given = prompt_lists(model, prompts, steps)
    stops = np.array(sorted(set(stop_ids)), dtype=np.int64)
    check_tokens(model, "stop_ids", stops)

    total = len(given) * n
    tokens = np.full((total, steps), -1, dtype=np.int64)
    reasons = np.full(total, "length", dtype="<U6")
    scores = [np.zeros((total, steps)) for _ in range(2)]

    def decode(block: np.ndarray) -> None:
        decoder = begin(np.stack([given[row // n] for row in block]), block)
        at, alive = block, np.ones(len(block), dtype=bool)
        for step in range(steps):
            if step % _DRAWN_AHEAD == 0:
                ahead = _uniforms(stream, at, min(_DRAWN_AHEAD, steps - step), step)
            laws = decoder.laws(step)
            uniforms = torch.as_tensor(ahead[:, step % _DRAWN_AHEAD], device=laws[0].device)
            drawn = laws[0].argmax(dim=-1) if greedy else draw(laws[0], uniforms)
            chosen = drawn.cpu().numpy()
            tokens[at[alive], step] = chosen[alive]
            for score, law in zip(scores, laws, strict=False):
                score[at[alive], step] = law.gather(1, drawn[:, None])[:, 0].cpu().numpy()[alive]
            stopped = np.isin(chosen, stops)
            if stop is not None:
                stopped |= np.asarray(stop(tokens[at, : step + 1]), dtype=bool)
            ended = np.isin(chosen, model.eos_ids)
            reasons[at[alive & stopped]] = "stop"
            reasons[at[alive & ended]] = "eos"
            alive &= ~(stopped | ended)
            if step + 1 == steps or not alive.any():
                break
            if 2 * alive.sum() <= len(alive):
                decoder.select(np.flatnonzero(alive))
                at, ahead, chosen, alive = at[alive], ahead[alive], chosen[alive], np.ones(alive.sum(), dtype=bool)
            decoder.advance(step, torch.as_tensor(np.where(alive, chosen, -1)))

    for group in by_length(given):
        surviving_memory(models, (group[:, None] * n + np.arange(n)).ravel(), decode)
    return tokens, (tokens >= 0).sum(axis=1), scores, reasons


def _uniforms(stream: Stream, rows: np.ndarray, width: int, step: int) -> np.ndarray:
    low, high = int(rows.min()), int(rows.max())
    return stream.at(stream.first + low).uniforms(high - low + 1, width, step)[rows - low]
