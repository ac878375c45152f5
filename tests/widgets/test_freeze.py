"""What was tuned by hand, as literals, as a command and as code: each gives the identical estimate."""

from __future__ import annotations

import ast
import shlex
from dataclasses import dataclass, replace

import pytest

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.methods.tail_risk.lm_tail_risk import CrossEntropy, ImportanceSampling
from workbench.methods.tail_risk.monte_carlo import MonteCarlo
from workbench.problems.analytic import GaussianTail
from workbench.problems.event import codeword_event
from workbench.reproduce.asked import read_parameters
from workbench.widgets.freeze import Setup, as_code, command, ended_early, from_tuned, parameter_line, to_tuned

PROBLEMS = {"tail": GaussianTail(2.0), "it's 'quoted' $HOME `x`": GaussianTail(3.0)}
ESTIMATORS = {"plain": MonteCarlo(), "shifted": ImportanceSampling(), "chosen": CrossEntropy()}
DEFAULT = Setup("tail", dict(ESTIMATORS), wb.Budget(samples=2000))
SETUP = Setup(
    "it's 'quoted' $HOME `x`",
    {"shifted": ImportanceSampling(3.1, 1 / 3, None, 0.9), "chosen": CrossEntropy((2.0, 1e-7), 11)},
    wb.Budget(samples=1234, usd=0.1),
    seed=2**62 + 1,
    unit="usd",
    interleaved=False,
    stopped_at={"chosen": 17},
)


def test_literals_give_the_setup_back():
    assert from_tuned(to_tuned(SETUP), PROBLEMS, ESTIMATORS, DEFAULT) == SETUP
    [line] = ast.parse(parameter_line(SETUP)).body
    assert from_tuned(ast.literal_eval(line.value), PROBLEMS, ESTIMATORS, DEFAULT) == SETUP
    assert from_tuned({}, PROBLEMS, ESTIMATORS, DEFAULT) == DEFAULT


def test_the_command_survives_the_shell():
    words = shlex.split(command(SETUP, "saber", seed=3))
    assert words[:6] == ["workbench", "reproduce", "saber", "--seed", "3", "--set"] and len(words) == 7
    tuned = read_parameters([words[6]])["tuned"]
    assert from_tuned(tuned, PROBLEMS, ESTIMATORS, DEFAULT) == SETUP
    assert shlex.split(command(SETUP, "saber", seed=3, scale="full"))[-2:] == ["--scale", "full"]


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ("quick", "tuned is 'quick' but must be a dict; paste the line that Freeze gives"),
        ({"budgets": {}}, "a key of tuned is 'budgets' .* did you mean 'budget'"),
        ({"problem": "tale"}, "tuned\\['problem'\\] is 'tale' .* did you mean 'tail'"),
        ({"methods": ["plain"]}, "tuned\\['methods'\\] is .* must be a dict"),
        ({"methods": {"plane": {}}}, "a method of tuned is 'plane' .* did you mean 'plain'"),
        ({"methods": {"plain": {"alpha": 1}}}, "a field of plain is 'alpha' .* level"),
        ({"methods": {"plain": {"level": 2.0}}}, "level is 2.0 but must .*less than 1; pass e.g. level=0.95"),
        ({"budget": {"token": 3}}, "a unit of tuned\\['budget'\\] is 'token' .* did you mean 'tokens'"),
        ({"budget": {"tokens": -3}}, "Budget\\(tokens\\) is -3 but must .*give a positive limit"),
        ({"seed": -1}, "tuned\\['seed'\\] is -1 but must be a whole number at least 0"),
        ({"stopped_at": {"plain": 0}}, "tuned\\['stopped_at'\\]\\['plain'\\] is 0 but must .* at least 1"),
        ({"unit": "coins"}, "tuned\\['unit'\\] is 'coins' but must be one of samples"),
        ({"interleaved": "yes"}, "tuned\\['interleaved'\\] is 'yes' but must be True or False"),
    ],
)
def test_what_does_not_fit_is_refused(tuned, said):
    with pytest.raises(WorkbenchError, match=said):
        from_tuned(tuned, PROBLEMS, ESTIMATORS, DEFAULT)


def executed(code, **namespace):
    exec(code, namespace)
    return namespace


def test_the_code_gives_the_identical_estimate():
    setup = replace(DEFAULT, methods={"shifted": ImportanceSampling(2.2, 0.1, 1)}, seed=5)
    mine = wb.run(PROBLEMS["tail"], setup.methods["shifted"], setup.budget, seed=5)
    assert executed(as_code(setup, PROBLEMS["tail"], {}))["estimate"].answer == mine.answer
    both = executed(as_code(replace(DEFAULT, stopped_at={"plain": 77}), PROBLEMS["tail"], {}))["estimates"]
    assert both["plain"].n_samples == 77 and both["shifted"].n_samples == 2000


def test_what_has_no_call_is_named_by_its_variable():
    toy = codeword_event("grammar", prompt=(5, 6, 6))
    setup = replace(DEFAULT, methods={"plain": MonteCarlo()}, budget=wb.Budget(tokens=500))
    mine = wb.run(toy, MonteCarlo(), setup.budget)
    for namespace in ({"toy": toy}, {"_": toy, "toys": {"one": toy}}, {"toys": [1, toy]}):
        code = as_code(setup, toy, namespace)
        assert "as this notebook has it" in code
        assert executed(code, **namespace)["estimate"].answer == mine.answer

    def make():
        return toy

    code = as_code(setup, toy, {"make": make}, made_by=make)
    assert "problem = make()" in code and executed(code, make=make)["estimate"].answer == mine.answer
    with pytest.raises(WorkbenchError, match=r"'tail' can't be written as code.*assign it to one"):
        as_code(setup, toy, {})


@dataclass(frozen=True)
class Odd(GaussianTail):
    """Its repr is no call that makes it again."""

    def __repr__(self):
        return "Odd()"


def test_a_repr_that_makes_something_else_is_not_believed():
    odd = Odd(1.25)
    assert "problem = odd" in as_code(replace(DEFAULT, methods={"plain": MonteCarlo()}), odd, {"odd": odd})


def test_only_limits_that_replay_are_kept():
    runs = {name: wb.run(PROBLEMS["tail"], MonteCarlo(), wb.Budget(samples=50)) for name in ("plain", "shifted")}
    runs["shifted"] = runs["shifted"].with_run(stopped="budget of seconds reached")
    runs["chosen"] = runs["plain"].with_run(stopped="asked to stop", n_samples=0)
    assert ended_early(DEFAULT, runs).stopped_at == {"shifted": 50}
