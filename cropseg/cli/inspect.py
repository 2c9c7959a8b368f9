"""`cropseg inspect`: what a model file is, and what a transfer from it will ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cropseg import tables
from cropseg.cli.options import Seed
from cropseg.cli.show import Output, console
from cropseg.errors import ModelError, UsageError
from cropseg.models.card import read_card
from cropseg.models.foreign import ForeignDescription, Unknowns
from cropseg.models.header import ModelHeader, read_header
from cropseg.models.stage_file import write_stage_file

_KINDS = {
    "keras": "a .keras model, not of cropseg",
    "hdf5": "a full model in HDF5",
    "weights": "weights only",
}


def inspect(
    model: Annotated[Path, typer.Argument(help="A model file of Keras.")],
    *,
    stages_out: Annotated[
        Path | None, typer.Option(help="Write its stages here, to confirm or edit.")
    ] = None,
    output: Output,
    seed: Seed = None,
) -> None:
    """Show what a model file says about itself."""
    del seed
    header = read_header(model)
    if header.kind == "bundle":
        card = read_card(model)
        if stages_out is not None:
            write_stage_file(card.stages, stages_out)
        document = card.model_dump(mode="json")
        output.show(document, lambda: tables.show_card(console, card))
        return
    document = _describe(header)
    if header.kind != "weights":
        document |= _describe_network(header, stages_out)
    elif stages_out is not None:
        raise UsageError(
            f"{model} holds weights only, and stages are those of a network. Leave "
            "--stages-out out."
        )
    output.show(document, lambda: _show(document))


def _describe(header: ModelHeader) -> dict[str, Any]:
    """Describe what the header of a foreign model says, without Keras."""
    document: dict[str, Any] = {
        "kind": header.kind,
        "keras_version": header.keras_version,
        "num_bands": header.num_bands,
        "num_classes": header.num_classes,
        "num_weights": header.weights.num_values,
        "needs": Unknowns.of_header(header).list_missing(ForeignDescription()),
    }
    if header.kind == "weights":
        document["layers"] = [
            {
                "name": layer.name,
                "class": layer.kind,
                "shapes": [list(array.shape) for array in layer.arrays],
            }
            for layer in header.weights.layers
        ]
    return document


def _describe_network(header: ModelHeader, stages_out: Path | None) -> dict[str, Any]:
    """Describe the network itself, and the stages that are proposed for it."""
    from cropseg.models.load import load_network
    from cropseg.models.propose import find_tile_multiple, propose_stages
    from cropseg.models.rebuild import form_network

    network = load_network(header)
    document: dict[str, Any] = {
        "input_shape": list(network.inputs[0].shape),
        "output_shape": list(network.outputs[0].shape),
        "num_layers": len(network.layers),
        "tile_multiple": None,
        "stages": [],
        "problem": None,
    }
    try:
        form = form_network(network).network
        document["tile_multiple"] = find_tile_multiple(form)
        stages = propose_stages(form)
    except ModelError as error:
        if stages_out is not None:
            raise
        return document | {"problem": str(error)}
    if stages_out is not None:
        write_stage_file(stages, stages_out)
    document["stages"] = [
        {
            "name": stage.name,
            "part": stage.part,
            "stride": stage.stride,
            "layers": list(stage.layers),
        }
        for stage in stages
    ]
    return document


def _show(document: dict[str, Any]) -> None:
    rows = {
        "what it is": _KINDS[document["kind"]],
        "saved by": f"Keras {document['keras_version'] or 'unknown'}",
        "weights": str(document["num_weights"]),
    }
    if "input_shape" in document:
        rows["takes"] = _write_shape(document["input_shape"])
        rows["gives"] = _write_shape(document["output_shape"])
        rows["layers"] = str(document["num_layers"])
        rows["tiles"] = f"multiples of {document['tile_multiple']} pixels"
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
    if "layers" in document:
        _show_rows(
            ("layer", "class", "shapes"),
            [
                (x["name"] or "-", x["class"] or "-", " ".join(map(str, x["shapes"])))
                for x in document["layers"]
            ],
        )
    if document.get("stages"):
        _show_rows(
            ("proposed stage", "part", "stride", "layers"),
            [
                (x["name"], x["part"], str(x["stride"]), ", ".join(x["layers"]))
                for x in document["stages"]
            ],
        )
    if document.get("problem"):
        console.print(f"It cannot be a start as it is: {escape(document['problem'])}")
    console.print("A transfer from it needs:")
    for text in document["needs"]:
        console.print(f"  {text}", markup=False)


def _show_rows(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _write_shape(shape: list[int | None]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape[1:])
