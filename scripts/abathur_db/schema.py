"""The schema: what it should be, what a database has, and the way from one to the other.

What it should be stands in sql/migrations alone: they are applied to a database in memory, and a
real one has to have at least the same tables, columns and indexes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from abathur_db import adoption, catalog, database, guarded, resources
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Result


@dataclass(frozen=True)
class Index:
    """An index, or a constraint that SQLite serves with one: its key columns ("+" marks DESC)."""

    table: str
    columns: tuple[str, ...]
    unique: bool
    partial: bool
    sql: str | None

    def serves(self, wanted: Index) -> bool:
        """Tell whether this index does what `wanted` is for; it may have more columns behind."""
        same = self.table == wanted.table and self.partial == wanted.partial
        if wanted.unique:
            return same and self.unique and set(self.columns) == set(wanted.columns)
        return same and self.columns[: len(wanted.columns)] == wanted.columns


@dataclass(frozen=True)
class Schema:
    """Tables with the affinity of each column, and indexes by name."""

    tables: dict[str, dict[str, str]]
    table_sql: dict[str, str]
    indexes: dict[str, Index]
    version: int
    application_id: int


@dataclass
class Plan:
    """What init would do; `steps` are sentences.

    `kind`: create, adopt, migrate (the application has to stand still), repair (it may run on), current.
    """

    kind: str
    version: int
    steps: list[str] = field(default_factory=list)


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
    tables, table_sql, indexes = {}, {}, {}
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
        if name.startswith("sqlite_") or (only is not None and name not in only):
            continue
        table_sql[name] = sql
        rows = connection.execute("SELECT name, type FROM pragma_table_xinfo(?)", (name,))
        tables[name] = {column: affinity(declared) for column, declared in rows}
        listed = connection.execute('SELECT name, "unique", partial FROM pragma_index_list(?)', (name,)).fetchall()
        for index, unique, partial in listed:
            keys = connection.execute('SELECT name, "desc" FROM pragma_index_xinfo(?) WHERE key', (index,))
            columns = tuple(f"{column}{' DESC' if down else ''}" for column, down in keys)
            source = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()[0]
            indexes[index] = Index(name, columns, bool(unique), bool(partial), source)
    return Schema(
        tables,
        table_sql,
        indexes,
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


def missing(wanted: Schema, found: Schema) -> tuple[list[str], list[str]]:
    """Compare "at least these": return the CREATE statements that would help, and what no statement can.

    The first list holds whole tables and indexes that are absent; the second names columns that are
    absent or of another affinity, and constraints or indexes that differ.
    """
    absent, wrong = [], []
    for table, columns in wanted.tables.items():
        if table not in found.tables:
            absent.append(wanted.table_sql[table])
            continue
        for column, kind in columns.items():
            have = found.tables[table].get(column)
            if have is None:
                wrong.append(f"table {table} lacks column {column}")
            elif have != kind:
                wrong.append(f"column {table}.{column} is {have}, not {kind}")
    for name, index in wanted.indexes.items():
        if index.table not in found.tables:
            if index.sql:
                absent.append(index.sql)
        elif index.sql is None:
            if not any(other.serves(index) for other in found.indexes.values()):
                wrong.append(f"table {index.table} lacks UNIQUE ({', '.join(index.columns)})")
        elif name not in found.indexes:
            absent.append(index.sql)
        elif not found.indexes[name].serves(index):
            wrong.append(f"index {name} is on ({', '.join(found.indexes[name].columns)})")
    return absent, wrong


def _subject(statement: str) -> str:
    return " ".join(statement.split("(")[0].split(" ON ")[0].split()[1:])


def plan(config: Config) -> Plan:
    """Return what init would do to the configured database, changing nothing.

    Raises Failure for everything that init would refuse.
    """
    if not database.exists(config.database):
        _refuse_to_bury(config)
        return Plan("create", latest(), [f"create {config.database} at schema version {latest()}"])
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        return plan_existing(connection, config.database)


def _refuse_to_bury(config: Config) -> None:
    """Refuse to put an empty database where one was lost: its backups or a kept copy say that it existed."""
    there = len(catalog.backups(config)), len(catalog.kept_aside(config))
    if any(there):
        raise Failure(
            f"{config.database} is missing, but its backups ({there[0]}) and kept copies ({there[1]}) are here; "
            "no empty one was made in its place",
            f"restore the newest ({config.command('restore', 'latest')}), or begin anew "
            f"({config.command('restore', 'fresh')})",
        )


def stranger(connection: sqlite3.Connection, path: Path) -> Failure | None:
    """Return the refusal of an open database that is another application's, None for one that is or may become ours."""
    ours = expected(latest())
    found = describe(connection, only=set(ours.tables))
    identity = found.application_id
    if identity == ours.application_id or (identity == 0 and found.tables):
        return None
    if identity == 0 and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        # An application that found no database has made one.
        hint = f"stop the application, move it away (mv {path} {path}.empty), then deploy again, or restore a backup"
        return Failure(f"{path} has no table", hint)
    said = f"{path} belongs to another application (application_id {identity:#010x})"
    if identity == 0:
        said = f"{path} holds none of Abathur's tables, so it belongs to another application"
    return Failure(said, "configure another path for Abathur's database")


