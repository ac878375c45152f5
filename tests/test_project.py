"""The repository holds together: the pins, the README's commands, the layers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_the_project_on_every_python(python):
    pins: dict[str, str] = {}
    for requirement in locked():
        if requirement.marker is None or requirement.marker.evaluate(environment(python)):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice on Python {python}"
            [specifier] = requirement.specifier
            assert specifier.operator == "=="
            pins[name] = specifier.version
    for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), f"{line} on Python {python}"
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))], "torch brings its own"


def test_pyproject_and_environment_agree_on_python_and_lock():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [python for python in ("3.10", *PYTHONS, "3.14") if allowed.contains(python)] == list(PYTHONS)
    text = (ROOT / "environment.yml").read_text()
    [python] = re.findall(r"^  - python (.*)$", text, flags=re.MULTILINE)
    assert SpecifierSet(python) == allowed
    assert "- --requirement requirements.lock" in text and "- --editable ." in text
    assert "torch>=2.6" in PROJECT["dependencies"]
    assert set(PROJECT["optional-dependencies"]) == {"app", "gpu", "cluster", "logs", "dev"}
    assert PROJECT["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()[:300]


def test_versions_agree():
    import workbench

    assert workbench.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


CI = (ROOT / ".ci" / "run").read_text()
# Commands that would nest this very test run, need a desk with a person, or a tool from outside.
ELSEWHERE = {
    "make test",
    "make notebooks",
    "make lab",
    ".venv/bin/workbench app saber",
    "conda env create -f environment.yml && conda activate workbench",
    "git clone <this repository> && cd workbench",
}


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_in_the_readme_works(command, tmp_path):
    if command in ELSEWHERE or f"step {command}\n" in CI:
        return
    if command.startswith("make "):
        done = subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        command = next(line for line in done.stdout.splitlines() if "bin/workbench" in line).strip()
    program, *arguments = shlex.split(command.removeprefix(".venv/bin/"))
    assert program == "workbench", f"say in this test how to check {command!r}"
    if arguments[0] in ("reproduce", "league", "estimate"):
        arguments += ["--out", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, "-m", "workbench", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_python_in_the_readme_prints_what_it_says():
    text = (ROOT / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    [shown] = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

    def timeless(printed: str) -> str:
        # The last batch may run past the limit by as much as its size, which the machine's speed decides.
        return re.sub(
            r"spent [\d,]+ samples, [\d,]+ tokens, [\d,]+ model calls, [\d.e-]+ seconds", "spent", printed
        ).strip()

    assert timeless(done.stdout) == timeless(shown)


def test_the_readme_table_has_every_paper_that_is_ready():
    from workbench.papers import all_papers

    text = (ROOT / "README.md").read_text()
    for slug, paper in all_papers().items():
        assert (f"notebooks/{paper.family}/{slug}.ipynb" in text) == (paper.status == "ready"), slug


def test_nothing_of_a_private_machine_is_committed():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    for name in done.stdout.split("\0"):
        path = ROOT / name
        if name and path.suffix in {".py", ".md", ".toml", ".ipynb", ".yml", ".json", ".cff", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert not re.search(r"/(root|home/\w+|work)/[\w.]", text), f"{name} holds a path of somebody's machine"


def test_setup_does_nothing_when_nothing_changed_and_says_what_is_wrong(tmp_path):
    import shutil

    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "setup.py"
    shutil.copy(ROOT / "scripts" / "setup.py", script)
    (tmp_path / "requirements.lock").write_text("no-such-package-of-ours==1.0\n")
    failed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert failed.returncode == 1 and "run the same command again" in failed.stderr and "Traceback" not in failed.stderr
    assert failed.stdout.startswith("setup: 1/4 making .venv\nsetup: 2/4 installing")
    assert (tmp_path / ".venv" / "setup-unfinished").exists() and not (tmp_path / ".venv" / "setup-done").exists()
    # What an attempt that was cut short leaves behind is made anew, not trusted.
    again = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert again.stdout.startswith("setup: 1/4 making .venv")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'scripts')!r}); import setup; setup.STAMP.write_text(setup.fingerprint())"
    subprocess.run([sys.executable, "-c", code], check=True)
    silent = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=10)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
