"""Runs papers' notebooks side by side and turns them into a table of claims, records and a report."""
