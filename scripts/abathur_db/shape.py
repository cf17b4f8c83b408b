"""The shape of a database: its tables, columns and indexes, what they should be, and how the two differ.

What it should be stands in sql/migrations alone: they are applied to a database in memory, and a real one has to have
at least the same tables, columns and indexes.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field

from abathur_db import database, resources, rules
from abathur_db.result import Failure


@dataclass(frozen=True)
class Index:
    """An index, or a constraint that SQLite serves with one: its key columns ("+" marks DESC)."""

    table: str
    columns: tuple[str, ...]
    unique: bool
    partial: bool
    sql: str | None

    @property
    def where(self) -> str:
        """What stands behind WHERE; empty for an index of all rows."""
        whole = self.sql if self.sql and self.partial else ""
        return re.split(r"\bWHERE\b", whole, maxsplit=1, flags=re.IGNORECASE)[-1].strip()

    @property
    def condition(self) -> str:
        """What stands behind WHERE without what makes no difference: spaces, and the case of all but texts."""
        parts = (each if each.startswith("'") else each.lower() for each in rules.TOKEN.findall(self.where))
        return "".join(each for each in parts if not each.isspace())

    def __str__(self) -> str:
        """Return what stands behind ON."""
        return f"on ({', '.join(self.columns)}){self.where and f' WHERE {self.where}'}"

    def serves(self, wanted: Index) -> bool:
        """Tell whether this index does what `wanted` is for; it may have more columns behind."""
        same = self.table == wanted.table and self.condition == wanted.condition
        if wanted.unique:
            return same and self.unique and set(self.columns) == set(wanted.columns)
        return same and self.columns[: len(wanted.columns)] == wanted.columns


@dataclass(frozen=True)
class Schema:
    """Tables with the affinity of each column and the columns of their keys, and indexes by name.

    Names are in small letters, for SQLite takes them in whatever case. `others`: what every other object is.
    """

    tables: dict[str, dict[str, str]]
    keys: dict[str, set[str]]
    table_sql: dict[str, str]
    indexes: dict[str, Index]
    others: dict[str, str]
    version: int
    application_id: int


@dataclass
class Difference:
    """What a database lacks: tables by name with their statement, indexes, and what no statement can mend.

    `differing`: those of `indexes` that are there and serve something else. `taken`: indexes that cannot be made, for
    their name is another object's, with a sentence. `wrong`: sentences on columns and rules.
    """

    tables: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, Index] = field(default_factory=dict)
    differing: dict[str, Index] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def affinity(declared: str) -> str:
    """Return the affinity of a declared column type (sqlite.org/datatype3.html, section 3.1)."""
    kind = declared.upper()
    for words, name in (
        (("INT",), "INTEGER"),
        (("CHAR", "CLOB", "TEXT"), "TEXT"),
        (("BLOB",), "BLOB"),
        (("REAL", "FLOA", "DOUB"), "REAL"),
    ):
        if any(word in kind for word in words):
            return name
    return "NUMERIC" if kind else "BLOB"


def describe(connection: sqlite3.Connection, only: set[str] | None = None) -> Schema:
    """Read the schema of a database; `only` leaves out other tables (virtual ones may not be readable)."""
    tables, keys, table_sql, indexes, others = {}, {}, {}, {}, {}
    objects = connection.execute("SELECT type, lower(name), tbl_name, sql FROM sqlite_master").fetchall()
    for kind, name, table, sql in objects:
        if kind != "table" or name.startswith("sqlite_") or (only is not None and name not in only):
            others[name] = f"an index of table {table}" if kind == "index" else f"a {kind}"
            continue
        table_sql[name] = sql
        rows = connection.execute("SELECT lower(name), type, pk FROM pragma_table_xinfo(?)", (name,)).fetchall()
        tables[name] = {column: affinity(declared) for column, declared, _ in rows}
        parents = connection.execute('SELECT lower("from") FROM pragma_foreign_key_list(?)', (name,))
        keys[name] = {column for column, _, position in rows if position} | {row[0] for row in parents}
        listed = connection.execute(
            'SELECT lower(name), "unique", partial FROM pragma_index_list(?)', (name,)
        ).fetchall()
        for index, unique, partial in listed:
            rows = connection.execute(
                'SELECT lower(name), "desc" FROM pragma_index_xinfo(?) WHERE key', (index,)
            ).fetchall()
            columns = tuple(f"{column}{' DESC' if down else ''}" for column, down in rows)
            # The primary key of a table WITHOUT ROWID is the table itself, and has no row of its own there.
            source = connection.execute("SELECT sql FROM sqlite_master WHERE lower(name) = ?", (index,)).fetchone()
            indexes[index] = Index(name, columns, bool(unique), bool(partial), source[0] if source else None)
    return Schema(
        tables,
        keys,
        table_sql,
        indexes,
        {name: said for name, said in others.items() if name not in indexes},
        database.pragma(connection, "user_version"),
        database.pragma(connection, "application_id"),
    )


def expected(version: int) -> Schema:
    """Return what migrations 1 to `version` make."""
    with database.in_memory() as memory:
        for migration in resources.migrations()[:version]:
            try:
                memory.executescript(f"{migration.sql}\nPRAGMA user_version = {migration.number};")
            except sqlite3.Error as error:
                raise Failure(
                    f"migration {migration.name} cannot be applied, not even to a new database: {error}",
                    "report it with this message; the former release goes on working with the database",
                ) from error
        return describe(memory)


def latest() -> int:
    """Return the newest schema version that this tool knows."""
    return resources.migrations()[-1].number


def difference(wanted: Schema, found: Schema) -> Difference:
    """Compare "at least these": what is wanted of tables, columns and indexes, and is absent or differs."""
    lack = Difference()
    for table, columns in wanted.tables.items():
        if table not in found.tables:
            if table in found.others:
                lack.wrong.append(f"{table} is {found.others[table]}, not a table")
            lack.tables[table] = wanted.table_sql[table]
            continue
        for column, kind in columns.items():
            have = found.tables[table].get(column)
            if have is None:
                lack.wrong.append(f"table {table} lacks column {column}")
            elif have != kind:
                lack.wrong.append(f"column {table}.{column} is {have}, not {kind}")
    for name, index in wanted.indexes.items():
        there = found.indexes.get(name)
        if index.sql is None:
            # A rule of the table, served by an index.
            served = any(other.serves(index) for other in found.indexes.values())
            if index.table in found.tables and not served:
                lack.wrong.append(f"table {index.table} lacks UNIQUE ({', '.join(index.columns)})")
        elif name in found.others or name in found.tables:
            lack.taken[name] = f"INDEX {name} is absent, for its name is that of {found.others.get(name, 'a table')}"
        elif there is None or not there.serves(index):
            lack.indexes[name] = index
            lack.differing |= {name: there} if there else {}
    return lack
