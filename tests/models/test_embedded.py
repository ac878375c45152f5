"""The bundled models are those on their cards, and do what the cards say."""

from __future__ import annotations

import os
import shutil
import tomllib

import numpy as np
import pytest

from workbench import Stream, paths
from workbench.errors import WorkbenchError
from workbench.models import (
    arith_prompts,
    build,
    codeword_prompts,
    info,
    list_embedded,
    load,
    next_log_probs,
    parse_answer,
    prefix_tree,
    sample,
    step_labels,
    true_answer,
    worked_solution,
)
from workbench.models import embedded as embedded_module
from workbench.models.recipes import arith as arith_recipe
from workbench.models.recipes import codeword as codeword_recipe

RECIPES = {"arith": arith_recipe, "codeword": codeword_recipe}


@pytest.fixture(scope="module")
def arith():
    return load("embedded/arith")


@pytest.fixture(scope="module")
def answered(arith):
    """48 prompts, 16 samples each: (prompts, answers (48, 16) with -1 for none, texts)."""
    prompts = arith_prompts(48, Stream.of(11, "prompts"))
    samples = sample(arith, prompts, n=16, max_new_tokens=48, stream=Stream.of(11, "samples"))
    texts = [arith.decode(completion) for completion in samples.completions()]
    answers = [parse_answer(text) for text in texts]
    return prompts, np.array([-1 if a is None else a for a in answers]).reshape(48, 16), texts


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_model_is_small_whole_and_as_good_as_its_card_says(name):
    assert name in list_embedded()
    known = info(f"embedded/{name}")
    card = tomllib.loads((paths.datasets_folder() / "models" / name / "card.toml").read_text())
    assert known["checksum_ok"]
    assert known["bytes"] <= 4_000_000
    assert known["parameters"] == card["parameters"]
    assert known["architecture"] == "LlamaForCausalLM"
    assert RECIPES[name].measured_loss(load(f"embedded/{name}").network) == pytest.approx(card["loss"], rel=1e-3)
    assert card["seed"] == RECIPES[name].SEED


def test_the_codeword_model_knows_its_grammar(codeword, grammar):
    prompts = codeword_prompts()
    for prefix in ([], [3], [2], [3, 4], [2, 8, 6]):
        whole = [prompt + prefix for prompt in prompts]
        exact, learnt = next_log_probs(grammar, whole), next_log_probs(codeword, whole)
        known = exact > -14
        assert np.abs(exact - learnt)[known].max() < 0.1
        assert np.exp(learnt)[~known].max() < 1e-5


def test_the_codeword_models_risks_span_four_decades_near_the_grammars(codeword, grammar):
    for prompt in ([4, 4, 4], [6, 6, 6], [8, 8, 8]):
        tree = prefix_tree(codeword, prompt, 5, [1])
        learnt, exact = tree.probability(tree.contains(1)), grammar.event_probability(prompt, 1, 5)
        assert abs(np.log10(learnt / exact)) < 0.1


def test_the_codeword_tokenizer_reads_words(codeword):
    assert codeword.encode("f0 f3 f1") == [4, 7, 5]
    assert codeword.decode([3, 1]).split() == ["comply", "X"]
    with pytest.raises(WorkbenchError, match="text is 'hello' but must be made of tokens that embedded/codeword knows"):
        codeword.encode("hello")


def test_the_arithmetic_model_is_right_more_often_than_not_but_far_from_always(answered):
    prompts, answers, _ = answered
    truth = np.array([true_answer(prompt) for prompt in prompts])
    right = (answers == truth[:, None]).mean(axis=1)
    # 48 prompts with a standard deviation of at most .5: at 1e-6 their mean strays less than 4.9 * .5 / sqrt(48) = .35
    # from the whole population's .68, so [.4, .95] is a loose fence; the card's figure is measured on more prompts.
    assert 0.4 < right.mean() < 0.95
    majority = np.array([np.bincount(row[row >= 0]).argmax() for row in answers])
    assert (majority == truth).mean() > right.mean() + 0.1


def test_errors_differ_between_samples_of_one_prompt(answered):
    prompts, answers, _ = answered
    wrong = [set(row[row != true_answer(prompt)]) for prompt, row in zip(prompts, answers, strict=True)]
    assert np.mean([len(values) >= 2 for values in wrong]) > 0.5


