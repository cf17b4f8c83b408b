"""The schema that should be, against the one that a database has, as a diff."""

from __future__ import annotations

import difflib
import sqlite3

from abathur_db import shape
from abathur_db.shape import Schema


def diff(connection: sqlite3.Connection) -> list[str]:
    """Return the lines of a diff: "-" is absent in the database, "+" is there and not in sql/migrations.

    More is welcome (an application adds its own); only a "-" is drift that matters. No lines: no difference.
    """
    wanted = shape.expected(shape.latest())
    # The columns of other tables are not read: the extension of a virtual one may be absent (trap 15).
    found = shape.describe(connection, only=set(wanted.tables))
    others = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY 1"
    )
    extra = [f"table {name}" for (name,) in others if name not in wanted.tables]
    lines = difflib.unified_diff(_lines(wanted), [*_lines(found), *extra], lineterm="", n=2)
    return [line for line in lines if not line.startswith(("---", "+++"))]


def _lines(described: Schema) -> list[str]:
    lines = []
    for table, columns in sorted(described.tables.items()):
        lines.append(f"table {table}")
        lines += [f"  {column} {kind}" for column, kind in sorted(columns.items())]
        for name, index in sorted(described.indexes.items()):
            # Automatic ones bear numbers; the constraint behind them is what counts.
            label = f"index {name}" if index.sql else "constraint"
            if index.table == table:
                kind = f"{' unique' if index.unique else ''}{' partial' if index.partial else ''}"
                lines.append(f"  {label} ({', '.join(map(str, index.columns))}){kind}")
    return lines
