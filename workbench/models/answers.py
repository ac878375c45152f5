"""What an endpoint answers, read into choices, samples and top log-probs.

Does: reads the two shapes that servers use (of completions and of chat), and says what is wrong with a reply that has
neither; bounds an event's probability from the log-probs of the likeliest tokens.
Does not: ask anything; see `endpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.errors import LacksCapability, WorkbenchError, refuse

_FRAGMENT = "\ufffd"


@dataclass(frozen=True)
class Choice:
    """One completion. tokens and log_probs are of the tokens generated (with echo: of the prompt's too, the first
    log-prob None) where the server gives them, else None; top holds the likeliest tokens at each position."""

    text: str
    finish_reason: str
    stop_reason: Any
    tokens: list[str] | None
    log_probs: list[float | None] | None
    top: list[dict[str, float]]


def wrong_with(body: dict[str, Any]) -> str:
    """What is wrong with a reply to a completion request, in a few words; "" for nothing."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices:
        told = body.get("error")
        told = told.get("message", told) if isinstance(told, dict) else told
        return (
            f"a response without choices ({' '.join(str(told).split())[:200]})"
            if told
            else "a response without choices"
        )
    try:
        for at in range(len(choices)):
            read_choice(body, at)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "a response whose choices can't be read"
    return ""


def read_choice(body: dict[str, Any], at: int = 0) -> Choice:
    """Choice `at` of a reply that `wrong_with` found nothing wrong with."""
    choice = body["choices"][at]
    # An answer that a filter emptied has content None.
    text = choice["text"] if "text" in choice else (choice["message"]["content"] or "")
    if not isinstance(text, str):
        raise TypeError("text")
    tokens, log_probs, top = _log_probs(choice.get("logprobs"))
    return Choice(text, str(choice.get("finish_reason") or "stop"), choice.get("stop_reason"), tokens, log_probs, top)


def _log_probs(told: Any) -> tuple[list[str] | None, list[float | None] | None, list[dict[str, float]]]:
    if not told:
        return None, None, []
    if told.get("content") is not None:
        entries = told["content"]
        top = [{t["token"]: _number(t["logprob"]) for t in entry.get("top_logprobs") or []} for entry in entries]
        return [entry["token"] for entry in entries], [_number(entry["logprob"]) for entry in entries], top
    if told.get("tokens") is None or told.get("token_logprobs") is None:
        return None, None, []
    log_probs = [None if value is None else _number(value) for value in told["token_logprobs"]]
    if len(log_probs) != len(told["tokens"]):
        raise ValueError("as many log-probs as tokens")
    top = [
        {token: _number(value) for token, value in (entry or {}).items()} for entry in told.get("top_logprobs") or []
    ]
    return list(told["tokens"]), log_probs, top


def _number(value: Any) -> float:
    number = float(value)
    if not number <= 1e-3:  # rounding may leave a certainty a little above 0; NaN fails here too
        raise ValueError("log-prob")
    return min(number, 0.0)


def usage(body: dict[str, Any]) -> tuple[int, int] | None:
    """(tokens of the prompt, tokens generated) as the server counts them, or None."""
    told = body.get("usage")
    if not isinstance(told, dict) or not isinstance(told.get("prompt_tokens"), int):
        return None
    generated = told.get("completion_tokens")
    if generated is None and isinstance(told.get("total_tokens"), int):
        generated = told["total_tokens"] - told["prompt_tokens"]
    return (told["prompt_tokens"], int(generated or 0))


@dataclass(frozen=True)
class TopLogProbs:
    """The likeliest next tokens, and how much probability the others have together.

    tokens: the server's strings, likeliest first; log_probs (k,) float64; missing_mass = 1 - sum exp(log_probs);
    ceiling: no token that isn't listed is likelier than this.
    """

    tokens: tuple[str, ...]
    log_probs: np.ndarray
    missing_mass: float
    ceiling: float

    @classmethod
    def of(cls, entries: dict[str, float], k: int) -> TopLogProbs:
        """From {token: log-prob} of at least the k likeliest tokens (a server may add the one that was sampled)."""
        if not entries:
            raise WorkbenchError(
                "The server gave no log-probs for the next token; ask for others, or check the prompt."
            )
        ranked = sorted(entries.items(), key=lambda entry: (-entry[1], entry[0]))
        log_probs = np.array([value for _, value in ranked])
        missing = 1.0 - float(np.exp(log_probs).sum())
        if missing < -0.01:
            must, cure = "sum to at most 1", "check the server's log-prob settings"
            raise refuse("the probabilities of the likeliest tokens", 1.0 - missing, must, cure)
        ceiling = float(np.exp(log_probs[min(k, len(ranked)) - 1]))
        missing = min(1.0, max(0.0, missing))
        return cls(tuple(token for token, _ in ranked), log_probs, missing, min(ceiling, missing))

    def event_mass_bounds(self, tokens: str | Iterable[str]) -> tuple[float, float]:
        """(low, high): the probability that the next token is among `tokens` (strings as the server writes them).

        low = the sum over those listed; high adds, for each one that isn't, the ceiling, but no more than the missing
        mass in all. The bounds meet where every token is listed. A string with a replacement character stands for
        several tokens (pieces of one letter), so it counts as unlisted in the high bound.
        """
        wanted = {tokens} if isinstance(tokens, str) else set(tokens)
        if not all(isinstance(token, str) for token in wanted):
            cure = "pass the tokens' strings, e.g. model.decode([id])"
            raise refuse("tokens", sorted(wanted, key=str)[:5], "be texts", cure)
        low = math.fsum(math.exp(v) for token, v in zip(self.tokens, self.log_probs, strict=True) if token in wanted)
        if any(_FRAGMENT in token for token in wanted):
            return min(low, 1.0), min(low + self.missing_mass, 1.0)
        unlisted = len(wanted - set(self.tokens))
        return min(low, 1.0), min(low + min(self.missing_mass, unlisted * self.ceiling), 1.0)


