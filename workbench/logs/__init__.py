"""Your own evaluation logs as what methods take: Inspect AI, lm-evaluation-harness, garak, CSV, Parquet, JSON lines.

counts = workbench.logs.read_attempts(["runs/a.eval", "runs/b.eval"], success="score >= 0.75")
workbench.methods.tail_risk.saber.predict(counts.successes, counts.attempts, n_tries=1000)
"""

from workbench.lazy import attach

_HOME = {
    "counts": ("AttemptCounts", "read_attempts"),
    "records": ("Record", "read_records"),
    "condition": ("Condition",),
    "severities": ("read_severities",),
    "attack_trials": ("read_attack_trials",),
    "options": ("read_options",),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOME)
