"""The validation: checks that can fail, on a clone, and never a write to production rows."""

from __future__ import annotations

import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import database, latency, rehearsal, resources, runs, schema, seed, status, validation
from abathur_db.config import Config
from abathur_db.result import Check, Failure
from databases import application, corrupt, dump, rows, run, value


@pytest.fixture
def conf(conf: Config) -> Config:
    """Return a configuration whose load lasts for less than can be set: a whole second is its least."""
    return replace(conf, validation_seconds=0.5)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)


def failed(conf: Config, jobs: list[str] | None = None) -> dict[str, Check]:
    return {check.id: check for check in validation.validate(conf, jobs or []).checks if not check.ok}


def recreate(path: Path, table: str, old: str, new: str) -> None:
    """Change a table's definition as an application's own migration could."""
    run(
        path,
        "PRAGMA writable_schema = ON;"
        f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}'",
    )


def test_a_sound_database_passes_every_check(conf: Config) -> None:
    result = validation.validate(replace(conf, validation_seconds=1), [])
    assert [check.id for check in result.checks if not check.ok] == []
    assert {check.id for check in result.checks} >= {
        "schema_version",
        "tables",
        "columns",
        "indexes",
        "journal_mode",
        "quick_check",
        "foreign_keys",
        "wal_size",
        "mode_abathur.db",
        "create_session",
        "create_memory",
        "audit_trail",
        "json_constraints",
        "enum_constraints",
        "latency_2_sessions",
        *(f"plan_{query.name}" for query in resources.queries()),
    }
    assert len(result.data["latencies"]) > 0
    assert "  over" not in "\n".join(result.table)
    slow = [{**each, "p99_ms": 1e6} for each in result.data["latencies"]]
    assert all(each.endswith("  over") for each in validation._latency_table(slow, 100)[2:-1])
    assert "sessions  samples   p50 / budget ms    p99 / limit ms" in "\n".join(result.report())


def test_validation_writes_no_production_row_and_leaves_no_clone(conf: Config) -> None:
    before = dump(conf.database)
    validation.validate(conf, [])
    assert dump(conf.database) == before
    assert list(conf.scratch_directory.iterdir()) == []


def test_a_table_that_takes_bad_json_fails(conf: Config) -> None:
    recreate(conf.database, "sessions", "CHECK (json_valid(events))", "")
    check = failed(conf)["json_constraints"]
    assert check.measured.startswith("accepted: INSERT INTO sessions (id, app_name, user_id, events)")


def test_a_table_that_takes_an_unknown_status_fails(conf: Config) -> None:
    recreate(conf.database, "sessions", "''created'', ''active''", "''no status'', ''active'', ''created''")
    assert set(failed(conf)) == {"enum_constraints"}


def test_a_bad_row_refused_for_another_reason_proves_nothing(conf: Config) -> None:
    run(conf.database, "CREATE UNIQUE INDEX idx_one_application ON sessions (app_name)")
    run(conf.database, "INSERT INTO sessions (id, app_name, user_id) VALUES ('s', 'validation', 'u')")
    recreate(conf.database, "sessions", "CHECK (json_valid(events))", "")
    with (
        pytest.raises(Failure, match="UNIQUE constraint failed"),
        database.opened(conf.database, 0) as connection,
    ):
        rehearsal.refusals(connection)


def test_a_dropped_index_is_told_and_a_query_that_scans_fails_by_its_plan(conf: Config) -> None:
    run(conf.database, "DROP INDEX idx_tasks_status_priority", "DROP INDEX idx_tasks_running_timeout")
    found = failed(conf)
    assert set(found) == {"plan_next_task"}
    assert "SCAN tasks" in found["plan_next_task"].measured


def test_a_query_that_another_index_serves_is_a_warning(conf: Config) -> None:
    run(
        conf.database,
        "DROP INDEX idx_audit_task",
        "CREATE INDEX idx_own_audit ON audit (task_id, timestamp DESC)",
    )
    with database.opened(conf.database, 0) as connection:
        check = next(each for each in rehearsal.plans(conf, connection) if each.id == "plan_audit_by_task")
    assert (check.ok, check.warning) == (True, True)
    assert "another index than idx_audit_task serves it" in check.hint


