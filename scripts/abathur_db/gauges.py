"""What is measured for monitoring: the host, its jobs and backups, and the database, read-only and in little time."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from abathur_db import (
    catalog,
    database,
    foreign,
    host,
    latency,
    maintenance,
    objects,
    readings,
    replica,
    replication,
    resources,
    runs,
)
from abathur_db.config import Config
from abathur_db.textfile import Sample

RUNS = 5
"""Runs of each critical query in a collection. The slowest of 5 is below a limit in 95 of 100 collections exactly when
99 of 100 runs are (0.99^5 = 0.95): so the alert rules get a 99th percentile from it."""

OFTEN = ("metrics", "replication")
"""Jobs that run as often as the collector or more often: the time of a collection says nothing of whether they are due,
and a row for each of their runs would be most of the table metrics."""

PATIENCE_SECONDS = 2.0
"""Time that one kind of values may take to read; on a healthy database all of them take some 10 ms."""

MOST_STATUSES = 50
"""Statuses told apart: the column tasks.status takes any text."""


def of_host(config: Config) -> list[Sample]:
    """Return free space and size of the database's file system."""
    usage = shutil.disk_usage(host.existing(config.database))
    return [Sample("disk_free_bytes", usage.free), Sample("disk_size_bytes", usage.total)]


def of_job(config: Config, job: str, link: Path) -> list[Sample]:
    """Return last result, duration, last success and due time of a job; `link`: what enables its timer."""
    samples = []
    labels = {"job": job}
    last = runs.last(config, job)
    success = runs.known(config, "success", job)
    if last:
        # One that left no record, and is known of by its alert alone, has no length and is no row of metrics.
        since = last["finished"] if "seconds" in last else ""
        samples.append(Sample("job_ok", float(last["ok"]), labels, since))
        if (seconds := last.get("seconds")) is not None:
            samples.append(Sample("job_seconds", seconds, labels, last["finished"]))
    succeeded = foreign.moment(success["finished"]).timestamp() if success else 0
    samples.append(Sample("job_last_success_timestamp_seconds", succeeded, labels))
    calendar = re.search(r"^OnCalendar=(.+)$", link.read_text(encoding="utf-8"), re.MULTILINE)
    period = host.period_seconds(calendar[1]) if calendar else None
    if period and job not in OFTEN:
        # A job that never succeeded is due from the moment that its timer was enabled.
        since = succeeded or os.lstat(link).st_mtime
        samples.append(Sample("job_due_timestamp_seconds", round(since + 1.5 * period), labels))
    return samples


def of_backups(config: Config) -> list[Sample]:
    """Return age, size and drill time of what a recovery would use."""
    newest = catalog.newest_verified(config)
    samples = [
        Sample("backup_timestamp_seconds", newest.moment.timestamp() if newest else 0),
        Sample("backup_maximum_age_seconds", config.backup_maximum_age_hours * 3600),
    ]
    if newest:
        age = (datetime.now(UTC) - newest.moment).total_seconds()
        samples += [Sample("backup_age_seconds", max(age, 0)), Sample("backup_bytes", newest.bytes)]
    seconds = runs.measured(config, "drill", "recovery_seconds")
    return samples if seconds is None else [*samples, Sample("drill_seconds", seconds)]


def of_replication(config: Config) -> list[Sample]:
    """Return how far the replica is behind, as the last proof found it; nothing where there is none."""
    known, settings = replication.state(config), replica.settings(config)
    if known is None or settings is None:
        return []
    arrived = foreign.moment(known["arrived"]).timestamp() if known["arrived"] else 0
    samples = [
        Sample("replication_maximum_lag_seconds", settings.maximum_lag_seconds),
        Sample("replication_arrived_timestamp_seconds", arrived),
        Sample("replication_lineage", known["lineage"]),
        Sample("replication_unsent_bytes", known["unsent_bytes"]),
        Sample("standby", float(settings.standby)),
    ]
    lag = known["lag_seconds"]
    return samples if lag is None else [*samples, Sample("replication_lag_seconds", lag)]


def of_database(config: Config, connection: sqlite3.Connection, notes: list[str]) -> list[Sample]:
    """Return all that is read from the database itself; what takes too long is left out, with a note.

    Raises sqlite3.Error for anything else that cannot be read.
    """
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    samples = [
        Sample("up", 1),
        Sample("journal_mode_info", 1, {"mode": mode}),
        Sample("wal_limit_bytes", config.wal_limit_mb * host.MB),
        Sample("query_limit_seconds", config.validation_p99_ms / 1000),
    ]
    samples += [Sample(name, size) for name, size in maintenance.sizes(config, connection).items()]
    for what, read in (("growth", _growth), ("sessions", _statuses), ("tasks", _statuses)):
        with _patient(connection, what, notes):
            samples += read(connection, what)
    for query in resources.queries():
        with _patient(connection, f"query {query.name}", notes):
            samples += _timed(connection, query)
    samples += [
        Sample("duplicate_index_info", 1, {"index": name, "other": other})
        for name, other in duplicate_indexes(connection).items()
    ]
    return samples