def refuse_stranger(config: Config) -> None:
    """Raise Failure when the configured database is another application's.

    What is absent, damaged or locked is told by the command that needs it, or mends it.
    """
    refusal = None
    path, wait = config.database, config.busy_timeout_ms
    with contextlib.suppress(Failure), database.opened(path, wait, read_only=True) as connection:
        refusal = stranger(connection, path)
    if refusal:
        raise refusal


def plan_existing(connection: sqlite3.Connection, path: Path) -> Plan:
    """Return what init would do to an open database. Raises Failure when it is not one of this schema."""
    found = describe(connection, only=set(expected(latest()).tables))
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    steps = [] if mode == "wal" else [f"switch the journal mode from {mode} to wal"]
    if refusal := stranger(connection, path):
        raise refusal
    if found.version > latest():
        raise Failure(
            f"{path} has schema version {found.version}, newer than this tool, which knows {latest()}",
            "deploy a release of at least that version",
        )
    adopt = found.version == 0
    absent, wrong = missing(expected(max(found.version, 1)), found)
    if wrong:
        raise Failure(
            f"{path} is not of this schema: {'; '.join(wrong)}",
            "adapt it with its application's own migration, then run this again",
        )
    if adopt:
        steps.append("adopt the existing database as schema version 1, keeping every row")
    steps += [f"create {_subject(statement)}" for statement in absent]
    steps += [f"apply migration {each.name}" for each in _pending(found.version)]
    open_to_others = [f"close {each.name} to others" for each in database.open_to_others(path)]
    kind = "adopt" if adopt else "migrate" if steps else "repair" if open_to_others else "current"
    return Plan(kind, found.version, steps + open_to_others)


def _pending(version: int) -> tuple[resources.Migration, ...]:
    # Version 0 is adopted as version 1 by comparison, never by running migration 1 over its tables.
    return resources.migrations()[max(version, 1) :]


