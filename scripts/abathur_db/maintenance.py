"""The jobs that keep a database fit: analyze, vacuum in slices, integrity check on a copy."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from abathur_db import adoption, database, host, progress, proof, runs
from abathur_db.config import Config
from abathur_db.result import Check, Result, summarize


def sizes(config: Config, connection: sqlite3.Connection) -> dict[str, int]:
    """Return the sizes that status and metrics report, in bytes."""
    page = database.pragma(connection, "page_size")
    log = database.sidecars(config.database)[0]
    return {
        "database_bytes": page * database.pragma(connection, "page_count"),
        "free_page_bytes": page * database.pragma(connection, "freelist_count"),
        "wal_bytes": log.stat().st_size if log.exists() else 0,
    }


def analyze(config: Config, dry_run: bool = False) -> Result:
    """Refresh the query planner's statistics and record the sizes in the table metrics.

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
        connection.execute("ANALYZE")
        stamp = runs.now()
        with database.transaction(connection):
            connection.executemany(
                "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, ?, ?)",
                [(stamp, name, value) for name, value in measured.items()],
            )
    return Result("analyze", f"statistics refreshed; the database has {size}", changed=True, data=measured)


def vacuum(config: Config, dry_run: bool = False) -> Result:
    """Give free pages back to the file system in small slices, resting between them.

    A plain VACUUM would stop writers for as long as it takes (schema facts, trap 8). Skipped, with
    the reason, when there is little to gain. Raises Failure on a low disk.
    """
    host.require_free(config.database, config.minimum_free_mb * host.MB, "vacuum")
    with database.opened(config.database, config.busy_timeout_ms, read_only=dry_run) as connection:
        free = database.pragma(connection, "freelist_count")
        pages = max(database.pragma(connection, "page_count"), 1)
        page = database.pragma(connection, "page_size")
        percent = 100 * free / pages
        data: dict[str, int] = {"free_pages": free, "pages": pages, "page_bytes": page}
        # 2 is INCREMENTAL (sqlite.org/pragma.html#pragma_auto_vacuum).
        if database.pragma(connection, "auto_vacuum") != 2:
            return Result(
                "vacuum",
                f"skipped: the database was made without auto_vacuum=INCREMENTAL; "
                f"{free} pages ({percent:.0f} %) stay free",
                data=data,
                hint="free pages are used again by new rows; nothing has to be done",
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
        _vacuum_slices(config, connection, free)
        given = free - database.pragma(connection, "freelist_count")
    data["given_back_pages"] = given
    return Result("vacuum", f"gave back {host.readable(given * page)} of {gain}", changed=given > 0, data=data)


def _vacuum_slices(config: Config, connection: sqlite3.Connection, free: int) -> None:
    # Bounded by what was free at the start, so that a busy writer cannot keep it going.
    for _ in range(0, free, config.vacuum_slice_pages):
        # executescript: through execute() the pragma frees a single page (schema facts, trap 9).
        connection.executescript(f"PRAGMA incremental_vacuum({config.vacuum_slice_pages})")
        time.sleep(config.vacuum_pause_ms / 1000)


def integrity_check(config: Config, dry_run: bool = False) -> Result:
    """Check every page and every foreign key, on a throwaway copy.

    On the live file a full check would hold the write-ahead log open for minutes (schema facts,
    trap 8). Raises Failure when the copy does not find the space.
    """
    if dry_run:
        return Result("integrity-check", f"would check a copy of {config.database}")
    with clone(config) as copy, database.opened(copy, 0, immutable=True) as connection:
        found = database.problems(connection, full=True)
        checks = [
            Check(
                "integrity_check",
                not found,
                "ok",
                found[0] if found else "ok",
                "restore the newest backup, which keeps what is there aside: abathur-db restore latest",
            )
        ]
        if not found:
            checks.append(foreign_keys(config, connection))
    summary, hint = summarize("integrity-check", checks)
    return Result("integrity-check", summary, checks=checks, hint=hint)


def foreign_keys(config: Config, connection: sqlite3.Connection) -> Check:
    """Compare the foreign-key violations with those that the database had when it was adopted."""
    known = adoption.accepted(config.state_directory)
    found = database.foreign_key_violations(connection)
    more = {table: count for table, count in found.items() if count > known.get(table, 0)}
    listing = ", ".join(f"{count} in {table}" for table, count in sorted(found.items()))
    return Check(
        "foreign_keys",
        not more,
        f"at most the {sum(known.values())} violations of its adoption" if known else "no violation",
        f"{sum(found.values())} violations: {listing}" if found else "none",
        f"see the rows: sqlite3 -readonly {config.database} 'PRAGMA foreign_key_check'",
        warning=bool(found) and not more,
    )


@contextmanager
def clone(config: Config) -> Iterator[Path]:
    """Make a throwaway copy of the database by the backup path; it is gone at the end, also after an error."""
    database.require(config.database)
    size = config.database.stat().st_size
    with proof.scratch(config, "clone.db") as copy:
        host.require_free(copy, size + config.minimum_free_mb * host.MB, "a copy of the database")
        with progress.watched("copy", size, copy):
            database.snapshot(config.database, copy, config.busy_timeout_ms)
        yield copy
