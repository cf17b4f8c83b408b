"""The manifest of a backup: what is known of it, and what a text has to hold to be one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from abathur_db import foreign, guarded

ROWS_BYTES = guarded.LIMIT - 2048
"""Bytes of JSON that the rows of a manifest may have: the other fields have the rest of what its readers take."""

OTHER_TABLES = "sqlite_others"
"""Stands for the tables whose rows do not fit; no table has this name, because SQLite keeps `sqlite_` for itself."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a backup; stands beside it as JSON. Sizes in bytes, duration in seconds.

    `sequence` grows by one with each backup, whatever the clock does: it says which is newer. `rows`: see fitting.
    """

    id: str
    sequence: int
    file: str
    created: str
    sha256: str
    bytes: int
    plain_sha256: str
    plain_bytes: int
    page_count: int
    user_version: int
    application_id: int
    rows: dict[str, int]
    sqlite_version: str
    tool_version: str
    check: str
    seconds: float

    @property
    def moment(self) -> datetime:
        """The time of the snapshot."""
        return foreign.moment(self.created)

    def text(self) -> str:
        """Return the manifest as it stands on the disk."""
        return json.dumps(asdict(self), indent=2) + "\n"


def fitting(rows: dict[str, int]) -> dict[str, int]:
    """Return the rows per table as a manifest has them: as many tables as fit, the others as one sum."""
    left = ROWS_BYTES
    others: set[str] = set()
    for name in sorted(rows, key=len):
        left -= len(f"    {json.dumps(name)}: {rows[name]},\n")
        if left < 0:
            others.add(name)
    kept = {name: count for name, count in rows.items() if name not in others}
    return {**kept, OTHER_TABLES: sum(rows[name] for name in others)} if others else kept


def parse(text: str) -> Manifest:
    """Return the manifest that a text is. Raises ValueError or TypeError for one that is none."""
    values = foreign.record(text)
    manifest = Manifest(**values)
    for name, fits in FITS.items():
        if not fits(values[name]):
            raise ValueError(f"it says {name} = {values[name]!r:.60}")
    # One without a zone could not be compared.
    foreign.moment(manifest.created, zoned=True)
    return manifest


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    # SQLite's largest number: what is counted here never goes beyond.
    return type(value) is int and 0 <= value < 2**63


def _is_header_number(value: Any) -> bool:
    # user_version and application_id are signed (sqlite.org/fileformat.html, section 1.3).
    return type(value) is int and -(2**31) <= value < 2**31


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 2**63


def _is_rows(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


_BY_TYPE: dict[str, Callable[[Any], bool]] = {
    "str": _is_text,
    "int": _is_count,
    "float": _is_seconds,
    "dict[str, int]": _is_rows,
}
FITS = {each.name: _BY_TYPE[str(each.type)] for each in fields(Manifest)}
FITS |= {"user_version": _is_header_number, "application_id": _is_header_number}
"""Field of a manifest -> check of its value."""
