"""A verifier of worked sums, step by step: P(step is right | prompt, steps so far), from `embedded/arith-verifier`.

Does: the model learnt which step is right after any text so far, slips included; there is but one. So the probability
that it gives to a step, letter for letter, is its belief that this step is the right one: a generative verifier.
Does not: judge the answer after '#'. What a right step is, `tasks.step_labels` says; how far the probabilities can be
trusted, the model's card says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from workbench.errors import refuse
from workbench.models.base import LanguageModel
from workbench.models.loading import load
from workbench.models.scoring import score
from workbench.models.tasks import terms_of

_SYMBOLS = "0123456789+=;#"


def step_probabilities(
    prompts: str | Sequence[str], solutions: str | Sequence[str], model: LanguageModel | None = None
) -> list[np.ndarray]:
    """P(right) of each finished step, one float64 array for each solution, in the order of its steps.

    prompts, e.g. "23+45+18=", and solutions, e.g. "23+45=68;68+1", one for each. A step is finished where its ';'
    stands before any '#'. P = product over the symbols of the step of p(symbol | prompt, all before it), which depends
    on the text up to the ';' alone. model: another one with the same tokens (default: `embedded/arith-verifier`).
    Charges what scoring the finished steps costs.
    Raises WorkbenchError: a prompt that is no sum, a solution with other symbols, unequal numbers, too long a text.
    """
    asked, given = _listed(prompts), _listed(solutions)
    if len(asked) != len(given):
        cure = "pass one solution for each prompt"
        raise refuse("solutions", f"{len(given)} texts", f"be as many as the prompts, {len(asked)}", cure)
    finished = []
    for i, (prompt, solution) in enumerate(zip(asked, given, strict=True)):
        terms_of(prompt)
        if not isinstance(solution, str) or set(solution) - set(_SYMBOLS):
            raise refuse(f"solutions[{i}]", solution, f"be made of {_SYMBOLS}", "pass a solution as it was sampled")
        finished.append("".join(step + ";" for step in solution.split("#")[0].split(";")[:-1]))
    judged = [i for i, steps in enumerate(finished) if steps]
    out = [np.empty(0)] * len(given)
    if judged:
        scores = score(model or _verifier(), [asked[i] for i in judged], [finished[i] for i in judged])
        for i, log_p in zip(judged, scores, strict=True):
            ends = [at + 1 for at, symbol in enumerate(finished[i]) if symbol == ";"]
            out[i] = np.exp([part.sum() for part in np.split(log_p, ends)[:-1]])
    return out


@lru_cache(maxsize=1)
def _verifier() -> LanguageModel:
    return load("embedded/arith-verifier")


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
