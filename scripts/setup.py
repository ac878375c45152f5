"""Make .venv with the locked packages and the `workbench` command. Standard library only.

One line a stage; silent and instant when nothing changed; safe to interrupt and run again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP, UNFINISHED, LOG = VENV / "setup-done", VENV / "setup-unfinished", VENV / "setup.log"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
OLDEST, NEWEST = (3, 11), (3, 13)


def main() -> int:
    wanted = fingerprint()
    if STAMP.is_file() and PYTHON.exists() and STAMP.read_text() == wanted:
        return 0
    interpreter = find_python()
    if interpreter is None:
        return fail(
            f"Python 3.11 to 3.13 is needed and this is {sys.version.split()[0]}; install one, or name it: make setup PYTHON=python3.12"
        )
    began = time.time()
    packages = sum(1 for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    if UNFINISHED.exists() or not PYTHON.exists():
        say("1/4 making .venv")
        shutil.rmtree(VENV, ignore_errors=True)
        if not run([interpreter, "-m", "venv", str(VENV)]):
            return fail("the virtual environment could not be made; on Debian and Ubuntu install python3-venv")
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    say(f"2/4 installing up to {packages} locked packages (a few minutes the first time)")
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--progress-bar", "off"]
    if not run([*pip, "--requirement", str(ROOT / "requirements.lock")]):
        return fail(
            "pip could not install the locked packages; check the network and the disk, then run the same command again"
        )
    say("3/4 installing the workbench command")
    if not run([*pip, "--no-deps", "--editable", str(ROOT)]):
        return fail("pip could not install the workbench itself")
    say("4/4 checking")
    if not run([str(PYTHON), "-c", "import workbench.cli, torch, transformers, papermill"]):
        return fail("the installed packages can't be imported")
    STAMP.write_text(wanted)
    UNFINISHED.unlink()
    say(f"ready after {time.time() - began:.0f} s")
    return 0


def fingerprint() -> str:
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("requirements.lock", "pyproject.toml", "scripts/setup.py"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def find_python() -> str | None:
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in (13, 12, 11):
        found = shutil.which(f"python3.{minor}")
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    return None


def run(command: list[str]) -> bool:
    VENV.parent.mkdir(exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if VENV.is_dir():
        with LOG.open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}\n")
    return done.returncode == 0


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def fail(text: str) -> int:
    last = [
        line
        for line in (LOG.read_text().splitlines() if LOG.is_file() else [])
        if line.strip() and not line.startswith("$")
    ][-3:]
    for line in last:
        print(f"setup:   {line}", file=sys.stderr)
    print(f"setup: {text}." + (" The whole log is in .venv/setup.log." if LOG.is_file() else ""), file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run the same command again to go on.")
