"""docs/manifest.md, the JSON schema and `Manifest` say the same."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any, Final, NamedTuple

import jsonschema
import pytest
import yaml
from rasterio.crs import CRS

from cropseg import cli
from cropseg.cli.schema import build_schema
from cropseg.errors import ConflictError, DataError, ResourceError
from cropseg.sites import formula
from cropseg.sites.classes import MAX_CLASSES
from cropseg.sites.manifest import VECTOR_ENDINGS, Manifest, read_manifest
from cropseg.sites.vector import VectorSource, open_fields

ROOT: Final = Path(__file__).parents[1]
TEXT: Final = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
MANIFESTS: Final = sorted((ROOT / "data_manifests").glob("*.yaml"))
SCHEMA: Final = build_schema()

WHOLE: Final[dict[str, Any]] = {
    "site": "somewhere",
    "bands": ["blue", "green", "red", "nir"],
    "classes": [
        {"name": "corn", "color": "#ffd300", "values": [1001]},
        {"name": "fallow", "color": "#bfbf77", "values": [1002]},
    ],
    "scenes": [{"image": "east.tif"}],
}
"""What completes a part of a manifest."""

SHARES: Final = {"block_m": 7680, "train": 0.6, "val": 0.2, "test": 0.2}
FIELDS: Final = {"image": "east.tif", "labels": "fields.gpkg", "field": "crop"}
ENTRIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "Site": ("Manifest", WHOLE),
    "Classes": ("ClassEntry", {"name": "a", "color": "#000000"}),
    "Images": ("SceneEntry", {"image": "east.tif"}),
    "Label rasters": ("SceneEntry", {"image": "east.tif", "labels": "labels.tif"}),
    "Polygons and points": ("SceneEntry", FIELDS),
    "Blocks": ("SplitEntry", SHARES),
    "Folds": ("SplitEntry", {"block_m": 1280, "folds": 5}),
    "Regions": ("SplitEntry", {}),
}
"""Under each heading with a table: what its keys belong to, and what completes it."""


class Row(NamedTuple):
    heading: str
    key: str
    default: str
    example: str


def list_rows() -> list[Row]:
    """Return the rows of all tables of keys."""
    rows = []
    for section in re.split(r"^##+ ", TEXT, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        for line in body.splitlines():
            if line.startswith("| `"):
                key, default, example, _ = line.strip("|").split(" | ")
                rows.append(Row(heading, *map(strip, (key, default, example))))
    return rows


def strip(cell: str) -> str:
    return cell.strip().strip("`")


def list_blocks() -> list[str]:
    """Return the fenced YAML blocks."""
    found = re.findall(r"^( *)```yaml\n(.*?)^\1```$", TEXT, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for _, block in found]


def get_schema(entry: str) -> dict[str, Any]:
    return SCHEMA if entry == "Manifest" else SCHEMA["$defs"][entry]


def complete(entry: str, part: dict[str, Any]) -> dict[str, Any]:
    """Put the entry of a manifest into a whole one."""
    if entry == "Manifest":
        return part
    if entry == "ClassEntry":
        other = {"name": "other", "color": "#ffffff"}
        return WHOLE | {"classes": [part, other | ({"id": 1} if "id" in part else {})]}
    key, value = ("scenes", [part]) if entry == "SceneEntry" else ("split", part)
    return WHOLE | {key: value}


def require_valid(document: dict[str, Any]) -> None:
    Manifest.model_validate(document)
    jsonschema.validate(document, SCHEMA)


ROWS: Final = list_rows()
BLOCKS: Final = list_blocks()


def test_the_blocks_and_the_rows_of_the_page_are_found():
    assert len(BLOCKS) == TEXT.count("```yaml") > 8
    assert {row.heading for row in ROWS} == set(ENTRIES)


@pytest.mark.parametrize("entry", ["Manifest", *SCHEMA["$defs"]])
def test_every_key_has_a_row_and_every_row_is_a_key(entry):
    documented = {row.key for row in ROWS if ENTRIES[row.heading][0] == entry}

    assert documented == set(get_schema(entry)["properties"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.heading}: {row.key}")
def test_the_example_of_a_key_is_valid_and_not_its_default(row):
    entry, base = ENTRIES[row.heading]
    example = yaml.safe_load(row.example)

    assert list(example) == [row.key]
    require_valid(complete(entry, base | example))
    assert example[row.key] != get_schema(entry)["properties"][row.key].get("default")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.heading}: {row.key}")
def test_the_default_of_a_key_is_that_of_the_schema(row):
    schema = get_schema(ENTRIES[row.heading][0])

    assert (row.default == "required") == (row.key in schema.get("required", ()))
    if row.default != "required":
        default = None if row.default == "-" else yaml.safe_load(row.default)
        assert schema["properties"][row.key]["default"] == default


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_is_a_manifest_or_a_part_of_one(block):
    require_valid(WHOLE | yaml.safe_load(block))


def test_the_first_block_is_a_whole_manifest_with_all_keys_and_a_line_for_editors():
    first_line, _, text = BLOCKS[0].partition("\n")

    assert first_line == "# yaml-language-server: $schema=manifest.schema.json"
    assert set(yaml.safe_load(text)) == set(SCHEMA["properties"])
    assert "cropseg schema --out manifest.schema.json" in TEXT


def test_the_csv_of_the_page_is_read(tmp_path):
    path = tmp_path / "survey.csv"
    path.write_text(TEXT.split("```csv\n")[1].split("```")[0], encoding="utf-8")
    source = VectorSource(path=path, field="crop", filter=(("visited", ("yes",)),))

    fields = open_fields(source, CRS.from_epsg(32632))

    assert fields.values == ("wheat",)
    assert fields.are_points


def test_limits_and_lists_of_the_page_are_those_of_the_code():
    for ending in VECTOR_ENDINGS:
        assert f"`{ending}`" in TEXT
    for function in (*formula._FUNCTIONS, *formula._CHOICES):
        assert f"`{function}`" in TEXT
    assert f"at most {formula.MAX_LENGTH} characters" in TEXT
    limit = formula.MAX_EXPONENT
    assert f"a number from -{limit:g} to {limit:g}, and not 0" in TEXT
    assert f"2 to {MAX_CLASSES}" in TEXT


def test_links_to_headings_lead_somewhere():
    headings = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}

    links = set(re.findall(r"\]\(#([^)]+)\)", TEXT))

    assert links
    assert links <= anchors


def test_the_schema_is_one_and_describes_every_key_in_a_line():
    jsonschema.validators.validator_for(SCHEMA, default=None).check_schema(SCHEMA)
    assert SCHEMA["title"] == "cropseg manifest"
    for entry in (SCHEMA, *SCHEMA["$defs"].values()):
        assert entry["additionalProperties"] is False
        for key, item in entry["properties"].items():
            assert item["description"], key
            assert "\n" not in item["description"], key
            assert "title" not in item, key


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_of_the_project_is_read_and_fits_the_schema(path):
    read_manifest(path)

    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "bnads", ["red"]),
        (("classes", 0), "colour", "#000000"),
        (("scenes", 0), "labls", "a.tif"),
        (("split",), "blockm", 320),
        ((), "site", 7),
        ((), "bands", []),
        ((), "classes", WHOLE["classes"][:1]),
        ((), "ignore", "others"),
        (("classes", 0), "color", "red"),
        (("classes", 0), "values", [2.5]),
        (("scenes", 0), "image", None),
        (("scenes", 0), "edge_buffer_m", -1),
        (("split",), "train", 1.5),
        (("split",), "folds", 1),
    ],
)
def test_a_wrong_entry_fits_neither_the_schema_nor_cropseg(
    place, key, value, tmp_path, make_site
):
    path = make_site(tmp_path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    jsonschema.validate(document, SCHEMA)
    part = document
    for step in place:
        part = part[step]
    part[key] = value
    path.write_text(yaml.safe_dump(document), encoding="utf-8")

    with pytest.raises(DataError):
        read_manifest(path)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.fixture
def run(capsys):
    """Return a function that runs `cropseg schema` and returns its stdout."""

    def run_schema(*arguments):
        cli.app(["schema", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return run_schema


@pytest.mark.parametrize("options", [(), ("--json",), ("--quiet",)])
def test_the_command_prints_the_schema(run, options):
    assert json.loads(run(*options)) == SCHEMA


def test_the_command_writes_the_schema_and_replaces_no_other_file(run, tmp_path):
    path = tmp_path / "a [b] folder" / "manifest.schema.json"

    assert run("--out", path) == f"{path}\n"
    assert run("--out", path, "--quiet") == ""
    assert json.loads(run("--out", path, "--json")) == SCHEMA
    assert json.loads(path.read_text(encoding="utf-8")) == SCHEMA

    path.write_text("site: mine\n", encoding="utf-8")
    with pytest.raises(ConflictError, match="--overwrite"):
        run("--out", path)
    assert path.read_text(encoding="utf-8") == "site: mine\n"
    run("--out", path, "--overwrite")
    assert json.loads(path.read_text(encoding="utf-8")) == SCHEMA


def test_a_folder_in_the_place_of_the_file_is_told(run, tmp_path):
    with pytest.raises(ResourceError, match="Cannot write"):
        run("--out", tmp_path)
    assert not list(tmp_path.iterdir())
