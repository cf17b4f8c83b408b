"""The collector: values for the table metrics and for node_exporter's textfile, at no application's cost."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from abathur_db import database, failover, gauges, host, runs, standby, textfile
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, summarize
from abathur_db.textfile import Sample

WAIT_MS = 250
"""How long the collector waits for a lock on the database: it comes again in 5 minutes anyway."""

ALONE = ("init", "restore", "rollback")
"""Commands that put another file in the database's place: nobody else may have it open then."""

KEPT = frozenset(
    {"database_bytes", "wal_bytes", "free_page_bytes", "disk_free_bytes", "growth_bytes_per_day", "query_seconds"}
    | {"sessions", "tasks", "backup_age_seconds", "backup_bytes", "drill_seconds", "job_ok", "job_seconds"}
    | {"replication_lag_seconds"}
)
"""What goes into the table metrics."""

OF_JOBS = ("job_ok", "job_seconds")
"""What the table holds once per run of a job, at the time of its end, and not once per collection."""

FULL_DAYS = 2
"""Age in days from which one collection of each hour stays: 90 days are then about 60,000 rows and not 700,000."""

SLICE_ROWS = 500
SLICES = 20
PAUSE_SECONDS = 0.05
"""Old rows go in small transactions with a rest between, at most SLICES in one run, the others with the next runs."""


def collect(config: Config, dry_run: bool = False) -> Result:
    """Measure, insert the values into the table metrics, prune it, and write the textfile; on a standby that alone.

    What cannot be done without waiting for somebody is skipped and named in data.notes.
    Raises Failure when the database is absent, corrupt or not to be read; the textfile then says so. Raises Failure on
    a fenced host that is no standby.
    """
    if standby.is_one(config):
        return _of_standby(config, dry_run)
    if config.owner and host.fenced():
        failover.refuse(config, "metrics")
    with runs.beside(config.state_directory, "metrics") as holder:
        if holder.split(" ")[0] in ALONE:
            return Result("metrics", f"skipped: {holder} has the database to itself", data={"notes": [], "samples": []})
        notes: list[str] = []
        samples = [*_of_host(config), *gauges.of_backups(config)]
        try:
            with database.opened(config.database, WAIT_MS, read_only=True) as connection:
                samples += gauges.of_database(config, connection, notes)
        except Failure as failure:
            if failure.code is Exit.BUSY:
                return Result("metrics", f"skipped: {failure}", data={"notes": [], "samples": []})
            if not dry_run:
                _textfile(config, [*samples, Sample("up", 0)])
            raise
        checks = []
        if not dry_run:
            _insert(config, samples, notes)
            checks = _textfile(config, samples)
    return _result(samples, notes, checks, dry_run)


def _of_host(config: Config) -> list[Sample]:
    """Return what is measured beside the database."""
    now = Sample("collection_timestamp_seconds", round(time.time()))
    return [now, *gauges.of_host(config), *gauges.of_jobs(config), *gauges.of_replication(config)]


def _of_standby(config: Config, dry_run: bool) -> Result:
    # A copy that does not answer is a failure of the job replication, which leaves the first one its time.
    samples = [*_of_host(config), Sample("up", float(standby.checks(config)[0].ok))]
    return _result(samples, [], [] if dry_run else _textfile(config, samples), dry_run)


def _result(samples: list[Sample], notes: list[str], checks: list[Check], dry_run: bool) -> Result:
    summary, hint = summarize("metrics", checks)
    if not hint:
        summary = f"{'would record' if dry_run else 'recorded'} {len(samples)} values"
        summary += "".join(f"; {note}" for note in notes)
    by_name: dict[str, list[Sample]] = {}
    for each in samples:
        by_name.setdefault(each.name, []).append(each)
    data = {
        "samples": [asdict(each) for each in samples],
        "notes": notes,
        "journal_mode": next((each.labels["mode"] for each in by_name.get("journal_mode_info", [])), None),
        "indexes": {each.labels["query"]: each.labels["index"] for each in by_name.get("query_index_info", [])},
        "duplicate_indexes": {
            each.labels["index"]: each.labels["other"] for each in by_name.get("duplicate_index_info", [])
        },
    }
    return Result("metrics", summary, changed=True, checks=checks, data=data, hint=hint, table=list(map(str, samples)))


def _insert(config: Config, samples: list[Sample], notes: list[str]) -> None:
    """Insert the values in one short transaction and prune; while an application writes, leave both to the next run."""
    stamp = runs.now()
    rows = [
        (each.since or stamp, each.name, each.value, json.dumps(each.labels) if each.labels else None)
        for each in samples
        if each.name in KEPT and each.labels.get("job") not in gauges.OFTEN
    ]
    try:
        with database.opened(config.database, WAIT_MS) as connection:
            with database.transaction(connection):
                connection.executemany(
                    "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) SELECT ?1, ?2, ?3, ?4"
                    " WHERE NOT EXISTS (SELECT 1 FROM metrics"
                    " WHERE metric_name = ?2 AND timestamp = ?1 AND labels IS ?4)",
                    rows,
                )
            if _first_of_the_hour(config):
                prune(connection, config.metrics_keep_days)
    except Failure as failure:
        if failure.code is not Exit.BUSY:
            raise
        notes.append("the database was busy, so the table metrics gets its rows with the next run")


def _first_of_the_hour(config: Config) -> bool:
    last = runs.known(config, "success", "metrics")
    return last is None or last["finished"][:13] != runs.now()[:13]


def prune(connection: sqlite3.Connection, keep_days: int) -> int:
    """Delete rows older than `keep_days`, and of those older than FULL_DAYS all but each hour's first; return how many.

    The rows about runs of jobs stay: there is one per run. Timestamps of this table are all ours, of one format.
    """
    now = datetime.now(UTC)
    oldest, full = (
        (now - timedelta(days=days)).isoformat(timespec="seconds") for days in (keep_days, min(FULL_DAYS, keep_days))
    )
    jobs = ", ".join(f"'{name}'" for name in OF_JOBS)
    ids = connection.execute(
        "SELECT id FROM metrics WHERE timestamp < :oldest UNION"
        f" SELECT id FROM metrics WHERE timestamp < :full AND metric_name NOT IN ({jobs}) AND id NOT IN (SELECT min(id)"
        " FROM metrics WHERE timestamp < :full GROUP BY metric_name, labels, substr(timestamp, 1, 13))"
        " LIMIT :most",
        {"oldest": oldest, "full": full, "most": SLICE_ROWS * SLICES},
    ).fetchall()
    for start in range(0, len(ids), SLICE_ROWS):
        with database.transaction(connection):
            connection.executemany("DELETE FROM metrics WHERE id = ?", ids[start : start + SLICE_ROWS])
        time.sleep(PAUSE_SECONDS)
    return len(ids)


def _textfile(config: Config, samples: list[Sample]) -> list[Check]:
    if not config.metrics_textfile:
        return []
    path = Path(config.metrics_textfile)
    fault = ""
    try:
        textfile.write(path, samples)
    except OSError as error:
        fault = f"{path} cannot be written: {error.strerror}"
    hint = f"its directory has to belong to the database's owner (deploy again makes it so): ls -ld {path.parent}"
    return [Check("textfile", not fault, f"{path} written", fault or "written", hint)]