def test_a_lost_audit_row_fails(conf: Config) -> None:
    run(
        conf.database,
        "CREATE TRIGGER lose AFTER INSERT ON audit BEGIN DELETE FROM audit WHERE id = NEW.id; END",
    )
    assert failed(conf)["audit_trail"].measured == "0 audit rows"


def test_a_session_that_does_not_arrive_fails(conf: Config) -> None:
    run(
        conf.database,
        "CREATE TRIGGER lose AFTER INSERT ON sessions BEGIN DELETE FROM sessions WHERE id = NEW.id; END",
    )
    assert failed(conf)["create_session"].measured == "no row"


def test_violated_foreign_keys_are_told_and_stop_no_deploy(conf: Config) -> None:
    run(conf.database, "INSERT INTO checkpoints (task_id, iteration, state, created_at) VALUES ('gone', 1, '{}', 1)")
    result = validation.validate(conf, [])
    assert result.ok
    assert [check.measured for check in result.checks if check.warning] == [
        "1 violation: 1 in checkpoints; first: checkpoints row 1, task_id in tasks"
    ]


def test_a_database_out_of_wal_mode_fails(conf: Config) -> None:
    run(conf.database, "PRAGMA journal_mode = DELETE")
    assert set(failed(conf)) == {"journal_mode"}


def test_a_corrupt_database_fails_and_is_not_rehearsed_on(conf: Config) -> None:
    rows(conf.database, 200)
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    corrupt(conf.database)
    result = validation.validate(conf, [])
    assert "quick_check" in {check.id for check in result.checks if not check.ok}
    assert result.data["latencies"] == []


def test_a_database_that_others_can_read_fails_with_the_command_to_close_it(conf: Config) -> None:
    conf.database.chmod(0o644)
    found = failed(conf)
    assert found["mode_abathur.db"].measured == "root (uid 0), 0644"
    assert found["mode_abathur.db"].hint == f"chown --no-dereference root: {conf.database} && chmod go= {conf.database}"


def test_the_data_directory_of_a_host_is_checked_too(conf: Config) -> None:
    conf.database.parent.chmod(0o755)
    assert set(failed(replace(conf, owner="root"))) == {f"mode_{conf.database.parent.name}"}


def test_a_job_without_its_timer_fails(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"ActiveState": "inactive", "UnitFileState": "", "NextElapseUSecRealtime": ""}
    monkeypatch.setattr(status, "timers", lambda _, jobs: dict.fromkeys(jobs, absent))
    found = failed(conf, ["analyze"])
    assert found["timer_analyze"].measured == "absent, inactive, next never"


BY_UNIT = {"command": "backup", "finished": "2026-11-24", "summary": "s", "invocation": "abc"}
BY_HAND = {**BY_UNIT, "invocation": ""}


@pytest.mark.parametrize(
    ("ran", "ok"),
    [
        ([], False),
        ([{**BY_HAND, "ok": True}], False),
        ([{**BY_UNIT, "ok": False}], False),
        ([{**BY_UNIT, "ok": True}], True),
        ([{**BY_UNIT, "ok": True}, {**BY_HAND, "ok": True}], True),
        ([{**BY_UNIT, "ok": True}, {**BY_HAND, "ok": False}], False),
    ],
)
def test_the_backup_job_has_to_have_run_through_its_unit_and_its_last_run_to_be_good(
    conf: Config, monkeypatch: pytest.MonkeyPatch, ran: list[dict[str, Any]], ok: bool
) -> None:
    good = {"ActiveState": "active", "UnitFileState": "enabled", "NextElapseUSecRealtime": "tomorrow"}
    monkeypatch.setattr(status, "timers", lambda *_: {"backup": good})
    for run_of in ran:
        runs.record(conf.state_directory, run_of)
    assert ("backup_job" not in failed(conf, ["backup"])) is ok


