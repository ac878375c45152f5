"""A research workbench for risk estimation and budgeted computation with language models.

estimate = workbench.run(problem, estimator, workbench.Budget(samples=1000), seed=0)
"""

from workbench.budget import Budget, Meter, Spend, charge
from workbench.estimate import Estimate
from workbench.measure import paper
from workbench.run import run
from workbench.streams import Stream

__all__ = ["Budget", "Estimate", "Meter", "Spend", "Stream", "charge", "paper", "run"]
__version__ = "0.1.0"
