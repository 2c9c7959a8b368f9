"""The command line: parses, checks and prints, nothing else."""

from cropseg.cli.main import app, main

__all__ = ["app", "main"]