def test_a_load_that_is_too_slow_fails_by_query_and_number(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = latency.Load(2)
    slow.milliseconds["session_by_id"] = [200.0] * 10
    rounds: list[object] = []

    def measure(*_: object) -> latency.Load:
        rounds.append("load")
        return slow

    monkeypatch.setattr(latency, "measure", measure)
    monkeypatch.setattr("time.sleep", rounds.append)
    check = failed(replace(conf, validation_p99_ms=100))["latency_2_sessions"]
    assert check.measured == "session_by_id p50 200.0 ms, budget 10 ms; session_by_id p99 200.0 ms"
    assert rounds == ["load", *[rehearsal.PAUSE_SECONDS, "load"] * (rehearsal.ROUNDS - 1)]
    check = failed(replace(conf, validation_p99_ms=1000))["latency_2_sessions"]
    assert check.measured == "session_by_id p50 200.0 ms, budget 100 ms"
    assert "latency_2_sessions" not in failed(replace(conf, validation_p99_ms=3000))


def test_a_load_that_is_too_slow_once_passes(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = latency.Load(2), latency.Load(2)
    slow.milliseconds["session_by_id"] = [200.0] * 10
    quick.milliseconds["session_by_id"] = [2.0] * 10
    loads = iter([slow, quick])
    monkeypatch.setattr(latency, "measure", lambda *_: next(loads))
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert "latency_2_sessions" not in failed(conf)


def test_one_error_under_load_fails_at_once(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = latency.Load(2, errors=["OperationalError: database is locked"])
    monkeypatch.setattr(latency, "measure", lambda *_: bad)
    assert failed(conf)["latency_2_sessions"].measured == "1 error, first: OperationalError: database is locked"


def test_a_load_that_measured_nothing_fails(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", lambda *_: latency.Load(2))
    assert failed(conf)["latency_2_sessions"].measured == "nothing measured"


def test_sessions_that_meet_an_error_report_it(conf: Config, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    application(other, "DROP TABLE memory_entries", "DROP TABLE sessions", "DROP TABLE tasks")
    with database.opened(conf.database, 0) as connection:
        parameters = latency.samples(connection)
    load = latency.measure(other, parameters, 3, 2, 100)
    assert load.errors
    assert load.errors[0].startswith("OperationalError: no such table")


def test_percentiles_are_by_nearest_rank() -> None:
    load = latency.Load(1)
    load.milliseconds["q"] = [float(number) for number in range(100, 0, -1)]
    assert (load.percentile("q", 0.5), load.percentile("q", 0.99), load.p99) == (50, 99, 99)


def test_without_aiosqlite_the_next_step_is_named(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosqlite", None)
    with pytest.raises(Failure, match="aiosqlite is not installed") as caught:
        latency.measure(conf.database, {}, 1, 1, 1)
    assert "make tool" in caught.value.hint


def test_a_load_really_reads_and_writes_with_every_session(conf: Config, tmp_path: Path) -> None:
    copy = tmp_path / "clone.db"
    database.snapshot(conf.database, copy, 100)
    with database.opened(copy, 100) as connection:
        database.enable_wal(connection, copy)
        parameters = latency.samples(connection)
    load = latency.measure(copy, parameters, 5, 2, 5000)
    assert load.errors == []
    assert set(load.milliseconds) <= {query.name for query in resources.queries()}
    assert sum(map(len, load.milliseconds.values())) > 20
    assert value(copy, "SELECT count(DISTINCT namespace) FROM memory_entries WHERE namespace LIKE 'validation:%'") == 5
    assert sqlite3.connect(copy).execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_host_so_slow_that_a_query_was_never_asked_is_judged_by_the_others() -> None:
    load = latency.Load(2)
    load.milliseconds["session_by_id"] = [1.0, 2.0]
    assert load.milliseconds["next_task"] == []
    assert load.p99 == 2.0