@contextmanager
def _patient(connection: sqlite3.Connection, what: str, notes: list[str]) -> Iterator[None]:
    """Interrupt what the body asks of SQLite after PATIENCE_SECONDS, and say so in `notes`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            notes.append(f"{what} took longer than {PATIENCE_SECONDS:g} s and was left out")
        elif objects.absent(error):
            notes.append(f"{what} was left out: {error}, which only the application's connections have")
        else:
            # A table that is gone is no note.
            raise
    finally:
        connection.set_progress_handler(None, 0)


def _growth(connection: sqlite3.Connection, _: str) -> list[Sample]:
    """Return the growth over the last day, or since the first value when that is less: never extrapolated.

    A database that shrank grew by 0. Only the collector's rows count, whose timestamps compare as text.
    """
    now = datetime.now(UTC)
    day = (now - timedelta(days=1)).isoformat(timespec="seconds")
    one = (
        f"SELECT metric_value, timestamp FROM metrics WHERE {readings.COLLECTION} AND metric_value {foreign.COUNTABLE}"
    )
    for rows in (
        connection.execute(f"{one} AND timestamp <= ? ORDER BY timestamp DESC", (day,)),
        connection.execute(f"{one} ORDER BY timestamp"),
    ):
        for before, stamp in rows:
            # Anybody may have written a row like ours, of a day that no calendar has.
            with suppress(ValueError):
                days = (now - foreign.moment(stamp)).total_seconds() / 86400
                size = database.pragma(connection, "page_size") * database.pragma(connection, "page_count")
                return [Sample("growth_bytes_per_day", max((size - before) / max(days, 1), 0))]
    return []


def _statuses(connection: sqlite3.Connection, table: str) -> list[Sample]:
    counts = connection.execute(
        f"SELECT status, count(*) FROM {table} GROUP BY status ORDER BY 2 DESC LIMIT {MOST_STATUSES}"
    )
    return [Sample(table, count, {"status": str(status)}) for status, count in counts]


def _timed(connection: sqlite3.Connection, query: resources.Query) -> list[Sample]:
    """Return duration and plan of a critical query, run with parameters from the rows that are there."""
    cursor = connection.execute(query.sample)
    names = [column[0] for column in cursor.description]
    rows = cursor.fetchall() or [(None,) * len(names)]
    seconds = []
    for number in range(RUNS):
        # Spread over the sample: neighbours lie on one page, and the second is then free.
        values: dict[str, Any] = dict(zip(names, rows[number * len(rows) // RUNS], strict=True))
        begun = time.perf_counter()
        connection.execute(query.sql, values).fetchall()
        seconds.append(time.perf_counter() - begun)
    plan = latency.plan(connection, query)
    labels = {"query": query.name}
    return [
        Sample("query_seconds", round(statistics.median(seconds), 6), labels),
        Sample("query_max_seconds", round(max(seconds), 6), labels),
        Sample("query_budget_seconds", query.budget_ms / 1000, labels),
        Sample("query_indexed", float(latency.indexed(plan)), labels),
        *(
            Sample("query_index_info", 1, {**labels, "index": index})
            for index in re.findall(r"USING (?:COVERING )?INDEX (\S+)", plan)
        ),
    ]


def duplicate_indexes(connection: sqlite3.Connection) -> dict[str, str]:
    """Return index -> another one of its table that begins with the same columns and so answers all that it does.

    Direction is not compared, because SQLite reads an index both ways. Partial ones, those over expressions and
    those that a constraint made are never said to be duplicates.
    """
    duplicates: dict[str, str] = {}
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
    )
    for (table,) in tables.fetchall():
        columns = {}
        removable = []
        for _, name, unique, origin, partial in connection.execute(f"PRAGMA index_list({objects.quoted(table)})"):
            parts = connection.execute(f"PRAGMA index_xinfo({objects.quoted(name)})").fetchall()
            keys = [(part[2], part[4]) for part in parts if part[5]]
            # One whose name is no UTF-8 tells nothing of itself.
            if partial or not keys or any(column is None for column, _ in keys):
                continue
            columns[name] = keys
            if origin == "c" and not unique:
                removable.append(name)
        for name in sorted(removable):
            others = [
                other
                for other, keys in columns.items()
                if other != name and other not in duplicates and keys[: len(columns[name])] == columns[name]
            ]
            if others:
                duplicates[name] = others[0]
    return duplicates
