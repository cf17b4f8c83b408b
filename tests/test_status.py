"""What status and alerts say of a host."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from abathur_db import backup, database, host, maintenance, proof, restore, runs, schema, status
from abathur_db.config import Config
from abathur_db.result import Result
from databases import run

LISTED = ["abathur-db@backup.timer enabled enabled", "abathur-db@vacuum.timer disabled enabled"]
SHOWN = """NextElapseUSecRealtime=Wed 2026-11-25 02:00:00 UTC
Id=abathur-db@backup.timer
ActiveState=active
UnitFileState=enabled

NextElapseUSecRealtime=
Id=abathur-db@vacuum.timer
ActiveState=inactive
UnitFileState=disabled"""


@pytest.mark.parametrize(("state", "good"), [("running", True), ("waiting", False), ("elapsed", False)])
def test_a_timer_without_a_next_run_is_a_fault_unless_its_job_runs_now(state: str, good: bool) -> None:
    timer = {"ActiveState": "active", "SubState": state, "UnitFileState": "enabled", "NextElapseUSecRealtime": ""}
    assert [each.ok for each in status.timer_checks({"metrics": timer})] == [good]


@pytest.fixture
def deployed(conf: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return a configuration with an owner, on a machine whose systemd lists two timers."""
    schema.init(conf)
    conf.backup_directory.mkdir()

    def systemctl(verb: str, *_: str) -> list[str]:
        return LISTED if verb == "list-unit-files" else SHOWN.splitlines()

    monkeypatch.setattr(host, "systemctl", systemctl)
    return replace(conf, owner="root")


def test_a_unit_that_is_not_installed_is_no_finding(deployed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "systemctl", lambda *_: ["Id=abathur.service", "LoadState=not-found"])
    assert status.application(replace(deployed, application_units=["abathur.service"])) == []


def results(result: Result) -> dict[str, bool]:
    return {check.id: check.ok for check in result.checks}


def test_a_database_of_ones_own_has_a_status_without_timers(conf: Config) -> None:
    schema.init(conf)
    result = status.status(conf)
    assert results(result) == dict.fromkeys(
        ("database", "tables", "columns", "indexes", "journal_mode", "wal_size", "free_space"), True
    )
    assert result.data["schema_version"] == 1
    assert result.data["newest_backup"] is None
    assert result.data["jobs"] == {}


def test_each_job_has_its_last_result_last_success_and_next_run(deployed: Config) -> None:
    run_of = {"finished": "2026-11-24T02:00:00+00:00", "seconds": 1.5, "summary": "fine", "ok": True, "invocation": ""}
    runs.record(deployed.state_directory, {**run_of, "command": "backup"})
    result = status.status(deployed)
    assert result.data["jobs"]["backup"] == {
        "ok": True,
        "summary": "fine",
        "finished": "2026-11-24T02:00:00+00:00",
        "seconds": 1.5,
        "last_success": "2026-11-24T02:00:00+00:00",
        "running": False,
        "next_run": "Wed 2026-11-25 02:00:00 UTC",
    }
    assert result.data["jobs"]["vacuum"]["summary"] == "never ran"
    assert results(result)["timer_backup"] is True
    assert results(result)["timer_vacuum"] is False
    assert results(result)["backup_age"] is False
    lines = "\n".join(result.report())
    assert "backup           succeeded    2026-11-24T02:00:00+00:00  Wed 2026-11-25 02:00:00 UTC" in lines
    assert "vacuum           never ran    never                      never" in lines


