"""`cropseg train`: a model of one site."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg.cli.options import (
    AllowRemote,
    FitOptions,
    Manifest,
    Out,
    Overwrite,
    TileSize,
)
from cropseg.cli.show import Output
from cropseg.files import check_out_dir
from cropseg.sites.site import open_site
from cropseg.sites.statistics import require_trainable, survey_site
from cropseg.training.settings import TrainSettings, describe_training


def train(
    manifest: Manifest,
    *,
    out: Out,
    architecture: Annotated[
        str | None, typer.Option(help="unet, linknet, fpn.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="classic, resnet34, ...")] = None,
    tile_size: TileSize = None,
    fit: FitOptions,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
) -> None:
    """Train a model of a site from random weights."""
    settings = fit.collect_settings(
        architecture=architecture, encoder=encoder, tile_size=tile_size
    )
    chosen = TrainSettings(**settings)
    check_out_dir(out)
    site = open_site(manifest, allow_remote=allow_remote or ())
    require_trainable(site, survey_site(site, chosen.tile_size))
    check_out_dir(out, describe_training(site, chosen), overwrite=overwrite)
    from cropseg.training.train import train_site

    with output.open_progress() as show_progress:
        run = train_site(
            site,
            out_dir=out,
            overwrite=overwrite,
            show_progress=show_progress,
            **settings,
        )
    output.show_run(run)
