"""Writing the report of a comparison."""

from __future__ import annotations

from pathlib import Path

from cropseg.comparison.report.data import ReportData
from cropseg.comparison.report.folder import read_folder
from cropseg.comparison.report.markdown import render_markdown
from cropseg.comparison.report.page import render_page
from cropseg.files import write_text


def write_report(comparison_dir: str | Path) -> Path:
    """Write `report.html` and `report.md` of a comparison.

    Both come from the files of its folder alone, so that they can be written again at
    any time. What is missing there is left out, and the report says so.

    Args:
        comparison_dir: The folder of a comparison.

    Returns:
        The path of `report.html`.

    Raises:
        ResourceError: If the folder cannot be written to.
    """
    folder = Path(comparison_dir)
    data = ReportData(files=read_folder(folder))
    write_text(folder / "report.md", render_markdown(data))
    write_text(folder / "report.html", render_page(data))
    return folder / "report.html"
