"""Widgets: explorers of a drawing function, those that several papers share, and the tuner of budgets."""

from workbench.widgets.calibration import batch_calibration, explore_calibration
from workbench.widgets.controls import Choice, Slider, Tick
from workbench.widgets.explore import explore
from workbench.widgets.proposals import codeword_questions, explore_proposals, explore_tokens
from workbench.widgets.risk_compute import explore_risk
from workbench.widgets.tuner import BudgetTuner

__all__ = [
    "BudgetTuner",
    "Choice",
    "Slider",
    "Tick",
    "batch_calibration",
    "codeword_questions",
    "explore",
    "explore_calibration",
    "explore_proposals",
    "explore_risk",
    "explore_tokens",
]
