"""`workbench estimate saber` on logs: the answers are SABER's, on the screen, as JSON and on the page."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import WorkbenchError
from workbench.logs import AttemptCounts, read_attempts, saber_page
from workbench.methods.tail_risk.saber import predict, predict_tries


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two logs of one model: 120 prompts, 20 attempts each."""
    folder, generator = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    thetas = generator.beta(0.4, 3, 120)
    for part in range(2):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["id", "attempt", "score"])
            for i, theta in enumerate(thetas):
                table.writerows([i, j, 0.9 if generator.random() < theta else 0.3] for j in range(10))
    return folder


def run(*words):
    return CliRunner().invoke(app, ["estimate", *map(str, words)])


def test_the_answers_are_sabers(logs, tmp_path):
    done = run("saber", "--log", logs / "*.csv", "--success", "score>=0.75", "--n", 1000, 10000, "--out", tmp_path, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    counts = read_attempts(str(logs / "*.csv"), "score >= 0.75")
    assert (said["prompts"], said["attempts"]) == (120, 2400) and said["successes"] == counts.successes.sum()
    for tries in (1000, 10_000):
        expected = predict(counts.successes, counts.attempts, tries)
        found = said["asr"][str(tries)]
        assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    budget = predict_tries(counts.successes, counts.attempts, 0.5)
    assert said["tries"]["0.5"]["value"] == budget.value and 0 < said["goodness_of_fit"]["p_value"] <= 1


def test_what_is_on_the_screen_and_on_the_page(logs, tmp_path):
    done = run("saber", logs / "0.csv", logs / "1.csv", "--success", "score>=0.75", "--n", 1000, "--target", 0.9, "--out", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    page = (tmp_path / "saber.html").read_text()
    for text in (done.output, page):
        assert "120 prompts, 2,400 attempts (20 a prompt)" in text
        assert "ASR@1,000" in text and "tries until ASR 0.9" in text and "Goodness of fit" in text
    assert (tmp_path / "saber.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "default-src 'none'" in page


def test_what_a_log_calls_itself_is_escaped_on_the_page():
    counts = AttemptCounts(("a", "b", "c"), np.array([4, 4, 4]), np.array([0, 1, 3]), ("<script>x.csv breaks off.",))
    found = saber_page.answer(counts, [10])
    assert "<script>" not in saber_page.page(found).html(b"")


def test_one_attempt_a_prompt_is_not_enough(tmp_path):
    path = tmp_path / "once.csv"
    path.write_text("id,score\n" + "".join(f"{i},{i % 4 == 0:d}\n" for i in range(40)))
    with pytest.raises(
        WorkbenchError, match=r"Each of the 40 prompts was tried once: that gives ASR@1 = 0.25, but how"
    ):
        CliRunner().invoke(app, ["estimate", "saber", "--log", str(path)], catch_exceptions=False)


def test_mixed_numbers_of_attempts_and_a_law_that_does_not_fit(tmp_path):
    generator = np.random.default_rng(1)
    n = generator.integers(5, 40, 200)
    k = generator.binomial(n, np.where(generator.random(200) < 0.5, 0.02, 0.6))
    counts = AttemptCounts(tuple(map(str, range(200))), n, k)
    words = " ".join(saber_page.in_words(saber_page.answer(counts, [1000])))
    assert f"({n.min()} to {n.max()} a prompt)" in words
    assert "does not fit the counts" in words and "leans on a law that the counts contradict" in words


def test_no_success_at_all_still_gets_an_answer(tmp_path):
    counts = AttemptCounts(("a", "b", "c"), np.array([9, 9, 9]), np.array([0, 0, 0]))
    found = saber_page.answer(counts, [100], [0.5])
    assert "No test of fit" in " ".join(saber_page.in_words(found))
    (_, value, interval, remark), (_, tries, beyond, _) = saber_page.rows(found)
    assert float(value) < 1e-6 and interval.startswith("0 to ") and remark.startswith("no success in 27 tries")
    assert tries == "beyond 1e30" and beyond.endswith("no upper limit")
    saber_page.draw(found)


@pytest.mark.parametrize(
    "words, said",
    [
        (["sabre", "--log", "x.csv"], "the paper is 'sabre' but must be one of saber, sharp, .*; did you mean 'saber'"),
        (["saber"], "--log is .* but must name at least one file"),
        (["saber", "--log", "nowhere/*.eval"], "log is 'nowhere/.*' but must name a file that exists"),
    ],
)
def test_words_that_make_no_sense(words, said):
    with pytest.raises(WorkbenchError, match=said):
        CliRunner().invoke(app, ["estimate", *words], catch_exceptions=False)
