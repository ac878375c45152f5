"""How far an endpoint repeats itself, and how fast it is: what `workbench models check` prints.

Does: sends a set of prompts twice, greedily and with fixed seeds, and counts the tokens that agree; on request compares
the greedy answers with those of a model on this machine.
Does not: say which of two unlike answers is right.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from workbench.errors import LacksCapability, refuse, require_integer
from workbench.models.answers import Choice, read_choice
from workbench.models.base import LanguageModel
from workbench.models.endpoint import EndpointModel
from workbench.models.probe import asking_log_probs
from workbench.models.sampling import sample
from workbench.streams import Stream

PROMPTS = tuple(f"Question {i}: what is {7 * i % 50} plus {11 * i % 60}? Answer:" for i in range(1, 33))
_QUANTILES = (0.5, 0.9, 0.99, 1.0)


def check_endpoint(
    model: EndpointModel,
    *,
    prompts: Sequence[str] = PROMPTS,
    max_new_tokens: int = 16,
    seed: int = 0,
    against: LanguageModel | None = None,
) -> dict[str, Any]:
    """What the endpoint offers, and how far two answers to one question agree.

    Each prompt is asked twice greedily and twice at temperature 1 with one seed each (where seeds are not refused).
    Returns {"endpoint", "offers", "rows", "latency", "transcript", "lost"}. A row: {"what", "identical" answers "of" how
    many, "agree": positions that hold the same token, "compared": positions in the longer answer, "unit": "tokens",
    or "characters" where the server tells no tokens}. latency: seconds of one request at the model's concurrency, by
    quantile. against: a model whose greedy answers are set against the endpoint's.
    """
    require_integer("max_new_tokens", max_new_tokens, low=1, cure="ask for at least one token")
    if not prompts or not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise refuse("prompts", f"{len(prompts)} prompts", "be texts that aren't empty", "give one prompt a line")
    if model.client.offline:
        raise LacksCapability(f"{model.name} answers from a transcript, which always agrees with itself; load it live.")
    # First, so that prompts which the other model can't read cost nothing.
    local = [] if against is None else _greedy(against, prompts, max_new_tokens)
    # An answer from the server's store would agree for the wrong reason, so each check asks under names of its own.
    nonce = uuid.uuid4().hex
    strings = {} if not model.offers.log_probs else asking_log_probs(model.offers.api, 1)
    seconds: list[float] = []

    def asked(kind: str, time: int, fields: dict[str, Any], seeded: bool = False) -> list[Choice]:
        calls = [
            model.client.call(
                prompt,
                ("check", nonce, kind, time, at),
                {"max_tokens": max_new_tokens, **fields, **strings, **({"seed": seed + at} if seeded else {})},
                model.offers.api,
            )
            for at, prompt in enumerate(model.prompts(list(prompts), max_new_tokens))
        ]
        replies = model.client.replies(calls)
        seconds.extend(reply.seconds for reply in replies)
        return [read_choice(reply.body) for reply in replies]

    greedy = [asked("greedy", time, {"temperature": 0}) for time in (0, 1)]
    rows = [_row("greedy, twice", *greedy)]
    if model.offers.seed != "refused":
        rows.append(_row("same seed, twice", *(asked("seeded", time, {"temperature": 1}, True) for time in (0, 1))))
    if against is not None:
        rows.append(_row(f"greedy, against {against.name}", greedy[0], local))
    quantiles = np.quantile(seconds, _QUANTILES)
    return {
        "endpoint": model.name,
        "offers": asdict(model.offers),
        "rows": rows,
        "latency": {f"{q:g}": round(float(value), 6) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        "transcript": str(model.transcript.path),
        "lost": asdict(model.lost),
    }


def _greedy(model: LanguageModel, prompts: Sequence[str], max_new_tokens: int) -> list[Choice]:
    drawn = sample(model, list(prompts), max_new_tokens=max_new_tokens, stream=Stream.of(0), greedy=True)
    texts = [model.decode(tokens.tolist()) for tokens in drawn.completions()]
    return [Choice(text, "stop", None, None, None, []) for text in texts]


def _row(what: str, first: list[Choice], second: list[Choice]) -> dict[str, Any]:
    told = all(choice.tokens is not None for choice in (*first, *second))
    pairs = [
        (a.tokens or [], b.tokens or []) if told else (list(a.text.strip()), list(b.text.strip()))
        for a, b in zip(first, second, strict=True)
    ]
    return {
        "what": what,
        "identical": sum(a == b for a, b in pairs),
        "of": len(pairs),
        "agree": sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False)),
        "compared": sum(max(len(a), len(b)) for a, b in pairs),
        "unit": "tokens" if told else "characters",
    }
