"""Sampling, written once for every model: a sample's tokens depend on (seed, names, index) and nothing else.

Does: sample j draws its t-th token with number (j, t) of a counter-based stream, by inverting the cumulative
distribution; so batch size, order, neighbours and restarts leave it alone. Batches are continuous: finished rows
leave, waiting ones enter (`batching`). Any number of models may go in step over the same tokens, one pass each a token.
Does not: run a model (sessions do), or shape a law (`laws` does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError, refuse, require_finite, require_integer, require_number
from workbench.models.base import LanguageModel
from workbench.models.batching import Flight, Stop, Task
from workbench.models.laws import Law, Processor, draw, likeliest, log_softmax
from workbench.streams import Stream

Record = Callable[[torch.Tensor], torch.Tensor]
Fuse = Callable[[list[torch.Tensor], np.ndarray, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """Sampled completions; row r belongs to prompt r // n.

    tokens (rows, max_new_tokens) int64 padded with -1, the end-of-sequence token included; lengths (rows,);
    log_probs (rows, max_new_tokens) float64 under the law that was sampled from, padded with 0;
    finish_reasons (rows,): "eos", "stop" or "length";
    recorded: what `record` made of each step's law, (rows, max_new_tokens, ...) float64 padded with 0, or None.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probs: np.ndarray
    finish_reasons: np.ndarray
    recorded: np.ndarray | None = None

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
    top_k: int | None = None,
    top_p: float | None = None,
    logits_processor: Sequence[Processor] = (),
    greedy: bool = False,
    stop_ids: Iterable[int] = (),
    stop_sequences: Iterable[str | Sequence[int]] = (),
    stop: Stop | None = None,
    record: Record | None = None,
) -> Samples:
    """n completions of each prompt, by ancestral sampling.

    prompts: a text, a list of token ids, or a list of either. Row r is completion r % n of prompt r // n and
    uses row r of `stream`, i.e. its sample index is stream.first + r.
    temperature, top_k, top_p, logits_processor (Hugging Face's `LogitsProcessor`s, or functions like them): the law
    that is sampled from, and that log_probs are under; see `laws.Law`.
    greedy: the likeliest token each time (the lowest id on a tie); log_probs are then the model's own, after the
    logits processors.
    stop_ids: token ids that end a completion and are kept in it. stop_sequences: token ids in a row, or texts looked
    for in the decoded completion, likewise. stop: a function of the tokens generated so far, (rows, t) int64, which
    returns (rows,) booleans; a row where it is true ends there.
    record: a function of the model's own log-probs (rows, V), untempered and untruncated, to (rows, ...): it is
    called at each step, and its values are kept in `recorded`, e.g. `event_mass(ids)`, the log-probability that the
    next token is one of ids. So a sum over an event costs no (n, T, V) array; `record=lambda p: p` asks for one.

    Raises WorkbenchError: an empty prompt, a token id outside the vocabulary, no room in the context,
    a law that is none, logits that are not numbers.
    """
    model.require("sample")
    law = Law(temperature, top_k, top_p, tuple(logits_processor))
    law = Law(processors=law.processors) if greedy else law
    if model.samples_itself:
        return model.sample(
            prompts,
            n=n,
            max_new_tokens=max_new_tokens,
            stream=stream,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            logits_processor=law.processors,
            greedy=greedy,
            stop_ids=stop_ids,
            stop_sequences=stop_sequences,
            stop=stop,
            record=record,
        )

    def choose(flight: Flight, uniforms: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = flight.sessions[0].logits
        if record is not None:
            flight.record(record(log_softmax(logits, flight.name)))
        scores = law.scores(logits, flight.input_ids)
        if greedy:
            tokens, total = likeliest(scores, flight.name)
        else:
            tokens, total = draw(scores, uniforms, flight.name)
        return tokens, [scores.gather(1, tokens[:, None])[:, 0].to(total.dtype) - total]

    out = Task([model], choose, prompts, n, max_new_tokens, stream, stop_ids, stop_sequences, stop).run()
    return Samples(out.tokens, out.lengths, out.scores[0], out.reasons, out.recorded)


def event_mass(token_ids: Iterable[int]) -> Record:
    """For `record`: log P(the next token is one of token_ids), (rows,)."""
    ids = sorted(set(token_ids))

    def mass(log_probs: torch.Tensor) -> torch.Tensor:
        if not ids:
            return torch.full(log_probs.shape[:1], -torch.inf, device=log_probs.device)
        return torch.logsumexp(log_probs[:, ids], dim=-1)

    return mass


def sample_in_step(
    models: Sequence[LanguageModel],
    prompts: Any,
    *,
    fuse: Fuse,
    n: int = 1,
    max_new_tokens: int,
    stream: Stream,
    stop_ids: Iterable[int] = (),
    stop_sequences: Iterable[str | Sequence[int]] = (),
    stop: Stop | None = None,
    needed: Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> PairedSamples:
    """n completions of each prompt from a law made of several models' laws, with importance weights against the first.

    The models read the same tokens, each with a cache of its own, one pass each a token.
    fuse: a function of ([log-probs of each model (rows, V)], rows, steps) to the proposal's log-probs (rows, V);
    rows (rows,) and steps (rows,) say which completions they are and how many tokens each has. It is the place of
    importance sampling (`lambda laws, rows, steps: laws[1]`), of contrastive decoding
    (`log_softmax((1 + a) * laws[0] - a * laws[1])`), of anchored and of budget-guided decoding.
    needed: a function of (model's number, rows, steps) to booleans (rows,): whether the model's law is wanted for a
    row at that step or later. Where it is not, the model no longer reads that row, and is not charged for it.
    The rest as in `sample`. The weights are unbiased for any event decided by the tokens kept, wherever the proposal
    can reach what the target can: every generated token is in the ratio, and `stop` sees nothing but the tokens.

    Raises WorkbenchError: as `sample`, and models that don't share a vocabulary and its tokenizer.
    """
    for model in models:
        model.require("sample")
        if model.samples_itself:
            model.require("next_log_probs")
    _share_vocabulary(models)

    def choose(flight: Flight, uniforms: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        laws = [log_softmax(session.logits, flight.name) for session in flight.sessions]
        proposal = fuse(laws, flight.rows, flight.steps)
        tokens, total = draw(proposal, uniforms, flight.name)
        if not bool((total.abs() < 1e-3).all()):
            at = int(torch.nonzero(total.abs() >= 1e-3)[0])
            cure = "normalise it with laws.log_softmax(scores)"
            raise refuse("law from fuse: its sum", float(total[at].exp()), "be 1", cure)
        return tokens, [law.gather(1, tokens[:, None])[:, 0] for law in (proposal, laws[0])]

    out = Task(models, choose, prompts, n, max_new_tokens, stream, stop_ids, stop_sequences, stop, needed).run()
    log_q, log_p = out.scores
    return PairedSamples(out.tokens, out.lengths, log_p, log_q, (log_p - log_q).sum(axis=1), out.reasons)


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
    stop_sequences: Iterable[str | Sequence[int]] = (),
    stop: Stop | None = None,
) -> PairedSamples:
    """n completions of each prompt from a proposal made of two models, with importance weights against `base`.

    q_t = (1 - mixture) q_steered + mixture p for t < switch and q_t = p for t >= switch (where the ratio is
    exactly 1 and the steered model is not run); switch=None means never. mixture and switch may also be arrays
    (rows,), one entry for each completion: a pilot tries many proposals at once.
    Angell et al., "Estimating Tail Risks in Language Model Output Distributions" (arXiv 2604.22167).

    Raises WorkbenchError: as `sample_in_step`, and a mixture outside [0, 1], a negative switch.
    """
    mixtures, switches = _mixtures(mixture), _switches(switch, max_new_tokens)
    _share_vocabulary([base, steered])
    # A switch of 0 for all needs no steered model; an array starts it for every row, so that what a row costs does
    # not depend on its neighbours' switches.
    alone = switches.ndim == 0 and switches == 0

    def fuse(laws: list[torch.Tensor], rows: np.ndarray, steps: np.ndarray) -> torch.Tensor:
        log_p = laws[0]
        mixing = steps < _of_rows("switch", switches, rows)
        if not mixing.any():
            return log_p
        share = torch.as_tensor(_of_rows("mixture", mixtures, rows)).to(log_p)[:, None]
        # Not logaddexp, whose last bits move on the CPU with where a number stands in its tensor.
        mixed = torch.logsumexp(torch.stack([torch.log1p(-share) + laws[1], torch.log(share) + log_p]), dim=0)
        return (
            mixed if mixing.all() else torch.where(torch.as_tensor(mixing, device=log_p.device)[:, None], mixed, log_p)
        )

    def needed(model: int, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
        return np.ones(len(rows), dtype=bool) if model == 0 else steps < _of_rows("switch", switches, rows)

    return sample_in_step(
        [base] if alone else [base, steered],
        prompts,
        fuse=fuse,
        needed=needed,
        n=n,
        max_new_tokens=max_new_tokens,
        stream=stream,
        stop_ids=stop_ids,
        stop_sequences=stop_sequences,
        stop=stop,
    )


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
        return np.full(rows.shape, setting)
    if setting.ndim > 1 or len(setting) <= rows.max():
        cure = "pass one number for all completions or one for each"
        raise refuse(argument, f"of shape {setting.shape}", "have one entry for each completion", cure)
    return setting[rows]


def _share_vocabulary(models: Sequence[LanguageModel]) -> None:
    first = models[0]
    for other in models[1:]:
        if (first.vocab_size, first.eos_ids) != (other.vocab_size, other.eos_ids):
            raise WorkbenchError(
                f"{other.name} has {other.vocab_size} tokens that end with {list(other.eos_ids)} but must share the "
                f"vocabulary of {first.name}, {first.vocab_size} tokens that end with {list(first.eos_ids)}; pass a "
                "steered or adapted view of it, or another model with the same tokenizer."
            )
        mine, theirs = first.vocabulary(), other.vocabulary()
        if mine is None or theirs is None or mine is theirs:
            continue
        token = next((i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1]), None)
        if token is not None:
            raise WorkbenchError(
                f"token {token} is {theirs[token]!r} in {other.name} but must be {mine[token]!r} as in "
                f"{first.name}; pass models with the same tokenizer."
            )
