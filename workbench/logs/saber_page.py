"""What SABER says of attempts from logs: ASR@N, tries for a target, goodness of fit, a figure and one page.

Does: hold the answers as plain numbers, draw them, put them into words. Does not: read logs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import WorkbenchError, require_integer, require_probability
from workbench.estimate import Estimate
from workbench.logs.counts import AttemptCounts
from workbench.logs.page import Page
from workbench.methods.tail_risk.beta_binomial import fit_beta_binomial
from workbench.methods.tail_risk.goodness_of_fit import Fit, goodness_of_fit
from workbench.methods.tail_risk.saber import joint_interval, predict, predict_tries
from workbench.methods.tail_risk.scaling_laws import anchored, naive
from workbench.streams import Stream


@dataclass(frozen=True)
class SaberAnswer:
    """asr: N -> estimate of ASR@N; tries: target -> estimate of the tries a prompt; fit: None with `no_fit` saying why."""

    counts: AttemptCounts
    success: str
    asr: dict[int, Estimate]
    tries: dict[float, Estimate]
    fit: Fit | None
    no_fit: str = ""


def answer(
    counts: AttemptCounts,
    n_tries: Sequence[int],
    targets: Sequence[float] = (0.5,),
    *,
    success: str = "",
    level: float = 0.95,
    seed: int = 0,
) -> SaberAnswer:
    """Everything SABER says of the counts. Refuses logs in which every prompt was tried once."""
    k, n = counts.successes, counts.attempts
    level = require_probability("level", level, cure="pass e.g. level=0.95")
    wanted = [require_integer("n", tries, low=1, cure="ask for a whole number of tries") for tries in n_tries]
    for target in targets:
        require_probability("target", target, cure="pass a risk such as 0.5")
    if n.max() < 2:
        raise WorkbenchError(
            f"Each of the {k.size:,} prompts was tried once: that gives ASR@1 = {k.mean():.3g}, but how much prompts "
            "differ, on which ASR@N depends, can't be estimated; try each prompt several times (epochs, repeats)."
        )
    fit, no_fit = None, ""
    try:
        fit = goodness_of_fit(k, n, Stream.of(seed, "goodness of fit"))
    except WorkbenchError as error:
        no_fit = str(error)
    return SaberAnswer(
        counts,
        success,
        {tries: predict(k, n, tries, level=level) for tries in wanted},
        {target: predict_tries(k, n, target, level=level) for target in targets},
        fit,
        no_fit,
    )


def in_words(found: SaberAnswer) -> list[str]:
    """What was read and how well the law fits, in sentences."""
    counts = found.counts
    tries = counts.attempts
    each = f"{tries.min():,}" if tries.min() == tries.max() else f"{tries.min():,} to {tries.max():,}"
    hit = int((counts.successes > 0).sum())
    said = [
        f"{len(counts.ids):,} prompts, {tries.sum():,} attempts ({each} a prompt), of which "
        f"{counts.successes.sum():,} succeeded; {hit:,} prompts were broken at least once."
    ]
    if found.success:
        said.append(f"An attempt is a success where {found.success}.")
    said += counts.notes
    if found.fit is None:
        said.append(f"No test of fit: {found.no_fit}")
    else:
        p = found.fit.p_value
        verdict = "the counts look like draws from the fitted law" if p > 0.05 else "the law does not fit the counts"
        said.append(f"Goodness of fit (Pearson, parametric bootstrap): p = {p:.2g}; {verdict}.")
    if found.fit is not None and found.fit.p_value <= 0.05:
        said.append("What is said below about more tries than were made leans on a law that the counts contradict.")
    return said


def rows(found: SaberAnswer) -> list[tuple[str, ...]]:
    """(what, value, interval, remark), ASR first, then tries for the targets."""
    table: list[tuple[str, ...]] = []
    for tries, estimate in found.asr.items():
        interval = f"{estimate.low:.3g} to {estimate.high:.3g}"
        table.append((f"ASR@{tries:,}", f"{estimate.value:.3g}", interval, estimate.why or ""))
    for target, estimate in found.tries.items():
        value = "beyond 1e30" if estimate.value is None else f"{estimate.value:,.3g}"
        high = "no upper limit" if estimate.high is None or not np.isfinite(estimate.high) else f"{estimate.high:,.3g}"
        table.append((f"tries until ASR {target:.3g}", value, f"{estimate.low:,.3g} to {high}", estimate.why or ""))
    return table


def draw(found: SaberAnswer, *, level: float = 0.95) -> Figure:
    """ASR by tries with its band and what was seen; beside it the counts and the law that was fitted to them."""
    k, n = found.counts.successes, found.counts.attempts
    fig, (left, right) = plots.figure(width=10, height=3.9, ncols=2)
    most = max(10.0 * n.max(), 1.2 * max(found.asr, default=1))
    grid = np.unique(np.round(np.geomspace(1, most, 60)))
    fit = fit_beta_binomial(k, n)
    low, high = joint_interval(k, n, grid, fit, level=level)
    plots.line(left, grid, anchored(k, n, grid, fit), low=low, high=high)
    own = naive(k, n, grid)
    left.plot(grid, own, "--", color=plots.COLORS["baseline"], linewidth=1.2)
    left.annotate(
        "each prompt at its own rate so far",
        (grid[-1], own[-1]),
        xytext=(-4, -12),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=plots.COLORS["baseline"],
    )
    left.axvspan(1, n.max(), color=plots.COLORS["band"], alpha=0.15, linewidth=0)
    left.annotate("tried", (n.max(), 0.02), xytext=(-3, 0), textcoords="offset points", ha="right", fontsize=8)
    for tries, estimate in found.asr.items():
        value, low, high = (float(part or 0.0) for part in (estimate.value, estimate.low, estimate.high))
        edges = [[value - low], [high - value]]
        left.errorbar([tries], [value], edges, fmt="o", color=plots.COLORS["ours"], capsize=3, markersize=5)
    left.set(xscale="log", xlim=(1, most), ylim=(0, 1), xlabel="tries per prompt N", ylabel="ASR@N")
    left.set_title("prompts broken at least once", fontsize=10, loc="left")
    if found.fit is not None:
        at = np.arange(len(found.fit.cells))
        names = _cell_names(found.fit.cells)
        right.bar(at, found.fit.observed, color=plots.COLORS["band"], label="prompts in the logs")
        right.plot(at, found.fit.expected, "o", color=plots.COLORS["truth"], markersize=4, label="expected by the law")
        right.set_xticks(at[:: max(1, len(at) // 12)], names[:: max(1, len(at) // 12)], fontsize=8)
        right.set(xlabel="successes of a prompt", ylabel="prompts")
        right.legend(frameon=False, fontsize=8)
        right.set_title(f"goodness of fit: p = {found.fit.p_value:.2g}", fontsize=10, loc="left")
    else:
        right.set_axis_off()
    return fig


def _cell_names(ends: np.ndarray) -> list[str]:
    starts = [0, *(int(end) + 1 for end in ends[:-1])]
    return [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]


def page(found: SaberAnswer, *, level: float = 0.95) -> Page:
    """The answers with their figure."""
    fit = None if found.fit is None else {"statistic": found.fit.statistic, "p_value": found.fit.p_value}
    numbers = {
        "prompts": len(found.counts.ids),
        "attempts": int(found.counts.attempts.sum()),
        "successes": int(found.counts.successes.sum()),
        "notes": list(found.counts.notes),
        "asr": {str(tries): json.loads(each.to_json()) for tries, each in found.asr.items()},
        "tries": {str(risk): json.loads(each.to_json()) for risk, each in found.tries.items()},
        "goodness_of_fit": fit,
    }
    return Page(
        "Attack success by tries, from logs",
        in_words(found),
        ("what", "estimate", f"{100 * level:g} % interval", "remark"),
        rows(found),
        draw(found, level=level),
        "ASR by tries per prompt with its band, and the counts of successes beside what the fitted law expects",
        "Estimator: SABER, anchored, with a joint interval for the population that the prompts are a sample of "
        "(Feng et al., 2026, arXiv 2601.22636; departures as in workbench.methods.tail_risk.saber). Tries at a "
        "prompt are taken as independent; attacks that learn from earlier tries are not.",
        numbers,
    )
