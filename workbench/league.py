"""The league: estimators against problems with known truths, many repeats each, at equal metered spend.

Does: run every estimator on every problem that it accepts, `repeats` times at seeds seed, seed + 1, ...; keep each
repeat as it ends, so that nothing is lost and a stopped league goes on; and sum up what a sceptic asks: error, bias,
coverage, width, warnings, spend, each with its uncertainty.
Does not: tune anything. An estimator plays with the settings that it was given.

For one estimator on one problem with truth t and repeats i = 1..R that gave a value:
relative RMSE sqrt(mean (x_i - t)^2) / t, with a percentile bootstrap interval over repeats; relative bias
mean(x_i - t) / t with its t statistic sqrt(R) mean / sd; coverage, the share of repeats that warn of nothing whose
interval holds t, with the Clopper-Pearson interval; width, the median of (high - low) / t of the same; flagged, the
share of repeats that call themselves unreliable.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from workbench.budget import UNITS, Budget
from workbench.checkpoint import write_atomically
from workbench.errors import WorkbenchError, refuse, require_integer
from workbench.methods import estimators
from workbench.methods.tail_risk.proportions import clopper_pearson
from workbench.problems.suite import KINDS, catalogue, find_problem
from workbench.run import refusal, run
from workbench.streams import Stream

# What binds is the unit that a problem spends: tokens for language models, model calls where g or a chain is evaluated.
STANDARD = Budget(tokens=200_000, model_calls=50_000, samples=50_000)
_SETTINGS, _REPEATS, _VERSION = "league.json", "repeats.jsonl", 1
_CHUNK = 8  # repeats a worker takes at a time
Row = dict[str, Any]


def choose_problems(words: Sequence[str]) -> list[str]:
    """Names of the suite from names, kinds and patterns such as "tail-*"; without words all of them."""
    found: list[str] = []
    for word in words or list(KINDS):
        if word in KINDS:
            found += [name for name, entry in catalogue().items() if entry.kind == word]
        elif matching := fnmatch.filter(catalogue(), word):
            found += matching
        else:
            near = get_close_matches(word, [*catalogue(), *KINDS], n=1)
            hint = f"did you mean {near[0]}?" if near else "'workbench problems list' names them all."
            raise WorkbenchError(f"--problems has {word!r}, which is no problem, kind or pattern of the suite; {hint}")
    return list(dict.fromkeys(found))


def read_estimator(text: str) -> Any:
    """An estimator from "Name" or "Name(field=value, ...)" with plain literals; nothing is executed."""
    try:
        call = ast.parse(text, mode="eval").body
        name = call.func if isinstance(call, ast.Call) else call
        if not isinstance(name, ast.Name) or (isinstance(call, ast.Call) and call.args):
            raise ValueError
        keywords = call.keywords if isinstance(call, ast.Call) else []
        settings = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords}
    except (SyntaxError, ValueError):
        raise WorkbenchError(
            f"--estimators has {text!r}, which can't be read; write a name, or e.g. 'ImportanceSampling(strength=5.0)'."
        ) from None
    known = estimators()
    if name.id not in known:
        near = get_close_matches(name.id, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
        raise WorkbenchError(f"There is no estimator {name.id!r}; {hint}")
    kind = known[name.id]
    unknown = sorted(settings.keys() - {field.name for field in fields(kind)})
    if unknown:
        has = ", ".join(field.name for field in fields(kind)) or "none"
        raise WorkbenchError(f"{name.id} has no setting {unknown[0]!r}; it has {has}.")
    return kind(**settings)


def choose_players(words: Sequence[str]) -> list[str]:
    """The estimators that `words` name, each checked and in one way of writing; without words all, as they are."""
    for word in words:
        read_estimator(word)
    return list(dict.fromkeys(ast.unparse(ast.parse(word, mode="eval")) for word in words)) or list(estimators())


def read_budget(text: str) -> Budget:
    """A Budget from "tokens=200k,seconds=5"; k, M and G stand for thousands, millions and billions."""
    limits: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        unit, equals, amount = part.partition("=")
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(amount[-1:], 1.0)
        try:
            number = float(amount[:-1] if scale != 1 else amount) * scale
        except ValueError:
            number = math.nan
        if unit not in UNITS or not equals or math.isnan(number):
            raise refuse("--budget", text, f"name units among {', '.join(UNITS)}", "write e.g. tokens=200k,seconds=10")
        limits[unit] = int(number) if number == int(number) else number
    if not limits:
        raise refuse("--budget", text, "set a limit", "write e.g. tokens=200k")
    return Budget(**limits)


def pairs(problems: Iterable[str], players: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(problem, player) for each estimator that accepts the problem; and a sentence for each pair that does not fit.

    A player is an estimator as `read_estimator` reads it.
    """
    made = {player: read_estimator(player) for player in players}
    fit, unfit = [], []
    for problem in problems:
        for player, estimator in made.items():
            why = refusal(estimator, find_problem(problem))
            if why is None:
                fit.append((problem, player))
            else:
                unfit.append(why)
    return fit, unfit


