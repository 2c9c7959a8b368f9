"""The report of a comparison: a page and a text, made from its folder alone."""

from cropseg.comparison.report.write import write_report

__all__ = ["write_report"]
