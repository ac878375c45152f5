"""Many expectations from one sample, at a glance: proposals, shares, gains in variance, the stop rule, a tail curve.

Does: draw. Does not: choose questions or run anything but `moments_figure`, the first look of multi-expectation-ais.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import norm

from workbench import plots
from workbench.methods.tail_risk.expectation_questions import gaussian_moments, moment_variances
from workbench.methods.tail_risk.multi_expectation_ais import Answer, Step, aiscv
from workbench.streams import Stream

_GRID = np.linspace(-9, 9, 361)


def moments_figure(
    n: int, j: int, weights: str, kind: str, controls: str, iterations: int | None, *, stream: Stream
) -> Figure:
    """One run on the J even moments of a normal law; weights "relative" (1 / I^2) or "equal"."""
    question = gaussian_moments(j, relative=weights == "relative")
    answer = aiscv(question, n, stream=stream, kind=kind, controls=controls, iterations=iterations)
    assert question.truth is not None
    fig, ((densities, shares), (gains, rule)) = plots.figure(width=9.6, height=6.6, ncols=2, nrows=2)
    _densities(densities, answer.steps, question.truth)
    _shares(shares, answer.steps)
    gain_dots(gains, np.arange(1, j + 1), {"this run": moment_variances(j) / n / answer.variances}, "moment 2k: k")
    gains.set_ylabel("Var(Monte Carlo) / Var")
    gains.set_title(f"largest weight {answer.max_weight.max():.2g}", fontsize=9.5, loc="left")
    _stop_rule(rule, answer.steps, n)
    return fig


def _densities(ax: Axes, steps: Sequence[Step], truth: np.ndarray) -> None:
    shown = list(dict.fromkeys((1, len(truth))))
    for k in shown:
        ax.plot(
            _GRID, norm.pdf(_GRID) * _GRID ** (2 * k) / truth[k - 1], "--", color=plots.COLORS["truth"], linewidth=1.1
        )
    for number, step in enumerate(steps):
        log_g, log_f = (law.log_density(_GRID[:, None]) for law in (step.proposal.family, step.proposal.laws))
        shade = plots.COLORS["baseline"] if number == 0 else plots.COLORS["ours"]
        density = np.exp(step.proposal.log_density(log_g, log_f))
        ax.plot(
            _GRID, density, color=shade, alpha=1.0 if number == 0 else 0.25 + 0.75 * number / len(steps), linewidth=1.8
        )
    ax.set(xlabel="x", ylabel="density", ylim=(0, 1.25 * ax.get_ylim()[1]))
    words = {
        "truth": f"dashed: best for k = {' and k = '.join(map(str, shown))}",
        "baseline": "input law",
        "ours": "proposals, later ones darker",
    }
    for row, (role, word) in enumerate(words.items()):
        ax.text(0.02, 0.98 - 0.07 * row, word, color=plots.COLORS[role], fontsize=9, va="top", transform=ax.transAxes)


def _shares(ax: Axes, steps: Sequence[Step]) -> None:
    adapted = steps[1:] or steps
    for number, step in enumerate(adapted):
        alpha, width = step.proposal.alpha, 0.8 / len(adapted)
        place = np.arange(1, len(alpha) + 1) - 0.4 + width * (number + 0.5)
        ax.bar(place, alpha, width, color=plots.COLORS["ours"], alpha=0.25 + 0.75 * (number + 1) / len(adapted))
    ax.set(xlabel="member g_k", ylabel="share alpha_k, by step", xlim=(0.5, len(steps[-1].proposal.alpha) + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def gain_dots(ax: Axes, x: np.ndarray, gains: Mapping[str, np.ndarray], xlabel: str) -> None:
    """(J,) ratios of variances by name, on a log axis with the line at 1; named where there are several."""
    plots.truth(ax, 1.0, "")
    for (name, ratio), role in zip(gains.items(), ("ours", "other", "baseline"), strict=False):
        ax.semilogy(x, ratio, "o-", color=plots.COLORS[role], markersize=4, linewidth=1, alpha=0.85, label=name)
    low, high = ax.get_ylim()
    ax.set(xlabel=xlabel, ylim=(min(low, 0.5), max(high, 2)))
    ax.set_xlim(x[0] - 0.5, x[-1] + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(gains) > 1:
        ax.legend(fontsize=9, frameon=False)


def _stop_rule(ax: Axes, steps: Sequence[Step], n: int) -> None:
    spent = np.array([step.evaluated for step in steps])
    promised = np.array([step.criterion for step in steps]) / (n - spent)
    plots.line(ax, spent, promised, marker="o")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set(yscale="log", xlim=(0, n), xlabel="points spent on adaptation", ylabel="criterion that the rest promises")
    ax.set_title(f"{len(steps) - 1} steps, {n - spent[-1]:,} of {n:,} points left", fontsize=9.5, loc="left")


def gains_figure(
    moments: Mapping[str, np.ndarray],
    beams: Mapping[str, np.ndarray],
    indices: Mapping[str, np.ndarray],
    inputs: Sequence[str],
) -> Figure:
    """Ratios of variances by kind of controls: of each moment (J,), the laws in order of their gain, and each input."""
    fig, (left, middle, right) = plots.figure(width=11.5, height=3.9, ncols=3)
    gain_dots(left, np.arange(1, len(moments["own"]) + 1), moments, "moment 2k: k")
    order = np.argsort(beams["own"])
    gain_dots(
        middle,
        np.arange(1, len(order) + 1),
        {name: ratio[order] for name, ratio in beams.items()},
        "input law, by gain",
    )
    gain_dots(right, np.arange(len(inputs)), indices, "first-order index of")
    right.set_xticks(np.arange(len(inputs)), inputs)
    left.set_ylabel("Var(baseline) / Var")
    for ax, said in ((left, "moments against Monte Carlo"), (middle, "beams against N / J points each"),
                     (right, "Sobol' indices against Monte Carlo")):  # fmt: skip
        ax.set_title(said, fontsize=9.5, loc="left")
    return fig


def budgets_figure(budgets: Sequence[int], gains: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """gains[question][keep] (budgets, repeats): ratios of variances, by rule after the stop; a dot a run."""
    fig, axes = plots.figure(width=9.6, height=3.9, ncols=len(gains), sharey=True, squeeze=False)
    for ax, (question, rules) in zip(axes[0], gains.items(), strict=True):
        plots.truth(ax, 1.0, "")
        ax.text(
            0.97,
            1.03,
            "as good as the baseline",
            ha="right",
            va="bottom",
            fontsize=9,
            transform=ax.get_yaxis_transform(),
        )
        for (name, ratio), role, shift in zip(rules.items(), ("ours", "other"), (0.97, 1.03), strict=False):
            at = np.asarray(budgets) * shift
            ax.plot(at, ratio, "o", color=plots.COLORS[role], markersize=3, alpha=0.5)
            plots.line(ax, at, np.median(ratio, axis=1), color=plots.COLORS[role])
            ax.text(
                0.97,
                0.13 if role == "ours" else 0.05,
                name,
                color=plots.COLORS[role],
                ha="right",
                fontsize=9,
                transform=ax.transAxes,
            )
        ax.set(xscale="log", yscale="log", xlabel="points N")
        ax.set_xticks(budgets, [f"{n:,}" for n in budgets])
        ax.minorticks_off()
        ax.set_title(question, fontsize=9.5, loc="left")
    axes[0, 0].set_ylabel("Var(baseline) / Var, a dot a run")
    return fig


def tail_figure(thresholds: np.ndarray, truth: np.ndarray, answers: Mapping[str, Sequence[Answer]]) -> Figure:
    """P(D > d) at each threshold in metres: the first run of each method with its 95 % interval; the root mean squared
    relative error over the runs."""
    fig, (left, right) = plots.figure(width=9.6, height=3.9, ncols=2)
    left.plot(1000 * thresholds, truth, "--", color=plots.COLORS["truth"], linewidth=1.2)
    for (name, runs), role, shift in zip(
        answers.items(), ("baseline", "other", "ours"), (0.99, 1.0, 1.01), strict=True
    ):
        one, colour = runs[0], plots.COLORS[role]
        below = np.minimum(1.96 * one.std_error, one.value * 0.999)
        left.errorbar(
            1000 * thresholds * shift,
            one.value,
            yerr=[below, 1.96 * one.std_error],
            fmt="o",
            markersize=3.5,
            color=colour,
        )
        error = np.sqrt(np.mean([(run.value / truth - 1) ** 2 for run in runs], axis=0))
        plots.line(right, truth, 100 * error, color=colour, marker="o")
        right.text(
            0.03,
            0.95 - 0.08 * list(answers).index(name),
            name,
            color=colour,
            fontsize=9,
            va="top",
            transform=right.transAxes,
        )
    left.set(yscale="log", xlabel="threshold d, mm", ylabel="P(D > d), one run with 95 % intervals")
    right.set(xscale="log", yscale="log", xlabel="P(D > d)", ylabel="relative error over repeats, %")
    right.invert_xaxis()
    right.set_ylim(None, right.get_ylim()[1] * 3)
    return fig
