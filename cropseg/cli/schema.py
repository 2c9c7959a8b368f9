"""`cropseg schema`: the JSON schema of a manifest, for editors and other programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.json_schema import GenerateJsonSchema

from cropseg.cli.options import Overwrite, Seed
from cropseg.cli.show import Output, console
from cropseg.errors import ConflictError
from cropseg.files import write_text
from cropseg.sites.manifest import Manifest


def schema(
    *,
    out: Annotated[
        Path | None, typer.Option(help="File for the schema, instead of stdout.")
    ] = None,
    overwrite: Overwrite = False,
    output: Output,
    seed: Seed = None,
) -> None:
    """Print the JSON schema of a manifest, which editors understand."""
    del seed
    document = build_schema()
    if out is None:
        output = replace(output, as_json=True)
    else:
        _write_schema(out, document, overwrite=overwrite)
    output.show(document, lambda: console.print(f"{out}", markup=False, soft_wrap=True))


def build_schema() -> dict[str, Any]:
    """Return the JSON schema of a manifest.

    It knows keys, types and limits. What spans several keys, such as shares that sum
    to 1, only `read_manifest` checks.

    Returns:
        The schema, with a description for every key.
    """
    found = Manifest.model_json_schema(
        by_alias=True, schema_generator=_WithoutFieldTitles
    )
    head = {"$schema": GenerateJsonSchema.schema_dialect, "title": "cropseg manifest"}
    return head | {
        key: _join_lines(part) for key, part in found.items() if key not in head
    }


class _WithoutFieldTitles(GenerateJsonSchema):
    """Leaves out titles such as "Gsd M", which editors would show."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _join_lines(node: Any) -> Any:
    """Make one line of each description: a docstring is broken for the screen."""
    if isinstance(node, list):
        return [_join_lines(part) for part in node]
    if not isinstance(node, dict):
        return node
    joined = {key: _join_lines(part) for key, part in node.items()}
    if isinstance(joined.get("description"), str):
        joined["description"] = " ".join(joined["description"].split())
    return joined


def _write_schema(path: Path, document: dict[str, Any], *, overwrite: bool) -> None:
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if path.is_file() and not overwrite:
        if path.read_bytes() == text.encode():
            return
        raise ConflictError(
            f"{path} is there and holds something else than the schema. Choose another "
            "file, or replace it with --overwrite."
        )
    write_text(path, text)
