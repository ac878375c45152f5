"""A learned twist at a glance: what it draws beside what the event would have it draw, its terms, its price.

Does: draw from exact sums over all paths. Does not: train, but for `first_look`, which does both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.methods.tail_risk.beyond_tail_risk import TwistedSampling
from workbench.methods.tail_risk.beyond_tail_risk_trials import price_of_monte_carlo
from workbench.methods.tail_risk.twist_exact import Moments, Trained, exact_moments, train
from workbench.problems.event import Tabulated
from workbench.streams import Stream


def marginals(moments: Moments, vocab_size: int, of_hits: bool) -> np.ndarray:
    """(vocab_size, T) share of each token at each step: of the paths that are drawn, or, weighted by what comes after
    the step, of the law without variance. Steps that no path takes are 0."""
    paths = moments.paths
    share = np.exp(paths.log_density)[:, None] * (paths.to_go if of_hits else 1.0)
    share = np.where(paths.tokens >= 0, share, 0.0)
    found = np.zeros((vocab_size, paths.tokens.shape[1]))
    for step in range(found.shape[1]):
        there = paths.tokens[:, step] >= 0
        found[:, step] = np.bincount(paths.tokens[there, step], share[there, step], minlength=vocab_size)
    total = found.sum(axis=0)
    return np.divide(found, total, out=np.zeros_like(found), where=total > 0)


def first_look(
    prompt: str,
    rounds: int,
    per_round: int,
    explore: float,
    shrink: float,
    conditioning: bool,
    *,
    tables: Mapping[str, Tabulated],
    stream: Stream,
    names: Sequence[str] | None = None,
) -> Figure:
    """Train on the table of that prompt, and `twist_figure`."""
    table = tables[prompt]
    estimator = TwistedSampling(rounds, per_round, explore, shrink=shrink, conditioning=conditioning)
    outcome = estimator.outcome(table.event)
    trained = train(estimator, table, stream)
    return twist_figure(table, trained, exact_moments(table, trained.law, outcome), names)


def twist_figure(
    table: Tabulated,
    trained: Trained,
    moments: Moments,
    names: Sequence[str] | None = None,
    relative_error: float = 0.1,
) -> Figure:
    """Left: the tokens that the proposal draws; middle: those of the law without variance; right: the terms."""
    vocab_size, truth = table.event.model.vocab_size, table.event.truth
    fig, (left, middle, right) = plots.figure(width=10.4, height=3.9, ncols=3)
    labels = list(names) if names is not None else [str(token) for token in range(vocab_size)]
    for ax, of_hits, title in ((left, False, "drawn after training"), (middle, True, "law without variance")):
        found = marginals(moments, vocab_size, of_hits)
        taken = np.flatnonzero(found.sum(axis=0) > 0)
        found = found[:, : taken.max(initial=0) + 1]
        ax.imshow(found, aspect="auto", cmap="Blues", vmin=0, vmax=1)
        for (token, step), share in np.ndenumerate(found):
            if share >= 0.005:
                color = "white" if share > 0.5 else "black"
                ax.text(step, token, f"{share:.2f}", ha="center", va="center", fontsize=8, color=color)
        ax.set(xticks=range(found.shape[1]), xticklabels=range(1, found.shape[1] + 1), xlabel="token of the answer")
        ax.set_yticks(range(vocab_size), labels)
        ax.set_title(title, fontsize=9.5, loc="left")
        ax.grid(False)
    term, share = moments.paths.term, np.exp(moments.paths.log_density)
    hit = term > 0
    # A term of less than a thousandth of the risk says no more than 0.
    decades = np.log10(np.maximum(term[hit] / truth, 1e-3))
    right.hist(
        decades, np.linspace(-3.05, max(2.0, decades.max() + 0.05), 50), weights=share[hit], color=plots.COLORS["ours"]
    )
    plots.truth(right, 0.0, "the risk", vertical=True)
    draws = moments.draws_for(relative_error)
    ours = trained.tokens + draws * moments.tokens
    plain = price_of_monte_carlo(table, relative_error).tokens
    said = [f"training {trained.tokens:,} tokens, then {draws:,.0f} draws"]
    said += [
        f"{ours:,.0f} tokens for {relative_error:.0%} error",
        f"Monte Carlo: {plain / ours:,.0f} times as many",
    ]
    right.set_title("\n".join(said), fontsize=9, loc="left")
    right.set(xlabel="log10 of a draw's term / risk", ylabel="share of the draws")
    return fig


def prices_figure(risk: np.ndarray, tokens: Mapping[str, np.ndarray]) -> Figure:
    """risk (prompts,); tokens: by method, "ours" and "Monte Carlo" among them, (prompts,) tokens for one accuracy."""
    fig, ax = plots.figure(width=7.2, height=4.2)
    roles = {"ours": "ours", "Monte Carlo": "baseline"}
    others = iter(("other", "warn", "band"))
    order, place = np.argsort(risk), 0.0
    for name, price in sorted(tokens.items(), key=lambda item: item[1][order[-1]]):
        color, end = plots.COLORS[roles.get(name) or next(others)], price[order[-1]]
        ax.plot(risk[order], price[order], "o-", color=color, markersize=5, linewidth=1)
        # Names at the ends of their lines, but never on one another.
        place = max(end, 1.8 * place)
        at = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        ax.annotate(name, (1.02, place), color=color, fontsize=9, **at)
    ax.set(xscale="log", yscale="log", xlabel="exact risk of the prompt", ylabel="tokens for 10 % relative error")
    return fig
