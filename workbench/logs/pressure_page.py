"""Compute-aware risk on logs: the share of prompts that are broken against the compute that attacks spent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench import plots
from workbench.logs.page import Page
from workbench.methods.tail_risk.risk_under_pressure import (
    compute_to,
    metrics,
    pressure_curve,
    prompt_weights,
    resampled_curves,
)
from workbench.methods.tail_risk.risk_under_pressure_trials import Price, Trials
from workbench.streams import Stream

_RESAMPLES = 1000


def page(
    trials: Trials,
    price: Price,
    notes: Sequence[str] = (),
    *,
    success: str = "",
    targets: Sequence[float] = (0.5,),
    seed: int = 0,
) -> Page:
    """The curve of risk against TFLOPs, and the compute that each target risk takes."""
    levels = np.unique(np.round(np.geomspace(1, trials.budget, 12))).astype(int)
    levels = [0, *map(int, levels)]
    costs, stream = price.steps(trials), Stream.of(seed, "risk under pressure from logs")
    curve = pressure_curve(trials, costs, levels=levels, stream=stream)
    weights = prompt_weights(len(trials.prompt_ids), _RESAMPLES, stream)
    risks, spent = resampled_curves(trials, costs, weights, levels=levels)
    rows, reached = [], {}
    for target in targets:
        value = compute_to(curve.risk, curve.cost, target)
        drawn = np.array([compute_to(r, c, target) for r, c in zip(risks, spent, strict=True)])
        low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
        words = [f"{each:,.3g}" if np.isfinite(each) else "never" for each in (value, low, high)]
        rows.append((f"TFLOPs a prompt until risk {target:.3g}", words[0], f"{words[1]} to {words[2]}"))
        reached[f"{target:g}"] = [float(each) if np.isfinite(each) else None for each in (value, low, high)]
    for level, risk, low, high, cost in zip(curve.levels, curve.risk, curve.low, curve.high, curve.cost, strict=True):
        if level:
            rows.append((f"risk at {level} steps, {cost:,.3g} TFLOPs", f"{risk:.3g}", f"{low:.3g} to {high:.3g}"))
    said = [
        f"{len(trials.prompt_ids):,} prompts, at most {trials.budget} steps each, of which {int(trials.ran.sum()):,} "
        f"were run; {int(trials.success.sum()):,} prompts were broken.",
        *([f"A step is a success where {success}."] if success else []),
        *notes,
        f"A token costs 2 x {price.target:g} billion operations"
        + (
            f", and the judge of {price.judge:g} billion parameters is paid too."
            if price.judge
            else "; no judge is paid."
        ),
    ]
    fig, ax = plots.figure(width=6.4, height=3.9)
    plots.line(ax, curve.cost, curve.risk, low=curve.low, high=curve.high)
    ax.plot(curve.cost, curve.risk, "o", color=plots.COLORS["ours"], markersize=3.5)
    for target in targets:
        plots.truth(ax, target, "")
    ax.set(xlabel="mean TFLOPs a prompt", ylabel="risk: share of prompts broken", ylim=(0, 1.03), xlim=(0, None))
    found = {name: float(value) if np.isfinite(value) else None for name, value in metrics(curve).items()}
    return Page(
        "Risk against compute, from logs",
        said,
        ("what", "estimate", "95 % interval"),
        rows,
        fig,
        "The share of prompts that are broken against the mean compute spent on a prompt, with its band",
        "Method: Ehghaghi et al., 2026, arXiv 2606.11409 (departures as in workbench.methods.tail_risk."
        "risk_under_pressure). The compute is a mean over prompts, of which the broken ones stopped early; bands and "
        "intervals: bootstrap over prompts.",
        {"prompts": len(trials.prompt_ids), "steps": trials.budget, "compute_to": reached, "metrics": found,
         "notes": list(notes)},
    )  # fmt: skip
