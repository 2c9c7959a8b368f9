"""`cropseg modes`: the ways of reusing a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg import tables
from cropseg.cli.options import Seed
from cropseg.cli.show import Output, console
from cropseg.transfer.describe import (
    describe_forest,
    describe_plan,
    list_plans,
    plan_to_json,
)
from cropseg.transfer.modes import PIXEL_FOREST, get_plan


def modes(
    mode: Annotated[
        str | None,
        typer.Argument(help="One mode, as full or freeze_first:2, or a YAML file."),
    ] = None,
    *,
    output: Output,
    seed: Seed = None,
) -> None:
    """List the transfer modes, or tell all of one."""
    del seed
    if mode is None:
        rows = list_plans()
        output.show(rows, lambda: tables.show_modes(console, rows))
        return
    if mode == PIXEL_FOREST:
        document = describe_forest()
        lines = [document["summary"], f"Serves: {document['serves']}"]
        lines.append(f"Origin: {document['origin']}.")
    else:
        plan = get_plan(mode)
        document, lines = plan_to_json(plan), describe_plan(plan)
    output.show(document, lambda: tables.show_plan(console, document["mode"], lines))