def test_a_job_that_runs_now_has_its_next_run_after_that(deployed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = SHOWN.replace(
        "ActiveState=inactive\nUnitFileState=disabled", "ActiveState=active\nSubState=running\nUnitFileState=enabled"
    )
    monkeypatch.setattr(host, "systemctl", lambda verb, *_: LISTED if verb == "list-unit-files" else shown.splitlines())
    result = status.status(deployed)
    assert result.data["jobs"]["vacuum"]["running"] is True
    assert "vacuum           never ran    never                      after this one" in "\n".join(result.report())


@pytest.fixture
def killed(deployed: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return the same, the unit of the job backup having been killed a minute ago, in invocation 2."""
    unit = f"""Id=abathur-db@backup.service
ActiveState=failed
Result=signal
ExecMainStatus=9
InvocationID=2
InactiveEnterTimestampMonotonic={int((time.monotonic() - 60) * 1e6)}"""

    def systemctl(verb: str, *arguments: str) -> list[str]:
        if verb == "list-unit-files":
            return LISTED
        return (unit if arguments[0].endswith(".service") else SHOWN).splitlines()

    monkeypatch.setattr(host, "systemctl", systemctl)
    return deployed


def ran(config: Config, ago: float, invocation: str, *, ok: bool = True) -> None:
    finished = (datetime.now(UTC) - timedelta(seconds=ago)).isoformat(timespec="seconds")
    record = {"finished": finished, "summary": "said so", "ok": ok, "invocation": invocation, "command": "backup"}
    runs.record(config.state_directory, record)


@pytest.mark.parametrize("before", [True, False])
def test_a_job_that_was_killed_failed_whether_or_not_it_ran_before(killed: Config, before: bool) -> None:
    if before:
        ran(killed, 3600, "1")
    job = status.status(killed).data["jobs"]["backup"]
    assert (job["ok"], job["summary"]) == (False, "ended with signal SIGKILL, without a word of its own")
    assert 59 <= (datetime.now(UTC) - datetime.fromisoformat(job["finished"])).total_seconds() < 3600
    assert (job["last_success"] is not None) == before


def test_a_job_that_failed_and_said_why_is_told_in_its_own_words(killed: Config) -> None:
    ran(killed, 60, "2", ok=False)
    assert status.status(killed).data["jobs"]["backup"]["summary"] == "said so"


def test_a_job_run_by_hand_after_it_was_killed_is_well_again(killed: Config) -> None:
    ran(killed, 10, "")
    assert status.status(killed).data["jobs"]["backup"]["ok"] is True


def test_a_job_whose_last_run_failed_fails_the_status(deployed: Config) -> None:
    failed = {
        "finished": "2026-11-24",
        "seconds": 1,
        "summary": "disk low",
        "ok": False,
        "command": "backup",
        "invocation": "",
    }
    runs.record(deployed.state_directory, failed)
    result = status.status(deployed)
    assert results(result)["job_backup"] is False
    assert "journalctl -u abathur-db@backup" in next(check.hint for check in result.checks if check.id == "job_backup")
    assert any(line.startswith("backup           failed") for line in result.report())


def test_the_newest_backup_is_named(conf: Config) -> None:
    schema.init(conf)
    assert any("newest verified backup: none; no drill yet" in line for line in status.status(conf).report())
    made = backup.backup(conf).data["id"]
    assert status.status(conf).data["newest_backup"] == made


def test_the_recovery_time_of_the_last_drill_is_shown(conf: Config) -> None:
    schema.init(conf)
    backup.backup(conf)
    drilled = proof.drill(conf)
    runs.record(conf.state_directory, {**drilled.as_dict(), "invocation": "", "finished": "2026-11-24", "seconds": 1})
    result = status.status(conf)
    assert result.data["recovery_seconds"] == drilled.data["recovery_seconds"] > 0
    assert any("restored by the last drill in" in line for line in result.report())


def test_a_kept_former_database_is_shown_until_it_is_deleted(conf: Config) -> None:
    schema.init(conf)
    kept = restore.restore(conf, "fresh").data["kept"]
    assert any(kept in line for line in status.status(conf).report())


def test_a_missing_database_fails_the_status_with_the_next_step(conf: Config) -> None:
    result = status.status(conf)
    assert not result.ok
    assert result.summary.startswith("status failed at database: expected can be looked at, found there is no database")
    assert "abathur-db init" in result.hint


def test_a_database_out_of_wal_mode_fails_the_status(conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "PRAGMA journal_mode = DELETE")
    result = status.status(conf)
    assert results(result)["journal_mode"] is False
    assert result.hint == f"switch it back: abathur-db init {conf.database}"


def test_a_write_ahead_log_over_its_limit_fails_the_status(conf: Config) -> None:
    schema.init(conf)
    writer = sqlite3.connect(conf.database)
    writer.execute("INSERT INTO sessions (id, app_name, user_id) VALUES ('s', 'a', 'u')")
    writer.commit()
    assert results(status.status(replace(conf, wal_limit_mb=0)))["wal_size"] is False
    writer.close()


def test_a_disk_under_its_limit_fails_the_status(conf: Config) -> None:
    schema.init(conf)
    assert results(status.status(replace(conf, minimum_free_mb=1_000_000_000)))["free_space"] is False


def test_no_timer_is_asked_for_where_none_is_installed(deployed: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "systemctl", lambda *_: [])
    assert status.timers(deployed, []) == {}


def test_sizes_are_those_of_the_files(conf: Config) -> None:
    schema.init(conf)
    writer = sqlite3.connect(conf.database)
    writer.execute("CREATE TABLE more (x)")
    writer.commit()
    with database.opened(conf.database, 0, read_only=True) as connection:
        sizes = maintenance.sizes(conf, connection)
    assert sizes["wal_bytes"] == database.sidecars(conf.database)[0].stat().st_size > 0
    writer.close()
