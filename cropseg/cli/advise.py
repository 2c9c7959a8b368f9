"""`cropseg advise`: what the rule of thumb says of a target and a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg.cli.options import (
    AllowRemote,
    ForeignOptions,
    From,
    Manifest,
    ReuseChoices,
    Seed,
)
from cropseg.cli.show import Output, console
from cropseg.sites.site import open_site
from cropseg.transfer.advice import Advice, advise_transfer


def advise(
    manifest: Manifest,
    *,
    from_: From,
    labels: Annotated[str | None, typer.Option(help="A budget, as 4tiles.")] = None,
    draw: Annotated[int, typer.Option(help="Which draw of the budget.")] = 0,
    reuse: ReuseChoices,
    foreign: ForeignOptions,
    allow_remote: AllowRemote = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Say which modes the rule of thumb suggests, why, and how to settle it."""
    del seed
    chosen = reuse.read_options()
    site = open_site(manifest, allow_remote=allow_remote or ())
    advice = advise_transfer(
        site,
        from_,
        labels=labels,
        draw=draw,
        reuse=chosen,
        description=foreign.read_description(reuse),
    )
    output.show(advice.to_json(), lambda: _show_advice(advice))


def _show_advice(advice: Advice) -> None:
    console.print(advice.cell, style="bold", markup=False)
    groups = {
        "why": advice.reasons,
        "modes to try": (", ".join(advice.modes),),
        "what this cannot know": advice.unknown,
    }
    for title, lines in groups.items():
        console.print(f"{title}:", style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)
    console.print("the comparison that would settle it:", style="bold")
    # On one line, however long, so that it can be copied.
    console.print(f"  {advice.command}", markup=False, soft_wrap=True)
