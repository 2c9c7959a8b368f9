"""Findings: what a person should know of a site, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cropseg.errors import CropsegError

LEVELS: Final = ("error", "warning", "note")
"""Levels of a finding, the most severe first. With an error a site is not ok."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know of a site."""

    level: str
    """One of `LEVELS`."""
    code: str
    """A short name that does not change."""
    message: str
    """What was found."""
    remedy: str = ""
    """What to do."""
    path: str = ""
    """The file that it was found in."""

    @classmethod
    def from_error(
        cls, error: CropsegError, code: str, path: Path | str = ""
    ) -> Finding:
        """Return an error as a finding. Its message holds its remedy."""
        return cls(level="error", code=code, message=str(error), path=str(path))


def sort_findings(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return findings with the most severe first."""
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level)))
