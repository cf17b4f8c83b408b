"""A realistic demonstration: a database with 90 days of history, for the README's pictures and the page's tests.

Schema, rows, backups and records are made by the tool itself; only times are moved into the past, and the
timers are told by a stand-in for systemctl, because a developer's machine has none of the bundle's.
"""

from __future__ import annotations

import json
import math
import os
import pwd
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from abathur_db import backup, catalog, config, database, host, resources, runs, schema, seed, validation
from abathur_db.config import Config

DAYS = 90
MB = 1_000_000
JOBS = {"analyze": 7, "backup": 1, "drill": 7, "integrity-check": 30, "vacuum": 30}
"""Days between two runs of each job."""

TIMER = "Id=%s\\nActiveState=active\\nUnitFileState=enabled\\nNextElapseUSecRealtime={next}\\n\\n"
SYSTEMCTL = """#!/bin/sh
case "$1" in
list-unit-files) for job in {jobs}; do echo "abathur-db@$job.timer enabled enabled"; done ;;
show)
  shift
  for unit in "$@"; do
    case "$unit" in
    *.timer) printf '{timer}' "$unit" ;;
    esac
  done ;;
esac
"""


def settings(directory: Path) -> Config:
    """Return the configuration of the demonstration: a host's, below one directory."""
    own = config.development(resources.development_profile(), directory / "abathur.db")
    owner = pwd.getpwuid(os.geteuid()).pw_name
    return replace(own, owner=owner, application_units=[], backup_compression="gzip")


