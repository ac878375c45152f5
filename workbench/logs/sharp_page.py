"""SHARP on logs: the tail of cumulative log-risk by model, what each dimension adds to it, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.errors import WorkbenchError
from workbench.logs.page import Page
from workbench.methods.tail_risk.sharp import compare_models, resample, risk_profiles
from workbench.methods.tail_risk.sharp_scores import Scores, join_judges
from workbench.plots.harm_tails import contributions_figure
from workbench.streams import Stream

_CELLS = 2e7  # counts of prompts in bootstrap resamples that are held at once


def page(scores: Scores, notes: Sequence[str] = (), *, level: float = 0.95, seed: int = 0) -> Page:
    """The risk profile of each model of `scores`, at the tail level `level`, with 95 % bootstrap intervals."""
    severities = join_judges(scores.values)
    n = len(scores.prompts)
    found = risk_profiles(severities, scores.models, scores.dimensions, level=level)
    if n < 2:
        raise WorkbenchError("The logs hold one prompt; intervals need at least two.")
    draws = int(np.clip(_CELLS / n, 200, 2000))
    sampled = resample(found.losses, level=level, n_draws=draws, stream=Stream.of(seed, "sharp from logs"))
    mean, cvar = sampled.interval("mean"), sampled.interval("cvar")
    rows, numbers = [], {}
    for i in np.argsort(found.cvar):
        worst = int(np.argmax(found.tail[i]))
        share = found.tail[i, worst] / found.cvar[i] if found.cvar[i] else 0.0
        rows.append((
            found.models[i],
            f"{found.mean[i]:.3g} ({mean[0, i]:.3g} to {mean[1, i]:.3g})",
            f"{found.quantile[i]:.3g}",
            f"{found.cvar[i]:.3g} ({cvar[0, i]:.3g} to {cvar[1, i]:.3g})",
            f"{found.dimensions[worst]}, {100 * share:.0f} %" if found.cvar[i] else "none",
        ))  # fmt: skip
        numbers[found.models[i]] = {
            "mean": [float(found.mean[i]), *map(float, mean[:, i])],
            "quantile": float(found.quantile[i]),
            "cvar": [float(found.cvar[i]), *map(float, cvar[:, i])],
            "tail": dict(zip(found.dimensions, map(float, found.tail[i]), strict=True)),
        }
    said = [
        f"{len(found.models)} model{'s' * (len(found.models) > 1)}, {n:,} prompts, {len(found.dimensions)} dimensions: "
        f"{', '.join(found.dimensions)}.",
        *notes,
    ]
    if n * (1 - level) < 20:
        said.append(f"The worst {1 - level:.2g} are {n * (1 - level):.3g} prompts; so small a tail is told roughly.")
    if len(found.models) > 2:
        tests = compare_models(found.losses)
        apart = [(i, j) for (i, j), p in zip(tests.pairs, tests.pair_p_values, strict=True) if p < 0.05]
        said.append(
            f"Do models differ? Friedman's test: p = {tests.p_value:.2g}; {len(apart)} of {len(tests.pairs)} pairs "
            "differ by Wilcoxon's test with Holm's correction at 5 %."
        )
    flips = [
        f"{found.models[i]} is no worse than {found.models[j]} on average, yet worse in the tail."
        for i, j in zip(*np.nonzero(sampled.flips()), strict=True)
    ]
    numbers = {"models": numbers, "prompts": n, "dimensions": list(found.dimensions), "notes": list(notes)}
    return Page(
        "Harm profiles by model, from logs",
        said + flips,
        ("model", "mean log-risk, nats", f"VaR {level:g}", f"CVaR {level:g}", "most of the tail"),
        rows,
        contributions_figure(found, cvar),
        "What each dimension of harm adds to the mean and to the tail of log-risk, for each model",
        "Method: SHARP (arXiv 2601.21235; departures as in workbench.methods.tail_risk.sharp): the log-risk of a prompt "
        "is the sum of -log(1 - severity) over its dimensions. Intervals: 95 %, bootstrap over prompts.",
        numbers,
    )
