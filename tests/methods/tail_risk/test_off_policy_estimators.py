"""Properties of the off-policy estimators, by enumeration of every trajectory of a small process."""

import itertools

import numpy as np
import pytest

import workbench as wb
from workbench.errors import Unsuitable, WorkbenchError
from workbench.methods.tail_risk.off_policy_estimators import (
    Ips,
    Pdis,
    Snips,
    TabularModel,
    count_model,
    doubly_robust,
    evaluate_bandit,
    evaluate_tabular,
    model_values,
    occupancy,
    weighted_return,
)
from workbench.problems.off_policy import LoggedDecisions
from workbench.problems.suite import find_problem

S, A, T, GAMMA = 3, 2, 3, 0.9


@pytest.fixture(scope="module")
def world():
    """(model, behaviour, target, every trajectory (n, T) of states and actions, its probability under behaviour)."""
    rng = np.random.default_rng(0)
    model = TabularModel(rng.dirichlet(np.ones(S)), rng.dirichlet(np.ones(S), (S, A)), rng.random((S, A)))
    behaviour, target = rng.dirichlet(np.ones(A), S), rng.dirichlet(np.ones(A), S)
    paths = np.array(list(itertools.product(*[range(S)] * T, *[range(A)] * T)))
    state, action = paths[:, :T], paths[:, T:]
    mass = model.start[state[:, 0]] * behaviour[state, action].prod(axis=1)
    mass = mass * model.transitions[state[:, :-1], action[:, :-1], state[:, 1:]].prod(axis=1)
    return model, behaviour, target, state, action, mass


def true_value(model, target):
    process = LoggedDecisions("small", model.transitions, model.rewards, model.start, target, target, T, GAMMA)
    return process.truth


def test_per_decision_weights_are_unbiased(world):
    model, behaviour, target, state, action, mass = world
    assert mass.sum() == pytest.approx(1)
    ratio = np.cumprod(target[state, action] / behaviour[state, action], axis=1)
    expected = mass @ weighted_return(ratio, model.rewards[state, action], GAMMA)
    assert expected == pytest.approx(true_value(model, target), abs=1e-12)


def test_doubly_robust_is_unbiased_whatever_the_model_says(world):
    model, behaviour, target, state, action, mass = world
    ratio = np.cumprod(target[state, action] / behaviour[state, action], axis=1)
    q = np.random.default_rng(1).normal(size=(T, S, A))
    v = (target * q).sum(axis=-1)
    v_path = np.column_stack([v[np.arange(T), state], np.zeros(len(state))])
    values = doubly_robust(ratio, model.rewards[state, action], q[np.arange(T), state, action], v_path, GAMMA)
    assert mass @ values == pytest.approx(true_value(model, target), abs=1e-12)


def test_marginal_weights_are_unbiased_and_the_right_model_is_enough(world):
    model, behaviour, target, state, action, mass = world
    reward = model.rewards[state, action]
    mine, theirs = (occupancy(model, policy, T, GAMMA) for policy in (target, behaviour))
    ratio = (target * mine[:, None] / (behaviour * theirs[:, None]))[state, action]
    assert mass @ weighted_return(ratio, reward, GAMMA) == pytest.approx(true_value(model, target), abs=1e-12)
    q, v = model_values(model, target, T, GAMMA)
    v_path = np.column_stack([v[np.arange(T), state], np.zeros(len(state))])
    for weight in (ratio, np.ones_like(ratio)):
        values = doubly_robust(weight, reward, q[np.arange(T), state, action], v_path, GAMMA)
        assert mass @ values == pytest.approx(true_value(model, target), abs=1e-12)


def test_all_five_are_the_plain_mean_where_target_and_behaviour_are_one(world):
    model, behaviour, *_ = world
    process = LoggedDecisions("same", model.transitions, model.rewards, model.start, behaviour, behaviour, T, GAMMA)
    log = process.log(400, wb.Stream.of(0, "same"))
    found = evaluate_tabular(log["state"], log["action"], log["reward"], behaviour, behaviour[None], GAMMA)
    mean = (log["reward"] * GAMMA ** np.arange(T)).sum(axis=1).mean()
    assert found["PDIS"][0] == pytest.approx(mean) and found["MIS"][0] == pytest.approx(mean)
    # Six standard errors of the difference between a model's mean and the log's: below 1e-8.
    assert all(abs(value[0] - process.truth) < 6 * T / np.sqrt(400) for value in found.values())


def test_many_targets_at_once_are_each_alone(world):
    model, behaviour, target, *_ = world
    process = LoggedDecisions("two", model.transitions, model.rewards, model.start, behaviour, target, T, GAMMA)
    log = process.log(60, wb.Stream.of(1, "two"))
    arrays = log["state"], log["action"], log["reward"], behaviour
    both = evaluate_tabular(*arrays, np.stack([target, behaviour]), GAMMA)
    for name, value in evaluate_tabular(*arrays, target[None], GAMMA).items():
        assert value[0] == pytest.approx(both[name][0], abs=1e-12)


