"""The collector's rows in the table metrics, beside those of the application: which are ours, and how many stay.

A row has no column that says who wrote it, and hosts have rows of earlier releases. Two facts tell ours, whatever
release wrote them:

- A collection: one transaction inserts its values with one timestamp, always with the three SIZES among them. A row is
  ours when its timestamp has all three, its name is of VALUES, and its labels are the one of that name and no other.
  Another writer would need the three names, without labels, in one second, written as we write a time.
- A run of a job: `job_ok` and `job_seconds` with one timestamp and one label, which is one of JOBS.

A row that only has a name, a label or a time as ours is not ours: nothing here deletes it or counts it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from abathur_db import database
from abathur_db.textfile import Sample

SIZES = ("database_bytes", "free_page_bytes", "wal_bytes")
"""What every collection has: the collector reads them together."""

VALUES = {
    **dict.fromkeys(SIZES, ""),
    **dict.fromkeys(("disk_free_bytes", "growth_bytes_per_day", "replication_lag_seconds"), ""),
    **dict.fromkeys(("backup_age_seconds", "backup_bytes", "drill_seconds"), ""),
    "query_seconds": "query",
    "sessions": "status",
    "tasks": "status",
}
"""Name of a value that a collection keeps -> the label that it has, empty for none."""

RUN = ("job_ok", "job_seconds")
"""What is kept once per run of a job, at the time of its end, and not once per collection."""

JOBS = ("analyze", "backup", "drill", "integrity-check", "prune", "retain", "vacuum", "validate", "verify")
"""The jobs whose runs are kept: the others run as often as the collector, and would be most of the table."""

FULL_DAYS = 2
"""Age in days from which one collection of each hour stays: 90 days are then about 60,000 rows and not 700,000."""

SLICE_COLLECTIONS = 20
SLICES = 20
PAUSE_SECONDS = 0.05
"""Old collections go in small transactions with a rest between, at most SLICES in one run, the others with the next."""


def _listed(values: Iterator[str]) -> str:
    return ", ".join(f"'{each}'" for each in values)


_STAMP = "timestamp GLOB '????-??-??T??:??:??+00:00'"
_SIZE, *_OTHERS = SIZES
COLLECTION = f"metric_name = '{_SIZE}' AND labels IS NULL AND {_STAMP}" + "".join(
    f" AND timestamp IN (SELECT timestamp FROM metrics WHERE metric_name = '{name}')" for name in _OTHERS
)
"""Condition for the one row of each collection that has its size; by the index on name and timestamp."""

# Name and label's beginning, for instance tasks:{"status": and nothing behind its one value.
_VALUE = (
    "metric_name || ifnull(':' || substr(labels, 1, instr(labels, ':')), '') IN ({})"
    " AND CASE WHEN labels IS NULL THEN TRUE WHEN json_valid(labels)"
    " THEN (SELECT group_concat(type) FROM json_each(labels)) = 'text' END"
).format(_listed(f'{name}:{{"{label}":' if label else name for name, label in VALUES.items()))
_OK, _SECONDS = RUN
_ENDED = (
    f"metric_name = '{_OK}' AND {_STAMP} AND labels IN ({_listed(json.dumps({'job': each}) for each in JOBS)})"
    f" AND (timestamp, labels) IN (SELECT timestamp, labels FROM metrics WHERE metric_name = '{_SECONDS}')"
)
COLUMNS = {"timestamp", "metric_name", "labels"}
"""What a table has to have for OURS to be asked of it."""

OURS = (
    f"(timestamp IN (SELECT timestamp FROM metrics WHERE {COLLECTION}) AND {_VALUE}"
    f" OR metric_name IN ({_listed(iter(RUN))})"
    f" AND (timestamp, labels) IN (SELECT timestamp, labels FROM metrics WHERE {_ENDED}))"
)
"""Condition for the rows of the table metrics that the collector wrote; false or NULL for the others."""


def insert(connection: sqlite3.Connection, samples: list[Sample], stamp: str) -> None:
    """Insert a collection's values and the runs that have ended, in one short transaction. `stamp`: ISO, UTC."""
    rows = [
        (each.since or stamp, each.name, each.value, json.dumps(each.labels) if each.labels else None)
        for each in samples
        if each.name in VALUES or (each.name in RUN and each.since and each.labels["job"] in JOBS)
    ]
    with database.transaction(connection, "a collection of metrics was recorded"):
        connection.executemany(
            "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) SELECT ?1, ?2, ?3, ?4"
            " WHERE NOT EXISTS (SELECT 1 FROM metrics WHERE metric_name = ?2 AND timestamp = ?1 AND labels IS ?4)",
            rows,
        )


def prune(connection: sqlite3.Connection, keep_days: int) -> int:
    """Delete our rows older than `keep_days`, and of those older than FULL_DAYS all but each hour's first collection.

    The runs of jobs are not thinned: there is one pair of rows per run. Returns how many rows were deleted.
    """
    now = datetime.now(UTC)
    oldest, full = (
        (now - timedelta(days=days)).isoformat(timespec="seconds") for days in (keep_days, min(FULL_DAYS, keep_days))
    )
    names = _listed(iter(VALUES))
    deleted = 0
    for group in _slices(connection, oldest, full):
        with database.transaction(connection):
            for stamp in group:
                sql = f"DELETE FROM metrics WHERE metric_name IN ({names}) AND timestamp = ? AND {_VALUE}"
                deleted += connection.execute(sql, (stamp,)).rowcount
        time.sleep(PAUSE_SECONDS)
    ended = f"(SELECT timestamp, labels FROM metrics WHERE {_ENDED} AND timestamp < ?)"
    sql = f"DELETE FROM metrics WHERE metric_name IN ({_listed(iter(RUN))}) AND (timestamp, labels) IN {ended}"
    return deleted + connection.execute(sql, (oldest,)).rowcount


def _slices(connection: sqlite3.Connection, oldest: str, full: str) -> list[list[str]]:
    """Return the timestamps of the collections that go in this run, the oldest first, by transaction."""
    stamps = connection.execute(
        f"SELECT DISTINCT timestamp FROM metrics WHERE {COLLECTION} AND timestamp < ? ORDER BY timestamp", (full,)
    )
    go: list[str] = []
    hour = ""
    for (stamp,) in stamps:
        if stamp < oldest or stamp[:13] == hour:
            go.append(stamp)
        if len(go) == SLICE_COLLECTIONS * SLICES:
            break
        hour = stamp[:13]
    return [go[start : start + SLICE_COLLECTIONS] for start in range(0, len(go), SLICE_COLLECTIONS)]
