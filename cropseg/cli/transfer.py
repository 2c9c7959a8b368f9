"""`cropseg transfer`: a model of one site, reused for another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropseg.cli.options import AllowRemote, FitOptions, Manifest, Out, Overwrite
from cropseg.cli.show import Output
from cropseg.errors import UsageError
from cropseg.files import check_out_dir
from cropseg.models.card import read_card
from cropseg.sites.budget import check_budgets, parse_budgets
from cropseg.sites.site import open_site
from cropseg.transfer.plan import PLANS, get_plan
from cropseg.transfer.target import choose_settings, describe_transfer, prepare_target


def transfer(
    manifest: Manifest,
    *,
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(PLANS)}.")],
    out: Out,
    from_: Annotated[
        Path | None, typer.Option("--from", help="The model of the other area.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Refit a mode of this comparison on all labels."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="A budget, as 4tiles.")] = None,
    draw: Annotated[int, typer.Option(help="Which draw of the budget.")] = 0,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Transfer a model to another site."""
    get_plan(mode)
    settings = fit.collect_settings()
    check_out_dir(out)
    if (from_ is None) == (like is None):
        raise UsageError("Give either --from MODEL or --like COMPARISON.")
    site = open_site(manifest, allow_remote=allow_remote or ())
    if like is not None:
        if settings or labels:
            raise UsageError(
                "--like takes all settings from the comparison and all labels of the "
                "site; leave the other options out."
            )
        from cropseg.comparison.compare import refit_like

        with output.open_progress() as show_progress:
            run = refit_like(
                site,
                like,
                mode=mode,
                out_dir=out,
                overwrite=overwrite,
                show_progress=show_progress,
            )
        output.show_run(run)
        return
    card = read_card(from_)  # type: ignore[arg-type]  # one of the two is given
    chosen = choose_settings(card, settings)
    target = prepare_target(site, card)
    budgets = parse_budgets([labels]) if labels else []
    check_budgets(budgets, target, card.tile_size)
    budget = str(budgets[0]) if budgets else None
    what = {"mode": mode, "labels": budget, "draw": draw}
    record = describe_transfer(target, from_, chosen, what)  # type: ignore[arg-type]
    check_out_dir(out, record, overwrite=overwrite)
    from cropseg.transfer.transfer import transfer_to_site

    with output.open_progress() as show_progress:
        run = transfer_to_site(
            site,
            from_,  # type: ignore[arg-type]  # one of the two is given
            mode=mode,
            out_dir=out,
            labels=labels,
            draw=draw,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    output.show_run(run)
