"""What is in an open database: its tables, their rows, and what only its application can evaluate."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def tables(connection: sqlite3.Connection) -> list[str]:
    """Return the tables of a database in their order; virtual ones are left out, their module may be absent."""
    return [name for name, sayable in _tables(connection) if sayable]


def unsayable(connection: sqlite3.Connection) -> list[str]:
    """Return the tables whose name is no UTF-8, as far as it can be printed: no statement of ours can name them."""
    return [name for name, sayable in _tables(connection) if not sayable]


def _tables(connection: sqlite3.Connection) -> list[tuple[str, bool]]:
    rows = connection.execute(
        "SELECT name, CAST(name AS BLOB) FROM sqlite_master WHERE type = 'table'"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name"
    )
    # A cast to bytes gives those of the file: UTF-8, UTF-16le or UTF-16be.
    encoding = connection.execute("PRAGMA encoding").fetchone()[0]
    return [(name, name.encode(encoding, "surrogatepass") == stored) for name, stored in rows]


def rowid(connection: sqlite3.Connection, table: str) -> str:
    """Return a name of a table's rowid that none of its columns has, empty for a table WITHOUT ROWID."""
    columns = {row[0].lower() for row in connection.execute("SELECT name FROM pragma_table_xinfo(?)", (table,))}
    name = next((each for each in ("rowid", "_rowid_", "oid") if each not in columns), "")
    try:
        connection.execute(f"SELECT {name or 'NULL'} FROM {quoted(table)} LIMIT 0")
    except sqlite3.OperationalError:
        return ""
    return name


ABSENT = re.compile(r"no such collation sequence: (.+)|(?:unknown|no such) function: ([^(]+)(?:\(\))?")
"""What SQLite says of a collation or a function that the application gives to its own connections."""


def absent(error: sqlite3.Error) -> str:
    """Return the collation or function of the application's that SQLite says it lacks, empty for another error."""
    match = ABSENT.fullmatch(str(error))
    return next(filter(None, match.groups()), "") if match else ""


def unanswerable(error: sqlite3.OperationalError) -> str:
    """Return why a statement has no answer on this schema. Raises the error again where the schema is not the cause."""
    # The extended codes of it, a collation that is absent for one, are more than its last byte.
    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_ERROR:
        raise error
    return str(error)


def stood_in(connection: sqlite3.Connection, work: Callable[[], T]) -> tuple[T, list[str]]:
    """Do work that writes nothing, with stand-ins for the application's collations and functions that it meets.

    Returns what the work returns, and their names: whatever takes their order or value is not to be relied on.
    """
    names: list[str] = []
    try:
        while True:
            try:
                return work(), names
            except sqlite3.OperationalError as error:
                name = absent(error)
                if not name or name in names:
                    raise
                names.append(name)
                connection.create_collation(name, lambda a, b: (a > b) - (a < b))
                connection.create_function(name, -1, lambda *_: None, deterministic=True)
    finally:
        # With one of them a row could be written to the wrong place.
        for name in names:
            connection.create_collation(name, None)
            connection.create_function(name, -1, None)


def row_counts(connection: sqlite3.Connection) -> dict[str, int]:
    """Return the number of rows per table that is not virtual."""

    def count(name: str) -> int:
        return int(connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0])

    return {name: stood_in(connection, partial(count, name))[0] for name in tables(connection)}


def quoted(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
