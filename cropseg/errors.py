"""Every error that cropseg raises on purpose, with its exit code.

Each class is a `CropsegError` and the built-in error that it specialises, so
that a caller may catch either. A message says what was received, what was
expected and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class CropsegError(Exception):
    """Base of all errors that cropseg raises on purpose."""

    exit_code: ClassVar[int] = 70
    """Exit code of the command line when this error ends it."""


class UsageError(CropsegError, ValueError):
    """An option has a value that it cannot have."""

    exit_code = 2


class DataError(CropsegError, ValueError):
    """A manifest, an image or labels are not what they should be."""

    exit_code = 3


class DataFileNotFoundError(DataError, FileNotFoundError):
    """A file of a site is not there."""


class ModelError(CropsegError, ValueError):
    """A model file or its weights cannot be used."""

    exit_code = 4


class ModelFileNotFoundError(ModelError, FileNotFoundError):
    """A model file is not there."""


class UnsafeFileError(CropsegError, ValueError):
    """A file is refused because reading it could do harm."""

    exit_code = 5


class ResourceError(CropsegError, OSError):
    """Disk, memory or permission is missing."""

    exit_code = 6


class ConflictError(CropsegError, FileExistsError):
    """An output is in use, or holds a run with other settings."""

    exit_code = 7


class DivergedError(CropsegError, ArithmeticError):
    """A training reached a loss that is not a number."""

    exit_code = 8


class PartialFailureError(CropsegError, RuntimeError):
    """Some items failed and the rest are complete."""

    exit_code = 9


def join_problems(title: str, problems: Sequence[str]) -> str:
    """Lay out several problems of one input as one message.

    Args:
        title: What was read and what is wrong with it, without a full stop.
        problems: One sentence a problem.

    Returns:
        The title, then the problems as a list, one a line.

    Example:
        >>> print(join_problems("a.yaml has 1 problem", ["`bands` is empty."]))
        a.yaml has 1 problem:
          - `bands` is empty.
    """
    return f"{title}:\n" + "\n".join(f"  - {problem}" for problem in problems)
