"""Widgets: explorers of a drawing function, those that several papers share, and the tuner of budgets.

Names are loaded when first used, so that a notebook depends on its own widgets alone.
"""

from workbench.lazy import attach

_HOME = {
    "calibration": ("batch_calibration", "explore_calibration"),
    "controls": ("Choice", "Slider", "Tick"),
    "explorer": ("explore",),
    "proposals": ("codeword_questions", "explore_proposals", "explore_tokens"),
    "risk_compute": ("explore_risk",),
    "tuner": ("BudgetTuner",),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOME)
