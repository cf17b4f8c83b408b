"""The way of a database to this release's schema: create, adopt, complete, migrate; and whose a database is."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from abathur_db import (
    adoption,
    catalog,
    database,
    examination,
    guarded,
    host,
    interruption,
    objects,
    processes,
    resources,
    rules,
    soundness,
)
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Lost, Result, away, counted
from abathur_db.shape import Difference, Index, Schema, describe, difference, expected, latest


@dataclass
class Plan:
    """What init would do; `steps` are sentences.

    `kind`: create, adopt, migrate (the application has to stand still), repair (it may run on), current.
    """

    kind: str
    version: int
    steps: list[str] = field(default_factory=list)


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
    if held := processes.deleted(config.database):
        raise Lost(
            f"{config.database} was deleted while {host.process_name(held[0].pid)} has it open, with all its rows; "
            "no empty one was made in its place",
            config.command("rescue"),
        )
    if any(there):
        raise Lost(
            f"{config.database} is missing, but its backups ({there[0]}) and kept copies ({there[1]}) are here; "
            "no empty one was made in its place",
            f"restore the newest ({config.command('restore', 'latest')}), or begin anew "
            f"({config.command('restore', 'fresh')})",
        )


def stranger(connection: sqlite3.Connection, path: Path) -> Failure | None:
    """Return the refusal of an open database that is another application's, None for one that is or may become ours.

    Ours are told by most of the tables with the columns of their keys, until a deploy marks the file.
    """
    ours = expected(latest())
    found = describe(connection, only=set(ours.tables))
    names = {row[0] for row in connection.execute("SELECT lower(name) FROM sqlite_master WHERE type = 'table'")}
    if found.application_id == ours.application_id:
        return None
    if found.application_id:
        return _others(f"{path} belongs to another application (application_id {found.application_id:#010x})")
    if not names:
        # An application that found no database has made one.
        hint = f"stop the application, move it away ({away(path, 'empty')}), then deploy again, or restore a backup"
        return Lost(f"{path} has no table", hint)
    alike = [name for name, keys in ours.keys.items() if keys <= found.tables.get(name, {}).keys()]
    if len(alike) <= len(ours.tables) // 2:
        said = f"{path} does not hold Abathur's tables, so it belongs to another application"
        return _later(path) if names >= TODAY else _others(said)
    moments = [(name, column) for name in alike for column in ours.tables[name] if column in MOMENTS]
    if all(found.tables[name].get(column) == "TEXT" for name, column in moments):
        return _later(path)
    # The application would take the schema version for its own number, and run the wrong migrations, or none.
    return _counts(path, found.version) if found.version else None


def _others(said: str) -> Failure:
    return Failure(said, "configure another path for Abathur's database", foreign=True)


def _counts(path: Path, version: int) -> Failure:
    return Failure(
        f"{path} has user_version {version}, its application's number, where the schema version has to stand",
        "leave it to its application, or let that keep its number elsewhere, in a table, and set user_version to 0",
        foreign=True,
    )


MOMENTS = ("created_at", "updated_at", "submitted_at", "spawned_at", "timestamp")
"""Columns of the type TIMESTAMP, which the generation after the one that is served made TEXT."""

TODAY = {"goals", "memories", "agent_templates", "schema_migrations"}
"""Tables of today's generation of the application, which has one name in common with the one that is served."""


def _later(path: Path) -> Failure:
    return Failure(
        f"{path} was made by a later generation of Abathur; this release serves its first one, of nine tables",
        "leave it to its application, or configure the path of a database of the first generation",
        foreign=True,
    )


def refuse_stranger(config: Config, *, lost: bool = True) -> None:
    """Raise Failure when the configured database is another application's; `lost`: also when it has no table.

    What is absent, damaged or locked is told by the command that needs it, or mends it.
    """
    path, wait = config.database, config.busy_timeout_ms
    # Nothing is written to, or beside, another application's file: it is looked at as it is first.
    for immutable in (True, False) if database.unsettled(path) else (False,):
        refusal = None
        with contextlib.suppress(Failure), database.opened(path, wait, read_only=True, immutable=immutable) as opened:
            refusal = stranger(opened, path)
        if refusal and (refusal.foreign or not immutable) and (lost or not isinstance(refusal, Lost)):
            raise refusal


