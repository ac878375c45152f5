"""Distributional correctness (DCS): a score of the whole distribution over answers, with "I don't know" among them.

T. F. Burns (arXiv 2510.04302); code in Aleph-Alpha-Research/eval-framework (Apache-2.0), read but not copied.

Computes, with p_C, p_W, p_IDK the masses of right options, wrong options and "I don't know" (IDK), which add up to 1:
    product form   (l_c p_C - l_w p_W) (1 - p_IDK), as the paper defines it;
    linear form     l_c p_C - l_w p_W, as the public code evaluates it for most spellings of IDK;
and beside it accuracy, confidence-weighted accuracy, the ternary score (Kalai et al. 2025), Brier and log score.
Does not: ask a model; it starts from the log-likelihoods of option strings.

1. With x = p_C / (p_C + p_W) and u = p_IDK the product form is ((l_c + l_w) x - l_w) (1 - u)^2: for a given x the best
   u is 0 or 1, and theta = l_w / (l_c + l_w) lies between (ours).
2. The public code strips and lower-cases IDK strings before it looks them up among raw ones, so " ?" and "IDK" are not
   found, p_IDK counts as 0 and the second factor is 1. Here both sides are stripped and folded.
3. IDK may be a set of strings; their masses add up before the masses are made to sum to 1.
4. An item that can't be scored is told, counted and left out; it is never a 0.
5. Standard errors are those of means over items, which a bootstrap over items would approximate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from workbench.errors import WorkbenchError, refuse, require_choice, require_finite, require_integer, require_number
from workbench.streams import Stream

FORMS = ("product", "linear")
LENGTHS = ("characters", "tokens", "none")
IDK = ("?", "I don't know", "I do not know", "IDK", "unknown")


@dataclass(frozen=True, eq=False)
class Answers:
    """Distributions over answer options: probabilities (items, options), padded with 0, rows adding up to 1.

    right, idk (items, options): which options are right, which say "I don't know"; real (items, options): not padding.
    listed (items,): probability, without length normalisation, that the model says any of the listed strings at all;
    NaN where only probabilities were given. errors: {number of an item that was left out: why}.
    """

    probabilities: np.ndarray
    right: np.ndarray
    idk: np.ndarray
    real: np.ndarray
    listed: np.ndarray
    errors: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def p_right(self) -> np.ndarray:
        return (self.probabilities * self.right).sum(axis=1)

    @property
    def p_idk(self) -> np.ndarray:
        return (self.probabilities * self.idk).sum(axis=1)

    @property
    def p_wrong(self) -> np.ndarray:
        return (self.probabilities * (self.real & ~self.right & ~self.idk)).sum(axis=1)

    @property
    def chance(self) -> np.ndarray:
        """(items,) the share of right options among those that are not IDK."""
        return self.right.sum(axis=1) / (self.real & ~self.idk).sum(axis=1)

    def hardened(self) -> Answers:
        """All mass on the top option that is not IDK."""
        top = np.where(self.real & ~self.idk, self.probabilities, -1.0).argmax(axis=1)
        hard = (np.arange(self.probabilities.shape[1]) == top[:, None]).astype(float)
        return Answers(hard, self.right, self.idk, self.real, self.listed, self.errors)


def answers(probabilities: Any, labels: Any, *, idk: int | None = None) -> Answers:
    """Answers from probabilities (items, options) that sum to 1, labels (items,) of the right options, and the column
    `idk` of "I don't know", counted from 0; None where there is none."""
    p = require_finite("probabilities", probabilities, "score the item again or leave it out")
    if p.ndim != 2 or p.min() < 0 or np.abs(p.sum(axis=1) - 1).max() > 1e-6:
        must = "have axes (items, options), with rows of probabilities that sum to 1"
        raise refuse("probabilities", f"of shape {p.shape}, from {p.min():g}", must, "take a softmax over the options")
    chosen, numbers = np.asarray(labels), np.arange(p.shape[1])
    column = (
        -1 if idk is None else require_integer("idk", idk, low=0, high=p.shape[1] - 1, cure="name a column, from 0")
    )
    if chosen.shape != (len(p),) or not np.isin(chosen, numbers).all() or (chosen == column).any():
        must = f"name one option of {p.shape[1]} for each item, and not IDK"
        raise refuse("labels", chosen[:5], must, "number the options from 0")
    none = np.broadcast_to(numbers == column, p.shape)
    listed = np.full(len(p), np.nan)
    return Answers(p, numbers == chosen[:, None], none, np.ones(p.shape, dtype=bool), listed, {})


def read_answers(
    items: Iterable[Mapping[str, Any]], *, idk: Sequence[str] = IDK, length: str = "characters"
) -> Answers:
    """Answers from the log-likelihoods of option strings.

    items   each {"log_likelihoods": {option: log p(option | question)}, "correct": a string or several}, with
            "tokens": {option: how many} for length="tokens"
    idk     strings that say "I don't know"; case and surrounding blanks don't count
    length  a log-likelihood is divided by the option's "characters" (as in the public code), "tokens", or by "none"
    An item with a log-likelihood that is not finite, without options of all three kinds, or with an unknown right
    option is left out, with its number and the reason in `errors`. Raises WorkbenchError where no item is left.
    """
    require_choice("length", length, LENGTHS)
    if isinstance(idk, str) or not idk:
        raise refuse("idk", idk, "be a list of strings", "pass e.g. idk=['?', 'I don\\'t know']")
    wanted, rows, errors = {_folded(text) for text in idk}, [], {}
    for number, item in enumerate(items):
        try:
            rows.append(_row(item, wanted, length))
        except WorkbenchError as error:
            errors[number] = str(error)
    if not rows:
        first = next(iter(errors.values()), "there was none")
        raise refuse(
            "items", f"without one that can be scored (first: {first.rstrip('.')})", "hold one", "mend the log"
        )
    widest = max(len(p) for p, *_ in rows)
    p, right, none, real = (np.zeros((len(rows), widest), dtype=kind) for kind in (float, bool, bool, bool))
    for row, (mass, is_right, is_idk, _) in enumerate(rows):
        here = slice(len(mass))
        p[row, here], right[row, here], none[row, here], real[row, here] = mass, is_right, is_idk, True
    return Answers(p, right, none, real, np.array([listed for *_, listed in rows]), errors)


def _folded(text: str) -> str:
    return " ".join(str(text).casefold().split())


def _row(item: Mapping[str, Any], idk: set[str], length: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    options = dict(item.get("log_likelihoods", {}))
    cure = "score this item again or leave it out"
    raw = require_finite("log_likelihoods", list(options.values()), cure)
    if raw.max() > 1e-9:
        raise refuse("log_likelihoods", raw.max(), "be at most 0", "pass natural logarithms of probabilities")
    given = item.get("correct", ())
    correct = {given} if isinstance(given, str) else set(given)
    is_right = np.array([option in correct for option in options])
    is_idk = np.array([_folded(option) in idk for option in options])
    if not correct or correct - set(options):
        raise refuse(
            "correct", sorted(map(str, correct)), "name options of this item", "spell it as in log_likelihoods"
        )
    if not is_idk.any() or (is_idk & is_right).any() or (is_idk | is_right).all():
        kinds = f"{is_right.sum()} right, {is_idk.sum()} IDK, {len(options)} in all"
        raise refuse("options", kinds, "hold right, wrong and IDK ones", "add an IDK option or its spelling to idk")
    scaled = raw
    if length != "none":
        tokens = item.get("tokens", {})
        counts = [len(option) if length == "characters" else tokens.get(option, 0) for option in options]
        if min(counts) < 1:
            raise refuse(length, min(counts), "be at least 1 for each option", "give item['tokens'] for every option")
        scaled = raw / np.array(counts)
    return np.exp(scaled - logsumexp(scaled)), is_right, is_idk, float(np.exp(logsumexp(raw)))


def threshold(l_right: float = 1.0, l_wrong: float = 1.0) -> float:
    """theta = l_w / (l_c + l_w): whoever is right with a larger chance does best to answer, else to abstain."""
    l_right, l_wrong = _loadings(l_right, l_wrong, True)
    return l_wrong / (l_right + l_wrong)


def dcs(
    p_right: Any,
    p_wrong: Any,
    p_idk: Any,
    *,
    l_right: float = 1.0,
    l_wrong: float = 1.0,
    form: str = "product",
    high_stakes: bool = False,
) -> np.ndarray:
    """DCS of masses (...) that add up to 1; in [-l_wrong, l_right], 0 for pure abstention.

    form         "product", the paper's, or "linear", the public code's in effect
    high_stakes  allows l_wrong > l_right, which the paper rules out: a threshold above 1/2
    """
    require_choice("form", form, FORMS)
    l_right, l_wrong = _loadings(l_right, l_wrong, high_stakes)
    right, wrong, idk = (
        require_finite(name, value, "pass probabilities", allow_empty=True)
        for name, value in (("p_right", p_right), ("p_wrong", p_wrong), ("p_idk", p_idk))
    )
    total = right + wrong + idk
    if total.size and (min(right.min(), wrong.min(), idk.min()) < -1e-9 or np.abs(total - 1).max() > 1e-6):
        worst = total.ravel()[np.abs(total - 1).argmax()]
        raise refuse("p_right + p_wrong + p_idk", worst, "add up to 1, none below 0", "divide by their sum")
    return (l_right * right - l_wrong * wrong) * ((1 - idk) if form == "product" else 1.0)


def _loadings(l_right: float, l_wrong: float, high_stakes: bool) -> tuple[float, float]:
    l_right = require_number("l_right", l_right, low=0, open_low=True, cure="pass e.g. l_right=1.0")
    l_wrong = require_number("l_wrong", l_wrong, low=0, cure="pass e.g. l_wrong=1.0")
    if l_wrong > l_right and not high_stakes:
        raise refuse(
            "l_wrong", l_wrong, f"be at most l_right, {l_right:g}", "pass high_stakes=True to go beyond the paper"
        )
    return l_right, l_wrong


def item_scores(
    given: Answers,
    *,
    l_right: float = 1.0,
    l_wrong: float = 1.0,
    high_stakes: bool = False,
) -> dict[str, np.ndarray]:
    """Every score of every item, by name, (items,) each.

    "DCS", "DCS linear"; "accuracy": the top option that is not IDK is right; "CWA": the mass of the top option of all
    if right, else 0; "ternary": l_c, 0 or -l_w where the top option of all is right, IDK or wrong; "Brier" and "log":
    over the options that are not IDK, renormalised, the smaller the better, in [0, 2] and nats; "chance DCS": all
    options that are not IDK alike. Ties go to the first option. "log" is inf where a right option has no mass.
    """
    options: dict[str, Any] = {"l_right": l_right, "l_wrong": l_wrong, "high_stakes": high_stakes}
    masses, rows = (given.p_right, given.p_wrong, given.p_idk), np.arange(len(given))
    top = np.where(given.real, given.probabilities, -1.0).argmax(axis=1)
    top_right, top_idk = given.right[rows, top], given.idk[rows, top]
    guess = given.hardened().p_right
    kept = given.probabilities * ~given.idk
    rest = kept.sum(axis=1, keepdims=True)
    uniform = (given.real & ~given.idk) / (given.real & ~given.idk).sum(axis=1, keepdims=True)
    renormalised = np.where(rest > 0, kept / np.where(rest > 0, rest, 1.0), uniform)
    with np.errstate(divide="ignore"):
        log_score = -np.log((renormalised * given.right).sum(axis=1))
    target = given.right / given.right.sum(axis=1, keepdims=True)
    return {
        "DCS": dcs(*masses, **options),
        "DCS linear": dcs(*masses, form="linear", **options),
        "accuracy": guess,
        "CWA": given.probabilities[rows, top] * top_right,
        "ternary": np.where(top_right, l_right, np.where(top_idk, 0.0, -l_wrong)),
        "Brier": ((renormalised - target) ** 2).sum(axis=1),
        "log": log_score,
        "chance DCS": l_right * given.chance - l_wrong * (1 - given.chance),
    }


def summary(given: Answers, **loadings: Any) -> dict[str, tuple[float, float]]:
    """{score: (mean over items, its standard error)} of `item_scores`; loadings as there."""
    if len(given) < 2:
        raise refuse("items", len(given), "be at least 2", "a standard error needs two items")
    found = item_scores(given, **loadings)
    root = np.sqrt(len(given))
    return {
        name: (float(values.mean()), float(values.std(ddof=1) / root) if np.isfinite(values).all() else float("inf"))
        for name, values in found.items()
    }


def placement_gain(
    given: Answers, l_right: float = 1.0, l_wrong: float = 1.0, *, shuffle: Stream | None = None
) -> tuple[float, float]:
    """(gain, standard error): DCS minus its mean under a shuffled p_IDK, at the same answers and the same abstention.

    With s = (l_c + l_w) x - l_w and v = (1 - u)^2 it is the covariance of s and v over items. An item without any
    answer, u = 1, has no x; it adds nothing. shuffle: deals out u at random first, where the gain is 0 on average.
    """
    l_right, l_wrong = _loadings(l_right, l_wrong, True)
    if len(given) < 2:
        raise refuse("items", len(given), "be at least 2", "a covariance needs two items")
    some = given.p_right + given.p_wrong
    x = given.p_right / np.where(some > 0, some, 1.0)
    s, v = np.where(some > 0, (l_right + l_wrong) * x - l_wrong, np.nan), (1 - given.p_idk) ** 2
    s = np.where(some > 0, s, s[some > 0].mean() if some.any() else 0.0)
    if shuffle is not None:
        v = shuffle.generator().permutation(v)
    terms = (s - s.mean()) * (v - v.mean())
    return float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(len(terms)))
