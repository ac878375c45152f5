"""Budgeted and constrained inference: what to sample, how long to think, which answers to submit."""