def play(
    problems: Sequence[str],
    players: Sequence[str],
    budget: Budget = STANDARD,
    *,
    repeats: int = 200,
    seed: int = 0,
    out: Path,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, all_: None,
    left_out: Callable[[str], None] | None = None,
) -> list[Row]:
    """Every repeat of every pair that fits, from `out` where it is there already, else run and kept there.

    out: a folder; one that holds a league with other settings is refused. workers: processes, by default one a core.
    progress(done, all) is called as repeats end. An interrupt leaves what is done in the folder. A pair of which a repeat
    fails (a budget of units that the problem does not spend, a fault in an estimator) is left out and the others go on;
    left_out(sentence) is called once for each such pair at the end, and by default it is an error.
    """
    require_integer("repeats", repeats, low=1, cure="repeat at least once; 200 tell coverage to three points")
    fit, unfit = pairs(problems, players)
    if not fit:
        raise WorkbenchError(
            f"None of {', '.join(players)} can answer any of the problems: {unfit[0] if unfit else 'none was named.'}"
        )
    _take_up(out, {"version": _VERSION, "budget": budget.limits(), "seed": seed})
    rows = {(row["problem"], row["estimator"], row["seed"]): row for row in read_rows(out)}
    seeds = range(seed, seed + repeats)
    left = {pair: [s for s in seeds if (*pair, s) not in rows] for pair in fit}
    chunks = [
        (*pair, budget.limits(), todo[at : at + _CHUNK])
        for pair, todo in left.items()
        for at in range(0, len(todo), _CHUNK)
    ]
    total, done = len(fit) * repeats, len(fit) * repeats - sum(map(len, left.values()))
    failed: dict[tuple[str, str], str] = {}
    progress(done, total)
    with open(out / _REPEATS, "a", encoding="utf-8") as file:
        for (problem, player, _, todo), (made, fault) in zip(
            chunks, _all_chunks(chunks, workers or os.cpu_count() or 1), strict=True
        ):
            for row in made:
                file.write(json.dumps(row, allow_nan=False) + "\n")
                rows[row["problem"], row["estimator"], row["seed"]] = row
            file.flush()
            if fault:
                failed.setdefault((problem, player), fault)
            done += len(todo)
            progress(done, total)
    for fault in failed.values():
        if left_out is None or len(failed) == len(fit):
            raise WorkbenchError(fault)
        left_out(fault)
    return [rows[(*pair, s)] for pair in fit if pair not in failed for s in seeds]


Chunk = tuple[str, str, dict[str, float], list[int]]


def _all_chunks(chunks: list[Chunk], workers: int) -> Iterator[tuple[list[Row], str]]:
    if workers == 1 or len(chunks) < 2:
        yield from map(play_chunk, chunks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context, initializer=_one_thread) as pool:
        futures = [pool.submit(play_chunk, chunk) for chunk in chunks]
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    """A worker a core, so a thread a worker."""
    import torch

    torch.set_num_threads(1)


def play_chunk(chunk: Chunk) -> tuple[list[Row], str]:
    """(a row for each seed: one `run` of one pair, up to the first that fails; what failed, or nothing)."""
    problem, player, limits, seeds = chunk
    made, estimator, budget = find_problem(problem), read_estimator(player), Budget(**limits)
    rows: list[Row] = []
    for s in seeds:
        try:
            rows.append(_row(problem, player, s, run(made, estimator, budget, seed=s, progress=False)))
        except Exception as error:
            told = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}."
            return rows, f"{player} on {problem} failed at seed {s}: {told}"
    return rows, ""


def _row(problem: str, player: str, seed: int, estimate: Any) -> Row:
    spend = {unit: getattr(estimate.spend, unit) for unit in UNITS}
    ends = {name: (None if math.isinf(end) else end) for name, end in (("low", estimate.low), ("high", estimate.high))}
    return {
        "problem": problem,
        "estimator": player,
        "seed": seed,
        "truth": estimate.truth,
        "value": estimate.value,
        **ends,
        "std_error": estimate.std_error,
        "level": estimate.level,
        "reliable": estimate.reliable,
        "why": estimate.why,
        "stopped": estimate.stopped,
        **spend,
    }


