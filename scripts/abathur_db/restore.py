"""Restoring a backup: proven first, swapped in by rename, the database that was there kept aside whole."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from abathur_db import (
    catalog,
    database,
    guarded,
    host,
    interruption,
    objects,
    packing,
    processes,
    proof,
    readings,
    replica,
    schema,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Lost, Result, counted, look

FRESH = "fresh"

OWN_TABLES = ("_litestream_seq", "_litestream_lock")
"""Tables that Litestream alone writes as it replicates: their rows are no reason to refuse a way back."""
OWN_ROWS = {"metrics": readings.OURS}
"""Table that the application writes too -> the rows in it that the bundle wrote, which are no reason either."""

DATABASE_LOCKS = (0x40000000, 512)
"""First byte and number of the PENDING, RESERVED and SHARED locks of a database file (PENDING_BYTE, os.h)."""
SHM_LOCKS = (120, 9)
"""First byte and number of the locks of a -shm; every open WAL connection holds one (sqlite.org/walformat.html)."""

FLOCK = "hhqqi4x"
"""struct flock of Linux on 64 bits: type, whence, start, length, pid (fcntl(2))."""


def restore(config: Config, source: str, dry_run: bool = False, keep_rows: bool = False) -> Result:
    """Put a backup in the place of the database: an ID, `latest`, a moment, a file, or `fresh` for a new one.

    For a moment it is the nearest of backup and replica at or before it.

    The former database is kept aside with all that SQLite put beside it, whatever state it is in. `keep_rows`:
    refuse when rows written since would not be in it. Raises Failure, with everything as it was,
    when the backup is not good or somebody has the database open.
    """
    staged = config.database.with_name(f".{config.database.name}.restore")
    if held := processes.deleted(config.database):
        raise Failure(
            f"{host.process_name(held[0].pid)} has the deleted {config.database.name} open, with rows that no backup "
            "has; nothing was changed",
            f"take it from there: {config.command('rescue')}; to do without it, end that process first",
            Exit.BUSY,
        )
    guarded.made(config.database.parent, 0o700)
    with database.throwaway(staged):
        name, made, mended = _stage(config, source, staged)
        lost = losses(config, staged, made)
        data: dict[str, Any] = {"source": name, "created": made, "lost": lost["tables"], "kept": None}
        if dry_run:
            summary = f"would restore {name}; {lost['sentence']}"
            return Result("restore", summary, changed=True, data=data)
        if keep_rows and lost["tables"] != {}:
            raise Failure(
                f"{name} was not restored: {lost['sentence']}; nothing was changed",
                "to go back all the same (the database of now is kept aside): "
                "ansible-playbook rollback.yml --limit HOST -e abathur_db_rollback_lose_rows=true",
            )
        with alone(config.database, config.application_units):
            data["kept"] = swap(config.database, staged)
    kept = f"; the former database is kept in {data['kept']}" if data["kept"] else ""
    also = "".join(f"; {each}" for each in mended)
    hint = f"systemctl start {replica.UNIT}, which begins the next lineage" if replica.settings(config) else ""
    return Result(
        "restore",
        f"restored {name}; {lost['sentence']}{kept}{also}",
        changed=True,
        data=data,
        hint=_behind(config) or hint,
    )


def _behind(config: Config) -> str:
    """Return the next step of a restored database that this release would change, empty for none."""
    try:
        with host.translated():
            steps = schema.plan(config).steps
    except Failure as failure:
        # It is restored all the same: what its tables lack is for their application to mend.
        return f"{failure}: {failure.hint}"
    return f"bring it to this release's schema: {config.command('init')}" if steps else ""


class Staged(NamedTuple):
    """What stands ready beside the final name: what it is called, when it was made, and what was mended in it."""

    name: str
    made: str | None
    mended: list[str]


def _stage(config: Config, source: str, staged: Path) -> Staged:
    """Make the proven database beside the final name."""
    if source == FRESH:
        schema.build(staged)
        return Staged("a fresh database", None, [])
    if "/" in source or Path(source).suffix in (".db", ".gz", ".zst"):
        path = Path(source).absolute()
        # A folder where a restore or a rejoin keeps a database.
        path = path / config.database.name if path.is_dir() else path
        ours = host.identity(path.parent) == host.identity(config.backup_directory)
        if not ours or not catalog.NAME.fullmatch(path.name):
            return Staged(str(path), None, _stage_foreign(config, path, staged))
        source = path.name
    if point := _nearer(config, source):
        return Staged(str(point), point.moment.isoformat(), _stage_replica(config, point, staged))
    manifest = catalog.find(config, source)
    mended = proof.prove(config, manifest, staged)
    to_wal(staged)
    return Staged(f"backup {manifest.id}", manifest.created, mended)


def _stage_foreign(config: Config, path: Path, staged: Path) -> list[str]:
    """Take a file without a manifest, a .db, .db.gz or .db.zst of other origin, after the same checks.

    A .db with the -wal or -journal that stands beside it: a process that was killed leaves there what its last commit
    wrote, or what has to be taken back. Returns what was mended.
    """
    if not path.is_file():
        raise Failure(f"there is no backup file {path}", "see what there is: abathur-db backups")
    # Copied while somebody writes, file and log would not be of one moment, which no check has to find.
    if holders := host.processes_with(path, *database.sidecars(path)):
        raise _open_elsewhere(path, [], holders)
    free = host.free_bytes(staged) - config.minimum_free_mb * host.MB
    packing.unpack(path, staged, max(free, 0))
    if staged.stat().st_size == 0:
        raise Failure(f"{path} is empty", packing.ANOTHER)
    wal, _, journal = zip(database.sidecars(path), database.sidecars(staged), strict=True)
    for log, copy in (wal, journal):
        if log.is_file():
            packing.unpack(log, copy, max(free - staged.stat().st_size, 0))
            to_wal(staged)
    mended = proof.examine(staged, str(path))
    to_wal(staged)
    return mended


def _nearer(config: Config, source: str) -> replica.Point | None:
    """Return the state of the replica that is nearer to a moment than every backup at or before it, if there is one.

    None for what names no moment; the ID of a backup could be read as one.

    Raises Failure when the replica cannot be read: whoever asked for a moment should not get a worse one unasked.
    """
    settings, at = replica.settings(config), catalog.moment(source)
    if settings is None or at is None:
        return None
    found = catalog.entries(config)
    if source in {each.id for each in found}:
        return None
    backup = catalog.before(catalog.sound(found), at)
    try:
        point = replica.point(config, settings, at)
    except Failure as failure:
        instead = f"take the last backup before it: {config.command('restore', backup.id)}" if backup else failure.hint
        raise Failure(f"{failure}; nothing was changed", instead, failure.code) from None
    return point if point and (backup is None or point.moment > backup.moment) else None


def _stage_replica(config: Config, point: replica.Point, staged: Path) -> list[str]:
    """Take a state of the replica, after the same checks as a file of other origin; return what was mended."""
    likely = max(point.bytes, config.database.stat().st_size if config.database.exists() else 0)
    host.require_free(staged, likely + config.minimum_free_mb * host.MB, f"fetching {point}")
    replica.fetch(config, replica.required(config), point, staged)
    mended = proof.examine(staged, str(point))
    to_wal(staged)
    return mended


def to_wal(staged: Path) -> None:
    """Make a closed copy a database in WAL mode, on the disk."""
    with database.opened(staged, 0) as connection:
        database.enable_wal(connection, staged)
        # Closing does it as well, but says nothing when the disk is full, and half of a log would look like damage.
        database.checkpoint(connection)
    guarded.sync(staged)


def losses(config: Config, other: Path, made: str | None = None) -> dict[str, Any]:
    """Compare the live database with one to take its place: rows per table that only the live one has as they are.

    Returns `tables` {name: {"new": n, "changed": n}} and a sentence. What cannot be computed counts as lost: a table
    has None for its numbers then, and `tables` is None when the live database cannot be read.
    """
    absent = {"tables": None, "sentence": "there is no database to compare it with: " + _since(made)}
    try:
        if not database.exists(config.database):
            return absent
        with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
            if not (objects.tables(connection) or objects.unsayable(connection)):
                return absent
            connection.execute("ATTACH DATABASE ? AS other", (f"file:{quote(str(other))}?immutable=1",))
            compared = [name for name in objects.tables(connection) if name not in OWN_TABLES]
            tables = {name: _missing_rows(connection, name) for name in compared}
            tables |= dict.fromkeys(objects.unsayable(connection), UNKNOWN)
    except Lost:
        return absent
    except Failure as failure:
        if failure.code is Exit.BUSY:
            raise
        return {"tables": None, "sentence": f"what is lost cannot be said: {failure}"}
    lost = {name: counts for name, counts in tables.items() if counts["new"] != 0 or counts["changed"] != 0}
    if not lost:
        return {"tables": {}, "sentence": "no row is lost"}
    known = {name: counts for name, counts in lost.items() if counts["new"] is not None}
    listing = ", ".join(f"{name} {counts['new']} new and {counts['changed']} changed" for name, counts in known.items())
    total = sum(sum(counts.values()) for counts in known.values())
    said = [f"it lacks {counted(total, 'row')} written since: {listing}"] if known else []
    said += [f"what is lost of table {name} cannot be said" for name in lost if name not in known]
    return {"tables": lost, "sentence": "; ".join(said)}


def _since(made: str | None) -> str:
    return f"what was written after {made} is not in it" if made else "what was in the former one is lost"


UNKNOWN = {"new": None, "changed": None}


def _missing_rows(connection: sqlite3.Connection, table: str) -> dict[str, Any]:
    # A single INTEGER key is the rowid, which is never NULL.
    never = "\"notnull\" OR upper(type) = 'INTEGER' AND max(pk) OVER () = 1"
    columns = connection.execute(
        f"SELECT name, dflt_value, pk, hidden, {never} FROM pragma_table_xinfo(?)", (table,)
    ).fetchall()
    there = {row[0].lower() for row in connection.execute("SELECT name FROM pragma_table_xinfo(?, 'other')", (table,))}
    try:
        return _compared(connection, table, columns, there)
    except sqlite3.OperationalError as error:
        # What its application brings, as the collation of a key, is needed to tell.
        objects.unanswerable(error)
        return UNKNOWN


def _compared(connection: sqlite3.Connection, table: str, columns: list[Any], there: set[str]) -> dict[str, Any]:
    name = objects.quoted(table)
    identity = objects.rowid(connection, table)
    live = f"main.{name}"
    if (ours := OWN_ROWS.get(table.lower())) and {column.lower() for column, *_ in columns} >= readings.COLUMNS:
        live = f"(SELECT {identity and f'{identity} AS {identity}, '}* FROM main.{name} WHERE ({ours}) IS NOT TRUE)"
    keys = [(column, never) for column, _, position, _, never in columns if position]
    key = [objects.quoted(column) for column, _ in keys] if all(column.lower() in there for column, _ in keys) else []
    if not there or not (key or identity):
        return {"new": connection.execute(f"SELECT count(*) FROM {live}").fetchone()[0], "changed": 0}
    # A key may be NULL, and in more than one row, unless its column forbids it: those are told by their rowid.
    named = " AND ".join(f"a.{each} IS NOT NULL" for each in key)
    nameless = " OR ".join(f"a.{each} IS NULL" for each in key) or "TRUE"
    ways = [(named, " AND ".join(f"b.{each} = a.{each}" for each in key))] if key else []
    if identity and not (key and all(never for _, never in keys)):
        ways.append((f"({nameless})", f"b.{identity} = a.{identity}"))
    # A collation would take two texts for one; as text or bytes, two numbers that differ behind 15 digits are one.
    alike = (
        "typeof(a.{0}) = typeof(b.{0}) AND CASE typeof(a.{0}) WHEN 'text'"
        " THEN CAST(a.{0} AS BLOB) IS CAST(b.{0} AS BLOB) ELSE a.{0} IS b.{0} COLLATE BINARY END"
    )
    # Of a column that the other one does not have, what its definition does not give by itself is lost.
    given = "a.{0} IS ({1})"
    kept = " AND ".join(
        (alike if column.lower() in there else given).format(objects.quoted(column), default or "NULL")
        for column, default, _, hidden, _ in columns
        if not hidden
    )
    counts = {"new": 0, "changed": 0}
    for which, match in ways:
        new = f"SELECT count(*) FROM {live} a WHERE {which} AND NOT EXISTS (SELECT 1 FROM other.{name} b WHERE {match})"
        changed = f"SELECT count(*) FROM {live} a JOIN other.{name} b ON {match} WHERE {which} AND NOT ({kept})"
        counts["new"] += connection.execute(new).fetchone()[0]
        counts["changed"] += connection.execute(changed).fetchone()[0]
    return counts


@contextmanager
def alone(path: Path, units: Sequence[str]) -> Iterator[None]:
    """Prove that no process has the database open, and keep SQLite's locks on it meanwhile.

    `units`: the application's. Raises Failure (BUSY), naming the processes, and what to stop.
    """
    with ExitStack() as stack:
        for each, start, length in ((path, *DATABASE_LOCKS), (database.sidecars(path)[1], *SHM_LOCKS)):
            try:
                descriptor = os.open(each, os.O_RDWR | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Failure(
                    f"{each} cannot be opened: {error.strerror}; nothing was changed",
                    look(each),
                ) from None
            stack.callback(os.close, descriptor)
            _lock(path, units, descriptor, start, length)
        if holders := host.processes_with(path, *database.sidecars(path)):
            raise _open_elsewhere(path, units, holders)
        yield


def _lock(path: Path, units: Sequence[str], descriptor: int, start: int, length: int) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError):
        wanted = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        # Tells the holder, also one of another user.
        answer = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, wanted))
        raise _open_elsewhere(path, units, [host.process_name(answer[4])]) from None


def _open_elsewhere(path: Path, units: Sequence[str], holders: list[str]) -> Failure:
    others = [each for each in holders if not each.startswith("litestream")]
    stops = [f"systemctl stop {' '.join(units)}"] if others and units else others
    stops += [f"systemctl stop {replica.UNIT}"] if len(others) < len(holders) else []
    return Failure(
        f"{path} is open in {', '.join(holders)}; nothing was changed",
        f"stop what uses it ({'; '.join(stops)}), then run this again",
        Exit.BUSY,
    )


def swap(path: Path, staged: Path) -> str | None:
    """Put `staged` in the place of the database; return the folder where the former one is kept, if there was one.

    The order matters, because this may be killed anywhere: first the former files get a second name
    aside, so that nothing can be lost; then the database goes before its log and journal, because without
    them it has lost commits or has half of one; and the new one comes last, once they are gone on the disk as
    well, because an old log or journal beside it would be replayed over it (schema facts, trap 11).
    """
    present, aside = _linked_aside(path)
    kept = f"; the former one is kept in {aside}" if aside else ""
    with interruption.change(f"the backup took the place of {path}{kept}"):
        try:
            for each in present:
                each.unlink()
            guarded.sync(path.parent)
            os.rename(staged, path)
            guarded.sync(path.parent)
            with database.opened(path, 0, read_only=True) as connection:
                database.pragma(connection, "user_version")
        except BaseException:
            _put_back(path, aside)
            raise
    return str(aside) if aside else None


def _linked_aside(path: Path) -> tuple[list[Path], Path | None]:
    """Give the files of a database a second name in a new folder; return them and it, None without any."""
    present = [each for each in (path, *database.sidecars(path)) if os.path.lexists(each)]
    aside = folder_aside(path) if present else None
    try:
        for each in present:
            os.link(each, aside / each.name, follow_symlinks=False)  # type: ignore[operator]
        for folder in (aside, path.parent) if aside else ():
            guarded.sync(folder)
    except BaseException:
        _discard(aside)
        raise
    return present, aside


def put_aside(path: Path) -> Path | None:
    """Move a database that nobody has open away, whole; return the folder where it is kept.

    Killed in between, its files have a second name there, and the database goes before its -wal.
    """
    present, aside = _linked_aside(path)
    with interruption.change(f"{path} was moved to {aside}"):
        for each in present:
            each.unlink()
        guarded.sync(path.parent)
    return aside


def _put_back(path: Path, aside: Path | None) -> None:
    """Undo a swap: all that was there is aside."""
    for each in (path, *database.sidecars(path)):
        each.unlink(missing_ok=True)
    guarded.sync(path.parent)
    # The -wal before its database: nobody may open the one without the other.
    for each in (*database.sidecars(path), path):
        if aside and (aside / each.name).exists():
            os.link(aside / each.name, each)
    guarded.sync(path.parent)
    _discard(aside)


def _discard(aside: Path | None) -> None:
    if aside:
        for each in aside.iterdir():
            each.unlink()
        aside.rmdir()


def folder_aside(path: Path) -> Path:
    """Make the folder beside a database in which one is kept, named by the time, and return it."""
    stamp = f"{datetime.now(UTC):{catalog.STAMP}}"
    number = 1
    while True:
        suffix = "" if number == 1 else f"_{number}"
        folder = path.with_name(f"{path.name}.{catalog.ASIDE}_{stamp}{suffix}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        return folder