def refuse_unfit(connection: sqlite3.Connection, path: Path) -> None:
    """Raise Failure unless an open database could take the place of ours: this application's, of a known version.

    Beside its soundness that alone decides whether a backup counts and is restored; all else is the work of init.
    """
    if refusal := stranger(connection, path):
        raise refusal
    if (version := database.pragma(connection, "user_version")) > latest():
        raise Failure(
            f"{path} has schema version {version}, newer than this tool, which knows {latest()}",
            "deploy a release of at least that version",
        )


def plan_existing(connection: sqlite3.Connection, path: Path) -> Plan:
    """Return what init would do to an open database. Raises Failure when it is not one of this schema."""
    refuse_unfit(connection, path)
    found = describe(connection, only=set(expected(latest()).tables))
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    steps = [] if mode == "wal" else [f"switch the journal mode from {mode} to wal"]
    adopt = found.version == 0
    lack = _lacks(connection, expected(max(found.version, 1)), found)
    if lack.wrong:
        more = f" (and {len(lack.wrong) - 1} more)" if lack.wrong[1:] else ""
        raise Failure(
            f"{path} is not of this schema: {lack.wrong[0]}{more}",
            "adapt it with its application's own migration, then run this again",
        )
    if adopt:
        steps.append("adopt the existing database as schema version 1, keeping every row")
    steps += [f"create TABLE {name}" for name in lack.tables]
    steps += [_indexing(connection, lack, name) for name in lack.indexes]
    steps += [f"apply migration {each.name}" for each in _pending(found.version)]
    open_to_others = [f"close {each.name} to others" for each in database.open_to_others(path)]
    kind = "adopt" if adopt else "migrate" if steps else "repair" if open_to_others else "current"
    return Plan(kind, found.version, steps + open_to_others)


INDEX_ROWS_PER_SECOND = 150_000
"""Half of the rows that an index took a second, at the least of three, on 2 busy processors: rows of 1 kB, 0.35 GB."""

INDEX_ROW_BYTES = 150
"""Bytes that a row takes in an index, with room: 42 were measured; once more in the log until a checkpoint."""


def _indexing(connection: sqlite3.Connection, lack: Difference, name: str) -> str:
    """Return the step that creates an index, with what it takes where that is felt."""
    former = lack.differing.get(name)
    step = f"create INDEX {name}" + (f" anew, now {former}" if former else "")
    rows = _rows(connection, lack.indexes[name])
    seconds = rows / INDEX_ROWS_PER_SECOND
    return step + (f" ({rows} rows, up to {seconds:.0f} s)" if seconds >= 1 else "")


def _rows(connection: sqlite3.Connection, index: Index) -> int:
    """Return how many rows the table of an index has; 0 for one that is absent."""
    try:
        found = connection.execute(f"SELECT count(*) FROM {objects.quoted(index.table)}").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    return int(found)


def _lacks(connection: sqlite3.Connection, wanted: Schema, found: Schema) -> Difference:
    """Compare a database with what is wanted; an index that only the application could make is none to make."""
    lack = difference(wanted, found)
    for name, index in list(lack.indexes.items()):
        columns = ", ".join(objects.quoted(each.removesuffix(" DESC")) for each in index.columns)
        try:
            connection.execute(f"EXPLAIN SELECT 1 FROM {objects.quoted(index.table)} ORDER BY {columns}")
        except sqlite3.OperationalError as error:
            if objects.absent(error):
                lack.taken[name] = f"INDEX {name} is absent, for SQLite alone cannot make it: {error}"
                del lack.indexes[name]
    return lack


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
    checks: list[Check] = []
    if todo.kind == "create":
        _create(config.database)
    else:
        if todo.kind != "repair":
            checks = _bring_up(config)
        for each in database.open_to_others(config.database):
            each.chmod(0o600)
    done = {"create": "created {} at", "adopt": "adopted {} at", "migrate": "migrated {} to"}
    said = done.get(todo.kind, "closed {} to others; it is at").format(config.database)
    warned = sum(check.warning for check in checks)
    also = f", with {counted(warned, 'warning')}" if warned else ""
    return Result("init", f"{said} schema version {latest()}{also}", changed=True, checks=checks, data=data)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _create(path: Path) -> None:
    """Build the database beside its final name; it appears whole or not at all."""
    partial = _partial(path)
    guarded.made(path.parent, 0o700)
    try:
        with database.throwaway(partial):
            build(partial)
            # link(2), unlike rename(2), never replaces a file that somebody made in the meantime.
            with interruption.change(f"{path} was created"):
                os.link(partial, path)
                guarded.sync(path.parent)
    except FileExistsError:
        raise Failure(f"{path} appeared while it was being built; it was left alone", "run this again") from None


