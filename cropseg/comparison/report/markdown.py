"""The report as a text in Markdown: the page in short."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from cropseg.comparison.report.content import (
    BudgetView,
    find_answer,
    find_version,
    list_budgets,
    list_coverage,
    list_facts,
    list_settings,
    list_warnings,
    name_comparison,
    split_answer,
    tell_families,
    tell_smallest,
)
from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.reproduce import list_commands
from cropseg.comparison.report.tables import Table, list_efficiency

_SPECIAL: Final = re.compile(r"[\\`*\[\]~|#$!]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKER: Final = re.compile(r"^(\d*)([-+=.)])(?=\s|$|[-=])")
"""What starts a list, a line across or a heading: `-`, `+`, `1.`, `---`, `===`."""
_PICTURES: Final = ("on one scale", "around zero")
"""Columns that are pictures."""


def escape_markdown(text: str) -> str:
    r"""Return a text of which nothing is taken for Markdown or HTML.

    Example:
        >>> escape_markdown("a|b <i> *c* zero_shot")
        'a\\|b &lt;i&gt; \\*c\\* zero_shot'
    """
    line = " ".join(text.split())
    line = "".join(_ENTITIES.get(char, char) for char in line)
    line = _SPECIAL.sub(lambda found: f"\\{found[0]}", line)
    # A colon that starts an address, and a dot that ends a host, would make a link.
    line = line.replace("://", ":&#47;/").replace("www.", "www&#46;")
    return _MARKER.sub(lambda found: f"{found[1]}\\{found[2]}", line)


def render_markdown(data: ReportData) -> str:
    """Return the text of a comparison."""
    blocks = [block for block in _list_blocks(data) if block]
    return "\n\n".join(blocks) + "\n"


def _list_blocks(data: ReportData) -> Iterator[str]:
    source, site = map(escape_markdown, name_comparison(data))
    yield f"# From {source} to {site}: which way of reusing a model wins?"
    for text in split_answer(find_answer(data)):
        yield f"**{escape_markdown(text)}**"
    yield "\n".join(
        f"- {escape_markdown(name)}: {escape_markdown(text)}"
        for name, text in list_facts(data)
    )
    for text in list_warnings(data):
        yield f"> {escape_markdown(text)}"
    for name in data.files.plots[:1]:
        yield f"![mIoU of each mode against labels]({name})"
    yield "[The whole report](report.html), for a browser."
    yield from _list_results(data)
    yield from _list_method(data)


def _list_results(data: ReportData) -> Iterator[str]:
    budgets = list_budgets(data)
    if budgets:
        yield "## Modes"
    for budget in reversed(budgets):
        yield f"### With {escape_markdown(budget.labels)}"
        yield escape_markdown(budget.answer)
        if budget.scores:
            yield _write_table(budget.scores)
        yield from map(escape_markdown, budget.notes)
        if budget.advice:
            yield escape_markdown(f"Rule of thumb: {budget.advice}")
    if budgets and budgets[-1].costs:
        yield "## Cost"
        yield _write_table(budgets[-1].costs)
    yield from _list_differences(data, budgets)
    tables = list_efficiency(data)
    if tables:
        yield "## Labels needed"
    yield from map(_write_titled, tables)


def _list_differences(data: ReportData, budgets: Sequence[BudgetView]) -> Iterator[str]:
    if not any(budget.differences for budget in budgets):
        return
    yield "## Differences"
    families = tell_families(data)
    if families:
        yield escape_markdown(families)
    yield escape_markdown(tell_smallest(data))
    for budget in reversed(budgets):
        yield from map(_write_titled, budget.differences)


def _list_method(data: ReportData) -> Iterator[str]:
    interval, covers, gaps = list_coverage(data)
    if interval or covers or gaps:
        yield "## What the intervals cover, and what not"
        yield f"Method: {escape_markdown(interval)}." if interval else ""
        for title, texts in (("They cover:", covers), ("They do not cover:", gaps)):
            if texts:
                yield title
                yield "\n".join(f"- {escape_markdown(text)}" for text in texts)
    tables = list_settings(data)
    if tables:
        yield "## Settings and versions"
        yield from map(_write_titled, tables)
    commands, notes = list_commands(data)
    yield "## How to do it again"
    if commands:
        yield f"With cropseg {escape_markdown(find_version(data))} and the same data:"
        yield _fence(commands)
    yield from map(escape_markdown, notes)


def _write_titled(table: Table) -> str:
    return f"{escape_markdown(table.title)}:\n\n{_write_table(table)}"


def _write_table(table: Table) -> str:
    kept = [place for place, name in enumerate(table.head) if name not in _PICTURES]
    rules = [":---" if place < table.num_text else "---:" for place in kept]
    rows = [[table.head[place] for place in kept]]
    rows += [[row[place].text for place in kept] for row in table.rows]
    lines = [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    lines.insert(1, f"| {' | '.join(rules)} |")
    return "\n".join(lines)


def _fence(text: str) -> str:
    """Return a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sh\n{text}\n{fence}"
