"""docs/modes.md tells of every mode what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cropseg.transfer.describe import list_plans

TEXT = (Path(__file__).parents[1] / "docs" / "modes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^### `(.+?)`\n(.*?)(?=^### |\Z)", TEXT))


def test_the_document_has_the_modes_of_the_table_in_its_order():
    assert list(SECTIONS) == [row["mode"] for row in list_plans()]


@pytest.mark.parametrize("row", list_plans(), ids=lambda row: row["mode"])
def test_a_mode_is_told_with_purpose_source_and_score(row):
    section = SECTIONS[row["mode"]]

    assert row["summary"] in section
    assert f"Meant for: {row['serves']}" in section
    assert f"Source: {row['origin']}." in section
    assert re.search(r"Seen: mIoU 0\.\d{3}, \d+ s, ", section)
    assert f"| `{row['mode']}` | 0." in TEXT
