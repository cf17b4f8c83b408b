"""The collector: what it records, that it waits for nobody, and how its table stays small."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from abathur_db import alerts, backup, database, gauges, host, metrics, proof, readings, resources, runs, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import ROOT, at_work, corrupt, rows, run, value

TIMER = "[Timer]\nOnCalendar=*-*-* 02:00:00\n"
RUN: dict[str, Any] = {"finished": "2026-11-24T02:00:00+00:00", "seconds": 1.5, "summary": "fine", "invocation": "x"}


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)


@pytest.fixture
def timers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the timers of the host be looked for in a directory where backup's and metrics' are enabled."""
    monkeypatch.setattr(host, "UNITS", tmp_path / "units")
    wants = tmp_path / "units" / "timers.target.wants"
    wants.mkdir(parents=True)
    for job in ("backup", "metrics"):
        timer = tmp_path / "units" / f"abathur-db@{job}.timer"
        timer.write_text(TIMER)
        (wants / timer.name).symlink_to(timer)
    (wants / "abathur-db@gone.timer").symlink_to(tmp_path / "nowhere")
    return wants


def found(result: Result) -> dict[str, Any]:
    """Return the values by the lines that the textfile would have."""
    return dict(line.removeprefix("abathur_db_").rsplit(" ", 1) for line in result.table)


def table(conf: Config) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(conf.database)
    answer = connection.execute("SELECT timestamp, metric_name, metric_value, labels FROM metrics ORDER BY id")
    kept = answer.fetchall()
    connection.close()
    return kept


def ago(**kwargs: float) -> str:
    return (datetime.now(UTC) - timedelta(**kwargs)).isoformat(timespec="seconds")


def foreign(conf: Config, *rows: tuple[Any, ...]) -> None:
    """Let the application write rows: timestamp, name, value, labels."""
    connection = sqlite3.connect(conf.database)
    connection.executemany(
        "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, ?, ?)", rows
    )
    connection.commit()
    connection.close()


def collected(conf: Config, stamp: str, size: float = 1, *more: tuple[str, float, str | None]) -> None:
    """Write what a collector of any release writes at a moment: the sizes of the database, and more values."""
    values = [("database_bytes", size, None), ("free_page_bytes", 0, None), ("wal_bytes", size, None), *more]
    foreign(conf, *((stamp, *each) for each in values))


def test_sizes_are_recorded_in_the_table(conf: Config) -> None:
    rows(conf.database, 500)
    result = metrics.collect(conf)
    assert result.ok
    assert result.changed
    kept = {name: size for _, name, size, labels in table(conf) if labels is None}
    assert kept["database_bytes"] > 500_000
    assert set(kept) == {"database_bytes", "free_page_bytes", "wal_bytes", "disk_free_bytes"}
    assert {stamp[-6:] for stamp, *_ in table(conf)} == {"+00:00"}


def test_sessions_and_tasks_are_counted_by_status(conf: Config) -> None:
    run(
        conf.database,
        "INSERT INTO sessions (id, app_name, user_id) VALUES ('a', 'a', 'u'), ('b', 'a', 'u')",
        "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
        " VALUES ('t', 'p', 'pending', '', 'now', 'now'), ('x', 'p', CAST(X'ff' AS TEXT), '', 'now', 'now')",
    )
    values = found(metrics.collect(conf))
    assert values['sessions{status="created"}'] == "2"
    assert values['tasks{status="pending"}'] == "1"
    assert values['tasks{status="\ufffd"}'] == "1"
    assert ("sessions", 2, '{"status": "created"}') in [row[1:] for row in table(conf)]


def test_every_critical_query_is_timed_and_its_index_named(conf: Config) -> None:
    result = metrics.collect(conf)
    values = found(result)
    for query in resources.queries():
        assert float(values[f'query_seconds{{query="{query.name}"}}']) < query.budget_ms / 1000
        assert values[f'query_indexed{{query="{query.name}"}}'] == "1.0"
    assert result.data["indexes"] == {query.name: query.index for query in resources.queries()}
    assert sum(name == "query_seconds" for _, name, *_ in table(conf)) == len(resources.queries())