def build(path: Path) -> None:
    """Make a new, whole database at a path that must not exist."""
    with database.created(path) as connection:
        for migration in resources.migrations():
            _apply(connection, migration)
    guarded.sync(path)


def _bring_up(config: Config) -> list[Check]:
    """Adopt, complete or migrate the database; return what is to be known of its rows."""
    with database.opened(config.database, config.busy_timeout_ms) as connection:
        # Before anything is changed.
        found = soundness.findings(connection)
        if found.damage:
            raise Failure(
                f"{config.database} is corrupt: {found.damage[0]}; nothing was changed",
                f"{database.RESTORE}: {config.command('restore', 'latest')}",
            )
        version = database.pragma(connection, "user_version")
        if version == 0:
            adoption.remember(config.state_directory, rules.foreign_key_violations(connection)[0])
        checks = examination.content(config, connection, found) if version == 0 else []
        wanted = expected(max(version, 1))
        lack = _lacks(connection, wanted, describe(connection, only=set(wanted.tables)))
        needed = sum(2 * INDEX_ROW_BYTES * _rows(connection, each) for each in lack.indexes.values())
        host.require_free(config.database, needed + config.minimum_free_mb * host.MB, "creating its indexes")
        with interruption.change("the database is in WAL mode"):
            database.enable_wal(connection, config.database)
        with database.transaction(connection, f"the database was brought to schema version {wanted.version}"):
            for statement in lack.tables.values():
                connection.execute(statement)
            for name, index in lack.indexes.items():
                if name in lack.differing:
                    connection.execute(f"DROP INDEX {objects.quoted(name)}")
                connection.execute(str(index.sql))
            connection.execute(f"PRAGMA application_id = {wanted.application_id}")
            connection.execute(f"PRAGMA user_version = {wanted.version}")
        for migration in _pending(version):
            _apply(connection, migration)
    return checks


HOST_TROUBLE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
"""What is no defect of a migration, and is told by whoever opened the database."""


def _apply(connection: sqlite3.Connection, migration: resources.Migration) -> None:
    """Run one migration whole, in one transaction that also sets user_version."""
    script = f"BEGIN IMMEDIATE;\n{migration.sql}\nPRAGMA user_version = {migration.number};"
    try:
        connection.executescript(script)
        with interruption.change(f"migration {migration.name} was applied"):
            connection.execute("COMMIT")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if not isinstance(error, sqlite3.Error):
            raise
        if error.sqlite_errorcode & 0xFF in HOST_TROUBLE:
            raise
        raise Failure(
            f"migration {migration.name} failed: {error}; it was rolled back, the database is as before it",
            "report it with this message; the former release goes on working with the database",
        ) from error


def checks(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Compare a database with what this tool expects: version, tables and columns, and, as a warning, indexes."""
    wanted = expected(latest())
    found = describe(connection, only=set(wanted.tables))
    lack = _lacks(connection, wanted, found)
    odd = [f"INDEX {name} {'differs' if name in lack.differing else 'is absent'}" for name in sorted(lack.indexes)]
    odd += lack.taken.values()
    count = len(found.indexes)
    return [
        Check("schema_version", found.version == latest(), str(latest()), str(found.version), config.bring_up),
        Check(
            "tables",
            not lack.tables,
            f"{len(wanted.tables)} tables",
            _found(found.tables, sorted(lack.tables)),
            config.bring_up,
        ),
        Check(
            "columns",
            not lack.wrong,
            f"{sum(map(len, wanted.tables.values()))} columns of the expected types",
            "; ".join(lack.wrong) or "all there",
            "restore the newest backup, or adapt the table with its application's migration",
        ),
        # An index is no data: without it a query may be slow, and the next deploy creates it.
        Check(
            "indexes",
            True,
            f"{LEAST_INDEXES} or more, every expected one",
            "; ".join(odd) or str(count),
            config.bring_up,
            warning=bool(odd) or count < LEAST_INDEXES,
        ),
    ]


LEAST_INDEXES = 30
"""With the automatic ones (design document, section 4.1)."""


def _found(tables: dict[str, dict[str, str]], lost: list[str]) -> str:
    return f"{len(tables)} tables, lacking {', '.join(lost)}" if lost else f"{len(tables)} tables"
