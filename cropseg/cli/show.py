"""What a command writes: one document on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cropseg import tables
from cropseg.cli.options import AsJson, Quiet, Verbose

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class Output:
    """How much a command tells, and as what."""

    as_json: AsJson = False
    """Whether one JSON document takes the place of the tables."""
    quiet: Quiet = False
    """Whether there is no progress and no table."""
    verbose: Verbose = False
    """Whether every variable is listed; `main` logs more and shows tracebacks."""

    def show(self, document: Any, show_tables: Callable[[], None]) -> None:
        """Print a document as JSON, or call `show_tables`, or do nothing."""
        if self.as_json:
            print(json.dumps(document, indent=2, allow_nan=False))  # noqa: T201
        elif not self.quiet:
            show_tables()

    def show_run(self, run: Any) -> None:
        """Show a finished training: its model and its scores."""
        # A forest leaves no model.
        path = str(run.model_path) if run.model_path.exists() else None
        document = {"model": path, **run.metrics}
        self.show(
            document,
            lambda: tables.show_run(console, run, every_variable=self.verbose),
        )

    @contextlib.contextmanager
    def open_progress(
        self, *, tells_time: bool = False
    ) -> Iterator[Callable[[int, int, str], None]]:
        """Show a bar with the time left on stderr, while it is a terminal.

        Args:
            tells_time: Whether the time left stands in what is shown already.
        """
        columns = [
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            *([] if tells_time else [TimeRemainingColumn()]),
            TextColumn("{task.description}"),
        ]
        # Where it is no terminal, rich would leave an empty line behind.
        hidden = self.as_json or self.quiet or not errors.is_terminal
        with Progress(*columns, console=errors, disable=hidden, transient=True) as bar:
            task = bar.add_task("starting", total=None)

            def show_progress(done: int, total: int, text: str) -> None:
                bar.update(task, completed=done, total=total, description=text)

            yield show_progress
