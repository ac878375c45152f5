"""The grammars that the experiments use: small languages whose every probability is known.

Vocabulary of the codeword family: 0 <eos>, 1 X (the harmless codeword), 2 refuse, 3 comply, then fillers f0, f1, ...
"""

from __future__ import annotations

import itertools

import numpy as np

from workbench.errors import refuse, require_integer, require_number
from workbench.models.grammar import GrammarModel

EOS, CODEWORD, REFUSE, COMPLY = 0, 1, 2, 3
_SPECIAL = ("<eos>", "X", "refuse", "comply")
_P_END = 0.2


def two_branch(c: float, r: float, *, after_refuse: float = 1e-6, n_fillers: int = 1) -> GrammarModel:
    """First `comply` with probability c, else `refuse`; then X with probability r a step after `comply`
    and `after_refuse` after `refuse`, a filler otherwise. Nothing but max_new_tokens ends a text.

    P(X within T tokens) = c (1 - (1 - r)^(T-1)) + (1 - c) (1 - (1 - after_refuse)^(T-1)).
    """
    cure = "pass a probability"
    c = require_number("c", c, low=0, high=1, cure=cure)
    r = require_number("r", r, low=0, high=1, cure=cure)
    after_refuse = require_number("after_refuse", after_refuse, low=0, high=1, cure=cure)
    n_fillers = require_integer("n_fillers", n_fillers, low=1, cure="have at least one filler")
    fillers = range(len(_SPECIAL), len(_SPECIAL) + n_fillers)
    probs = np.zeros((3, len(_SPECIAL) + n_fillers))
    probs[0, [COMPLY, REFUSE]] = c, 1 - c
    for state, rate in ((1, r), (2, after_refuse)):
        probs[state, CODEWORD], probs[state, list(fillers)] = rate, (1 - rate) / n_fillers
    transition = np.broadcast_to(np.arange(3)[:, None], probs.shape).copy()
    transition[0, COMPLY], transition[0, REFUSE] = 1, 2
    return _model(probs, transition, n_fillers, f"two_branch(c={c:g}, r={r:g})")


def codeword_grammar() -> GrammarModel:
    """125 prompts of three of five fillers; the answer complies with probability 10^(-5 + (sum - 12) / 3).

    The filler f_i has token id 4 + i and counts with that id, so the sum of a prompt's three ids runs from 12
    (f0 f0 f0: 1e-5) to 24 (f4 f4 f4: 1e-1). After `comply`, X comes with .3 a step; after `refuse`, with 1e-6;
    a text ends with .2 a step; the rest are fillers, which are harmless. Angell et al. (arXiv 2604.22167), scaled.
    """
    n_fillers, prompt_length = 5, 3
    fillers = [len(_SPECIAL) + i for i in range(n_fillers)]
    # States: what the prompt's tokens add up to so far, then the two branches.
    sums = [(k, s) for k in range(prompt_length + 1) for s in range(k * min(fillers), k * max(fillers) + 1)]
    number = {key: i for i, key in enumerate(sums)}
    complied, refused = len(sums), len(sums) + 1
    probs = np.zeros((len(sums) + 2, len(_SPECIAL) + n_fillers))
    transition = np.broadcast_to(np.arange(len(probs))[:, None], probs.shape).copy()
    for (k, total), state in number.items():
        if k < prompt_length:
            probs[state, fillers] = 1 / n_fillers
            for filler in fillers:
                transition[state, filler] = number[k + 1, total + filler]
        else:
            c = comply_probability(total)
            probs[state, [COMPLY, REFUSE]] = c, 1 - c
            transition[state, COMPLY], transition[state, REFUSE] = complied, refused
    for state, rate in ((complied, 0.3), (refused, 1e-6)):
        probs[state, [EOS, CODEWORD]] = _P_END, rate
        probs[state, fillers] = (1 - _P_END - rate) / n_fillers
    return _model(probs, transition, n_fillers, "grammar/codeword")


def comply_probability(total: int) -> float:
    """P(comply) after a prompt of the codeword grammar whose token ids add up to `total`."""
    return 10.0 ** (-5 + (total - 12) / 3)


def codeword_prompts() -> list[list[int]]:
    """The 125 prompts, in lexical order."""
    return [list(prompt) for prompt in itertools.product(range(4, 9), repeat=3)]


def bigram(n_tokens: int = 8, *, rare: float = 1e-3, seed: int = 0) -> GrammarModel:
    """A language in which a token depends on the one before: 0 <eos>, 1 X, the others plain.

    Plain tokens follow each other by a fixed random law (Dirichlet(1), from `seed`); <eos> comes with .02 a step,
    X with `rare` times a factor from .25 to 4 that depends on the token before, so that some texts are riskier.
    For long texts (T = 20), where enumeration is out of reach and dynamic programming is not.
    """
    n_tokens = require_integer("n_tokens", n_tokens, low=3, cure="have <eos>, X and at least one plain token")
    rare = require_number("rare", rare, low=0, high=0.2, open_low=True, cure="pass e.g. rare=1e-3")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise refuse("seed", seed, "be a whole number", "pass e.g. seed=0")
    generator = np.random.default_rng(seed)
    plain = n_tokens - 2
    probs = np.zeros((n_tokens, n_tokens))
    probs[:, 0] = 0.02
    probs[:, 1] = rare * 4.0 ** np.linspace(-1, 1, n_tokens)
    probs[:, 2:] = generator.dirichlet(np.ones(plain), size=n_tokens) * (1 - probs[:, :2].sum(axis=1, keepdims=True))
    transition = np.broadcast_to(np.arange(n_tokens), probs.shape).copy()
    tokens = ["<eos>", "X", *(f"w{i}" for i in range(plain))]
    with np.errstate(divide="ignore"):
        return GrammarModel(np.log(probs), transition, start_state=2, eos_id=0, tokens=tokens, name="grammar/bigram")


def _model(probs: np.ndarray, transition: np.ndarray, n_fillers: int, name: str) -> GrammarModel:
    with np.errstate(divide="ignore"):
        table = np.log(probs)
    tokens = [*_SPECIAL, *(f"f{i}" for i in range(n_fillers))]
    return GrammarModel(table, transition, eos_id=EOS, tokens=tokens, name=name)
