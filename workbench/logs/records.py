"""Logs of evaluations as a stream of attempts, whatever wrote them.

Does: recognise a file by its name and its first line, and read it attempt by attempt, in memory that does not grow
with the file. Does not: judge an attempt, count, or keep any text of prompts and answers.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import WorkbenchError, refuse

FORMATS = (
    "Inspect AI (.eval, .json), lm-evaluation-harness (samples_*.jsonl), garak (*.report.jsonl), .csv, .parquet, .jsonl"
)
_IDS = ("id", "prompt_id", "query", "sample_id")
_TOKENS = ("prompt_tokens", "response_tokens")
_TARGET = ("type", "name")
_NO_SCORES = (*_IDS, *_TOKENS, "attempt", "model", "category")


class Record(NamedTuple):
    """What one line of a log says of one prompt.

    id                   the prompt
    scores               {scorer: value} of one attempt; None where it has no score
    attempts, successes  counts that stand in the log itself; then `scores` is None
    why                  why there is no score
    model                what answered, where the log says it
    tokens               of the prompt and of the answer, where the log says it
    """

    id: str
    scores: Mapping[str, Any] | None
    attempts: int = 1
    successes: int | None = None
    why: str = ""
    model: str = ""
    tokens: tuple[float, float] | None = None


class HalfWritten(Exception):
    """The file ends in the middle; what stood before it has been given."""


def read_records(path: Path) -> Iterator[Record]:
    """The attempts of one log. Raises WorkbenchError where it can't be read, HalfWritten where it breaks off."""
    path = Path(path)
    if not path.is_file():
        raise refuse("log", str(path), "be a file", "check the path; a pattern such as 'runs/*.eval' goes in quotes")
    if path.suffix == ".eval":
        return _inspect(path)
    if path.suffix == ".json":
        return _inspect_json(path)
    if path.suffix == ".csv":
        return _rows(path, _csv(path))
    if path.suffix == ".parquet":
        return _rows(path, _parquet(path))
    if path.suffix == ".jsonl":
        first = next(json_lines(path), {})
        if "entry_type" in first:
            return _garak(path)
        if "doc_id" in first:
            return _lm_eval(path)
        return _rows(path, json_lines(path))
    raise refuse("log", path.name, f"be one of {FORMATS}", "convert it to a CSV of (id, attempts, successes)")


def _inspect(path: Path) -> Iterator[Record]:
    try:
        from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
    except ImportError:
        raise _missing(path, "Inspect AI") from None
    try:
        header = read_eval_log(str(path), header_only=True)
        samples = read_eval_log_sample_summaries(str(path))
    except Exception as error:
        raise WorkbenchError(
            f"{path.name} is not a whole log of Inspect AI ({' '.join(str(error).split())[:120]}); wait until the "
            "evaluation has ended, or copy the file again."
        ) from None
    for sample in samples:
        scores = {name: score.value for name, score in (sample.scores or {}).items()}
        used = (sample.model_usage or {}).get(header.eval.model)
        tokens = None if used is None else _tokens(used.model_dump())
        yield _inspect_record(header.eval.task, sample.id, sample.error, scores, header.eval.model, tokens)
    if header.status == "started":
        raise HalfWritten


def _inspect_json(path: Path) -> Iterator[Record]:
    try:
        import ijson
    except ImportError:
        raise _missing(path, "ijson") from None
    model, status, task = "", "", ""
    try:
        with path.open("rb") as file:
            for prefix, _, value in ijson.parse(file):
                if prefix == "status":
                    status = str(value)
                elif prefix == "eval.model":
                    model = str(value)
                elif prefix == "eval.task":
                    task = str(value)
                elif prefix.startswith("samples"):
                    break
        if not status:
            must = "be a log of Inspect AI if it ends in .json"
            raise refuse("log", path.name, must, "convert others to a CSV of (id, attempts, successes)")
        with path.open("rb") as file:
            for sample in ijson.items(file, "samples.item", use_float=True):
                scores = {name: score["value"] for name, score in (sample.get("scores") or {}).items()}
                used = (sample.get("model_usage") or {}).get(model)
                tokens = None if used is None else _tokens(used)
                yield _inspect_record(task, sample["id"], sample.get("error"), scores, model, tokens)
    except ijson.IncompleteJSONError:
        raise HalfWritten from None
    except ijson.JSONError as error:
        raise WorkbenchError(f"{path.name} is not JSON ({error}); copy the file again.") from None
    if status == "started":
        raise HalfWritten


def _inspect_record(
    task: str, sample: Any, error: Any, scores: Mapping[str, Any], model: str, tokens: tuple[float, float] | None
) -> Record:
    """A sample that ended in an error is no attempt, whatever scorers said before: Inspect leaves it out too."""
    why = "it ended in an error" if error else "" if scores else "it has no score"
    return Record(f"{task}/{sample}", None if why else scores, why=why, model=model, tokens=tokens)


def _tokens(used: Mapping[str, Any]) -> tuple[float, float]:
    """Tokens that the model under test read, from the cache or not, and wrote."""
    read = ("input_tokens", "input_tokens_cache_write", "input_tokens_cache_read")
    return float(sum(used.get(name) or 0 for name in read)), float(used.get("output_tokens") or 0)


def _missing(path: Path, package: str) -> WorkbenchError:
    cure = "install it with \"pip install 'research-workbench[logs]'\""
    return WorkbenchError(f"{path.name} can't be read without {package}, which is not installed; {cure}.")


