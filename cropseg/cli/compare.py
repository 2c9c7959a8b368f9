"""`cropseg compare`: which way of reusing a model wins."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg import tables
from cropseg.cli.options import AllowRemote, FitOptions, From, Manifest, Out, Overwrite
from cropseg.cli.show import Output, console
from cropseg.comparison.cells import COMPARISON_RECORD, MODES, describe_grid, plan_cells
from cropseg.files import check_out_dir
from cropseg.models.card import read_card
from cropseg.sites.budget import check_budgets, parse_budgets
from cropseg.sites.site import open_site
from cropseg.transfer.target import choose_settings, describe_transfer, prepare_target


def compare(
    manifest: Manifest,
    *,
    from_: From,
    modes: Annotated[str, typer.Option(help=f"Some of {','.join(MODES)}.")],
    labels: Annotated[str, typer.Option(help="Budgets, as 4tiles,16tiles.")],
    out: Out,
    draws: Annotated[int, typer.Option(help="Random choices of the labels.")] = 3,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Compare modes on equal terms at several budgets of labels."""
    settings = fit.collect_settings()
    check_out_dir(out)
    mode_names = [name.strip() for name in modes.split(",")]
    budgets = parse_budgets(labels.split(","))
    plan_cells(mode_names, budgets, draws, seed=0)
    site, card = open_site(manifest, allow_remote=allow_remote or ()), read_card(from_)
    chosen = choose_settings(card, settings)
    target = prepare_target(site, card)
    check_budgets(budgets, target, card.tile_size)
    what = describe_grid(mode_names, budgets, draws)
    record = describe_transfer(target, from_, chosen, what, command="compare")
    check_out_dir(out, record, overwrite=overwrite, record=COMPARISON_RECORD)
    from cropseg.comparison.compare import compare_modes

    with output.open_progress() as show_progress:
        comparison = compare_modes(
            site,
            from_,
            modes=mode_names,
            labels=labels.split(","),
            draws=draws,
            out_dir=out,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    summary = comparison.summary
    output.show(
        summary, lambda: tables.show_comparison(console, summary, comparison.out_dir)
    )