def test_counts_are_frequencies_and_the_unseen_goes_anywhere():
    model = count_model(np.array([[0, 1], [0, 0]]), np.array([[1, 0], [1, 1]]), np.array([[1.0, 0], [0, 1]]), 2, 2)
    assert model.start.tolist() == [1, 0]
    assert model.transitions[0, 1].tolist() == [0.5, 0.5] and model.transitions[1, 1].tolist() == [0.5, 0.5]
    assert model.rewards[0, 1] == pytest.approx(2 / 3) and model.rewards[1, 1] == 0


def test_bandit_estimators_are_unbiased_by_enumeration():
    rng = np.random.default_rng(2)
    contexts, actions = 4, 3
    behaviour, target = rng.dirichlet(np.ones(actions), contexts), rng.dirichlet(np.ones(actions), contexts)
    reward, wrong = rng.random((contexts, actions)), rng.random((contexts, actions))
    pairs = [(c, a) for c in range(contexts) for a in range(actions)]
    each = [evaluate_bandit([a], [reward[c, a]], [behaviour[c, a]], target[None, [c]], wrong[[c]]) for c, a in pairs]
    mass = np.array([behaviour[c, a] / contexts for c, a in pairs])
    truth = (target * reward).sum() / contexts
    for name in ("IPS", "DR"):
        assert mass @ np.array([found[name][0] for found in each]) == pytest.approx(truth, abs=1e-12)
    assert mass @ np.array([found["DM"][0] for found in each]) == pytest.approx((target * wrong).sum() / contexts)


def test_self_normalised_is_the_ratio_of_two_sums_and_stays_in_range():
    problem = find_problem("bandit-8")
    log = problem.log(300, wb.Stream.of(0, problem.name))
    estimate = wb.run(problem, Snips(), wb.Budget(samples=300), seed=0)
    assert estimate.value == pytest.approx((log["ratio"] * log["reward"]).sum() / log["ratio"].sum(), abs=1e-12)
    one_step = [wb.run(problem, kind(), wb.Budget(samples=300), seed=0).value for kind in (Ips, Pdis)]
    assert one_step == [pytest.approx((log["ratio"] * log["reward"]).mean(), abs=1e-12)] * 2


@pytest.mark.parametrize("kind", [Pdis, Ips, Snips])
def test_intervals_cover_on_decisions_where_they_are_not_flagged(kind):
    problem, runs = find_problem("decisions-4"), 150
    found = [wb.run(problem, kind(), wb.Budget(samples=3000), seed=seed, batch_size=3000) for seed in range(runs)]
    kept = [estimate for estimate in found if estimate.reliable]
    assert len(kept) > runs / 2
    # At 95 % fewer than 80 % of 76 or more runs have probability below 1e-6.
    assert np.mean([estimate.low <= problem.truth <= estimate.high for estimate in kept]) >= 0.8
    errors = np.array([estimate.value for estimate in found], dtype=float) - problem.truth
    # The mean of 150 runs within six of its standard errors: false alarm below 1e-8.
    assert abs(errors.mean()) < 6 * errors.std() / np.sqrt(runs)


def test_few_effective_trajectories_are_flagged():
    estimate = wb.run(find_problem("decisions-10"), Pdis(), wb.Budget(samples=500), seed=0)
    assert not estimate.reliable and "trajectories" in estimate.why


def test_bad_input_is_refused_with_argument_value_and_cure():
    with pytest.raises(WorkbenchError, match=r"state is 5 but must lie in 0\.\.2; number the states"):
        count_model(np.array([[0, 5]]), np.array([[0, 1]]), np.zeros((1, 2)), 3, 2)
    with pytest.raises(WorkbenchError, match=r"reward.* is nan but must be finite"):
        count_model(np.array([[0, 1]]), np.array([[0, 1]]), np.array([[0, np.nan]]), 3, 2)
    with pytest.raises(WorkbenchError, match=r"behaviour of a logged action is 0.0 .* pass the probabilities"):
        never = np.array([[1.0, 0.0]])
        evaluate_tabular(np.array([[0]]), np.array([[1]]), np.array([[1.0]]), never, never[None])
    with pytest.raises(WorkbenchError, match=r"propensity is 0.0 but must lie in \(0, 1\]; log the probability"):
        evaluate_bandit([0], [1.0], [0.0], np.ones((1, 1, 1)), np.ones((1, 1)))
    with pytest.raises(WorkbenchError, match=r"weights of target 0 is 0.0 .* log under a policy"):
        evaluate_bandit([0], [1.0], [0.5], np.array([[[0.0, 1.0]]]), np.ones((1, 2)))
    with pytest.raises(Unsuitable, match="has no method 'log'"):
        wb.run(find_problem("tail-1e-1"), Pdis(), wb.Budget(samples=5))
