"""`cropseg predict`: maps of whole scenes, and what is made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cropseg.cli.options import AllowRemote, Model, Out, Overwrite, Seed, TileSize
from cropseg.cli.show import Output, console
from cropseg.files import check_out_dir
from cropseg.inference.engines.engine import ENGINES, MIN_AGREEMENT, PRECISIONS
from cropseg.inference.mapping.options import (
    OUTPUT_GRIDS,
    POLYGON_FORMATS,
    MapOptions,
    ProductOptions,
)
from cropseg.models.card import read_card

_MAX_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class TileChoices:
    """How scenes are cut and predicted."""

    tile_size: TileSize = None
    """Side of the tiles."""
    context: Annotated[
        int | None, typer.Option(help="Context around a tile, in pixels.")
    ] = None
    """Context on every side."""
    batch_size: Annotated[int, typer.Option(help="Tiles in a batch.")] = 2
    """Tiles in a batch."""
    blend: Annotated[
        bool, typer.Option("--blend", help="Let tiles fade into each other.")
    ] = False
    """Whether tiles are blended."""
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Average eight flips and turns: 8 times slower."),
    ] = False
    """Whether turned copies are averaged."""


@dataclass(frozen=True, kw_only=True)
class EngineChoices:
    """What computes."""

    engine: Annotated[str, typer.Option(help=f"One of {', '.join(ENGINES)}.")] = "auto"
    """One of `ENGINES`."""
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")] = (
        "auto"
    )
    """One of `PRECISIONS`."""
    min_agreement: Annotated[
        float, typer.Option(help="Least agreement of bfloat16 with float32.")
    ] = MIN_AGREEMENT
    """Share of pixels."""
    cluster: Annotated[
        str | None,
        typer.Option(help="local:N processes, or tcp://HOST:PORT of a dask scheduler."),
    ] = None
    """Where workers are."""


@dataclass(frozen=True, kw_only=True)
class SceneChoices:
    """What is mapped, and on which pixels."""

    region: Annotated[
        Path | None, typer.Option(help="Polygons; nothing is mapped outside of them.")
    ] = None
    """Polygons."""
    output_grid: Annotated[
        str,
        typer.Option(help=f"Pixels of the map, one of {', '.join(OUTPUT_GRIDS)}."),
    ] = "scene"
    """One of `OUTPUT_GRIDS`."""
    scale: Annotated[
        float, typer.Option(help="What values are multiplied by to be the model's.")
    ] = 1.0
    """Factor on raw values."""
    allow_remote: AllowRemote = None
    """Hosts."""


@dataclass(frozen=True, kw_only=True)
class LayerChoices:
    """What is written beside the classes."""

    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write the class's probability too.")
    ] = False
    """Whether confidence is written."""
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write all probabilities too.")
    ] = False
    """Whether probabilities are written."""


@dataclass(frozen=True, kw_only=True)
class ProductChoices:
    """What is made of finished maps."""

    polygons: Annotated[
        str | None,
        typer.Option(
            help=f"Write polygons: {' or '.join(POLYGON_FORMATS)} for a file a scene, "
            "or the path of one file."
        ),
    ] = None
    """A format or a path."""
    min_area: Annotated[
        float, typer.Option(help="Dissolve smaller polygons, in m2.")
    ] = 0.0
    """In m²."""
    simplify: Annotated[
        float, typer.Option(help="Simplify borders of polygons, in m.")
    ] = 0.0
    """In m."""
    parcels: Annotated[
        Path | None, typer.Option(help="Fields that get their majority crop.")
    ] = None
    """A file with polygons."""
    summary: Annotated[
        bool, typer.Option("--summary", help="Write hectares by crop: summary.csv.")
    ] = False
    """Whether hectares are written."""
    quicklook: Annotated[
        bool, typer.Option("--quicklook", help="Write a small picture of every map.")
    ] = False
    """Whether pictures are written."""


def predict(
    model: Model,
    scenes: Annotated[
        list[str],
        typer.Argument(
            help="GeoTIFFs, folders, patterns in quotes, lists (CSV, Parquet, STAC)."
        ),
    ],
    *,
    out: Out,
    tiles: TileChoices,
    engine: EngineChoices,
    selection: SceneChoices,
    layers: LayerChoices,
    products: ProductChoices,
    overwrite: Overwrite = False,
    output: Output,
    seed: Seed = None,
) -> None:
    """Map whole scenes with a model. Called again, it goes on where it ended."""
    del seed
    given: dict[str, Any] = {}
    for group in (tiles, engine, selection, layers):
        given |= asdict(group)
    given["allow_remote"] = tuple(given["allow_remote"] or ())
    options, made = MapOptions(**given), ProductOptions(**asdict(products))
    check_out_dir(out)
    read_card(model)
    from cropseg.inference.mapping.predict import map_batch

    with output.open_progress() as show_progress:
        batch = map_batch(
            model,
            scenes,
            out_dir=out,
            options=options,
            products=made,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    agreement = batch.agreement
    document = {
        "maps": [str(path) for path in batch.maps],
        "products": [str(path) for path in batch.products],
        "num_mapped": batch.num_mapped,
        "warnings": batch.warnings,
        "agreement": None if agreement is None else agreement.to_json(),
    }

    def show_paths() -> None:
        if agreement is not None:
            console.print(str(agreement))
        paths = [*batch.maps, *batch.products]
        console.print(*paths[:_MAX_LISTED], sep="\n", soft_wrap=True)
        if len(paths) > _MAX_LISTED:
            console.print(f"and {len(paths) - _MAX_LISTED} more files in {out}")

    output.show(document, show_paths)
