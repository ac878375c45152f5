"""Tune a budget with the mouse and see the risk move: methods side by side on one problem, at equal spend.

Does: controls for every limit of a budget, for risk levels and for the methods' own settings; runs `workbench.run` in the
background; a live figure and table; writes what was tuned as code and as a notebook's parameter.
Does not: estimate anything itself; what it shows is what `workbench.run` says.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, Image, display

from workbench.budget import UNITS, Budget
from workbench.errors import WorkbenchError, refuse, require_choice, require_integer, require_number
from workbench.estimate import Estimate
from workbench.measure import Reproduction
from workbench.plots import to_png
from workbench.run import Problem, is_estimator, run
from workbench.widgets import equal_spend, freeze
from workbench.widgets.comparison import SLICE_SECONDS
from workbench.widgets.freeze import Setup
from workbench.widgets.tuner_controls import Controls
from workbench.widgets.tuner_screen import Screen

_HEADLESS_SECONDS = 0.6
_RANGES: dict[str, tuple[float, float]] = {
    "samples": (10, 1e6),
    "tokens": (100, 1e7),
    "model_calls": (10, 1e6),
    "flops": (1e6, 1e18),
    "seconds": (0.1, 600),
    "usd": (1e-3, 100),
}


class BudgetTuner:
    """Controls, a live figure and a table for one or more methods on a problem.

    problem     a problem, or a list or dict (name -> problem, or a function without arguments that makes it when picked)
    estimators  an estimator, or a list or dict of them (name -> estimator)
    budget      what each method may spend at first; by default 2,000 samples
    ranges      the sliders' ranges, e.g. {"tokens": (1_000, 1e6)}; a field takes values outside of them too
    seed        of all randomness; by default the paper's, or 0
    paper       what `workbench.paper(...)` gave, so that Freeze can name the notebook
    tuned       what Freeze gave, to begin with it; {} for nothing
    interleaved methods take turns at equal spend, rather than one following the other

    Headless (where WORKBENCH_HEADLESS is set) it shows a figure and a table: of the frozen run, run whole, with its
    estimates as JSON; without `tuned` of what the first state gives in a moment.
    """

    def __init__(
        self,
        problem: Any,
        estimators: Any,
        budget: Budget | None = None,
        *,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        seed: int | None = None,
        paper: Reproduction | None = None,
        tuned: Mapping[str, Any] | None = None,
        interleaved: bool = True,
    ) -> None:
        self._makers = _named("problem", problem, _problem_name)
        self._estimators = _named("estimators", estimators, lambda item: type(item).__name__)
        for name, estimator in self._estimators.items():
            if not is_estimator(type(estimator)):
                told, must = type(estimator).__name__, "be a frozen dataclass with init, draw, absorb and result"
                raise refuse(f"estimators[{name!r}]", told, must, "pass e.g. MonteCarlo()")
        self._paper, self._problems = paper, {}
        self._ranges = _checked_ranges(ranges or {})
        budget = Budget(samples=2000) if budget is None else budget
        if not isinstance(budget, Budget) or not budget.limits():
            raise refuse("budget", budget, "be a Budget with at least one limit", "write e.g. Budget(samples=2000)")
        seed = (paper.seed if paper is not None else 0) if seed is None else seed
        require_integer("seed", seed, low=0, high=2**63 - 1, cure="pass a whole number such as seed=0")
        unit = next((unit for unit in budget.limits() if unit != "seconds"), "samples")
        first = next(iter(self._makers))
        start = Setup(first, dict(self._estimators), budget, seed, unit, bool(interleaved))
        self._tuned, self._notebook_seed = bool(tuned), paper.seed if paper is not None else seed
        self._start = freeze.from_tuned({} if tuned is None else tuned, self._makers, self._estimators, start)
        self._static: dict[str, Estimate] = {}
        self._screen: Screen | None = None

    def _ipython_display_(self) -> None:
        if os.environ.get("WORKBENCH_HEADLESS"):
            self._show_static()
        else:
            display(self.widget)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Each method's latest estimate, of the run on screen or of the headless one."""
        return self._static if self._screen is None else self._screen.estimates

    def problem(self, name: str) -> Any:
        """The problem of this name; made now if it is the first time that it is asked for."""
        if name not in self._problems:
            made = self._makers[name]
            if callable(made) and not isinstance(made, Problem):
                made = made()
            if not isinstance(made, Problem):
                must = "have a name and a truth (None where unknown)"
                raise refuse(f"problem {name!r}", type(made).__name__, must, "see workbench.problems for examples")
            self._problems[name] = made
        return self._problems[name]

    def unsuited(self, problem: str) -> dict[str, str]:
        """Why a method can't answer this problem: name -> sentence, for those that can't."""
        asked, why = self.problem(problem), {}
        for name, estimator in self._estimators.items():
            try:
                estimator.init(asked)
            except WorkbenchError as error:
                why[name] = str(error)
        return why

    def _show_static(self) -> None:
        setup, problem = self._start, self.problem(self._start.problem)
        unsuited = {} if self._tuned else self.unsuited(setup.problem)
        methods = {name: method for name, method in setup.methods.items() if name not in unsuited}
        traces: dict[str, list[Estimate]] = {name: [] for name in methods}
        for name, method in methods.items():
            # A frozen run is run whole; the first state gets a moment, and shows how far it came.
            deadline = None if self._tuned else time.monotonic() + _HEADLESS_SECONDS / len(methods)
            trace = traces[name]
            last = run(
                problem,
                method,
                setup.budget_of(name),
                seed=setup.seed,
                between=None if deadline is None else partial(_past, deadline),
                slice_seconds=SLICE_SECONDS,
                callback=partial(equal_spend.add, trace),
                progress=False,
            )
            trace[-1:] = [last]
        self._static = {name: trace[-1] for name, trace in traces.items()}
        limit = setup.budget.limits().get(setup.unit)
        figure = equal_spend.draw(traces, setup.unit, problem.truth, limit)
        display(Image(to_png(figure), alt=equal_spend.describe(traces, setup.unit, problem.truth)))
        display(HTML(equal_spend.table(traces, setup.unit, problem.truth)))
        if self._tuned:
            said = "\n".join(f"{name}: {estimate.to_json()}" for name, estimate in self._static.items())
            folded = f"<details><summary>The estimates as JSON</summary><pre>{html.escape(said)}</pre></details>"
            display({"text/plain": said, "text/html": folded}, raw=True)

    @property
    def widget(self) -> Any:
        """The controls and the view, as a widget; made when first asked for."""
        return self.screen.root

    @property
    def screen(self) -> Screen:
        if self._screen is None:
            controls = Controls(self._start, self._estimators, list(self._makers), self._ranges, self.unsuited)
            self._screen = Screen(controls, self.problem, self._freeze)
        return self._screen

    def _freeze(self, setup: Setup) -> tuple[str, str, str]:
        """(Python, the parameter's line, the command) for a setup; a sentence in place of what can't be written."""
        made = self.problem(setup.problem)
        maker = self._makers[setup.problem]
        try:
            code = freeze.as_code(setup, made, _notebook(), None if maker is made else maker)
        except WorkbenchError as error:
            code = f"# {error}"
        told = "# Pass paper=paper to BudgetTuner to get the command of this notebook."
        if self._paper is not None:
            paper = self._paper
            told = freeze.command(setup, paper.paper.slug, seed=paper.seed, scale=paper.scale)
        return code, freeze.parameter_line(setup), told

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended and the last picture stands; False if `timeout` seconds were not enough."""
        return self.screen.wait(timeout)

    def close(self) -> None:
        """Stop the work and take the widget off the page."""
        if self._screen is not None:
            self._screen.close()


def _past(deadline: float) -> bool:
    return time.monotonic() > deadline


def _named(argument: str, given: Any, name: Callable[[Any], str]) -> dict[str, Any]:
    """One thing, a list or a dict of things, as a dict by name."""
    if isinstance(given, Mapping):
        named = {str(key): item for key, item in given.items()}
    else:
        items = list(given) if isinstance(given, (list, tuple)) else [given]
        named = {}
        for item in items:
            key = name(item)
            if key in named:
                raise refuse(f"{argument} names {key!r} twice,", key, "name each one once", "pass a dict with names")
            named[key] = item
    if not named:
        raise refuse(argument, given, "hold at least one", f"pass e.g. {argument}=[...]")
    return named


def _problem_name(item: Any) -> str:
    return str(getattr(item, "name", None) or getattr(item, "__name__", type(item).__name__))


def _checked_ranges(ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    for unit, ends in ranges.items():
        require_choice("a unit of ranges", unit, UNITS)
        cure = f"write e.g. ranges={{{unit!r}: (100, 10_000)}}"
        if not isinstance(ends, (tuple, list)) or len(ends) != 2:
            raise refuse(f"ranges[{unit!r}]", ends, "be (low, high)", cure)
        low = require_number(f"ranges[{unit!r}][0]", ends[0], low=0, open_low=True, cure=cure)
        if not low < require_number(f"ranges[{unit!r}][1]", ends[1], low=0, open_low=True, cure=cure):
            raise refuse(f"ranges[{unit!r}]", tuple(ends), "rise from low to high", "swap or move the ends")
    return _RANGES | {unit: (float(ends[0]), float(ends[1])) for unit, ends in ranges.items()}


def _notebook() -> dict[str, Any]:
    """The notebook's variables."""
    import __main__

    shell = get_ipython()
    return dict(shell.user_ns if shell is not None else vars(__main__))
