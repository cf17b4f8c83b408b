"""Each job through its unit, as its timer starts it; and what it does when the host is in trouble."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import alert_of, locked, now, setting, start, wait

JOBS = ("backup", "analyze", "vacuum", "integrity-check", "drill")
ON_THE_DATABASE = (*JOBS[:4], "metrics")


def check_of(tool: Any, command: str, job: str) -> dict[str, Any]:
    """Return what status or doctor finds of a job's last run."""
    return next(each for each in tool(command)["checks"] if each["id"] == f"job_{job}")


def last(host: Any, job: str) -> dict[str, Any]:
    """Return the record of a job's last run."""
    record: dict[str, Any] = json.loads(host.file(record_of(job)).content_string)
    return record


def record_of(job: str) -> str:
    """Return where the last run of a job is recorded: the backup's among the backups, out of the owner's reach."""
    return f"{'/var/backups/abathur/.records' if job == 'backup' else '/var/lib/abathur-db'}/last/{job}.json"


@pytest.mark.parametrize("job", [*JOBS, "metrics"])
def test_a_job_succeeds_through_its_unit_and_is_recorded(host: Any, tool: Any, job: str) -> None:
    done = start(host, job)
    assert done.rc == 0, host.check_output(f"journalctl --no-pager -u abathur-db@{job}")
    record = last(host, job)
    assert record["ok"]
    assert record["invocation"]
    assert tool("status")["data"]["jobs"][job]["ok"]


@pytest.mark.parametrize("job", [*JOBS, "metrics"])
def test_a_timer_that_elapses_starts_its_job(host: Any, job: str) -> None:
    before = last(host, job)["invocation"] if host.file(record_of(job)).exists else ""
    drop_in = f"/etc/systemd/system/abathur-db@{job}.timer.d"
    host.check_output(f"mkdir -p {drop_in}")
    host.check_output(
        f"printf '[Timer]\\nOnActiveSec=1\\nRandomizedDelaySec=0\\nAccuracySec=100ms\\n' > {drop_in}/t.conf"
    )
    try:
        host.check_output(f"systemctl daemon-reload && systemctl restart abathur-db@{job}.timer")
        assert wait(lambda: host.file(record_of(job)).exists and last(host, job)["invocation"] != before)
    finally:
        host.check_output(f"rm -r {drop_in} && systemctl daemon-reload && systemctl restart abathur-db@{job}.timer")
    assert last(host, job)["ok"]


def test_the_collector_records_the_sizes_and_what_the_jobs_did(host: Any, query: Any) -> None:
    start(host, "backup")
    start(host, "metrics")
    found = {row[0] for row in query("SELECT DISTINCT metric_name FROM metrics")}
    assert found >= {"database_bytes", "free_page_bytes", "wal_bytes", "query_seconds", "backup_age_seconds"}
    finished = last(host, "backup")["finished"]
    rows = query(f"SELECT metric_value FROM metrics WHERE metric_name = 'job_ok' AND timestamp = '{finished}'")
    assert rows == [[1.0]]


def test_the_collector_does_not_wait_for_another_job(host: Any) -> None:
    with locked(host):
        done = start(host, "metrics")
        record = last(host, "metrics")
    assert done.rc == 0
    assert record["summary"].startswith("recorded")


@pytest.mark.parametrize("job", ON_THE_DATABASE)
def test_a_job_says_that_the_database_is_missing(host: Any, tool: Any, job: str) -> None:
    since = now(host)
    host.check_output("sh -c 'mkdir /root/aside && mv /var/lib/abathur/abathur.db* /root/aside'")
    try:
        done = start(host, job)
        status = tool("status")
    finally:
        host.check_output("sh -c 'mv /root/aside/* /var/lib/abathur && rmdir /root/aside'")
    assert done.rc != 0
    assert "there is no database at /var/lib/abathur/abathur.db" in alert_of(host, job, since)
    assert not status["ok"]
    assert "there is no database" in status["summary"]
    assert start(host, job).rc == 0


@pytest.mark.parametrize("job", JOBS)
def test_a_job_does_not_start_on_a_low_disk(host: Any, job: str) -> None:
    before = host.check_output("ls -A /var/backups/abathur /var/lib/abathur-db/scratch")
    since = now(host)
    with setting(host, "minimum_free_mb", "99000000"):
        done = start(host, job)
    assert done.rc != 0
    assert "needs 99.0 TB free" in alert_of(host, job, since)
    assert host.check_output("ls -A /var/backups/abathur /var/lib/abathur-db/scratch") == before


@pytest.mark.parametrize("job", JOBS)
def test_a_job_waits_for_another_one_then_says_whose_turn_it_is(host: Any, job: str) -> None:
    since = now(host)
    with locked(host), setting(host, "lock_wait_seconds", "1"):
        done = start(host, job)
    assert done.rc != 0
    assert host.check_output(f"systemctl show -P ExecMainStatus abathur-db@{job}.service") == "75"
    # What a backup waits for is the copy that the database's owner makes for it.
    assert f"{'snapshot' if job == 'backup' else job} waited 1 s for" in alert_of(host, job, since)


def test_a_job_that_was_killed_is_told_by_the_alert_the_status_and_the_doctor(host: Any, tool: Any) -> None:
    since = now(host)
    with locked(host):
        host.check_output("systemctl start --no-block abathur-db@analyze.service")
        assert wait(lambda: host.check_output("systemctl show -P MainPID abathur-db@analyze.service") != "0")
        host.check_output("systemctl kill --signal=SIGKILL abathur-db@analyze.service")
        said = alert_of(host, "analyze", since)
        told = [check_of(tool, command, "analyze") for command in ("status", "doctor")]
    assert "job analyze failed: ended with signal" in said
    assert [(each["ok"], "ended with signal SIGKILL" in each["measured"]) for each in told] == [(False, True)] * 2
    assert start(host, "analyze").rc == 0
    assert check_of(tool, "status", "analyze")["ok"]


@pytest.mark.parametrize("kind", ["abathur-db@analyze", "abathur-db@backup", "abathur-db-alert@backup"])
def test_no_job_and_no_alert_is_refused_because_it_was_started_often(host: Any, kind: str) -> None:
    """By default systemd refuses the sixth start within 10 s: an operator's next try, and an alert."""
    assert host.check_output(f"systemctl show -P StartLimitIntervalUSec {kind}.service") == "0"


def test_the_alert_command_can_be_replaced(host: Any, playbook: Any) -> None:
    command = {"abathur_maintenance_alert_command": "/usr/bin/echo told about"}
    changed = playbook("deploy.yml", "--tags", "units", "-e", json.dumps(command))
    assert changed.returncode == 0, changed.stdout
    since = now(host)
    with setting(host, "minimum_free_mb", "99000000"):
        start(host, "vacuum")
    state = "systemctl show -P ActiveState abathur-db-alert@vacuum.service"
    assert wait(lambda: host.check_output(state) in ("inactive", "failed"))
    said = alert_of(host, "vacuum", since)
    back = playbook("deploy.yml", "--tags", "units")
    assert back.returncode == 0, back.stdout
    assert "command  told about vacuum" in said
