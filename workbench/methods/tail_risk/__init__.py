"""Tail risk: how often, how badly and after how many tries something rare goes wrong."""
