"""The jobs that keep a database fit: analyze, vacuum in slices, integrity check on a copy."""

from __future__ import annotations

import os
import sqlite3
import time

from abathur_db import (
    adoption,
    clones,
    database,
    examination,
    guarded,
    host,
    interruption,
    objects,
    replica,
    restore,
    rules,
    soundness,
)
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Result, afterwards, summarize

INCREMENTAL = 2
"""The value of PRAGMA auto_vacuum (sqlite.org/pragma.html#pragma_auto_vacuum)."""


def sizes(config: Config, connection: sqlite3.Connection) -> dict[str, int]:
    """Return the sizes that status and metrics report, in bytes."""
    page = database.pragma(connection, "page_size")
    return {
        "database_bytes": page * database.pragma(connection, "page_count"),
        "free_page_bytes": page * database.pragma(connection, "freelist_count"),
        "wal_bytes": database.wal_bytes(config.database),
    }


def analyze(config: Config, dry_run: bool = False) -> Result:
    """Refresh the query planner's statistics.

    The work is bounded by analysis_limit rows per index: a whole ANALYZE stops writers for seconds
    on a large database (schema facts, trap 8). Raises Failure on a low disk.
    """
    host.require_free(config.database, config.minimum_free_mb * host.MB, "analyze")
    with database.opened(config.database, config.busy_timeout_ms, read_only=dry_run) as connection:
        measured = sizes(config, connection)
        size = host.readable(measured["database_bytes"])
        if dry_run:
            return Result("analyze", f"would analyze {size}", changed=True, data=measured)
        connection.execute(f"PRAGMA analysis_limit = {config.analysis_limit}")
        left_out = [each for each in objects.tables(connection) if not _analyzed(connection, each)]
    checks = []
    if left_out:
        said = f"not analyzed: {', '.join(left_out)}"
        told = "nothing has to be done: only their application has what their order takes"
        checks.append(Check("analyzed", True, "every table", said, told, warning=True))
    summary = f"statistics refreshed; the database has {size}"
    return Result("analyze", summary, changed=True, checks=checks, data=measured)


def _analyzed(connection: sqlite3.Connection, table: str) -> bool:
    """Analyze a table; return false where that takes a collation of the application's."""
    try:
        with interruption.change("statistics of some tables were refreshed"):
            connection.execute(f"ANALYZE {objects.quoted(table)}")
    except sqlite3.OperationalError as error:
        if not objects.absent(error):
            raise
        return False
    return True


def vacuum(config: Config, convert: bool = False, dry_run: bool = False) -> Result:
    """Give free pages back to the file system in small slices, resting between them.

    A plain VACUUM would stop writers for as long as it takes (schema facts, trap 8). Skipped, with
    the reason, when there is little to gain. `convert`: rewrite a database that was made without
    auto_vacuum=INCREMENTAL, once, while nobody has it open. Raises Failure on a low disk.
    """
    host.require_free(config.database, config.minimum_free_mb * host.MB, "vacuum")
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        free = database.pragma(connection, "freelist_count")
        pages = max(database.pragma(connection, "page_count"), 1)
        page = database.pragma(connection, "page_size")
        incremental = database.pragma(connection, "auto_vacuum") == INCREMENTAL
    percent = 100 * free / pages
    data: dict[str, int] = {"free_pages": free, "pages": pages, "page_bytes": page}
    if convert and not incremental:
        return _convert(config, pages * page, data, dry_run)
    if not incremental:
        cost = f"rewrites {host.readable(pages * page)}, needs {host.readable(3 * pages * page)} free"
        return Result(
            "vacuum",
            f"skipped: the database was made without auto_vacuum=INCREMENTAL; {free} pages ({percent:.0f} %) stay free",
            data=data,
            hint="new rows use free pages again, nothing has to be done; to convert it once, with the application "
            f"stopped: {config.command('vacuum --convert')} ({cost})",
        )
    if percent < config.vacuum_minimum_percent:
        return Result(
            "vacuum",
            f"skipped: {percent:.1f} % of the pages are free, under {config.vacuum_minimum_percent} %",
            data=data,
        )
    gain = host.readable(free * page)
    if dry_run:
        return Result("vacuum", f"would give back {gain}", changed=True, data=data)
    with database.opened(config.database, config.busy_timeout_ms) as connection:
        _vacuum_slices(config, connection, free)
        given = free - database.pragma(connection, "freelist_count")
    data["given_back_pages"] = given
    return Result("vacuum", f"gave back {host.readable(given * page)} of {gain}", changed=given > 0, data=data)


def _vacuum_slices(config: Config, connection: sqlite3.Connection, free: int) -> None:
    """Give up to `free` pages back; a slice that took too long makes the next ones smaller."""
    left, pages = free, config.vacuum_slice_pages
    # Bounded by what was free at the start, so that a busy writer cannot keep it going.
    while left > 0:
        begun = time.monotonic()
        # executescript: through execute() the pragma frees a single page (schema facts, trap 9).
        with interruption.change("some of the free pages were given back"):
            connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        left -= pages
        pages = slice_after(config, pages, time.monotonic() - begun)
        if wal_grows(config):
            database.checkpoint(connection)
        time.sleep(config.vacuum_pause_ms / 1000)


