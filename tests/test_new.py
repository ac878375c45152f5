"""`workbench new`: what it writes runs as it is, is found by itself, and overwrites nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, whose package goes before the installed one."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("workbench", "notebooks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets").symlink_to(ROOT / "datasets")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def call(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "WORKBENCH_KERNELS": "ordinary"}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )


def test_an_estimator_has_its_battery_its_league_and_its_notebook_without_another_file(checkout):
    before = {path for path in checkout.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    done = call(checkout, "workbench", "new", "estimator", "demo-idea")
    assert done.returncode == 0, done.stderr
    after = {path for path in checkout.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(checkout)) for path in after - before} == {
        "workbench/methods/tail_risk/demo_idea.py",
        "tests/methods/tail_risk/test_demo_idea.py",
        "notebooks/tail_risk/demo-idea.toml",
        "notebooks/tail_risk/demo-idea.ipynb",
    }
    battery = call(
        checkout,
        *("pytest", "-p", "no:cacheprovider", "tests/contract/test_contract.py"),
        *("tests/methods/tail_risk/test_demo_idea.py", "-k", "(DemoIdea or demo_idea) and not kills and not cover"),
    )
    assert battery.returncode == 0 and int(battery.stdout.split(" passed")[0].split()[-1]) > 10, battery.stdout
    words = ("--estimators", "DemoIdea,MonteCarlo", "--problems", "tail-1e-1", "--repeats", "4", "--workers", "1")
    played = call(checkout, "workbench", "league", *words, "--budget", "model_calls=200", "--json")
    assert [row["estimator"] for row in json.loads(played.stdout)] == ["DemoIdea", "MonteCarlo"], played.stderr
    claims = call(checkout, "workbench", "reproduce", "demo-idea", "--json")
    verdicts = {row["claim"]: row["verdict"] for row in json.loads(claims.stdout)}
    assert claims.returncode == 0 and verdicts == {"C1": "reproduced", "C2": "not reproduced"}, claims.stderr
    assert call(checkout, "workbench", "tidy", "--check", "notebooks/tail_risk/demo-idea.ipynb").returncode == 0
    lint = call(checkout, "ruff", "format", "--check", "workbench/methods", "tests/methods")
    assert lint.returncode == 0, lint.stdout


def planned() -> str:
    from workbench.papers import all_papers

    return next(slug for slug, paper in all_papers().items() if paper.status == "planned")


def test_a_planned_paper_is_begun_with_a_claim_that_fails_under_its_control(checkout):
    slug = planned()
    assert call(checkout, "workbench", "new", "paper", slug).returncode == 0
    found = [
        json.loads(call(checkout, "workbench", "reproduce", slug, "--json", *control).stdout)[0]["verdict"]
        for control in ((), ("--control",))
    ]
    assert found == ["reproduced", "not reproduced"]


def test_another_paper_gets_a_toml_of_its_own(checkout):
    done = call(checkout, "workbench", "new", "paper", "another-paper", "--family", "learning")
    assert done.returncode == 0, done.stderr
    shown = json.loads(call(checkout, "workbench", "show", "another-paper", "--json").stdout)
    assert shown["status"] == "draft" and shown["family"] == "learning"
    tests = call(checkout, "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/learning/test_another_paper.py")
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (("estimator", "Demo"), "the name is 'Demo' but must hold lower-case letters"),
        (("estimator", "monte-carlo"), "There is an estimator MonteCarlo already; choose another name."),
        (("estimator", "saber"), "There is an estimator Saber already"),
        (("paper", "saber"), "The paper 'saber' is ready already; open its notebook instead."),
        (("paper", "new-one", "--family", "tails"), "--family is 'tails' but must be one of"),
    ],
)
def test_what_makes_no_sense_is_refused(words, said):
    done = call(ROOT, "workbench", "new", *words)
    assert done.returncode == 2 and said in done.stderr
