"""`cropseg evaluate`: the scores of a model on a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cropseg import tables
from cropseg.cli.options import (
    AllowRemote,
    Manifest,
    Model,
    Overwrite,
    Precision,
    Seed,
    TileSize,
)
from cropseg.cli.show import Output, console
from cropseg.errors import UsageError
from cropseg.files import check_out_dir
from cropseg.models.card import fit_site_to_card, match_card_classes, read_card
from cropseg.sites.site import open_site
from cropseg.sites.split import PARTS


def evaluate(
    model: Model,
    manifest: Manifest,
    *,
    split: Annotated[str, typer.Option(help=f"One of {', '.join(PARTS)}.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for plots.")] = None,
    tile_size: TileSize = None,
    precision: Precision = None,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Score a model on a part of a site."""
    del seed
    if split not in PARTS:
        raise UsageError(f"--split is one of {', '.join(PARTS)}; got {split!r}.")
    if out:
        check_out_dir(out)
    site, card = open_site(manifest, allow_remote=allow_remote or ()), read_card(model)
    match_card_classes(card, fit_site_to_card(site, card).classes)
    from cropseg.inference.evaluate import evaluate_model, write_evaluation

    evaluation = evaluate_model(
        model, site, part=split, tile_size=tile_size, precision=precision or "auto"
    )
    if out:
        write_evaluation(evaluation, out, model, part=split, overwrite=overwrite)
    scores = evaluation.to_json()
    output.show(scores, lambda: tables.show_scores(console, scores, split))
