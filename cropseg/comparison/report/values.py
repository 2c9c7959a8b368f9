"""Values of a summary as text. What is missing or no number is a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

MISSING: Final = "\N{EN DASH}"
"""What stands in a table where a value is not known."""

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_LEAST_P: Final = 0.001
_LEAST_CHANCE: Final = 0.01
_MIB: Final = 2**20
_GIB: Final = 2**30
_COLOR: Final = re.compile(r"#[0-9a-fA-F]{6}")
_GREY: Final = "#8a8f98"


def read_number(value: Any) -> float | None:
    """Return a finite number, or None.

    Example:
        >>> read_number(3), read_number("3"), read_number(float("nan"))
        (3.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_interval(value: Any) -> tuple[float, float] | None:
    """Return the two ends of an interval, or None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:  # noqa: PLR2004 - two ends
        return None
    low, high = read_number(value[0]), read_number(value[1])
    return None if low is None or high is None else (low, high)


def read_bar(item: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return a mode's interval, or where it has none the range of its draws."""
    return read_interval(item.get("interval")) or read_interval(
        [item.get("miou_low"), item.get("miou_high")]
    )


def read_list(value: Any) -> list[Any]:
    """Return a list, empty where there is none."""
    return list(value) if isinstance(value, list | tuple) else []


def read_items(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list, empty where there is none."""
    return [item for item in read_list(value) if isinstance(item, Mapping)]


def read_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping, empty where there is none."""
    return value if isinstance(value, Mapping) else {}


def read_color(value: Any) -> str:
    """Return a colour that may stand in a style, grey where it is none."""
    is_color = isinstance(value, str) and _COLOR.fullmatch(value)
    return str(value) if is_color else _GREY


def read_text(value: Any) -> str:
    """Return a text, empty where there is none."""
    return "" if value is None else str(value)


def write_score(value: Any, digits: int = 3) -> str:
    """Write a score from 0 to 1.

    Example:
        >>> write_score(0.12345), write_score(None) == MISSING
        ('0.123', True)
    """
    number = read_number(value)
    return MISSING if number is None else f"{number:.{digits}f}"


def write_change(value: Any, digits: int = 3) -> str:
    r"""Write a difference of scores, with its sign.

    Example:
        >>> write_change(0.05), write_change(-0.05) == "\N{MINUS SIGN}0.050"
        ('+0.050', True)
    """
    number = read_number(value)
    return MISSING if number is None else _minus(f"{number:+.{digits}f}")


def write_interval(value: Any, *, signed: bool = False) -> str:
    """Write an interval.

    Example:
        >>> write_interval([0.1, 0.25])
        '0.100 to 0.250'
    """
    ends = read_interval(value)
    if ends is None:
        return MISSING
    write = write_change if signed else write_score
    return f"{write(ends[0])} to {write(ends[1])}"


def write_p(value: Any) -> str:
    """Write a p-value.

    Example:
        >>> write_p(0.0004), write_p(0.0421)
        ('< 0.001', '0.042')
    """
    number = read_number(value)
    if number is None:
        return MISSING
    return f"< {_LEAST_P}" if number < _LEAST_P else f"{number:.3f}"


def write_count(value: Any) -> str:
    """Write a count, or a quantity whose decimals do not matter."""
    number = read_number(value)
    return MISSING if number is None else _minus(f"{number:,.0f}")


def write_ha(value: Any) -> str:
    """Write hectares, with decimals where they are few.

    Example:
        >>> write_ha(1234.5), write_ha(3.14159)
        ('1,234', '3.1')
    """
    number = read_number(value)
    if number is None:
        return MISSING
    return _minus(f"{number:,.1f}" if abs(number) < 100 else f"{number:,.0f}")  # noqa: PLR2004 - three digits are enough


def write_percent(value: Any) -> str:
    """Write a share from 0 to 1 in per cent."""
    number = read_number(value)
    return MISSING if number is None else f"{number:.0%}"


def write_chance(value: Any) -> str:
    """Write an estimated probability, which is never quite 0 or 1.

    Example:
        >>> write_chance(0.5), write_chance(0.9996), write_chance(0.0)
        ('50%', '> 99%', '< 1%')
    """
    number = read_number(value)
    if number is None or _LEAST_CHANCE <= number <= 1 - _LEAST_CHANCE:
        return write_percent(number)
    return "< 1%" if number < _LEAST_CHANCE else "> 99%"


def write_seconds(value: Any) -> str:
    """Write a time.

    Example:
        >>> write_seconds(4.25), write_seconds(200), write_seconds(7500)
        ('4.2 s', '3 min 20 s', '2 h 05 min')
    """
    number = read_number(value)
    if number is None:
        return MISSING
    if number < _MINUTE_S:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), _MINUTE_S)
    if number < _HOUR_S:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(number / _MINUTE_S), _MINUTE_S)
    return f"{hours} h {minutes:02d} min"


def write_memory(value: Any) -> str:
    """Write an amount of memory in bytes."""
    number = read_number(value)
    if number is None:
        return MISSING
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / _MIB:.0f} MiB"


def write_labels(labels: Any) -> str:
    """Write a budget as words.

    Example:
        >>> write_labels("4tiles"), write_labels("1tiles"), write_labels("50ha")
        ('4 tiles', '1 tile', '50 ha')
    """
    found = re.fullmatch(r"(\d+)([a-z]+)", read_text(labels))
    if not found:
        return read_text(labels) or "no labels"
    unit = found[2][:-1] if found[1] == "1" and found[2].endswith("s") else found[2]
    return f"{int(found[1]):,} {unit}"


def read_amount(labels: Any) -> tuple[float, str] | None:
    """Return the amount and the unit of a budget, or None."""
    found = re.fullmatch(r"(\d+)([a-z]+)", read_text(labels))
    return (float(found[1]), found[2]) if found and int(found[1]) else None


def shorten(text: str, length: int = 22) -> str:
    """Shorten a text in the middle of a figure."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def make_breakable(text: str) -> Markup:
    """Return a name that may break after an underscore, a colon or a comma."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) for part in re.findall(r"[^_:,]*[_:,]?", text)
    )
