"""Questions with known truth: analytic, grammar, enumerated, tabular."""
