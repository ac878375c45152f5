"""The language of locks, the models that learned it, and five attacks on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit

from workbench import Stream
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk import suffix_attacks as attacks
from workbench.methods.tail_risk.risk_under_pressure import compute_to, pressure_curve
from workbench.methods.tail_risk.risk_under_pressure_trials import Price, query_costs
from workbench.plots.pressure import attack_costs, category_figure, cost_figure, pressure_figure
from workbench.problems import locked_suffixes as language
from workbench.problems.locked_suffixes import Gate, locked_prompts, one_hot, train_gate, true_probability

STREAM = Stream.of(5, "suffix-attacks-test")


@pytest.fixture(scope="module")
def gates() -> tuple[Gate, Gate]:
    return train_gate(32, STREAM.child("target")), train_gate(16, STREAM.child("surrogate"))


@pytest.fixture(scope="module")
def prompts() -> tuple[np.ndarray, np.ndarray]:
    return locked_prompts(20, STREAM.child("prompts"))


def test_the_strongest_lock_counts_and_every_permission():
    plain = np.full(14, 40)
    assert true_probability(plain) == pytest.approx(expit(2.0))
    locked = plain.copy()
    locked[:2] = 0, 5
    assert true_probability(locked) == pytest.approx(expit(2 - 1.2 * 5))
    locked[8:11] = 6, 6, 9
    assert true_probability(locked) == pytest.approx(expit(2 - 1.2 * 5 + 1.2 + 1.2 + 0.5))


def test_prompts_hold_one_lock_of_their_family(prompts):
    tokens, family = prompts
    locks = np.where(tokens < 6, tokens, -1)
    assert ((tokens < 6).sum(axis=1) == 1).all() and (locks.max(axis=1) == family).all()
    assert (np.bincount(family) == 20).all()


def test_models_learned_the_language(gates):
    tokens, _ = locked_prompts(100, STREAM.child("fresh"))
    asked = np.concatenate([tokens, STREAM.child("ends").generator().integers(48, size=(600, 6))], axis=1)
    truth = true_probability(asked)
    for gate in gates:
        given = gate.comply_probability(asked)
        assert np.corrcoef(given, truth)[0, 1] > 0.9 and abs(given.mean() - truth.mean()) < 0.03


def test_training_again_gives_the_same_model():
    once, again = (train_gate(16, STREAM.child("again"), steps=20) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_one_hot_and_ids_are_one_question(gates, prompts):
    tokens = np.concatenate([prompts[0], prompts[0][:, :6]], axis=1)
    direct = gates[0].comply_probability(tokens)
    assert torch.sigmoid(gates[0](one_hot(tokens))).numpy() == pytest.approx(direct, abs=1e-5)


def test_parameters_are_counted_without_embeddings(gates):
    width = 32
    attention, mlp = 4 * (width**2 + width), 8 * width**2 + 5 * width
    assert gates[0].parameters_without_embeddings == attention + mlp + 3 * 2 * width + width + 1


def test_climbing_never_goes_down_and_the_gradient_climbs_highest(gates, prompts):
    tokens, _ = prompts
    target, surrogate = gates
    climbed = {
        "iterative": (attacks.iterative_suffixes(tokens, 10, STREAM.child("i"), surrogate), surrogate),
        "gradient": (attacks.gradient_suffixes(tokens, 10, STREAM.child("g"), target), target),
    }
    for suffixes, model in climbed.values():
        score = np.array(
            [model.comply_probability(np.concatenate([tokens, suffixes[:, t]], axis=1)) for t in range(10)]
        )
        assert (np.diff(score, axis=0) >= 0).all()
    ends = {
        name: true_probability(np.concatenate([tokens, s[:, -1]], axis=1)).mean() for name, (s, _) in climbed.items()
    }
    assert ends["gradient"] > 0.8 and ends["gradient"] > ends["iterative"] + 0.1


def test_a_step_of_the_gradient_attack_changes_one_token(gates, prompts):
    suffixes = attacks.gradient_suffixes(prompts[0], 5, STREAM.child("one"), gates[0])
    assert ((suffixes[:, 1:] != suffixes[:, :-1]).sum(axis=2) <= 1).all()


def test_templates_are_eight_and_the_same_for_all(prompts):
    suffixes = attacks.template_suffixes(prompts[0], 10, STREAM.child("t"))
    distinct = np.unique(suffixes.reshape(-1, 6), axis=0)
    permissions = np.isin(distinct, list(language.PERMISSIONS)).sum(axis=1)
    assert len(distinct) == 8 and sorted(permissions.tolist()) == [0, 0, 1, 1, 1, 2, 2, 2]


def test_trials_succeed_as_often_as_the_model_says(gates, prompts):
    tokens, family = prompts
    suffixes = attacks.random_suffixes(tokens, 1, STREAM.child("r"))
    chance = gates[0].comply_probability(np.concatenate([tokens, suffixes[:, 0]], axis=1))
    hits = [attacks.try_suffixes(gates[0], tokens, suffixes, family, STREAM.child("try", i)).success for i in range(50)]
    error = np.sqrt((chance * (1 - chance)).sum() / 50) / len(tokens)
    assert abs(np.mean(hits) - chance.mean()) < 5 * error


def test_costs_rank_attacks_otherwise_than_queries(gates, prompts):
    tokens, family = prompts
    n = gates[0].parameters_without_embeddings / 1e9
    chosen = {
        "template": attacks.template_suffixes(tokens, 10, STREAM.child("t")),
        "gradient": attacks.gradient_suffixes(tokens, 10, STREAM.child("g"), gates[0]),
    }
    price = {"template": Price("template", n, judge=0), "gradient": Price("gradient", n, judge=0, candidates=32)}
    found = {}
    for name, suffixes in chosen.items():
        trials = attacks.try_suffixes(gates[0], tokens, suffixes, family, STREAM.child("ask", name))
        for axis, costs in (("queries", query_costs(trials)), ("compute", price[name].steps(trials))):
            curve = pressure_curve(trials, costs, levels=range(11), resamples=20)
            found[name, axis] = compute_to(curve.risk, curve.cost, 0.5)
    assert found["gradient", "queries"] < found["template", "queries"]
    assert found["gradient", "compute"] > 5 * found["template", "compute"]


def test_bookings_of_a_transfer_and_the_figures(gates, prompts):
    tokens, family = prompts
    suffixes = attacks.gradient_suffixes(tokens, 4, STREAM.child("s"), gates[1])
    trials = attacks.try_suffixes(gates[0], tokens, suffixes, family, STREAM.child("figure"))
    price = Price("gradient", 1.0, judge=0, candidates=32, optimised=0.25)
    free, first, steps = (attack_costs(trials, price, book) for book in ("free", "first", "steps"))
    search = 35 * 2 * 0.25 * 14 / 1000
    assert first[:, 0] - free[:, 0] == pytest.approx(4 * search)
    asked = np.arange(4) < trials.ran[:, None]
    assert steps == pytest.approx(free + np.where(asked, search, 0))
    fig = pressure_figure({"transfer": (trials, price)}, 2, 0.95, 1.0, 3.0, 32, "first", stream=STREAM)
    assert fig.axes[1].get_xscale() == "log"
    assert "100% never reach 0.5" in [
        text.get_text() for text in cost_figure({"a": [[1.0, np.inf]]}, (0.2, 0.5)).axes[0].texts
    ]
    assert category_figure(["a", "b"], [1, 20], [0.5, 20], [2, 20], 20.0).axes[0].texts[0].get_text() == "never"


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda gate, tokens: true_probability([48]), "tokens is 48 but must lie from 0 to 47"),
        (lambda gate, tokens: true_probability([0.5]), "of type float64"),
        (lambda gate, tokens: gate.comply_probability(tokens), "be (rows, 14)"),
        (lambda gate, tokens: train_gate(10, STREAM), "width is 10 but must be a multiple of 4"),
        (lambda gate, tokens: locked_prompts(0, STREAM), "each is 0"),
        (lambda gate, tokens: attacks.gradient_suffixes(tokens, 0, STREAM, gate), "steps is 0"),
        (lambda gate, tokens: attacks.try_suffixes(gate, tokens, tokens, tokens, STREAM), "the shape of suffixes"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(gates, prompts, call, said):
    with pytest.raises(WorkbenchError) as refusal:
        call(gates[0], prompts[0])
    assert said in str(refusal.value) and str(refusal.value).endswith(".")