def init(config: Config, dry_run: bool = False) -> Result:
    """Create, adopt or migrate the configured database; an existing one keeps every row.

    Raises Failure, with nothing touched, for whatever is not a sound database of this schema.
    """
    todo = plan(config)
    if not dry_run:
        # Killed right after it had given a new database its name, it left the former name as well.
        for each in database.files(_partial(config.database)):
            guarded.clear(each)
    data = {"kind": todo.kind, "version": todo.version if dry_run else latest(), "steps": todo.steps}
    if todo.kind == "current":
        return Result("init", f"{config.database} is at schema version {todo.version}", data=data)
    if dry_run:
        return Result("init", f"would {'; '.join(todo.steps)}", changed=True, data=data)
    if todo.kind == "create":
        _create(config.database)
    else:
        if todo.kind != "repair":
            _bring_up(config)
        for each in database.open_to_others(config.database):
            each.chmod(0o600)
    done = {"create": "created {} at", "adopt": "adopted {} at", "migrate": "migrated {} to"}
    said = done.get(todo.kind, "closed {} to others; it is at").format(config.database)
    return Result("init", f"{said} schema version {latest()}", changed=True, data=data)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _create(path: Path) -> None:
    """Build the database beside its final name; it appears whole or not at all."""
    partial = _partial(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with database.throwaway(partial):
            build(partial)
            # link(2), unlike rename(2), never replaces a file that somebody made in the meantime.
            os.link(partial, path)
    except FileExistsError:
        raise Failure(f"{path} appeared while it was being built; it was left alone", "run this again") from None
    database.sync(path.parent)


def build(path: Path) -> None:
    """Make a new, whole database at a path that must not exist."""
    with database.created(path) as connection:
        for migration in resources.migrations():
            _apply(connection, migration)
    database.sync(path)


def _bring_up(config: Config) -> None:
    with database.opened(config.database, config.busy_timeout_ms) as connection:
        if found := database.problems(connection):
            raise Failure(
                f"{config.database} is corrupt: {found[0]}; nothing was changed",
                f"{database.RESTORE}: {config.command('restore', 'latest')}",
            )
        database.enable_wal(connection, config.database)
        version = database.pragma(connection, "user_version")
        if version == 0:
            adoption.remember(config.state_directory, database.foreign_key_violations(connection))
        with database.transaction(connection):
            wanted = expected(max(version, 1))
            absent, _ = missing(wanted, describe(connection, only=set(wanted.tables)))
            for statement in absent:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {wanted.application_id}")
            connection.execute(f"PRAGMA user_version = {wanted.version}")
        for migration in _pending(version):
            _apply(connection, migration)


HOST_TROUBLE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
"""What is no defect of a migration, and is told by whoever opened the database."""


def _apply(connection: sqlite3.Connection, migration: resources.Migration) -> None:
    """Run one migration whole, in one transaction that also sets user_version."""
    script = f"BEGIN IMMEDIATE;\n{migration.sql}\nPRAGMA user_version = {migration.number};\nCOMMIT;"
    try:
        connection.executescript(script)
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if error.sqlite_errorcode & 0xFF in HOST_TROUBLE:
            raise
        raise Failure(
            f"migration {migration.name} failed: {error}; it was rolled back, the database is as before it",
            "report it with this message; the former release goes on working with the database",
        ) from error


def checks(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Compare a database with what this tool expects: version, tables and columns, indexes."""
    wanted = expected(latest())
    found = describe(connection, only=set(wanted.tables))
    absent, wrong = missing(wanted, found)
    lost_tables = sorted(set(wanted.tables) - set(found.tables))
    lost_indexes = sorted(_subject(statement) for statement in absent if "INDEX" in statement.split("(")[0])
    bad_columns = [each for each in wrong if not each.startswith("index ")]
    bad_indexes = [each for each in wrong if each.startswith("index ")]
    count = len(found.indexes)
    return [
        Check("schema_version", found.version == latest(), str(latest()), str(found.version), config.bring_up),
        Check(
            "tables",
            not lost_tables,
            f"{len(wanted.tables)} tables",
            _found(found.tables, lost_tables),
            config.bring_up,
        ),
        Check(
            "columns",
            not bad_columns,
            f"{sum(map(len, wanted.tables.values()))} columns of the expected types",
            "; ".join(bad_columns) or "all there",
            "restore the newest backup, or adapt the table with its application's migration",
        ),
        Check(
            "indexes",
            # 30 or more with the automatic ones: design document, section 4.1.
            not lost_indexes and not bad_indexes and count >= 30,
            "30 or more, every expected one",
            "; ".join([*bad_indexes, *(f"{each} is absent" for each in lost_indexes)]) or f"{count}",
            config.bring_up,
        ),
    ]


def _found(tables: dict[str, dict[str, str]], lost: list[str]) -> str:
    return f"{len(tables)} tables, lacking {', '.join(lost)}" if lost else f"{len(tables)} tables"