def test_a_query_that_lost_its_index_is_told(conf: Config) -> None:
    run(conf.database, "DROP INDEX idx_audit_task")
    result = metrics.collect(conf)
    assert found(result)['query_indexed{query="audit_by_task"}'] == "0.0"
    assert result.data["indexes"]["audit_by_task"] == "idx_audit_timestamp"


def test_indexes_that_repeat_another_are_named(conf: Config) -> None:
    assert set(metrics.collect(conf).data["duplicate_indexes"]) == {"idx_state_task_key", "idx_checkpoints_task"}
    run(
        conf.database,
        "CREATE INDEX prefix ON audit (task_id)",
        "CREATE INDEX a_twin ON audit (agent_id, timestamp)",
        "CREATE INDEX an_expression ON audit (upper(task_id))",
        "CREATE UNIQUE INDEX a_rule ON audit (id, task_id)",
        "CREATE INDEX other_collation ON audit (agent_id COLLATE NOCASE)",
    )
    duplicates = metrics.collect(conf).data["duplicate_indexes"]
    assert duplicates["prefix"] == "idx_audit_task"
    assert duplicates["a_twin"] == "idx_audit_agent"
    assert set(duplicates) == {"idx_state_task_key", "idx_checkpoints_task", "prefix", "a_twin"}


def test_growth_is_that_of_the_last_day_and_never_extrapolated(conf: Config) -> None:
    assert not any(line.startswith("growth") for line in found(metrics.collect(conf)))
    size = conf.database.stat().st_size
    run(conf.database, "DELETE FROM metrics")
    collected(conf, ago(hours=1), size - 3000)
    assert float(found(metrics.collect(conf))["growth_bytes_per_day"]) == 3000
    collected(conf, ago(days=2), size - 5000)
    assert 2400 < float(found(metrics.collect(conf))["growth_bytes_per_day"]) <= 2500
    collected(conf, ago(days=1.5), size + 5000)
    assert float(found(metrics.collect(conf))["growth_bytes_per_day"]) == 0


def test_the_newest_verified_backup_and_its_drill_are_told(conf: Config) -> None:
    assert found(metrics.collect(conf))["backup_timestamp_seconds"] == "0"
    made = backup.backup(conf)
    drilled = proof.drill(conf)
    runs.record(conf.state_directory, {**RUN, **drilled.as_dict()})
    values = found(metrics.collect(conf))
    assert time.time() - float(values["backup_timestamp_seconds"]) < 60
    assert float(values["backup_age_seconds"]) < 60
    assert int(values["backup_bytes"]) == (conf.backup_directory / made.data["file"]).stat().st_size
    assert float(values["drill_seconds"]) == drilled.data["recovery_seconds"]


def test_each_job_has_its_last_result_success_and_due_time(conf: Config, timers: Path) -> None:
    runs.record(conf.state_directory, {**RUN, "command": "backup", "ok": True})
    runs.record(
        conf.state_directory, {**RUN, "command": "backup", "ok": False, "finished": "2026-11-25T02:00:00+00:00"}
    )
    result = metrics.collect(replace(conf, owner="root"))
    values = found(result)
    assert values['job_ok{job_name="backup"}'] == "0.0"
    assert values['job_seconds{job_name="backup"}'] == "1.5"
    succeeded = datetime.fromisoformat(RUN["finished"]).timestamp()
    assert float(values['job_last_success_timestamp_seconds{job_name="backup"}']) == succeeded
    assert float(values['job_due_timestamp_seconds{job_name="backup"}']) == succeeded + 1.5 * 86400
    assert values['job_last_success_timestamp_seconds{job_name="metrics"}'] == "0"
    assert 'job_due_timestamp_seconds{job_name="metrics"}' not in values
    assert not any("gone" in line for line in values)
    assert timers.is_dir()


def test_a_job_that_never_ran_is_due_from_the_time_that_its_timer_was_enabled(conf: Config, timers: Path) -> None:
    os.utime(timers / "abathur-db@backup.timer", (0, 1_000_000), follow_symlinks=False)
    values = found(metrics.collect(replace(conf, owner="root")))
    assert 'job_ok{job_name="backup"}' not in values
    assert float(values['job_due_timestamp_seconds{job_name="backup"}']) == 1_000_000 + 1.5 * 86400