@contextmanager
def timers(directory: Path) -> Iterator[None]:
    """Let a stand-in for systemctl tell of the timers meanwhile."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    following = (datetime.now(UTC) + timedelta(days=1)).strftime("%a %Y-%m-%d 02:07:41 UTC")
    (programs / "systemctl").write_text(SYSTEMCTL.format(jobs=" ".join(JOBS), timer=TIMER.format(next=following)))
    (programs / "systemctl").chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{programs}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def make(directory: Path, *, days: int = DAYS, minutes: int = 60, rows: int = 40_000) -> Config:
    """Build the demonstration: `minutes` lie between two measurements, a row has 1 kB. Returns its configuration."""
    conf = settings(directory)
    schema.init(conf)
    seed.seed(conf)
    now = datetime.now(UTC).replace(microsecond=0)
    connection = sqlite3.connect(conf.database)
    _rows(connection, rows)
    insert = "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, ?, ?)"
    connection.executemany(insert, measurements(now, days, minutes))
    # The course ends at what the file and the disk are now.
    size = sum(each.stat().st_size for each in database.files(conf.database) if each.exists())
    for name, value in (("database_bytes", size), ("disk_free_bytes", host.free_bytes(conf.database))):
        connection.execute(
            "UPDATE metrics SET metric_value = max(0, metric_value + :now - (SELECT metric_value FROM metrics"
            " WHERE metric_name = :name ORDER BY timestamp DESC LIMIT 1)) WHERE metric_name = :name",
            {"name": name, "now": value},
        )
    connection.commit()
    connection.close()
    _backups(conf, now)
    quick = replace(conf, validation_sessions=[10], validation_seconds=1)
    validated = validation.validate(quick, []).as_dict()
    runs.record(conf.state_directory, {**validated, "finished": runs.now(), "seconds": 2.0, "invocation": ""})
    _history(conf, now)
    return conf


def _rows(connection: sqlite3.Connection, count: int) -> None:
    connection.execute(
        "INSERT INTO sessions (id, app_name, user_id, status) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1"
        " FROM n WHERE i < 400) SELECT 'session-' || i, 'abathur', 'user-' || (i % 40),"
        " CASE i % 5 WHEN 0 THEN 'active' WHEN 1 THEN 'paused' ELSE 'terminated' END FROM n"
    )
    connection.execute(
        "INSERT INTO memory_entries (namespace, key, value, memory_type) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL"
        " SELECT i + 1 FROM n WHERE i < ?) SELECT 'user:' || (i % 40), 'key' || i,"
        " '\"' || hex(randomblob(450)) || '\"', 'episodic' FROM n",
        (count,),
    )


def measurements(now: datetime, days: int, minutes: int) -> Iterator[tuple[str, str, float, str | None]]:
    """Yield what a collector would have written: a database that grows, a log that rises at work and falls at night."""
    chance = random.Random(7)  # noqa: S311 - a picture, no secret
    steps = days * 1440 // minutes
    size = 900.0 * MB
    for step in range(steps + 1):
        moment = now - timedelta(minutes=minutes * (steps - step))
        stamp = moment.isoformat()
        at_work = 0.15 + 0.85 * max(0.0, math.sin((moment.hour - 6) / 24 * 2 * math.pi))
        weekday = 0.4 if moment.weekday() >= 5 else 1.0
        growth = (0.2 + 0.1 * chance.random()) * MB * weekday
        size += growth * minutes / 1440
        log = (4 + 30 * at_work * weekday * chance.random()) * MB
        if moment.date() == (now - timedelta(days=23)).date():
            # A report of the application read all day: the log could not be written back.
            log += 110 * MB
        yield stamp, "database_bytes", size, None
        yield stamp, "wal_bytes", log, None
        yield stamp, "free_page_bytes", 1.5 * MB * chance.random(), None
        yield stamp, "disk_free_bytes", 42_000 * MB - 40 * size, None
        yield stamp, "growth_bytes_per_day", growth, None
        for number, query in enumerate(resources.queries()):
            share = 0.05 + 0.05 * number + 0.25 * at_work * weekday * chance.random()
            if query.name == "sessions_by_status":
                share += 0.4 * step / steps
            yield stamp, "query_seconds", query.budget_ms * share / 1000, json.dumps({"query": query.name})
        if step == steps:
            for status, count in (("active", 14), ("paused", 3), ("terminated", 383)):
                yield stamp, "sessions", count, json.dumps({"status": status})
            for status, count in (("pending", 6), ("running", 12), ("completed", 2154), ("failed", 9)):
                yield stamp, "tasks", count, json.dumps({"status": status})


def _backups(conf: Config, now: datetime) -> None:
    """Make one real backup, and stand in older ones for the days before."""
    manifest = conf.backup_directory / f"{catalog.PREFIX}{backup.backup(conf).data['id']}.json"
    made = json.loads(manifest.read_text())
    source = conf.backup_directory / made["file"]
    for path in (manifest, source):
        path.rename(path.with_suffix(path.suffix + ".made"))
    source, manifest = source.with_suffix(source.suffix + ".made"), manifest.with_suffix(".json.made")
    for age in range(29, -1, -1):
        moment = (now - timedelta(days=age)).replace(hour=2, minute=7, second=41)
        if moment > now:
            continue
        identity = moment.strftime(catalog.STAMP)
        file = f"{catalog.PREFIX}{identity}{catalog.SUFFIXES['gzip']}"
        os.link(source, conf.backup_directory / file)
        own = {"id": identity, "file": file, "created": moment.isoformat(), "sequence": 100 - age}
        text = json.dumps({**made, **own})
        (conf.backup_directory / f"{catalog.PREFIX}{identity}.json").write_text(text)
        if age % 7 == 3:
            catalog.remember_check(conf, identity, "drill", fault="", seconds=2.4)
        elif age < 3:
            catalog.remember_check(conf, identity, "verify", fault="")
    source.unlink()
    manifest.unlink()


def _history(conf: Config, now: datetime) -> None:
    """Record the runs of each job; one night the disk was full."""
    chance = random.Random(11)  # noqa: S311 - a picture, no secret
    for job, every in JOBS.items():
        for age in range(DAYS // every, -1, -1):
            moment = (now - timedelta(days=age * every)).replace(hour=2, minute=8, second=2)
            if moment > now:
                moment -= timedelta(days=1)
            failed = job == "backup" and age == 9
            summary = "backup needs 1.9 GB free at /var/backups/abathur, 312.4 MB are; nothing was changed"
            seconds = round((2.0 + 0.01 * (DAYS - age)) * (1 + 0.2 * chance.random()), 1)
            run = {
                "command": job,
                "ok": not failed,
                "summary": summary if failed else f"{job} done",
                "hint": "",
                "finished": moment.isoformat(),
                "seconds": seconds,
                "exit_code": int(failed),
                "invocation": "demonstration",
                "data": {"recovery_seconds": seconds} if job == "drill" else {},
            }
            runs.record(conf.state_directory, run)