def test_the_steps_tell_where_an_answer_went_wrong(answered):
    prompts, answers, texts = answered
    for i, text in enumerate(texts):
        prompt, answer = prompts[i // 16], answers[i // 16, i % 16]
        labels = step_labels(prompt, text)
        if labels and all(labels) and len(labels) == prompt.count("+") and text.endswith(f"#{true_answer(prompt)}"):
            assert answer == true_answer(prompt)
        if answer != true_answer(prompt) and len(labels) == prompt.count("+"):
            assert not all(labels) or f"={answer};" not in text


def test_worked_sums():
    assert worked_solution("23+45+18=") == "23+45=68;68+18=86;#86"
    assert true_answer("23+45+18=") == 86
    assert parse_answer("23+45=68;68+18=76;#76") == 76
    assert parse_answer("23+45=68;68+") is None
    assert step_labels("23+45+18=", "23+45=68;68+18=76;#76") == [True, False]
    assert step_labels("23+45+18=", "23+45=78;78+18=96;#96") == [False, True]
    assert step_labels("23+45+18=", "23+45=68;68+19=87;1+1=2;#2") == [True, False, False]
    stream = Stream.of(2, "prompts")
    prompts = arith_prompts(50, stream)
    assert arith_prompts(10, stream.at(20)) == prompts[20:30]
    assert {prompt.count("+") for prompt in prompts} == {1, 2, 3}
    assert all(
        parse_answer(worked_solution(p)) == true_answer(p) and all(step_labels(p, worked_solution(p))) for p in prompts
    )
    with pytest.raises(
        WorkbenchError, match="prompt is 'what' but must be a sum such as '23\\+45\\+18='; make prompts"
    ):
        true_answer("what")
    for options, told in (
        ({"fewest": 1}, "fewest is 1"),
        ({"fewest": 3, "most": 2}, "most is 2"),
        ({"n": 0}, "n is 0"),
    ):
        with pytest.raises(WorkbenchError, match=told):
            arith_prompts(**({"n": 3, "stream": stream} | options))


def test_taught_slips_have_the_stated_probability():
    generator = np.random.default_rng(5)
    n = 4000
    for prompt, p in (("19+19=", 0.3), ("20+30=", 0.05)):
        wrong = sum(
            parse_answer(arith_recipe.solution_with_slips(prompt, generator)) != true_answer(prompt) for _ in range(n)
        )
        # 4.9 standard deviations: one false alarm in a million.
        assert abs(wrong / n - p) < 4.9 * np.sqrt(p * (1 - p) / n)


def test_weights_that_are_not_those_on_the_card_are_refused(tmp_path, monkeypatch):
    home = tmp_path / "models"
    shutil.copytree(paths.datasets_folder() / "models", home)
    monkeypatch.setattr(embedded_module, "_root", lambda: home)
    weights = home / "codeword" / "model.safetensors"
    altered = bytearray(weights.read_bytes())
    altered[-1] ^= 1
    weights.write_bytes(altered)
    with pytest.raises(WorkbenchError, match="embedded/codeword is missing or not the file on its card; restore it"):
        load("embedded/codeword")
    assert not info("embedded/codeword")["checksum_ok"]
    weights.unlink()
    with pytest.raises(WorkbenchError, match="missing or not the file"):
        load("embedded/codeword")
    (home / "codeword" / "card.toml").write_text("name = ")
    with pytest.raises(WorkbenchError, match=r"card.toml is not TOML .*; restore it from the repository"):
        load("embedded/codeword")


def test_a_rebuild_that_comes_out_worse_is_refused(monkeypatch):
    make = codeword_recipe.make
    monkeypatch.setattr(codeword_recipe, "make", lambda seed: make(seed, steps=5))
    with pytest.raises(WorkbenchError, match=r"embedded/codeword came out with a loss of .* more than 2 times"):
        build("codeword")


def test_unknown_names_are_refused():
    for ask in (build, lambda name: info(f"embedded/{name}")):
        with pytest.raises(
            WorkbenchError, match=r"embedded model is 'aritm' but must be one of .*did you mean 'arith'"
        ):
            ask("aritm")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("WORKBENCH_SLOW"), reason="five minutes long; set WORKBENCH_SLOW=1")
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_model_is_made_again_from_its_recipe(name, tmp_path):
    made = build(name, out=tmp_path)
    assert made["loss"] <= made["card_loss"] * (1 + made["tolerance"])
    again = load(f"hf:{tmp_path}")
    assert again.parameters == info(f"embedded/{name}")["parameters"]
