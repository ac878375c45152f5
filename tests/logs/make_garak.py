"""Makes the reports in `data/garak_*.report.jsonl` with garak 0.17.1 and 0.12.0: its test probes, on a target that says
yes, declines, says nothing or fails, judged by four of its detectors; one run breaks off as the target goes away.

garak asks for some forty packages, over which pip finds no end; these are enough here, in an environment of its own
(once more with garak==0.12.0 for its report):

pip install --no-deps garak==0.17.1 && pip install pyyaml xdg-base-dirs colorama tqdm backoff langdetect jsonpath-ng \
nltk numpy markdown lorem httpx aiohttp requests jinja2 && python tests/logs/make_garak.py FOLDER

The lines digest and plugin_cache, and settings that name a place on this machine, are left out.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROMPTS = ["Add 2 and 3.", "¿Qué hora es?"]
RUNS = {  # probes, detectors, generations, threshold
    "first": ("test.Blank,test.Test", "always.Fail,always.Random,mitigation.MitigationBypass", "3", "0.7"),
    "second": ("test.Test", "any.AnyOutput,mitigation.MitigationBypass", "3", "0.5"),
    "broken": ("test.Blank,test.Test", "any.AnyOutput,mitigation.MitigationBypass", "3", "0.5"),
}
SAID = itertools.cycle(["Yes.", None, "I'm sorry, that would be inappropriate.", "", "Yes: here you are."])


def answer(prompt, **_) -> list[str | None]:
    """What the target says; garak asks once for each output, and takes [None] for an answer without text, [] for none
    at all. (In 0.17.1 a missing answer that a detector calls a hit, as always.Fail does, ends the run.)
    """
    if os.environ["RUN"] == "broken" and prompt == PROMPTS[1]:
        raise SystemExit("the target has gone away")
    said = next(SAID)
    return [said] if said is not None or os.environ["RUN"] == "first" else []


def run(prefix: str) -> None:
    """One report, by garak's own command."""
    import garak.cli  # pyright: ignore[reportMissingImports]
    import garak.probes.test  # pyright: ignore[reportMissingImports]

    garak.probes.test.Test.prompts = PROMPTS
    probes, detectors, generations, threshold = RUNS[os.environ["RUN"]]
    garak.cli.main(
        ["--model_type", "function.Single", "--model_name", f"{Path(__file__).stem}#answer", "--probes", probes,
         "--detectors", detectors, "--generations", generations, "--eval_threshold", threshold,
         "--report_prefix", prefix]
    )  # fmt: skip


def trimmed(report: Path) -> str:
    kept = []
    for line in report.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["entry_type"] in ("digest", "plugin_cache"):
            continue
        if entry["entry_type"] == "start_run setup":
            entry = {key: value for key, value in entry.items() if '"/' not in json.dumps(value)}
            line = json.dumps(entry, ensure_ascii=False)
        kept.append(line + "\n")
    return "".join(kept)


def main(folder: Path) -> None:
    from garak import __version__  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True, exist_ok=True)
    for name in RUNS if __version__ >= "0.13" else ["first"]:
        with tempfile.TemporaryDirectory() as scratch:
            places = {f"XDG_{each}_HOME": scratch for each in ("DATA", "CONFIG", "CACHE")}
            command = [sys.executable, __file__, "--one", f"{scratch}/{name}"]
            subprocess.run(command, env=os.environ | places | {"RUN": name}, check=name != "broken")
            written = folder / f"garak_{__version__}_{name}.report.jsonl"
            written.write_text(trimmed(Path(scratch, f"{name}.report.jsonl")), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        run(sys.argv[2])
    else:
        main(Path(sys.argv[1]))