def test_a_job_without_a_period_has_no_due_time(conf: Config, timers: Path) -> None:
    (timers / "abathur-db@backup.timer").write_text("[Timer]\nOnBootSec=1\n")
    values = found(metrics.collect(replace(conf, owner="root")))
    assert 'job_due_timestamp_seconds{job_name="backup"}' not in values


def test_the_table_has_one_row_for_each_run_of_a_job(conf: Config, timers: Path) -> None:
    for job in ("backup", "metrics"):
        runs.record(conf.state_directory, {**RUN, "command": job, "ok": True})
    for _ in range(2):
        metrics.collect(replace(conf, owner="root"))
    kept = [row for row in table(conf) if row[1].startswith("job_")]
    assert sorted(kept) == [
        (RUN["finished"], "job_ok", 1, '{"job": "backup"}'),
        (RUN["finished"], "job_seconds", 1.5, '{"job": "backup"}'),
    ]
    assert timers.is_dir()


def test_a_dry_run_measures_and_writes_nothing(conf: Config, tmp_path: Path) -> None:
    conf = replace(conf, metrics_textfile=str(tmp_path / "a.prom"))
    result = metrics.collect(conf, dry_run=True)
    assert result.summary.startswith("would record")
    assert table(conf) == []
    assert not (tmp_path / "a.prom").exists()


def test_the_textfile_is_what_the_result_says(conf: Config, tmp_path: Path) -> None:
    conf = replace(conf, metrics_textfile=str(tmp_path / "a.prom"))
    result = metrics.collect(conf)
    lines = [line for line in (tmp_path / "a.prom").read_text().splitlines() if not line.startswith("#")]
    assert sorted(lines) == sorted(result.table)
    assert json.loads(json.dumps(result.as_dict()))["data"]["journal_mode"] == "wal"


def test_a_textfile_that_cannot_be_written_fails_and_the_table_has_its_rows(conf: Config, tmp_path: Path) -> None:
    result = metrics.collect(replace(conf, metrics_textfile=str(tmp_path / "none" / "a.prom")))
    assert not result.ok
    assert "a.prom cannot be written: No such file or directory" in result.summary
    assert "ls -ld" in result.hint
    assert table(conf)


def test_the_collector_works_beside_a_backup_that_holds_the_lock(conf: Config) -> None:
    with runs.locked(conf.state_directory, "backup", 0):
        assert metrics.collect(conf).summary.startswith("recorded")


@pytest.mark.parametrize("command", metrics.ALONE)
def test_the_collector_leaves_a_database_alone_that_is_being_exchanged(conf: Config, command: str) -> None:
    with runs.locked(conf.state_directory, command, 0):
        result = metrics.collect(conf)
    assert result.ok
    assert result.summary.startswith(f"skipped: {command} (pid {os.getpid()}")
    assert table(conf) == []


