"""`workbench estimate` for SHARP, compute-aware risk and distributional correctness, on what real packages logged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.logs import read_attack_trials, read_options, read_severities
from workbench.methods.tail_risk.distributional_correctness import dcs
from workbench.methods.tail_risk.risk_under_pressure import compute_to, pressure_curve
from workbench.methods.tail_risk.risk_under_pressure_trials import Price, read_trials
from workbench.methods.tail_risk.sharp import log_risks
from workbench.streams import Stream

DATA = Path(__file__).resolve().parent / "data"
[CAPITALS] = DATA.glob("samples_capitals_*.jsonl")
[SUMS, *_] = sorted(DATA.glob("samples_sums_*.jsonl"))


def run(*words):
    return CliRunner().invoke(app, ["estimate", *map(str, words)], catch_exceptions=False)


def scored(path):
    """{prompt: [(scores, tokens read, tokens written)]} as Inspect AI itself reads its log."""
    from inspect_ai.log import read_eval_log

    found = {}
    for sample in sorted(read_eval_log(str(path)).samples, key=lambda sample: sample.epoch):
        if sample.scores and not sample.error:
            used = sample.model_usage["mockllm/model"]
            row = {name: score.value for name, score in sample.scores.items()}, used.input_tokens, used.output_tokens
            found.setdefault(f"probe/{sample.id}", []).append(row)
    return found


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_severities_of_an_inspect_log(inspect_logs, suffix):
    truth = scored(inspect_logs[suffix])
    scores, notes = read_severities(inspect_logs[suffix], ["parts.harm", "parts.refusal"])
    assert scores.models == ("mockllm/model",) and set(scores.prompts) == set(truth) and len(truth) == 5
    for i, name in enumerate(scores.prompts):
        harm = np.mean([row["parts"]["harm"] for row, *_ in truth[name]])
        assert scores.values[0, i, :, 0] == pytest.approx([harm, 1 - harm], abs=1e-12)
    assert "Severities are means over the attempts at a prompt." in notes
    assert any(note.startswith("4 attempts are left out") for note in notes)


@pytest.mark.parametrize("suffix", [".eval", ".json"])
def test_trials_of_an_inspect_log_stop_at_the_first_success(inspect_logs, suffix):
    truth = scored(inspect_logs[suffix])
    trials, _ = read_attack_trials(inspect_logs[suffix], "severity >= 0.75")
    assert trials.budget == 4 and set(trials.prompt_ids) == set(truth)
    for i, name in enumerate(trials.prompt_ids):
        hits = [row["severity"] >= 0.75 for row, *_ in truth[name]]
        ran = hits.index(True) + 1 if any(hits) else 4
        assert (trials.ran[i], trials.success[i]) == (ran, any(hits))
        assert trials.prompt_tokens[i, :ran].tolist() == [read for _, read, _ in truth[name][:ran]]
    assert trials.success.any() and not trials.success.all()


def test_the_dcs_of_an_lm_eval_log():
    """Against a plain reading of the same lines: softmax of log-likelihood by character, then the product form."""
    expected = []
    for line in map(json.loads, CAPITALS.read_text().splitlines()):
        options = line["doc"]["options"]
        scaled = [float(pair[0]) / len(o) for o, pair in zip(options, line["filtered_resps"], strict=True)]
        mass = dict(zip(options, softmax(scaled), strict=True))
        right, none = mass[options[line["doc"]["label"]]], mass["I don't know"]
        expected.append((right - (1 - right - none)) * (1 - none))
    given, notes = read_options(CAPITALS)
    assert not notes and dcs(given.p_right, given.p_wrong, given.p_idk) == pytest.approx(expected, abs=1e-12)


def test_sharp_on_the_screen_as_json_and_on_the_page(tmp_path):
    # Log-risk .71 at every prompt, against 4.6 at eight of sixty: a mean of .61.
    severities = {"calm": np.full((60, 2), 0.3), "wild": np.zeros((60, 2))}
    severities["wild"][:8] = 0.9
    lines = ["id,model,bias,privacy"]
    for model, rows in severities.items():
        lines += [f"{i},{model},{bias},{privacy}" for i, (bias, privacy) in enumerate(rows)]
    lines.append("99,calm,0.5,0.5")
    (tmp_path / "s.csv").write_text("\n".join(lines))
    done = run("sharp", "--log", tmp_path / "s.csv", "--tail", 0.9, "--out", tmp_path)
    assert "2 models, 60 prompts, 2 dimensions: bias, privacy." in done.output
    assert "1 prompts are left out: some model has no score there." in done.output
    assert "wild is no worse than calm on average, yet worse in the tail." in " ".join(done.output.split())
    page = (tmp_path / "sharp.html").read_text()
    assert "CVaR 0.9" in page and not re.search(r"(src|href)=\"(?!data:)", page)
    numbers = json.loads(run("sharp", "--log", tmp_path / "s.csv", "--tail", 0.9, "--out", tmp_path, "--json").stdout)
    for model, rows in severities.items():
        losses = np.sort(log_risks(rows).sum(axis=1))
        value, low, high = numbers["models"][model]["cvar"]
        assert value == pytest.approx(losses[-6:].mean()) and low <= value <= high


def test_risk_under_pressure_on_the_screen_and_as_json(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for i in range(40):
        steps = [{"n_prompt_tok": 20, "n_resp_tok": 30, "judgment": int(rng.random() < 0.2)} for _ in range(8)]
        first = next((j for j, step in enumerate(steps) if step["judgment"]), 7)
        records.append({"prompt_id": f"p{i}", "category": "all", "steps": steps[: first + 1]})
    rows = ["id,attempt,score,prompt_tokens,response_tokens"]
    rows += [f"{r['prompt_id']},{j},{s['judgment']},20,30" for r in records for j, s in enumerate(r["steps"])]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ["--size", 7.6, "--judge-size", 1, "--target", 0.4, "--out", tmp_path]
    found = [json.loads(run("risk-under-pressure", "--log", tmp_path / f"t.{end}", *words, "--json").stdout)
             for end in ("csv", "jsonl")]  # fmt: skip
    assert found[0] == found[1]
    trials = read_trials(records, budget=8)
    price = Price("template", target=7.6, judge=1.0)
    curve = pressure_curve(trials, price.steps(trials), levels=range(9), stream=Stream.of(0, "x"))
    value, low, high = found[0]["compute_to"]["0.4"]
    assert value == pytest.approx(compute_to(curve.risk, curve.cost, 0.4)) and low < value < high
    said = run("risk-under-pressure", tmp_path / "t.csv", *words).output
    assert "40 prompts, at most 8 steps each" in said and "TFLOPs a prompt until risk 0.4" in said


def test_correctness_on_the_screen(tmp_path):
    said = run("distributional-correctness", "--log", CAPITALS, "--l-wrong", 0.5, "--out", tmp_path).output
    assert "7 questions; the DCS is " in said and "less than 0.333 chance" in said and "mass on I don't know" in said
    assert (tmp_path / "distributional-correctness.png").read_bytes().startswith(b"\x89PNG")


TABLE = "id,attempt,score\na,0,0.2\na,1,0.9\nb,0,0.1\nb,1,0.3\n"


@pytest.mark.parametrize(
    "words, said",
    [
        (["risk-under-pressure", "--log", "t.csv", "--size", "7"], r"lack prompt_tokens and response_tokens \(first at a\)"),
        (["risk-under-pressure", "--log", "c.csv", "--size", "7"], r"lack the order of attempts \(first at a\)"),
        (["risk-under-pressure", "--log", "t.csv"], "--size is None but must be the model's size; no log says it"),
        (["sharp", "--log", "c.csv"], "log is 'counts of successes' but must hold a severity for each dimension"),
        (["sharp", "--log", "t.csv", "--dimension", "bias"], "--dimension is 'bias' but must be a score of the logs; name some of score"),
        (["sharp", "--log", "wide.csv"], r"a severity of a is 7.0 but must lie in \[0, 1\]; divide"),
        (["sharp", "--log", "words.csv"], "No score in these logs is a number, and SHARP needs a severity"),
        (["distributional-correctness", "--log", "t.csv"], "t.csv holds no log-likelihoods of answer options"),
        (["distributional-correctness", "--log", str(SUMS)], "samples_sums_.* holds no log-likelihoods of answer options"),
        (["distributional-correctness", "--log", str(CAPITALS), "--idk", "pass"], "hold right, wrong and IDK ones"),
        (["sharp"], "--log is .* but must name at least one file"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(TABLE)
    Path("c.csv").write_text("id,attempts,successes\na,3,1\nb,3,0\n")
    Path("wide.csv").write_text("id,score\na,7\nb,1\n")
    Path("words.csv").write_text("id,verdict\na,harmful\nb,fine\n")
    with pytest.raises(WorkbenchError, match=said):
        run(*words)


def test_prompts_with_too_few_steps_are_left_out_and_counted(tmp_path):
    rows = [f"p{i},{int(i == 0 and j == 1)},5,5" for i in range(4) for j in range(2 if i == 3 else 4)]
    (tmp_path / "t.csv").write_text("\n".join(["id,score,prompt_tokens,response_tokens", *rows]))
    trials, notes = read_attack_trials(tmp_path / "t.csv", steps=4)
    assert trials.prompt_ids == ("p0", "p1", "p2") and trials.ran.tolist() == [2, 4, 4]
    assert notes == ("1 prompts are left out: no success, and fewer than 4 steps.",)
    all_of_them, none = read_attack_trials(tmp_path / "t.csv")
    assert all_of_them.budget == 2 and len(all_of_them.prompt_ids) == 4 and not none


def test_a_success_after_the_allowed_steps_is_no_success(tmp_path):
    rows = [f"p{i},{int(i == 0 and j == 3)},5,5" for i in range(3) for j in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["id,score,prompt_tokens,response_tokens", *rows]))
    trials, _ = read_attack_trials(tmp_path / "t.csv", steps=3)
    assert not trials.success.any() and trials.ran.tolist() == [3, 3, 3]
