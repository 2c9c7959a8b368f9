"""`cropseg predict`: maps of whole scenes."""

from __future__ import annotations

from typing import Annotated

import typer

from cropseg.cli.options import (
    AllowRemote,
    Model,
    Out,
    Overwrite,
    Precision,
    Seed,
    TileSize,
)
from cropseg.cli.show import Output, console
from cropseg.files import check_out_dir
from cropseg.models.card import read_card


def predict(
    model: Model,
    scenes: Annotated[list[str], typer.Argument(help="GeoTIFFs to map.")],
    *,
    out: Out,
    tile_size: TileSize = None,
    batch_size: Annotated[int, typer.Option(help="Tiles in a batch.")] = 2,
    precision: Precision = None,
    overwrite: Overwrite = False,
    allow_remote: AllowRemote = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Map whole scenes with a model."""
    del seed
    check_out_dir(out)
    read_card(model)
    from cropseg.inference.predict import predict_scenes

    with output.open_progress() as show_progress:
        maps = predict_scenes(
            model,
            scenes,
            out_dir=out,
            tile_size=tile_size,
            batch_size=batch_size,
            precision=precision or "auto",
            overwrite=overwrite,
            allow_remote=allow_remote or (),
            show_progress=show_progress,
        )
    document = {"maps": [str(path) for path in maps]}
    output.show(document, lambda: console.print(*document["maps"], sep="\n"))
