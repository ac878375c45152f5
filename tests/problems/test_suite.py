"""The suite of known truths: every truth held against a second route to it, and draws against the truth.

False alarms: a draw strays beyond `bernstein` with probability below 1e-8, so below 1e-6 over the suite.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import integrate, stats

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.problems import analytic, chains, losses, off_policy
from workbench.problems.suite import KINDS, catalogue, find_problem, known_truth

NAMES = list(catalogue())


def of_kind(*kinds: str) -> list[str]:
    return [name for name, entry in catalogue().items() if entry.kind in kinds]


def bernstein(variance: float, largest: float, n: int) -> float:
    """How far the mean of n independent terms, within `largest` of their mean, strays but with probability 1e-8."""
    odds = math.log(2e8)
    linear = largest * odds / 3
    return (linear + math.sqrt(linear**2 + 2 * n * variance * odds)) / n


def test_there_are_problems_of_every_kind_from_common_to_one_in_a_billion():
    assert len(NAMES) >= 40 and {entry.kind for entry in catalogue().values()} == set(KINDS)
    events = [find_problem(name).truth for name in of_kind("gaussian", "chain", "grammar", "transformer", "timeline")]
    rarity = {round(-math.log10(truth)) for truth in events}
    assert rarity >= {1, 2, 3, 4, 5, 6, 8, 9}
    assert len({find_problem(name).name for name in NAMES}) == len(NAMES), "the name keys the random numbers"


def test_the_truth_is_known_everywhere():
    for name in NAMES:
        assert 0 < find_problem(name).truth < math.inf


@pytest.mark.parametrize("name", of_kind("gaussian", "chain", "grammar", "transformer", "timeline"))
def test_events_happen_at_the_true_rate(name):
    problem, n = find_problem(name), 20_000
    hits = problem.sample(n, Stream.of(3, "rate"))["hit"]
    assert hits.dtype == bool and hits.shape == (n,)
    p = problem.truth
    assert abs(hits.mean() - p) < bernstein(p * (1 - p), 1, n)


@pytest.mark.parametrize("name", of_kind("gaussian", "chain", "loss", "off-policy"))
def test_row_j_is_sample_j_whatever_the_batch(name):
    problem, stream = find_problem(name), Stream.of(5, "rows")
    draw = getattr(problem, "sample", None) or getattr(problem, "losses", None) or problem.log
    whole = draw(50, stream)
    for key, values in whole.items():
        parts = [draw(n, stream.at(first))[key] for first, n in ((0, 1), (1, 19), (20, 30))]
        assert np.array_equal(np.concatenate(parts), values)


MAKERS = {
    "linear": lambda p: analytic.linear(p, 4),
    "shell": lambda p: analytic.shell(p, 3),
    "exponential sum": lambda p: analytic.exponential_sum(p, 3),
    "heavy maximum": lambda p: analytic.heavy_maximum(p, 3),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.02])
def test_a_limit_state_is_negative_as_often_as_it_says(maker, p):
    problem, n = MAKERS[maker](p), 100_000
    assert problem.truth == p
    assert abs(problem.sample(n, Stream.of(1, maker))["hit"].mean() - p) < bernstein(p * (1 - p), 1, n)


@pytest.mark.parametrize("offset, width", [(3.0, 7.0), (1.0, 3.0), (5.0, 11.0)])
def test_four_branches_by_integration_over_the_plane(offset, width):
    problem = analytic.four_branch(offset, width)
    side = np.linspace(-12, 12, 4801)
    z1, z2 = np.meshgrid(side, side, indexing="ij")
    inside = problem.limit_state(np.c_[z1.ravel(), z2.ravel()]).reshape(z1.shape) <= 0
    cells = stats.norm.pdf(z1) * stats.norm.pdf(z2) * (side[1] - side[0]) ** 2
    assert (cells * inside).sum() == pytest.approx(problem.truth, rel=0.01)


def test_the_published_failure_probability_of_the_four_branches():
    # 2.22e-3 for this parameter (Schoebi, Sudret and Marelli 2016, among many).
    assert analytic.four_branch().truth == pytest.approx(2.22e-3, abs=0.01e-3)


@pytest.mark.parametrize("name", of_kind("gaussian"))
def test_shifted_draws_are_unbiased(name):
    from workbench.methods.tail_risk.lm_tail_risk import Proposal

    problem, n = find_problem(name), 20_000
    batch = problem.sample_from(Proposal(3.0, 0.3, 1), n, Stream.of(2, "shifted"))
    weights = np.exp(batch["log_weight"])
    assert weights.max() <= 1 / 0.3 + 1e-9, "the plain share bounds the weights"
    assert abs(weights.mean() - 1) < bernstein(weights.var() * 1.5, 1 / 0.3, n)
    terms = weights * batch["hit"]
    assert abs(terms.mean() - problem.truth) < bernstein(min(problem.truth / 0.3, 1), 1 / 0.3, n)


@pytest.mark.parametrize("up, rungs", [(0.45, 5), (0.3, 8), (0.3, 24), (0.5, 7), (0.8, 3)])
def test_gamblers_ruin(up, rungs):
    s = (1 - up) / up
    closed = 1 / rungs if up == 0.5 else (1 - s) / (1 - s**rungs)
    assert chains.ladder(up, rungs).truth == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("parts, failure, repair", [(4, 0.05, 0.5), (6, 0.01, 0.5), (2, 0.3, 1.0)])
def test_repairs_by_the_birth_and_death_formula(parts, failure, repair):
    odds = [repair / ((parts - down) * failure) for down in range(1, parts)]
    closed = 1 / sum(math.prod(odds[:j]) for j in range(parts))
    assert chains.repairs(parts, failure, repair).truth == pytest.approx(closed, rel=1e-9)


@pytest.mark.parametrize("name", ["two-ways", "agent-risk", "agent-risk-mild"])
def test_horizons_by_powers_of_the_chain(name):
    problem = find_problem(name)
    stopped = problem.transitions.copy()
    stopped[problem.target] = np.eye(len(stopped))[problem.target]
    power = np.linalg.matrix_power(stopped, problem.horizon)
    assert problem.truth == pytest.approx(power[problem.start, problem.target].sum(), rel=1e-12)


def test_reaching_ever_is_the_limit_of_horizons_and_a_trap_is_no_way_out():
    matrix = np.array([[0.5, 0.2, 0.2, 0.1], [0.1, 0.8, 0.0, 0.1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    target = np.array([False, False, False, True])
    ever = chains.reach_probability(matrix, target)
    assert np.allclose(ever, chains.reach_probability(matrix, target, 2000), atol=1e-12)
    assert ever[2] == 0 and ever[3] == 1 and (ever[:2] < 1).all()


@pytest.mark.parametrize("name", of_kind("loss"))
def test_loss_functionals_by_integration_over_quantiles(name):
    problem = find_problem(name)
    law, level = problem.law, problem.level
    worst, _ = integrate.quad(law.quantile, level, 1, limit=500, epsabs=1e-9)
    if problem.functional == "cvar":
        assert problem.truth == pytest.approx(worst / (1 - level), rel=1e-4)
    elif problem.functional == "quantile":
        assert law.survival(problem.truth) == pytest.approx(1 - level, abs=1e-9)
    else:
        e = problem.truth
        above = integrate.quad(law.survival, e, 1, limit=500)[0]
        below = e - law.mean + above
        assert level * above == pytest.approx((1 - level) * below, rel=1e-6)
    n = 50_000
    drawn = problem.losses(n, Stream.of(4, "loss"))["loss"]
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert abs(drawn.mean() - law.mean) < bernstein(drawn.var() * 1.5, 1, n)


def test_a_quantile_at_an_atom_is_the_atom():
    law = losses.LossLaw(atoms=((0.0, 0.5), (0.25, 0.3), (1.0, 0.2)))
    assert [law.quantile(level) for level in (0.5, 0.51, 0.8, 0.81)] == [0.0, 0.25, 0.25, 1.0]
    assert losses.LossTail("cvar", 0.9, law, "x").truth == pytest.approx(1.0)
    assert losses.LossTail("cvar", 0.7, law, "x").truth == pytest.approx((0.2 + 0.1 * 0.25) / 0.3)


@pytest.mark.parametrize("name", of_kind("off-policy"))
def test_policy_values_by_weighted_logs(name):
    problem, n = find_problem(name), 50_000
    log = problem.log(n, Stream.of(6, "log"))
    if log["reward"].ndim == 1:
        returns = log["ratio"] * log["reward"]
    else:
        returns = (log["ratio"].cumprod(axis=1) * log["reward"]).sum(axis=1)
    assert abs(returns.mean() - problem.truth) < bernstein(returns.var() * 1.5, returns.max(), n)
    assert set(np.unique(log["reward"])) <= {0.0, 1.0}


def test_a_decision_process_by_going_through_all_of_it():
    problem = off_policy.random_decisions(3, states=2, actions=2, horizon=3)
    total = 0.0
    for state, start in enumerate(problem.start):
        paths = [(state, start)]
        for _ in range(3):
            further = []
            for here, p in paths:
                for action, share in enumerate(problem.target[here]):
                    total += p * share * problem.rewards[here, action]
                    further += [(to, p * share * q) for to, q in enumerate(problem.transitions[here, action])]
            paths = further
    assert problem.truth == pytest.approx(total, rel=1e-12)


GOOD = np.array([[0.5, 0.5], [0.0, 1.0]])
TARGET = np.array([False, True])


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: chains.ChainEvent("x", GOOD * 0.9, 0, TARGET), r"sum of transitions\[0\] is 0.9.* must be 1; divide"),
        (lambda: chains.ChainEvent("x", GOOD - 0.6, 0, TARGET), r"transitions\[0\] is .* must hold probabilities"),
        (lambda: chains.ChainEvent("x", np.ones((2, 3)), 0, TARGET), r"transitions is \(2, 3\) but must be a square"),
        (lambda: chains.ChainEvent("x", GOOD, 2, TARGET), r"start is 2 but must"),
        (lambda: chains.ChainEvent("x", GOOD, 0, TARGET & False), r"mark at least one of 2 states"),
        (lambda: chains.ChainEvent("x", np.eye(3)[[1, 0, 2]], 0, np.arange(3) == 2), r"x never ends: from state 0"),
        (lambda: chains.ladder(1.5, 4), r"up is 1.5"),
        (lambda: analytic.linear(0.0), r"probability is 0"),
        (lambda: losses.LossLaw(atoms=((0.0, 0.5),)), r"sum of the masses is 0.5 but must be 1"),
        (lambda: losses.LossLaw(atoms=((2.0, 1.0),)), r"an atom's value is 2"),
        (lambda: losses.LossTail("mean", 0.9, losses.SPREAD, "x"), r"functional is 'mean' but must be one of"),
        (lambda: losses.LossTail("cvar", 1.0, losses.SPREAD, "x"), r"level is 1"),
        (
            lambda: off_policy.LoggedBandit("x", np.ones(1), np.ones((1, 2)), np.array([[1.0, 0.0]]), GOOD[:1]),
            r"target .*covered by the behaviour policy",
        ),
        (
            lambda: off_policy.LoggedBandit("x", np.ones(1), np.ones((1, 2)), GOOD[:1] * 2, GOOD[:1]),
            r"behaviour .*probabilities that sum to 1",
        ),
        (lambda: find_problem("four-brench"), r"no problem 'four-brench' in the suite; did you mean four-branch\?"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_cure(make, said):
    with pytest.raises(WorkbenchError, match=said):
        make()


def test_one_problem_of_each_kind_is_for_the_contract():
    problems = known_truth()
    assert len({problem.name for problem in problems}) == len(problems)
    kinds = {find_problem(name).name: entry.kind for name, entry in catalogue().items() if entry.kind != "transformer"}
    kinds[analytic.GaussianTail(1.5).name] = "gaussian"
    found = {kinds[problem.name] for problem in problems}
    assert found == set(KINDS) - {"transformer"}, "a transformer has a contract of its own"
    asked = {problem.functional for problem in problems if isinstance(problem, losses.LossTail)}
    assert asked == set(losses.FUNCTIONALS)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "workbench", *words], capture_output=True, text=True, timeout=120)


def test_the_command_lists_and_shows():
    rows = json.loads(command("problems", "list", "--kind", "chain", "--json").stdout)
    assert {row["problem"] for row in rows} == set(of_kind("chain"))
    assert all(row["truth"] == find_problem(row["problem"]).truth for row in rows)
    told = json.loads(command("problems", "show", "four-branch", "--json").stdout)
    assert "MonteCarlo" in told["estimators"] and "Saber" in told["refused by"] and told["truth"] > 0
    wrong = command("problems", "list", "--kind", "chains")
    assert wrong.returncode == 2 and wrong.stderr.startswith("workbench: --kind is 'chains' but must be one of")
