"""Log-probabilities of text that exists already: of given completions, and of whatever may come next."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.errors import refuse
from workbench.models.base import LanguageModel, by_length, check_context, prompt_lists, surviving_memory, token_lists


def score(model: LanguageModel, prompts: Any, completions: Any) -> list[np.ndarray]:
    """log p(completion token | prompt, tokens before it), one float64 array of len(completion) for each pair.

    prompts and completions: a text, a list of token ids, or lists of either, of equal number. Sequences of one
    length are scored together, so a score depends on its own sequence alone.
    Raises WorkbenchError: empty prompts, ids outside the vocabulary, sequences longer than the context.
    """
    model.require("log_probs")
    given, wanted = prompt_lists(model, prompts), token_lists(model, "completion", completions)
    if len(given) != len(wanted):
        cure = "pass one completion for each prompt"
        raise refuse("completions", f"{len(wanted)} sequences", f"be as many as the prompts, {len(given)}", cure)
    for prompt, completion in zip(given, wanted, strict=True):
        check_context(model, len(prompt), len(completion))
    out: list[np.ndarray] = [np.zeros(len(completion)) for completion in wanted]

    def work(block: np.ndarray) -> None:
        first = len(given[block[0]])
        sequences = np.stack([np.concatenate([given[i], wanted[i]]) for i in block])
        for i, values in zip(block, model.token_log_probs(sequences, first), strict=True):
            out[i] = values

    for group in by_length(given, wanted):
        if len(wanted[group[0]]):
            surviving_memory([model], group, work)
    return out


def next_log_probs(model: LanguageModel, prefixes: Any) -> Any:
    """(n, vocab_size) float64: log p(next token | prefix) for prefixes of any lengths.

    prefixes: a text, a list of token ids, or a list of either. A row depends on its own prefix alone.
    A server tells its likeliest tokens alone: from an endpoint it is a list of `TopLogProbs`, the known entries and
    the missing mass, whose `event_mass_bounds` bound what an event can weigh.
    Raises WorkbenchError: empty prefixes, ids outside the vocabulary, prefixes longer than the context.
    """
    if model.samples_itself:
        return model.next_log_probs(prefixes)
    model.require("next_log_probs")
    given = prompt_lists(model, prefixes)
    out = np.empty((len(given), model.vocab_size))
    for group in by_length(given):
        out[group] = next_log_probs_of_array(model, np.stack([given[i] for i in group]))
    return out


def next_log_probs_of_array(model: LanguageModel, prefixes: np.ndarray) -> np.ndarray:
    """As `next_log_probs`, for prefixes (n, length) of one length that are known to be good."""
    out = np.empty((len(prefixes), model.vocab_size))

    def work(block: np.ndarray) -> None:
        out[block] = model.next_log_probs(prefixes[block])

    surviving_memory([model], np.arange(len(prefixes)), work)
    return out