@dataclass(frozen=True)
class TextSamples:
    """Completions from an endpoint; row r belongs to prompt r // n. As `sampling.Samples`, with `texts`; what the
    server did not tell is refused by name rather than made up.

    texts: rows of str; finish_reasons (rows,): "eos", "stop", "length", or the server's own word; token_strings: for
    each row the server's tokens, or None. tokens (rows, T) int64 padded with -1; lengths (rows,); log_probs
    (rows, T) float64 under the law that was sampled from, padded with 0.
    """

    texts: list[str]
    finish_reasons: np.ndarray
    token_strings: list[list[str]] | None = None
    known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    unknown: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def tokens(self) -> np.ndarray:
        return self._get("tokens")

    @property
    def lengths(self) -> np.ndarray:
        return self._get("lengths")

    @property
    def log_probs(self) -> np.ndarray:
        return self._get("log_probs")

    @property
    def log_prob(self) -> np.ndarray:
        """(rows,) log-probability of each whole completion."""
        return self.log_probs.sum(axis=1)

    def completions(self) -> list[np.ndarray]:
        """The tokens of each row without the padding."""
        return [row[row >= 0] for row in self.tokens]

    def _get(self, name: str) -> np.ndarray:
        if name not in self.known:
            raise LacksCapability(self.unknown[name])
        return self.known[name]


def text_samples(
    name: str,
    bodies: list[dict[str, Any]],
    max_new_tokens: int,
    *,
    stopped: bool,
    no_law: str,
    encode: Callable[[str], list[int]] | None,
    eos_id: int | None,
) -> TextSamples:
    """Replies, one choice each, as samples. stopped: stop strings were asked for; no_law: why log-probs are not those of
    the law that was sampled from, "" where they are; encode: a text's token ids, None without a tokenizer."""
    choices = [read_choice(body) for body in bodies]
    told = [usage(body) for body in bodies]
    counts = [None if counted is None else counted[1] for counted in told]
    width = max([max_new_tokens, *(count or 0 for count in counts)])
    known: dict[str, np.ndarray] = {}
    unknown = {"log_probs": no_law}
    if None in counts:
        unknown["lengths"] = f"{name} does not say how many tokens an answer has; count them in the texts."
    else:
        known["lengths"] = np.array(counts, dtype=np.int64)
    if not no_law:
        scores = [_scores(choice, count, width) for choice, count in zip(choices, counts, strict=True)]
        if None in scores:
            row = scores.index(None)
            unknown["log_probs"] = f"{name} left out log-probs in row {row}; sample again, or load the model locally."
        else:
            known["log_probs"] = np.array([[*(row or []), *[0.0] * (width - len(row or []))] for row in scores])
    ids = [_ids(choice, count, encode, eos_id) for choice, count in zip(choices, counts, strict=True)]
    if None in ids:
        row = ids.index(None)
        why = f"the server counts other tokens than its tokenizer here in row {row}"
        why = "pass its tokenizer='hf:<folder>'" if encode is None else why
        unknown["tokens"] = f"{name} tells texts, not token ids; use .texts ({why})."
    else:
        known["tokens"] = np.array([[*(row or []), *[-1] * (width - len(row or []))] for row in ids], dtype=np.int64)
    strings = [choice.tokens for choice in choices]
    reasons = np.array([_finish(choice, stopped) for choice in choices])
    texts = [choice.text for choice in choices]
    return TextSamples(texts, reasons, None if None in strings else [s or [] for s in strings], known, unknown)


def _scores(choice: Choice, count: int | None, width: int) -> list[float] | None:
    values = [value for value in choice.log_probs or [] if value is not None]
    whole = choice.log_probs is not None and len(values) == len(choice.log_probs) <= width
    return values if whole and count in (None, len(values)) else None


def _ids(
    choice: Choice, count: int | None, encode: Callable[[str], list[int]] | None, eos_id: int | None
) -> list[int] | None:
    """The token ids of an answer: those of its text, where they are as many as the server generated."""
    if encode is None or count is None:
        return None
    try:
        ids = encode(choice.text)
    except Exception:  # tokenizers raises nothing narrower for a word it does not know
        return None
    if len(ids) + 1 == count and choice.finish_reason == "stop" and eos_id is not None:
        ids = [*ids, eos_id]
    return ids if len(ids) == count else None


def _finish(choice: Choice, stopped: bool) -> str:
    """ "stop" where a stop string may have ended the answer, "eos" where none was asked for."""
    if choice.finish_reason != "stop":
        return choice.finish_reason
    return "stop" if stopped or isinstance(choice.stop_reason, str) else "eos"
