"""Modes by budgets on equal terms, with baselines."""