def _take_up(out: Path, settings: dict[str, Any]) -> None:
    path = out / _SETTINGS
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise WorkbenchError(f"{path} is damaged; delete the folder {out}, or choose another with --out.") from None
        differ = sorted(name for name in settings if found.get(name) != settings[name])
        if differ:
            raise WorkbenchError(
                f"The folder {out} holds a league with {differ[0]} {found.get(differ[0])}, and {settings[differ[0]]} "
                "is asked for; choose another folder with --out."
            )
        return
    try:
        write_atomically(path, json.dumps(settings).encode())
    except OSError as error:
        raise WorkbenchError(
            f"The league can't be kept in {out} ({error.strerror}); choose another folder with --out."
        ) from None


def read_rows(out: Path) -> list[Row]:
    """The repeats kept in a folder; a last line that was cut short is dropped, from the file too."""
    path = out / _REPEATS
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    if torn:
        write_atomically(path, (whole + "\n" if whole else "").encode())
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise WorkbenchError(
                f"Line {number} of {path} is damaged; delete that line, and the league plays those repeats again."
            ) from None
    return rows


def standings(rows: Sequence[Row], *, bootstraps: int = 1000) -> list[Row]:
    """One row a pair: the summary that the head of this file states. Pairs in the order of their first row."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["problem"], row["estimator"]), []).append(row)
    return [_standing(problem, player, group, bootstraps) for (problem, player), group in groups.items()]


def _standing(problem: str, player: str, group: list[Row], bootstraps: int) -> Row:
    truth, repeats = group[0]["truth"], len(group)
    errors = np.array([row["value"] - truth for row in group if row["value"] is not None]) / abs(truth)
    calm = [row for row in group if row["reliable"]]
    covers = sum(_low(row) <= truth <= _high(row) for row in calm)
    widths = [(_high(row) - _low(row)) / abs(truth) for row in calm]
    found: Row = {"problem": problem, "estimator": player, "truth": truth, "repeats": repeats}
    found |= {"answered": len(errors), "flagged": 1 - len(calm) / repeats, "unflagged": len(calm)}
    found |= dict(zip(("flagged_low", "flagged_high"), clopper_pearson(repeats - len(calm), repeats), strict=True))
    names = ("rmse", "rmse_low", "rmse_high", "bias", "bias_t")
    found |= dict(zip(names, _errors(errors, (problem, player), bootstraps), strict=True))
    if calm:
        low, high = clopper_pearson(covers, len(calm))
        found |= {"coverage": covers / len(calm), "coverage_low": low, "coverage_high": high}
        found |= {"width": float(np.median(widths)), "level": calm[0]["level"]}
    else:
        found |= {name: None for name in ("coverage", "coverage_low", "coverage_high", "width")}
        found["level"] = group[0]["level"]
    return found | {unit: float(np.mean([row[unit] for row in group])) for unit in UNITS}


def _errors(errors: np.ndarray, names: tuple[str, str], bootstraps: int) -> tuple[float | None, ...]:
    """(RMSE, its ends, bias, t) of relative errors; None where there is nothing to say."""
    if not len(errors):
        return (None,) * 5
    squares = errors**2
    drawn = Stream.of(0, "league", *names).generator().integers(0, len(errors), (bootstraps, len(errors)))
    low, high = np.quantile(np.sqrt(squares[drawn].mean(axis=1)), [0.025, 0.975])
    spread = errors.std(ddof=1) if len(errors) > 1 else 0.0
    t = float(math.sqrt(len(errors)) * errors.mean() / spread) if spread > 0 else None
    return float(np.sqrt(squares.mean())), float(low), float(high), float(errors.mean()), t


def _low(row: Row) -> float:
    return -math.inf if row["low"] is None else row["low"]


def _high(row: Row) -> float:
    return math.inf if row["high"] is None else row["high"]


def write_parquet(rows: Sequence[Row], path: Path) -> Path:
    """Every repeat as a Parquet file, one row each."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise WorkbenchError(
            "Parquet needs pyarrow, which is not installed; run: pip install 'research-workbench[logs]', or read repeats.jsonl."
        ) from None
    table = pyarrow.Table.from_pylist(list(rows))
    temporary = path.with_suffix(".part")
    pyarrow.parquet.write_table(table, temporary)
    os.replace(temporary, path)
    return path