def wal_grows(config: Config) -> bool:
    """Tell whether the write-ahead log is past half of its limit, so that nobody seems to checkpoint it.

    Below that the application's own automatic checkpoints do (at 4 MB), and a second checkpointer is to be
    avoided where SQLite has the WAL-reset defect (schema facts, trap 13). Where the database is replicated, Litestream
    does it, and nobody else can: it always reads.
    """
    return replica.settings(config) is None and database.wal_bytes(config.database) > config.wal_limit_mb * host.MB // 2


def checkpoint(config: Config, dry_run: bool = False) -> Result:
    """Move the write-ahead log into the database when it has grown; nobody waits for it.

    Skipped, with the reason, while the log is small. A reader that holds the log open is a failed check.
    """
    database.require(config.database)
    before = database.wal_bytes(config.database)
    data = {"wal_bytes": before}
    if not wal_grows(config):
        replicated = replica.settings(config) is not None
        if replicated and before > config.wal_limit_mb * host.MB:
            raise Failure(
                f"the write-ahead log has {host.readable(before)}, and Litestream alone can shorten it",
                f"let it begin anew: systemctl restart {replica.UNIT}",
            )
        keeper = "Litestream" if replicated else "the application"
        summary = f"skipped: the write-ahead log has {host.readable(before)}, {keeper} keeps it small itself"
        return Result("checkpoint", summary, data=data)
    if dry_run:
        return Result("checkpoint", f"would move {host.readable(before)} into the database", changed=True, data=data)
    with database.opened(config.database, config.busy_timeout_ms) as connection:
        whole = database.checkpoint(connection)
    data["wal_bytes"] = database.wal_bytes(config.database)
    check = Check(
        "checkpoint",
        whole,
        "the whole write-ahead log moved into the database",
        "moved" if whole else "a part; somebody still reads an older state",
        f"see who, and let it finish: {config.command('doctor')}",
    )
    summary, hint = summarize("checkpoint", [check])
    if whole:
        summary = f"moved {host.readable(before)} into the database; the log has {host.readable(data['wal_bytes'])} now"
    return Result("checkpoint", summary, changed=True, checks=[check], data=data, hint=hint)


def slice_after(config: Config, pages: int, seconds: float) -> int:
    """Return the pages of the next slice, after one of `pages` took `seconds`: as many as fit the limit of time."""
    fitting = pages * config.vacuum_slice_ms / max(seconds * 1000, 0.001)
    # At most doubled: one lucky slice says little of the next.
    return max(1, min(config.vacuum_slice_pages, int(fitting), 2 * pages))


def _convert(config: Config, size: int, data: dict[str, int], dry_run: bool) -> Result:
    """Rewrite the whole database with auto_vacuum=INCREMENTAL; nobody else may have it open."""
    if dry_run:
        return Result("vacuum", f"would rewrite {host.readable(size)}", changed=True, data=data)
    # The rewritten copy, the same through the write-ahead log, and the file itself (schema facts, trap 10).
    host.require_free(config.database, 3 * size + config.minimum_free_mb * host.MB, "converting the database")
    with restore.alone(config.database, config.application_units):
        pass
    guarded.directory(config.scratch_directory)
    os.environ["SQLITE_TMPDIR"] = str(config.scratch_directory)
    with database.opened(config.database, config.busy_timeout_ms) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.executescript("BEGIN EXCLUSIVE; COMMIT")
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        interruption.did("the rewrite was begun: it is whole, or the database is as it was")
        connection.execute("VACUUM")
        pages = database.pragma(connection, "page_count")
    given = host.readable(size - pages * data["page_bytes"])
    summary = f"rewrote {host.readable(size)} with auto_vacuum=INCREMENTAL and gave back {given}"
    return Result("vacuum", summary, changed=True, data={**data, "pages": pages})


def integrity_check(config: Config, dry_run: bool = False, accept: bool = False) -> Result:
    """Check every page, index, rule and foreign key, on a throwaway copy.

    On the live file a full check would hold the write-ahead log open for minutes (schema facts, trap 8). `accept`: the
    rows that violate a foreign key today are known from now on, and fail nothing any more.
    Raises Failure when the copy does not find the space.
    """
    if dry_run:
        return Result("integrity-check", f"would check a copy of {config.database}")
    with clones.clone(config) as copy, database.opened(copy, 0, immutable=True) as connection:
        found = soundness.findings(connection, full=True)
        checks = [examination.soundness(config, "integrity_check", found)]
        if not found.damage:
            if accept:
                adoption.remember(config.state_directory, rules.foreign_key_violations(connection)[0])
            elif known := adoption.accepted(config.state_directory):
                # One that is gone is not accepted any more: a new one in its place would be silent.
                found_now = rules.foreign_key_violations(connection)[0]
                fewer = {table: min(count, found_now.get(table, 0)) for table, count in known.items()}
                with afterwards(checks, "accepted", "what is accepted noted"):
                    if fewer != known:
                        adoption.remember(config.state_directory, fewer)
            checks += examination.content(config, connection, found, strict=True)
    summary, hint = summarize("integrity-check", checks)
    return Result("integrity-check", summary, changed=accept, checks=checks, hint=hint)