def _lm_eval(path: Path) -> Iterator[Record]:
    """One line a document, filter and run; runs of the same task add up to attempts."""
    named = re.fullmatch(r"samples_(.+?)_\d{4}-\d\d-\d\dT.*", path.stem)
    task = named[1] if named else path.stem
    filters: set[str] = set()
    for line in json_lines(path):
        filters.add(str(line.get("filter", "")))
        if len(filters) > 1:
            raise WorkbenchError(
                f"{path.name} has each answer under the filters {', '.join(sorted(filters))}, which would count it "
                "several times; keep the lines of one filter."
            )
        names = line.get("metrics") or [key for key, value in line.items() if isinstance(value, float)]
        scores = {name: line[name] for name in names if line.get(name) is not None}
        yield Record(f"{task}/{line['doc_id']}", scores or None, why="" if scores else "it has no metric")


def _garak(path: Path) -> Iterator[Record]:
    """One attempt an output; its scores are the detectors', where 1 is a hit.

    A prompt is named by its probe and a digest, so that it has the same name in every report.
    """
    model, sent, broken = "", {}, None
    try:
        for line in json_lines(path):
            if line.get("entry_type") == "start_run setup":
                # "target" since garak 0.13.1, "model" before.
                parts = (line.get(f"plugins.target_{part}") or line.get(f"plugins.model_{part}") for part in _TARGET)
                model = " ".join(str(part) for part in parts if part)
            if line.get("entry_type") != "attempt":
                continue
            probe, outputs = str(line.get("probe_classname", "")), line.get("outputs") or []
            digest = hashlib.sha256(json.dumps(line.get("prompt"), sort_keys=True).encode()).hexdigest()
            name, key = f"{probe}/{digest[:12]}", line.get("uuid")
            # An attempt stands in the report once when it was sent (status 1) and once when it was judged (status 2).
            if line.get("status") != 2:
                sent[key] = (name, len(outputs))
                continue
            sent.pop(key, None)
            results = {d: _by_output(values, outputs) for d, values in (line.get("detector_results") or {}).items()}
            for i in range(max(len(outputs), *map(len, results.values()), 0)):
                values = {d: _number(values[i]) for d, values in results.items() if i < len(values)}
                scores = {d: value for d, value in values.items() if value is not None}
                yield Record(name, scores or None, why="" if scores else "no detector scored it", model=model)
    except HalfWritten as error:
        broken = error
    for name, n_outputs in sent.values():
        yield from [Record(name, None, why="it was sent but not judged", model=model)] * n_outputs
    if broken:
        raise broken


def _by_output(values: list[Any], outputs: list[Any]) -> list[Any]:
    """A score for each output: detectors up to garak 0.12 leave out those of outputs that are missing."""
    there = [output is not None for output in outputs]
    if len(values) == len(outputs) or len(values) != sum(there):
        return values
    left = iter(values)
    return [next(left) if is_there else None for is_there in there]


def _rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """Tables: (id, attempts, successes), or (id, attempt, one or more scores)."""
    for number, row in enumerate(rows, start=1):
        key = next((name for name in _IDS if name in row), None)
        counted = "attempts" in row and "successes" in row
        scores = {name: _number(value) for name, value in row.items() if name not in _NO_SCORES}
        if key is None or not (counted or scores):
            columns = ", ".join(map(str, row)) or "none"
            must = "have the columns id, attempts, successes, or id, attempt, score"
            raise refuse(f"{path.name}, whose columns are", columns, must, "rename its columns")
        if not counted:
            there = {name: value for name, value in scores.items() if value is not None}
            model, why = str(row.get("model") or ""), "" if there else "it has no score"
            tokens = tuple(
                float(_count(path, number, name, row[name])) for name in _TOKENS if _number(row.get(name)) is not None
            )
            known = (tokens[0], tokens[1]) if len(tokens) == 2 else None
            yield Record(str(row[key]), there or None, why=why, model=model, tokens=known)
            continue
        attempts, successes = (_count(path, number, name, row[name]) for name in ("attempts", "successes"))
        if successes > attempts:
            what = f"successes in row {number} of {path.name}"
            raise refuse(what, successes, f"be at most its attempts, {attempts}", "check the order of the columns")
        yield Record(str(row[key]), None, attempts, successes)


def _count(path: Path, number: int, name: str, value: Any) -> int:
    found = _number(value)
    if not isinstance(found, int | float) or found != int(found) or found < 0:
        what = f"{name} in row {number} of {path.name}"
        raise refuse(what, value, "be a whole number of at least 0", "count, don't average")
    return int(found)


def _number(value: Any) -> Any:
    """A cell's number, or its word; None where it is empty or NaN."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value.strip() or None
    return None if value is None or value != value else value


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield {name: value for name, value in row.items() if name is not None}


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise _missing(path, "pyarrow") from None
    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise WorkbenchError(f"{path.name} is not a whole Parquet file ({error}); write it again.") from None
    for batch in file.iter_batches(batch_size=10_000):
        yield from batch.to_pylist()


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; HalfWritten where the last line breaks off."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except ValueError:
                if not line.endswith("\n"):
                    raise HalfWritten from None
                raise WorkbenchError(f"Line {number} of {path.name} is not JSON; remove it.") from None
            if not isinstance(found, dict):
                raise refuse(f"line {number} of {path.name}", line[:40], "be a JSON object", "write one object a line")
            yield found
