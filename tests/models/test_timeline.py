"""Event logs: the law, exact risks, and the bundled model that knows both."""

from __future__ import annotations

import numpy as np
import pytest

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.models import card, load, next_log_probs, outcome_risk, sample, timeline_histories
from workbench.models.recipes import timeline as recipe
from workbench.models.timeline import END_TOKENS, EVENTS, OUTCOMES, hazard

SMOKE, SERVICE, PEAK, START = (EVENTS.index(event) for event in ("smoke", "service", "peak", "start"))


@pytest.fixture(scope="module")
def grammar():
    return load("grammar/timeline")


@pytest.fixture(scope="module")
def timeline():
    return load("embedded/timeline")


def test_histories_have_the_length_asked_for_and_have_not_ended():
    stream = Stream.of(1, "histories")
    for length in (1, 4, 16, 40):
        histories = np.array(timeline_histories(50, stream, length=length))
        assert histories.shape == (50, length)
        assert (histories[:, 0] == START).all()
        assert not np.isin(histories, [*END_TOKENS, *OUTCOMES.values()]).any()
    assert timeline_histories(5, stream.at(20)) == timeline_histories(50, stream)[20:25]


def test_hazards_are_those_stated(grammar):
    for wear in range(8):
        for last, name in ((PEAK, "peak"), (SMOKE, "smoke")):
            # Service first, so that wear counts from nought; the last event may add one.
            history = [START, SERVICE, *[PEAK] * (wear if last != PEAK else max(wear, 1)), *[last] * (last == SMOKE)]
            worn = max(wear, 1) if last == PEAK else wear
            law = np.exp(next_log_probs(grammar, [history])[0])
            stated = hazard(worn, last)
            assert law[OUTCOMES["fault"]] == pytest.approx(stated["fault"]), name
            assert law[OUTCOMES["crash"]] == pytest.approx(stated["crash"]), name
    assert next_log_probs(grammar, [[START, *[PEAK] * 30]])[0, 2] == pytest.approx(np.log(hazard(7, PEAK)["fault"]))


def test_one_step_risk_is_the_hazard_and_risk_grows_with_the_horizon(grammar):
    for history in timeline_histories(10, Stream.of(2, "x"), length=12):
        law = np.exp(next_log_probs(grammar, [history])[0])
        for outcome, token in OUTCOMES.items():
            risks = [outcome_risk(history, outcome, horizon) for horizon in (0, 1, 5, 20)]
            assert risks[0] == 0 and risks[1] == pytest.approx(law[token])
            assert risks == sorted(risks)


def test_exact_risks_are_the_frequencies_of_the_grammars_own_futures(grammar):
    n, horizon = 3000, 20
    for history in timeline_histories(3, Stream.of(3, "x"), length=24):
        drawn = sample(grammar, history, n=n, max_new_tokens=horizon, stream=Stream.of(4, "futures"))
        for outcome, token in OUTCOMES.items():
            p = outcome_risk(history, outcome, horizon)
            # 4.9 standard deviations and one draw: one false alarm in a million.
            assert abs((drawn.tokens == token).any(axis=1).mean() - p) < 4.9 * np.sqrt(p * (1 - p) / n) + 1 / n


def test_one_outcome_is_spontaneous_and_the_other_announced(grammar):
    """Share of the expected hazard that falls on steps whose hazard exceeds .3: nil for fault, all for crash."""
    probs = np.exp(grammar.table)
    assert probs[:, OUTCOMES["fault"]].max() < 0.05
    crash = probs[:, OUTCOMES["crash"]]
    assert set(np.round(crash, 12)) == {0.0, 0.4}


def test_the_model_knows_the_hazards_after_histories_of_any_length(timeline, grammar):
    for length in (2, 8, 16, 32, 60):
        histories = timeline_histories(64, Stream.of(5, length), length=length)
        exact, learnt = next_log_probs(grammar, histories)[:, 2], next_log_probs(timeline, histories)[:, 2]
        assert np.abs(learnt - exact).mean() < 0.15, length
    smoking = [[*history, SMOKE] for history in timeline_histories(32, Stream.of(6, "x"), length=10)]
    assert np.abs(np.exp(next_log_probs(timeline, smoking)[:, 3]) - 0.4).max() < 0.05


def test_the_models_risks_are_near_the_exact_ones(timeline):
    """REACH, by hand: paths without the outcome, risk 1 - prod (1 - hazard); its standard error here is under 2 %."""
    histories = timeline_histories(6, Stream.of(7, "x"), length=20)
    horizon, n, fault = 12, 200, OUTCOMES["fault"]
    uniforms = Stream.of(8, "paths").uniforms(len(histories) * n, horizon)
    session = timeline.start(np.repeat(histories, n, axis=0))
    survived, alive = np.zeros(len(uniforms)), np.ones(len(uniforms), dtype=bool)
    for t in range(horizon):
        probs = np.exp(session.log_probs.numpy())
        survived += np.where(alive, np.log1p(-probs[:, fault]), 0.0)
        probs[:, fault] = 0.0
        cdf = probs.cumsum(axis=1)
        tokens = (cdf <= uniforms[:, t, None] * cdf[:, -1:]).sum(axis=1)
        alive &= ~np.isin(tokens, END_TOKENS)
        if t + 1 < horizon:
            session.advance(tokens)
    estimates = (1 - np.exp(survived)).reshape(len(histories), n).mean(axis=1)
    exact = np.array([outcome_risk(history, "fault", horizon) for history in histories])
    assert np.abs(np.log(estimates / exact)).max() < 0.3


def test_the_card_states_how_right_the_hazards_are(timeline):
    assert recipe.hazard_errors(timeline.network).mean() == pytest.approx(card("timeline")["hazard_error"], rel=1e-2)
    assert card("timeline")["hazard_error"] < 0.05


def test_bad_input_is_refused():
    good = [START, PEAK]
    with pytest.raises(WorkbenchError, match=r"outcome is 'fire' but must be one of fault, crash"):
        outcome_risk(good, "fire", 5)
    with pytest.raises(WorkbenchError, match="horizon is -1 but must be a whole number at least 0; ask for"):
        outcome_risk(good, "fault", -1)
    for history in ([], [PEAK], [START, 0, PEAK]):
        with pytest.raises(
            WorkbenchError, match=r"must begin with 11 \(start\) and not have ended; make histories with"
        ):
            outcome_risk(history, "fault", 5)
    with pytest.raises(WorkbenchError, match=r"history\[1\] is 99 but must be a token id from 0 to 11"):
        outcome_risk([START, 99], "fault", 5)
    with pytest.raises(WorkbenchError, match="length is 0 but must be a whole number at least 1; a history holds"):
        timeline_histories(3, Stream.of(0), length=0)
