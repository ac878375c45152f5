"""`workbench reproduce` by its words: what it prints, what it leaves, how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from .conftest import CLAIM

GOOD = [
    "from workbench.budget import charge\ncharge(tokens=40)",
    "paper.measure('C1', 1 if control else 5, interval=(0, 2) if control else (4, 6))",
]
PARAMETERS = "scale = 'quick'\nseed = 0\ncontrol = False"
KEYS = {
    "slug",
    "claim",
    "mode",
    "measure",
    "value",
    "low",
    "high",
    "passes",
    "verdict",
    "expected",
    "control",
    "seed",
    "scale",
    "seconds",
    "tokens",
}


def test_claims_records_and_table(home):
    home.add("alpha", GOOD)
    home.add(
        "beta",
        ["paper.measure('C1', 3.5, interval=(2.5, 4.5))"],
        claims=CLAIM.format(id="C1", mode="scaled", passes=">= 3", more='expected = "consistent"'),
    )
    home.add("gamma", [], status="planned", claims="")
    done = home.run("reproduce", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert "alpha" in done.stdout and "reproduced" in done.stdout and "consistent" in done.stdout
    rows = {row["slug"]: row for row in home.claims()}
    assert set(rows) == {"alpha", "beta"} and set(rows["alpha"]) >= KEYS
    assert rows["alpha"] | {"seconds": 0} == rows["alpha"] | {
        "value": 5, "low": 4, "high": 6, "verdict": "reproduced", "expected": "reproduced", "seed": 7, "scale": "quick", "tokens": 40, "seconds": 0,
    }  # fmt: skip
    [folder] = home.runs()
    assert {path.name for path in folder.iterdir()} == {
        "alpha.ipynb",
        "alpha.html",
        "beta.html",
        "beta.ipynb",
        "claims.json",
        "run.json",
        "report.html",
    }
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 7 and record["versions"]["torch"] and record["notebooks"]["alpha"]["state"] == "done"
    index, page = ((folder / name).read_text() for name in ("report.html", "alpha.html"))
    assert "alpha in small" in index and "5 (4 to 6)" in page and str(home.folder) not in index + page


def test_json_prints_the_list_and_nothing_else(home):
    home.add("alpha", GOOD)
    done = home.run("reproduce", "alpha", "--json")
    assert json.loads(done.stdout) == home.claims()


def test_control_must_fail_and_an_alarm_exits_1(home):
    home.add("alpha", GOOD)
    assert home.run("reproduce", "alpha", "--control", "--out", "a").returncode == 0
    assert home.claims("a")[0]["verdict"] == "not reproduced" and home.claims("a")[0]["controlled"]
    home.add("blind", ["paper.measure('C1', 5, interval=(4, 6))"])
    done = home.run("reproduce", "blind", "--control", "--out", "b")
    assert done.returncode == 1 and "blind C1: reproduced, expected not reproduced" in done.stderr


@pytest.mark.parametrize(
    "interval, expected, status",
    [
        ("(4, 6)", "reproduced", 0),
        ("(2, 6)", "reproduced", 1),
        ("(2, 6)", "consistent", 0),
        ("(4, 6)", "not reproduced", 0),
    ],
)
def test_a_verdict_worse_than_expected_exits_1(home, interval, expected, status):
    home.add(
        "alpha",
        [f"paper.measure('C1', 5, interval={interval})"],
        claims=CLAIM.format(id="C1", mode="scaled", passes=">= 3", more=f'expected = "{expected}"'),
    )
    assert home.run("reproduce").returncode == status


def test_a_failing_notebook_keeps_its_earlier_claims_and_the_other_notebooks(home):
    two = CLAIM.format(id="C1", mode="scaled", passes=">= 3", more="") + CLAIM.format(
        id="C2", mode="exact", passes="<= 1", more=""
    )
    home.add("bad", ["paper.measure('C1', 5, interval=(4, 6))", "1 / 0", "paper.measure('C2', 1)"], claims=two)
    home.add("good", GOOD)
    done = home.run("reproduce")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    verdicts = {(row["slug"], row["claim"]): row["verdict"] for row in home.claims()}
    assert verdicts == {("bad", "C1"): "reproduced", ("bad", "C2"): "not run", ("good", "C1"): "reproduced"}


def test_a_claim_left_unmeasured_is_an_alarm_and_a_gpu_claim_is_not(home):
    home.add("lazy", [], claims=CLAIM.format(id="C1", mode="scaled", passes=">= 3", more=""))
    home.add("big", ["1"], claims=CLAIM.format(id="C1", mode="gpu", passes=">= 3", more=""))
    done = home.run("reproduce")
    assert (
        done.returncode == 1
        and "lazy C1: not run" in done.stderr
        and "big" not in done.stderr.split("not as expected")[-1]
    )
    assert {row["slug"]: row["verdict"] for row in home.claims()} == {"lazy": "not run", "big": "needs gpu"}


def test_a_dead_kernel_is_told_and_the_rest_goes_on(home):
    home.add("dies", ["import os; os.kill(os.getpid(), 9)"])
    home.add("good", GOOD)
    done = home.run("reproduce")
    assert done.returncode == 1 and "its kernel died" in done.stderr
    assert [row["verdict"] for row in home.claims() if row["slug"] == "good"] == ["reproduced"]


def wait_for(condition, seconds=60):
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_or_killed_runs_keep_what_is_done_and_resume(home, kill):
    home.add("quick", GOOD)
    home.add(
        "slow", ["import pathlib, time, os\nif not pathlib.Path(os.environ['GO']).exists(): time.sleep(600)", *GOOD]
    )
    go = home.folder / "go"
    environment = home.environment | {"GO": str(go)}
    process = subprocess.Popen(
        home.command("reproduce", "--workers", "2"),
        cwd=home.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def quick_is_done():
        records = list((home.folder / "runs").glob("*/run.json")) if (home.folder / "runs").exists() else []
        return bool(records) and json.loads(records[0].read_text())["notebooks"]["quick"]["state"] == "done"

    wait_for(quick_is_done)
    began = time.time()
    process.send_signal(kill)
    _, errors = process.communicate(timeout=30)
    assert time.time() - began < 15, "it should end soon after the signal"
    if kill != signal.SIGKILL:
        assert (
            process.returncode == 130
            and "Interrupted with 1 of 2 notebooks done; go on with: workbench reproduce --resume" in errors
        )
        assert "Traceback" not in errors
    go.touch()
    [before] = [path for path in (home.folder / "runs").glob("*/quick.ipynb")]
    stamp = before.stat().st_mtime_ns
    done = subprocess.run(
        home.command("reproduce", "--resume"),
        cwd=home.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert before.stat().st_mtime_ns == stamp, "a finished notebook is not run again"
    assert {row["slug"]: row["verdict"] for row in home.claims()} == {"quick": "reproduced", "slow": "reproduced"}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["reproduce", "alhpa"], "There is no paper with the slug 'alhpa'; did you mean alpha?"),
        (["reproduce", "gamma"], "gamma is planned and has no notebook yet; ready are: alpha."),
        (
            ["reproduce", "alpha", "--scale", "quik"],
            "--scale is 'quik' but must be one of quick, full, gpu; did you mean 'quick'?.",
        ),
        (["reproduce", "alpha", "--seed", "-1"], "seed is -1 but must be a whole number at least 0"),
        (["reproduce", "alpha", "--workers", "0"], "workers is 0 but must be a whole number at least 1"),
        (["reproduce", "alpha", "--out", "file/runs"], "can't be written"),
        (["reproduce", "alpha", "--out", "/proc/runs"], "can't be written"),
        (["reproduce", "--resume"], "There is no run to resume in runs"),
        (["reproduce", "--resume", "alpha"], "--resume takes up an earlier run"),
        (["show", "../../etc/passwd"], "There is no paper with the slug"),
        (["list", "--family", "conformla"], "did you mean 'conformal'"),
    ],
)
def test_bad_words_get_one_sentence_and_status_2(home, arguments, sentence):
    home.add("alpha", GOOD)
    home.add("gamma", [], status="planned", claims="")
    (home.folder / "file").write_text("")
    done = home.run(*arguments)
    assert done.returncode == 2
    assert sentence.rstrip(".") in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
    assert not (home.folder / "runs").exists() or not list((home.folder / "runs").iterdir())


def test_unknown_options_are_usage_errors(home):
    home.add("alpha", GOOD)
    assert home.run("reproduce", "--sede", "1").returncode == 2
    assert home.run("reproduce", "--seed", "one").returncode == 2
    assert home.run("reprodoce").returncode == 2


BAD = {
    "no parameters cell": ("bare", None, "bare.ipynb has no cell tagged 'parameters'; tag exactly one cell"),
    "a parameter missing": (
        "lacking",
        "scale = 'quick'\nseed = 0",
        "lacking.ipynb does not set control; add the line control = False",
    ),
}


def test_a_bad_notebook_fails_with_its_sentence_and_the_others_run(home):
    home.add("alpha", GOOD)
    for slug, parameters, _ in BAD.values():
        home.add(slug, GOOD, parameters=parameters)
    torn = home.add("torn", GOOD).with_suffix(".ipynb")
    torn.write_text('{"cells": [')
    kernelless = home.add("kernelless", GOOD).with_suffix(".ipynb")
    kernelless.write_text(json.dumps(json.loads(kernelless.read_text()) | {"metadata": {}}))
    home.add("gone", GOOD).with_suffix(".ipynb").unlink()
    twice = home.add("doubled", GOOD)
    twice.write_text(twice.read_text() + twice.read_text().split("\n\n")[-1])
    done = home.run("reproduce")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for sentence in [
        *(sentence for _, _, sentence in BAD.values()),
        "torn.ipynb is not a valid notebook (JSONDecodeError); open it in JupyterLab and save it again",
        "kernelless.ipynb names no kernel; choose Python 3 in JupyterLab, or run: workbench tidy",
        "gone.ipynb can't be read (No such file or directory); restore it",
        "doubled.toml: claim C1: id 'C1' is used twice; give each claim its own id",
    ]:
        assert sentence in done.stderr, sentence
    states = {key: notebook["state"] for key, notebook in home.record()["notebooks"].items()}
    failed = ("bare", "gone", "kernelless", "lacking", "torn")
    assert states == {"alpha": "done"} | dict.fromkeys(failed, "failed")
    assert {row["slug"]: row["verdict"] for row in home.claims()} == {"alpha": "reproduced"} | dict.fromkeys(
        failed, "not run"
    )


def test_a_claim_measured_twice_must_have_one_value(home):
    home.add("same", ["paper.measure('C1', 5, interval=(4, 6))"] * 2)
    home.add("differs", [f"paper.measure('C1', {value}, interval=(4, 6))" for value in (5, 5.5)])
    done = home.run("reproduce")
    assert done.returncode == 1
    assert "differs: the notebook failed (claim C1 was measured twice, as 5 and 5.5; measure it once" in done.stderr
    assert {key: notebook["state"] for key, notebook in home.record()["notebooks"].items()} == {
        "same": "done",
        "differs": "failed",
    }


def test_other_parameters_are_set_and_unknown_ones_named(home):
    home.add("alpha", ["paper.measure('C1', tries, interval=(tries, tries))"], parameters=PARAMETERS + "\ntries = 4")
    home.add("beta", GOOD)
    done = home.run("reproduce", "--set", "tries=7")
    assert done.returncode == 1
    assert "beta.ipynb has no parameter 'tries'; it has scale, seed, control" in done.stderr
    assert {row["slug"]: row["value"] for row in home.claims()} == {"alpha": 7, "beta": None}
    for setting, said in [("tries", "must read name=value"), ("seed=3", "can't set seed; use --seed")]:
        refused = home.run("reproduce", "--set", setting)
        assert refused.returncode == 2 and said in refused.stderr


def test_records_that_cannot_be_taken_up_are_named(home):
    home.add("alpha", ["1 / 0"])
    assert home.run("reproduce").returncode == 1
    [folder] = home.runs()
    whole = (folder / "run.json").read_text()
    for content, said in [
        (whole[: len(whole) // 2], "can't be used (JSONDecodeError"),
        (
            whole.replace('"version": 2', '"version": 1'),
            "was written by an older workbench (record version 1; this one",
        ),
        (whole.replace('"version": 2,', ""), "was written by an older workbench (record version 1; this one reads 2)"),
        (whole.replace('"slugs"', '"slogs"'), "is incomplete (KeyError: 'slugs')"),
    ]:
        (folder / "run.json").write_text(content)
        done = home.run("reproduce", "--resume")
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
        assert "run.json" in done.stderr and "start a new run with 'workbench reproduce'" in done.stderr


def test_malformed_toml_names_file_key_and_cure(home):
    toml = home.add("alpha", GOOD)
    text = toml.read_text()
    for broken, said in [
        (
            text.replace('mode = "scaled"', 'mode = "sclaed"'),
            "alpha.toml: claim C1: key 'mode' is 'sclaed'; it must be one of exact, scaled, gpu",
        ),
        (text.replace("year = 2026\n", ""), "alpha.toml: key 'year' is missing"),
        (text.replace("measure =", "mesure ="), "unknown key 'mesure'; did you mean 'measure'"),
        (text.replace('">= 3"', '"more than 3"'), "passes is 'more than 3'"),
        (text + '\n[["', "not valid TOML"),
    ]:
        toml.write_text(broken)
        done = home.run("reproduce", "alpha")
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_disk_that_fills_up_loses_no_result(home):
    """A real full disk: a small file system of its own, where the machine lets us mount one."""
    home.add("alpha", GOOD)
    full = home.folder / "full"
    full.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        (full / "hog").write_bytes(b"x" * 14 * 4096)
        done = home.run("reproduce", "--out", str(full / "runs"))
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "can't be written (No space left on device)" in done.stderr
        assert "5 (4 to 6)" in done.stdout and "reproduced" in done.stdout
    finally:
        subprocess.run(["umount", full], check=True)


def test_a_read_only_folder_is_refused_before_anything_runs(home):
    home.add("alpha", GOOD)
    locked = home.folder / "locked"
    locked.mkdir()
    if os.geteuid() == 0:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", locked], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a read-only disk")
    else:
        locked.chmod(0o500)
    try:
        done = home.run("reproduce", "--out", str(locked / "runs"))
        assert done.returncode == 2 and "choose another with --out" in done.stderr and "Traceback" not in done.stderr
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", locked], check=True)
