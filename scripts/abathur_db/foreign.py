"""What others wrote: applications, other hosts, other programs, people. One parser for each kind, with its limits.

A parser raises ValueError for whatever is not of its kind, and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeGuard

LEVELS = 64
"""How deep JSON may be nested: the tool's own has less than ten levels, and Python recurses to a thousand."""

LARGEST = 2**63
"""What SQLite cannot count any more is no size, no duration and no number of rows."""

COUNTABLE = "BETWEEN -9e18 AND 9e18"
"""What SQL asks of a column, that its value is a number that is_number takes: not NULL, no text, nothing infinite."""

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What code raises over values that are not what it takes them for, of another host's report for one."""

Pairs = Callable[[list[tuple[str, Any]]], Any]


def words(data: bytes) -> str:
    """Return bytes as text; what is no UTF-8 becomes a replacement character."""
    return data.decode("utf-8", "replace")


def is_text(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: an argument or a file's name may hold bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def moment(text: object, *, zoned: bool = False) -> datetime:
    """Return the moment that an ISO 8601 text names, in UTC; a text without a time zone means UTC.

    The first and the last year that Python knows are left out, so that a moment can be moved by some months.
    `zoned`: the time zone has to be named. Raises ValueError.
    """
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no time")
    found = datetime.fromisoformat(text)
    if zoned and found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    try:
        found = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    if not datetime.min.year < found.year < datetime.max.year:
        raise ValueError(f"year {found.year} is out of range")
    return found


def value(text: object, pairs: Pairs | None = None) -> Any:
    """Return the value of a JSON text; `pairs` makes an object of its members, as json.loads has it.

    Raises ValueError, also for numbers that are infinite or of more than 64 bits, and for nesting without end.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError("it is no text")
    try:
        found = json.loads(text, parse_int=_int, parse_float=_float, parse_constant=_float, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(f"it has more than {LEVELS} levels") from None
    level = [found]
    for _ in range(LEVELS):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return found
    raise ValueError(f"it has more than {LEVELS} levels")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _int(text: str) -> int:
    if not -LARGEST <= (found := int(text)) < LARGEST:
        raise ValueError(f"{text:.20} is a number of more than 64 bits")
    return found


def _float(text: str) -> float:
    if not math.isfinite(found := float(text)):
        raise ValueError(f"{text:.20} is no finite number")
    return found


def record(text: object, pairs: Pairs | None = None) -> dict[str, Any]:
    """Return the JSON object that a text is, as `value` does. Raises ValueError for any other text."""
    found = value(text, pairs)
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    return found


def whole(text: str, base: int = 10) -> int:
    """Return the whole number, 0 or more and of 63 bits at most, that a text is. Raises ValueError."""
    found = int(text, base)
    if not 0 <= found < LARGEST:
        raise ValueError(f"{text:.20} is out of range")
    return found


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that can be added up, compared and drawn; a truth value is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value < LARGEST
