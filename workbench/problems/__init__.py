"""Questions with known truth: analytic, grammar, enumerated, tabular.

What a problem offers says what it can be asked: `sample` draws of an event, `sample_from` draws from a proposal,
`limit_state` a value at a Gaussian point, `step` one step of a chain, `attempt` tries at queries, `losses` bounded
losses, `log` rows of a log. An estimator's `init` refuses a problem that lacks what it needs.
"""
