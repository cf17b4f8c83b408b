"""The rules that rows may break without any damage: CHECK constraints and foreign keys, with the statement that mends.

SQLite enforces both only when a row is written, and neither always: applications run with foreign_keys off, and what
a CHECK lets in differs between its versions.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from abathur_db import objects, soundness
from abathur_db.result import counted

TOKEN = re.compile(r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|\w+|.""", re.DOTALL)
"""A token of SQL, as far as parentheses and the word CHECK are concerned (sqlite.org/lang_createtable.html)."""


@dataclass(frozen=True)
class Broken:
    """Rows that break a CHECK of their table, which SQLite evaluates only when a row is written."""

    table: str
    constraint: str
    count: int
    first: str
    repair: str
    """The statement that mends them, or shows them where their value has to be decided by people."""

    def __str__(self) -> str:
        """Return what is wrong, without the text of a row."""
        first = f" (first: {self.first})" if self.first else ""
        return f"{counted(self.count, 'row')} of table {self.table}{first} against CHECK ({self.constraint})"


def broken(connection: sqlite3.Connection) -> tuple[list[Broken], list[str]]:
    """Evaluate every CHECK on every row; return what is broken, and what could not be evaluated.

    Reads every table that has one, whole.
    """
    found: list[Broken] = []
    unchecked: list[str] = []
    for table in objects.tables(connection):
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        for constraint in constraints(sql):
            try:
                found += _breaking(connection, table, constraint)
            except sqlite3.OperationalError as error:
                unchecked.append(f"CHECK ({constraint}) of table {table} ({error})")
    return found, unchecked


def constraints(sql: str) -> list[str]:
    """Return the expressions of the CHECKs in a CREATE TABLE statement, without comments."""
    found = []
    inside: list[str] | None = None
    depth, after_check = 0, False
    for part in TOKEN.findall(sql):
        if part.isspace() or part.startswith(("--", "/*")):
            if inside and inside[-1] != " ":
                inside.append(" ")
            continue
        depth += {"(": 1, ")": -1}.get(part, 0)
        if inside is None and part == "(" and after_check:
            inside, level = [], depth
        elif inside is not None and part == ")" and depth < level:
            found.append("".join(inside).strip())
            inside = None
        elif inside is not None:
            inside.append(part)
        after_check = part.upper() == "CHECK"
    return found


def _breaking(connection: sqlite3.Connection, table: str, constraint: str) -> Iterator[Broken]:
    name = objects.quoted(table)
    rows = f"FROM {name} WHERE NOT ({constraint})"
    count = connection.execute(f"SELECT count(*) {rows}").fetchone()[0]
    if not count:
        return
    columns = connection.execute("SELECT name, dflt_value FROM pragma_table_xinfo(?)", (table,)).fetchall()
    used = [each for each in columns if soundness.word(each[0]).search(constraint)]
    identity = objects.rowid(connection, table)
    repair = f"SELECT {identity and f'{identity}, '}* {rows}"
    if len(used) == 1 and used[0][1] is not None:
        column, default = objects.quoted(used[0][0]), used[0][1]
        # A value that is there may be the only copy of something: what it should be is for people to say.
        if not connection.execute(f"SELECT count(*) {rows} AND {column} IS NOT NULL").fetchone()[0]:
            repair = f"UPDATE {name} SET {column} = {default} WHERE {column} IS NULL"
    first = f"row {connection.execute(f'SELECT min({identity}) {rows}').fetchone()[0]}" if identity else ""
    yield Broken(table, constraint, count, first, repair)


def foreign_key_violations(connection: sqlite3.Connection) -> tuple[dict[str, int], list[str]]:
    """Return the violating rows per table, and the tables whose foreign keys SQLite cannot follow.

    SQLite's own checks say nothing of them. A parent column that is not unique is a "mismatch" to SQLite.
    """
    counts: dict[str, int] = {}
    unchecked: list[str] = []
    for table in objects.tables(connection):
        if not connection.execute("SELECT 1 FROM pragma_foreign_key_list(?)", (table,)).fetchone():
            continue
        try:
            found = sum(1 for _ in connection.execute(f"PRAGMA foreign_key_check({objects.quoted(table)})"))
        except sqlite3.OperationalError as error:
            unchecked.append(f"foreign keys of table {table} ({error})")
        else:
            counts |= {table: found} if found else {}
    return counts, unchecked


def unparented(connection: sqlite3.Connection, table: str) -> tuple[str, str]:
    """Return what the first violated foreign key of a table is, and the statement that mends it, or shows the rows.

    Both are empty where it was mended in the meantime.
    """
    first = connection.execute(f"PRAGMA foreign_key_check({objects.quoted(table)})").fetchone()
    if first is None:
        return "", ""
    _, row, parent, number = first
    keys = connection.execute(
        'SELECT "from", "to", on_delete FROM pragma_foreign_key_list(?) WHERE id = ? ORDER BY seq', (table, number)
    ).fetchall()
    columns = connection.execute("SELECT name, pk FROM pragma_table_xinfo(?) ORDER BY pk", (parent,)).fetchall()
    primary = [name for name, position in columns if position]
    child, kin = objects.quoted(table), objects.quoted(parent)
    own = [objects.quoted(each[0]) for each in keys]
    # Without a column that it names, a foreign key means the primary key (sqlite.org/foreignkeys.html, section 3).
    theirs = [objects.quoted(each[1] or primary[place]) for place, each in enumerate(keys)] if columns else []
    # A qualified name is never taken for a text where there is no such column.
    lost = " AND ".join(f"{child}.{each} IS NOT NULL" for each in own)
    if theirs:
        match = " AND ".join(f"{kin}.{there} = {child}.{here}" for here, there in zip(own, theirs, strict=True))
        lost += f" AND NOT EXISTS (SELECT 1 FROM {kin} WHERE {match})"
    said = f"{table}{'' if row is None else f' row {row}'}, {', '.join(each[0] for each in keys)} in {parent}"
    if keys[0][2] == "SET NULL":
        # What SQLite does by itself when the application has foreign_keys on.
        return said, f"UPDATE {child} SET {', '.join(f'{each} = NULL' for each in own)} WHERE {lost}"
    # Whether the parent comes back or the row goes is for people to say: nothing is deleted by us.
    identity = objects.rowid(connection, table)
    return said, f"SELECT {identity and f'{identity}, '}* FROM {child} WHERE {lost}"
