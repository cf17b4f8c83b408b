"""What SQLite's own checks find in a database, told apart by what follows from it.

Damage ends a database. An index that differs from its table is made again. A row that breaks a rule of its table is a
row to correct. What only the application could evaluate is named.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

from abathur_db import objects

LINES = 10_000
"""Lines that SQLite gives at most: those of the file first, those of rows and indexes table by table. Of its default of
100, the rows of one table would hide the index of the next."""
TOLD = 100
"""Rows that are told at most."""

INDEX = re.compile(
    r"row \S+ missing from index (.+)|wrong # of entries in index (.+)"
    r"|rowid not at end-of-record for row \S+ of index (.+)|row \S+ values differ from index (.+)"
)
ROW = re.compile(
    r"CHECK constraint failed in (.+)|non-unique entry in index (.+)|(?:NULL|NUMERIC|TEXT|non-\w+) value in (.+)\.[^.]+"
)
UNABLE = re.compile(r"unable to validate .+ table (?:\w+\.)?(.+?)(?::.*)?")
"""Lines of PRAGMA integrity_check that are no damage of the file (src/pragma.c and the extensions of SQLite)."""


@dataclass(frozen=True)
class Findings:
    """Sentences of `damage`, names of `indexes` that differ from their table, and two kinds that end nothing.

    `rows`: rows that break a rule. `unchecked`: what SQLite alone cannot evaluate.
    """

    damage: list[str]
    indexes: list[str]
    rows: list[str]
    unchecked: list[str]

    @property
    def fault(self) -> str:
        """The first reason not to rely on the file as it is, empty for none."""
        return self.damage[0] if self.damage else self.astray

    @property
    def astray(self) -> str:
        """The indexes that differ from their tables in a sentence, empty for none."""
        if not self.indexes:
            return ""
        more = f" and {len(self.indexes) - 1} more" if self.indexes[1:] else ""
        return f"index {self.indexes[0]}{more}: entries differ from the rows of the table"


def findings(connection: sqlite3.Connection, *, full: bool = False) -> Findings:
    """Run SQLite's quick check or, with `full`, its integrity check, which compares indexes with tables as well.

    A collation or function of the application is given a stand-in, and what depends on it does not count.
    """
    # A CHECK would be evaluated on a connection that can write, and not on another; see `broken`.
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        lines, absent = _lines(connection, f"PRAGMA {'integrity' if full else 'quick'}_check({LINES})")
    finally:
        connection.execute("PRAGMA ignore_check_constraints = OFF")
    dependent = {table: name for name in absent for table in _users(connection, name)}
    found = Findings([], [], [], [f"table {each} ({name} is the application's)" for each, name in dependent.items()])
    for line in lines:
        if match := INDEX.fullmatch(line) or ROW.fullmatch(line):
            name = next(filter(None, match.groups()))
            kept, said = (found.indexes, name) if match.re is INDEX else (found.rows, line)
            if said in kept or (kept is found.rows and len(kept) == TOLD):
                continue
            if _table(connection, name) not in dependent:
                kept.append(said)
        elif match := UNABLE.fullmatch(line):
            found.unchecked.append(f"table {match[1]}")
        else:
            found.damage.append(line)
    return found


def _lines(connection: sqlite3.Connection, check: str) -> tuple[list[str], list[str]]:
    """Run a check; return its lines, none when it finds nothing, and the names that had to be stood in for."""
    said: list[str] = []

    def run() -> None:
        said.clear()
        try:
            said.extend(str(row[0]) for row in connection.execute(check))
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            # It gives up where it cannot go on; that is the last line.
            said.append(str(error))

    _, absent = objects.stood_in(connection, run)
    # The first line may be a heading, "*** in database main ***", of no use in a sentence.
    lines = [line for each in said for line in each.splitlines()]
    return [each for each in lines if each != "ok" and not each.startswith("***")], absent


def _users(connection: sqlite3.Connection, name: str) -> list[str]:
    """Return the tables whose definition, or an index of theirs, says a name."""
    named = word(name)
    found = connection.execute("SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return sorted({table for table, sql in found if named.search(sql)})


def _table(connection: sqlite3.Connection, name: str) -> str:
    """Return the table of an index, or the table itself."""
    row = connection.execute("SELECT tbl_name FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return str(row[0]) if row else name


def word(name: str) -> re.Pattern[str]:
    """Return a pattern that finds a name in SQL, whole and in whatever case."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)
