"""`cropseg export`: a model for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cropseg.cli.options import Model, Overwrite, Seed, TileSize
from cropseg.cli.show import Output, console
from cropseg.inference.export.formats import EXPORT_FORMATS, check_export_path
from cropseg.models.card import read_card

if TYPE_CHECKING:
    from cropseg.inference.export.conversion import Export


def export(
    model: Model,
    *,
    file_format: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(EXPORT_FORMATS)}.")
    ],
    out: Annotated[Path, typer.Option(help="The file, or the folder of a SavedModel.")],
    tile_size: TileSize = None,
    overwrite: Overwrite = False,
    output: Output,
    seed: Seed = None,
) -> None:
    """Write a model for another program, checked against Keras."""
    del seed
    check_export_path(out, file_format)
    read_card(model)
    from cropseg.inference.export.conversion import export_model

    done = export_model(
        model, out, file_format=file_format, tile_size=tile_size, overwrite=overwrite
    )
    output.show(done.to_json(), lambda: _show(done))


def _show(done: Export) -> None:
    console.print(
        f"{done.path}: against Keras, on {done.num_pixels:,} pixels of made-up tiles, "
        f"probabilities differ by up to {done.max_difference:.1e} and "
        f"{done.equal_share:.3%} of the classes are the same.",
        soft_wrap=True,
    )