def test_no_restore_begins_while_the_collector_works(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def meanwhile(_: Config) -> list[Any]:
        with pytest.raises(Failure, match="waited 0 s for metrics"), runs.locked(conf.state_directory, "restore", 0):
            pass
        refused.append(1)
        return []

    monkeypatch.setattr(gauges, "of_host", meanwhile)
    metrics.collect(conf)
    assert refused


def test_a_writer_keeps_the_collector_from_the_table_and_not_the_other_way_round(conf: Config, tmp_path: Path) -> None:
    conf = replace(conf, metrics_textfile=str(tmp_path / "a.prom"))
    writer = sqlite3.connect(conf.database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    result = metrics.collect(conf)
    writer.execute("INSERT INTO sessions (id, app_name, user_id) VALUES ('s', 'a', 'u')")
    writer.execute("COMMIT")
    writer.close()
    assert result.ok
    assert result.data["notes"] == ["the database was busy, so the table metrics gets its rows with the next run"]
    assert result.data["notes"][0] in result.summary
    assert table(conf) == []
    assert (tmp_path / "a.prom").exists()


def test_a_database_that_is_locked_for_reading_is_skipped(conf: Config) -> None:
    run(conf.database, "PRAGMA journal_mode = DELETE")
    writer = sqlite3.connect(conf.database, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    result = metrics.collect(conf)
    writer.close()
    assert result.ok
    assert result.summary.startswith("skipped: ")
    assert "was locked by another process for longer than 0.25 s" in result.summary


def test_a_missing_database_is_a_failure_and_the_textfile_says_so(conf: Config, tmp_path: Path) -> None:
    conf = replace(conf, metrics_textfile=str(tmp_path / "a.prom"))
    for each in database.files(conf.database):
        each.unlink(missing_ok=True)
    with pytest.raises(Failure, match="there is no database"):
        metrics.collect(conf, dry_run=True)
    assert not (tmp_path / "a.prom").exists()
    with pytest.raises(Failure, match="there is no database"):
        metrics.collect(conf)
    text = (tmp_path / "a.prom").read_text()
    assert "abathur_db_up 0\n" in text
    assert "abathur_db_disk_free_bytes" in text


def test_a_corrupt_database_is_a_failure(conf: Config) -> None:
    rows(conf.database, 100)
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    corrupt(conf.database)
    with pytest.raises(Failure, match="corrupt"):
        metrics.collect(conf)


@pytest.mark.parametrize(
    ("refuses", "ok"),
    [
        ("CREATE TRIGGER no BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'not here'); END", True),
        ("INSERT INTO sqlite_sequence VALUES ('metrics', 9223372036854775807)", False),
    ],
    ids=["its application", "the last id"],
)
def test_a_table_that_takes_no_rows_is_told_and_the_textfile_is_written(
    conf: Config, tmp_path: Path, refuses: str, ok: bool
) -> None:
    """What the application wants is a warning; what nobody wants is a failure."""
    run(conf.database, refuses)
    conf = replace(conf, metrics_textfile=str(tmp_path / "a.prom"))
    result = metrics.collect(conf)
    assert result.ok is ok
    assert ("not here" if ok else "metrics failed at table: ") in result.summary
    assert "abathur_db_up 1\n" in (tmp_path / "a.prom").read_text()


def test_old_rows_that_cannot_be_deleted_cost_no_value(conf: Config) -> None:
    collected(conf, ago(days=100))
    run(conf.database, "CREATE TRIGGER no BEFORE DELETE ON metrics BEGIN SELECT RAISE(ABORT, 'not here'); END")
    result = metrics.collect(conf)
    assert result.ok
    assert [(check.id, check.warning) for check in result.checks] == [("prune", True)]
    assert "not here" in result.summary
    assert len(table(conf)) > 3


@pytest.mark.parametrize(
    ("where", "told"),
    [("last/backup.json", "job_backup"), ("success/drill.json", "backups"), ("success/metrics.json", "prune")],
)
def test_what_cannot_be_read_beside_the_database_costs_no_other_value(
    conf: Config, timers: Path, tmp_path: Path, where: str, told: str
) -> None:
    (conf.state_directory / where).mkdir(parents=True)
    result = metrics.collect(replace(conf, owner="root", metrics_textfile=str(tmp_path / "a.prom")))
    assert result.ok
    assert told in [check.id for check in result.checks if check.warning]
    assert f"{where} is not a regular file" in result.summary
    names = {name for _, name, *_ in table(conf)}
    assert {*readings.SIZES, "query_seconds"} <= names
    assert "abathur_db_job_last_success_timestamp_seconds" in (tmp_path / "a.prom").read_text()
    assert timers.is_dir()


def test_a_job_that_left_no_record_of_its_last_run_is_not_told_as_well(
    conf: Config, timers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, out of time, or without a place to write to: only systemd knows, and has the alert run."""
    runs.record(conf.state_directory, {**RUN, "command": "backup", "ok": True})
    monkeypatch.setenv("MONITOR_SERVICE_RESULT", "timeout")
    monkeypatch.setenv("MONITOR_INVOCATION_ID", "later")
    alerts.alert(conf, "backup")
    assert found(metrics.collect(replace(conf, owner="root")))['job_ok{job_name="backup"}'] == "0.0"
    assert not [row for row in table(conf) if row[1] in readings.RUN]
    assert timers.is_dir()


def test_a_database_that_lost_a_table_is_a_failure(conf: Config) -> None:
    run(conf.database, "DROP TABLE tasks")
    with pytest.raises(Failure, match="no such table: tasks"):
        metrics.collect(conf)


def test_what_takes_too_long_is_left_out_and_named(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "PATIENCE_SECONDS", -1.0)
    rows(conf.database, 1)
    run(
        conf.database,
        "INSERT INTO sessions (id, app_name, user_id) WITH RECURSIVE n (i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT i, 'a', 'u' FROM n",
    )
    result = metrics.collect(conf)
    assert "sessions took longer than -1 s and was left out" in result.data["notes"]
    assert not any(line.startswith("sessions{") for line in found(result))
    assert "database_bytes" in found(result)


def test_old_rows_go_and_of_those_older_than_two_days_one_collection_of_each_hour_stays(conf: Config) -> None:
    base = datetime.now(UTC).replace(minute=0, second=0)

    def stamp(days: int, minutes: int) -> str:
        return (base - timedelta(days=days) + timedelta(minutes=minutes)).isoformat(timespec="seconds")

    for days, minutes in ((100, 0), (10, 7), (10, 12), (10, 17), (1, 7), (1, 12)):
        collected(conf, stamp(days, minutes), minutes, ("tasks", 1, '{"status": "pending"}'))
    for days in (100, 10):
        foreign(conf, *((stamp(days, 8), name, 1, '{"job": "backup"}') for name in readings.RUN))
    with database.opened(conf.database, 100) as connection:
        assert readings.prune(connection, 90) == 4 + 2 * 4 + 2
        assert readings.prune(connection, 90) == 0
    assert [(name, size) for _, name, size, _ in table(conf) if name in ("wal_bytes", *readings.RUN)] == [
        ("wal_bytes", 7),
        ("wal_bytes", 7),
        ("wal_bytes", 12),
        ("job_ok", 1),
        ("job_seconds", 1),
    ]
    assert sum(name == "tasks" for _, name, *_ in table(conf)) == 3


def alike(stamp: str) -> list[tuple[Any, ...]]:
    """Return rows that an application may have, each as one of ours but for one thing."""
    spelt = stamp.replace("T", " ").replace("+00:00", "")
    labels = {"": None, "status": '{"status": "pending"}', "query": '{"query": "session_by_id"}'}
    return [
        (stamp, "agent_tokens_used", 1, None),
        *((stamp, name, 1, labels[label]) for name, label in readings.VALUES.items() if name != "wal_bytes"),
        *((spelt, name, 1, labels[label]) for name, label in readings.VALUES.items()),
        (stamp, "job_ok", 1, '{"job": "backup"}'),
        *((stamp, name, 1, '{"job": "import"}') for name in readings.RUN),
        *((spelt, name, 1, '{"job": "backup"}') for name in readings.RUN),
    ]


def test_no_row_of_the_application_goes_however_old_and_however_much_it_looks_like_ours(conf: Config) -> None:
    for days in (200, 100, 10):
        foreign(conf, *alike(ago(days=days)), *alike(ago(days=days, minutes=1)))
    theirs = table(conf)
    collected(conf, ago(days=100, seconds=30))
    for _ in range(3):
        metrics.collect(conf)
        (conf.state_directory / "success/metrics.json").unlink(missing_ok=True)
    assert [row for row in table(conf) if row[0] < ago(days=5)] == theirs


def test_beside_a_collection_of_ours_rows_with_other_names_or_labels_stay(conf: Config) -> None:
    stamp = ago(days=100)
    theirs = [(stamp, "agent_tokens_used", 1.0, None), (stamp, "tasks", 1.0, None), (stamp, "wal_bytes", 1.0, "{}")]
    collected(conf, stamp)
    foreign(conf, *theirs)
    metrics.collect(conf)
    assert [row for row in table(conf) if row[0] == stamp] == theirs


def test_the_rows_of_an_adopted_database_stay_whatever_their_names(conf: Config) -> None:
    """57 600 readings of 200 days, as the application took them, became 2 406."""
    foreign(conf, *((ago(minutes=5 * number), "agent_tokens_used", number, None) for number in range(57_600)))
    for _ in range(3):
        metrics.collect(conf)
    assert value(conf.database, "SELECT count(*) FROM metrics WHERE metric_name = 'agent_tokens_used'") == 57_600


def test_growth_is_told_of_our_sizes_alone(conf: Config) -> None:
    run(conf.database, "DELETE FROM metrics")
    foreign(conf, ("2026-01-31 10:00:00", "database_bytes", 1, None), ("long ago", "database_bytes", 1, None))
    foreign(conf, (ago(days=2), "database_bytes", 1, None))
    assert "growth_bytes_per_day" not in found(metrics.collect(conf))


def test_every_value_that_is_kept_is_told_to_be_ours(conf: Config, timers: Path) -> None:
    backup.backup(conf)
    runs.record(conf.state_directory, {**RUN, **proof.drill(conf).as_dict(), "command": "drill"})
    runs.record(conf.state_directory, {**RUN, "command": "backup", "ok": True})
    run(conf.database, "INSERT INTO sessions (id, app_name, user_id) VALUES ('a', 'a', 'u')")
    for _ in range(2):
        metrics.collect(replace(conf, owner="root"))
    ours = value(conf.database, f"SELECT count(*) FROM metrics WHERE {readings.OURS}")
    assert ours == len(table(conf))
    names = {name for _, name, *_ in table(conf)}
    assert names == {*readings.VALUES, *readings.RUN} - {"tasks", "replication_lag_seconds"}
    assert timers.is_dir()


def test_each_job_with_a_timer_has_its_runs_kept_but_those_that_run_as_often_as_the_collector() -> None:
    defaults = yaml.safe_load((ROOT / "roles/abathur_maintenance/defaults/main.yml").read_text())
    assert set(defaults["abathur_maintenance_jobs"]) - set(readings.JOBS) == set(gauges.OFTEN)


def test_pruning_goes_in_small_transactions(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "SLICE_COLLECTIONS", 2)
    for number in range(5):
        collected(conf, ago(days=100, minutes=number))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        # A writer gets in between.
        run(conf.database, f"INSERT INTO sessions (id, app_name, user_id) VALUES ('{len(pauses)}', 'a', 'u')")
        pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    metrics.collect(conf)
    assert value(conf.database, f"SELECT count(*) FROM metrics WHERE timestamp < '{ago(days=90)}'") == 0
    assert pauses == [readings.PAUSE_SECONDS] * 3


def test_a_run_deletes_a_bounded_number_of_rows_and_the_next_goes_on(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "SLICE_COLLECTIONS", 2)
    monkeypatch.setattr(readings, "SLICES", 2)
    for number in range(6):
        collected(conf, ago(days=100, minutes=number))
    with database.opened(conf.database, 100) as connection:
        assert [readings.prune(connection, 90) for _ in range(3)] == [12, 6, 0]


def test_the_table_is_pruned_once_an_hour(conf: Config) -> None:
    collected(conf, ago(days=100))
    runs.record(conf.state_directory, {**RUN, "command": "metrics", "ok": True, "finished": runs.now()})
    metrics.collect(conf)
    old = f"SELECT count(*) FROM metrics WHERE timestamp < '{ago(days=90)}'"
    assert value(conf.database, old) == 3
    runs.record(conf.state_directory, {**RUN, "command": "metrics", "ok": True, "finished": ago(hours=1)})
    metrics.collect(conf)
    assert value(conf.database, old) == 0


def test_the_work_of_pruning_grows_with_the_collections_and_not_with_the_rows(conf: Config) -> None:
    """Counted in steps of SQLite's own machine, which are the same on every processor."""
    steps: list[int] = []

    def counted(connection: sqlite3.Connection) -> int:
        taken: list[None] = []
        connection.set_progress_handler(lambda: taken.append(None), 100)
        readings.prune(connection, 90)
        connection.set_progress_handler(None, 0)
        return len(taken)

    with database.opened(conf.database, 100) as connection:
        for more in (0, 50_000):
            with database.transaction(connection):
                connection.executemany(
                    "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, 'agent_tokens_used', 1)",
                    ((ago(seconds=number),) for number in range(more)),
                )
            steps.append(counted(connection))
    assert steps[1] <= steps[0] + 10


WRITER = """
import sqlite3, sys
print('ready', flush=True)
number = 0
while True:
    connection = sqlite3.connect(sys.argv[1], timeout=5)
    connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'a', 'u')", (number,))
    connection.commit()
    connection.close()
    number += 1
"""


def test_a_writer_that_never_rests_sees_no_error_from_the_collector(conf: Config) -> None:
    with at_work(WRITER, conf.database) as writer:
        for _ in range(20):
            assert metrics.collect(conf).ok
        assert writer.poll() is None
