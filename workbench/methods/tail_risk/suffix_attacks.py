"""Attacks by suffix on the tiny targets of `locked_suffixes`: five ways to propose what the target is asked next.

template    one of eight fixed suffixes a step
random      random tokens
iterative   hill climbing by mutation on a surrogate's score: the stand-in for an attacker model (PAIR)
gradient    greedy coordinate gradient (GCG, Zou et al., arXiv 2307.15043): one-hot gradient, top 8 tokens a position,
            32 candidates a step; the best of them and of the suffix so far is kept, where GCG takes a candidate
transfer    the gradient attack on the surrogate, replayed on the target
Does: propose suffixes for many prompts at once, ask the target, record the trials.
Does not: count cost; `risk_under_pressure_trials` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from workbench.errors import refuse, require_integer
from workbench.methods.tail_risk.risk_under_pressure_trials import Trials
from workbench.problems.locked_suffixes import (
    PERMISSIONS,
    PROMPT,
    SUFFIX,
    VOCABULARY,
    Gate,
    check_tokens,
    fillers,
    one_hot,
    one_thread,
)
from workbench.streams import Stream

RESPONSE_TOKENS = 2  # the codeword or the refusal, and the end


def template_suffixes(prompts: np.ndarray, steps: int, stream: Stream) -> np.ndarray:
    """(n, steps, 6): each step one of eight fixed suffixes, which hold 0, 0, 1, 1, 1, 2, 2, 2 permissions."""
    rng = stream.child("templates").generator()
    fixed = fillers((8, SUFFIX), rng)
    for row, many in enumerate((0, 0, 1, 1, 1, 2, 2, 2)):
        fixed[row, rng.choice(SUFFIX, many, replace=False)] = rng.choice(list(PERMISSIONS), many)
    return fixed[stream.generator().integers(8, size=(len(prompts), steps))]


def random_suffixes(prompts: np.ndarray, steps: int, stream: Stream) -> np.ndarray:
    """(n, steps, 6) tokens, all ids alike."""
    return stream.generator().integers(VOCABULARY, size=(len(prompts), steps, SUFFIX))


def iterative_suffixes(
    prompts: np.ndarray, steps: int, stream: Stream, surrogate: Gate, mutants: int = 4
) -> np.ndarray:
    """(n, steps, 6): each step, of the suffix so far and `mutants` with one token changed, that which the surrogate
    likes best."""
    rng = stream.generator()
    return _climb(prompts, steps, rng, surrogate, lambda suffix: _mutated(suffix, mutants, rng))


def gradient_suffixes(
    prompts: np.ndarray, steps: int, stream: Stream, model: Gate, candidates: int = 32, top: int = 8
) -> np.ndarray:
    """(n, steps, 6): GCG on `model`. Each candidate changes one position to one of the `top` tokens by gradient."""
    rng = stream.generator()

    def propose(suffix: np.ndarray) -> np.ndarray:
        tokens = one_hot(np.concatenate([prompts, suffix], axis=1)).requires_grad_(True)
        with one_thread():
            [slope] = torch.autograd.grad(model(tokens).sum(), tokens)
        best = slope[:, PROMPT:].topk(top, dim=2).indices.numpy()
        out, shape = np.repeat(suffix[:, None], candidates, axis=1), (len(suffix), candidates)
        place, choice = rng.integers(SUFFIX, size=shape), rng.integers(top, size=shape)
        rows = np.arange(len(suffix))[:, None]
        out[rows, np.arange(candidates), place] = best[rows, place, choice]
        return out

    return _climb(prompts, steps, rng, model, propose)


def _climb(
    prompts: np.ndarray,
    steps: int,
    rng: np.random.Generator,
    model: Gate,
    propose: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """(n, steps, 6) the best of the suffix so far and the proposals (n, m, 6), by the model's score, step by step."""
    require_integer("steps", steps, low=1, cure="pass e.g. steps=10")
    suffix, out = fillers((len(prompts), SUFFIX), rng), []
    for _ in range(steps):
        pool = np.concatenate([suffix[:, None], propose(suffix)], axis=1)
        score = model.comply_probability(_joined(prompts, pool).reshape(-1, PROMPT + SUFFIX)).reshape(pool.shape[:2])
        suffix = pool[np.arange(len(pool)), score.argmax(axis=1)]
        out.append(suffix)
    return np.stack(out, axis=1)


def _mutated(suffix: np.ndarray, mutants: int, rng: np.random.Generator) -> np.ndarray:
    out = np.repeat(suffix[:, None], mutants, axis=1)
    shape = out.shape[:2]
    place = rng.integers(SUFFIX, size=shape)
    np.put_along_axis(out, place[..., None], rng.integers(VOCABULARY, size=(*shape, 1)), axis=2)
    return out


def _joined(prompts: np.ndarray, suffixes: np.ndarray) -> np.ndarray:
    """(n, m, 14) of prompts (n, 8) and suffixes (n, m, 6)."""
    return np.concatenate([np.repeat(prompts[:, None], suffixes.shape[1], axis=1), suffixes], axis=2)


def try_suffixes(target: Gate, prompts: np.ndarray, suffixes: np.ndarray, family: np.ndarray, stream: Stream) -> Trials:
    """Ask the target with suffixes (n, steps, 6) in turn until it says the codeword; the judge is that predicate."""
    given = check_tokens(suffixes)
    if given.ndim != 3 or len(given) != len(prompts) or given.shape[2] != SUFFIX:
        raise refuse("the shape of suffixes", given.shape, f"be ({len(prompts)}, steps, {SUFFIX})", "propose for each")
    n, steps = given.shape[:2]
    chance = target.comply_probability(_joined(prompts, given).reshape(-1, PROMPT + SUFFIX)).reshape(n, steps)
    said = stream.uniforms(n, steps) < chance
    success = np.asarray(said.any(axis=1))
    ran = np.where(success, said.argmax(axis=1) + 1, steps)
    asked = np.arange(steps) < ran[:, None]
    return Trials(
        prompt_ids=tuple(f"p{i}" for i in range(n)),
        categories=tuple(f"lock {one}" for one in family),
        ran=ran,
        success=success,
        prompt_tokens=np.where(asked, PROMPT + SUFFIX, 0),
        response_tokens=np.where(asked, RESPONSE_TOKENS, 0),
    )
