"""The doctor as root on a real host: each fault made, told with its evidence, repaired by the command that is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import DATABASE, ask, one_liner, running, setting, wait

OPEN = f"import sqlite3, time; c = sqlite3.connect('{DATABASE}', isolation_level=None)"
WRITER = f"{OPEN}; c.execute('BEGIN IMMEDIATE'); time.sleep(600)"
READER = f"{OPEN}; c.execute('BEGIN'); c.execute('SELECT * FROM sessions').fetchall(); time.sleep(600)"


def diagnosis(tool: Any, name: str) -> dict[str, Any]:
    """Return one check of the doctor."""
    answer = tool("doctor")
    found: dict[str, Any] = next(check for check in answer["checks"] if check["id"] == name)
    assert answer["exit_code"] == (0 if answer["ok"] else 1)
    return found


@contextmanager
def at_work(host: Any, unit: str, program: str) -> Iterator[str]:
    """Run a Python program that works on the database meanwhile; lend its process id."""
    with running(host, one_liner(program), unit) as pid:
        assert wait(lambda: host.run(f"ls -l /proc/{pid}/fd | grep -q abathur.db-shm").rc == 0)
        yield pid


def write(host: Any, count: int) -> None:
    """Let the owner write rows of 1 kB."""
    ask(
        host,
        "INSERT INTO memory_entries (namespace, key, value, memory_type) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL"
        f" SELECT i + 1 FROM n WHERE i < {count}) SELECT hex(randomblob(8)), i, json_quote(hex(randomblob(500))),"
        " 'semantic' FROM n",
    )


def test_a_deployed_host_is_healthy(tool: Any) -> None:
    answer = tool("doctor")
    assert answer["exit_code"] == 0, answer["report"]
    assert answer["summary"].startswith("nothing is wrong: ")
    assert {"timer_backup", "backup_age", "locked"} <= {check["id"] for check in answer["checks"]}


def test_root_sees_who_locks_the_database_and_can_end_it(host: Any, tool: Any) -> None:
    with at_work(host, "holder", WRITER) as pid:
        found = diagnosis(tool, "locked")
        assert not found["ok"]
        assert f"locked for 5 s by python3 (pid {pid})" in found["measured"]
        host.check_output(found["hint"])
        assert diagnosis(tool, "locked")["ok"]


def test_the_owner_sees_his_own_processes(host: Any) -> None:
    with at_work(host, "holder", WRITER) as pid:
        done = host.run("runuser -u abathur -- abathur-db doctor")
    assert done.rc == 1
    assert f"by python3 (pid {pid})" in done.stderr


def test_somebody_else_is_told_to_become_root(host: Any) -> None:
    done = host.run("setpriv --reuid 65534 --clear-groups abathur-db doctor")
    assert done.rc == 2
    assert "hint: " in done.stderr


def test_a_reader_of_the_application_that_pins_the_log_is_ended_through_its_unit(host: Any, tool: Any) -> None:
    write(host, 1)
    with setting(host, "wal_limit_mb", "1"), at_work(host, "abathur", READER) as pid:
        write(host, 3000)
        found = diagnosis(tool, "wal")
        assert not found["ok"]
        assert f"python3 (pid {pid}) reads a snapshot of frame" in found["measured"]
        assert found["hint"] == "systemctl restart abathur.service"
        host.check_output("systemctl stop abathur.service")
        write(host, 1)
        assert diagnosis(tool, "wal")["ok"]


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_that_belongs_to_root_is_given_back(host: Any, tool: Any, suffix: str) -> None:
    with at_work(host, "holder", READER):
        host.check_output(f"chown root: {DATABASE}{suffix}")
        found = diagnosis(tool, "owner")
        assert not found["ok"]
        assert found["measured"] == f"abathur.db{suffix} belongs to root (uid 0)"
        host.check_output(found["hint"])
        assert diagnosis(tool, "owner")["ok"]


def test_a_timer_that_is_off_is_switched_on(host: Any, tool: Any) -> None:
    host.check_output("systemctl disable --now abathur-db@drill.timer")
    found = diagnosis(tool, "timer_drill")
    assert not found["ok"]
    host.check_output(found["hint"])
    assert diagnosis(tool, "timer_drill")["ok"]


def test_a_failed_job_is_run_again(host: Any, tool: Any) -> None:
    with setting(host, "minimum_free_mb", "99000000"):
        host.run("systemctl start abathur-db@analyze")
        assert "jobs do not start" in diagnosis(tool, "disk_1")["measured"]
    found = diagnosis(tool, "job_analyze")
    assert "needs 99.0 TB free" in found["measured"]
    host.check_output(found["hint"])
    assert tool("doctor")["ok"]


def test_a_row_without_its_parent_is_mended_with_nothing_but_python(host: Any, tool: Any) -> None:
    ask(
        host,
        "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at, session_id)"
        " VALUES ('orphan', 'p', 'pending', '{}', '2026-01-01', '2026-01-01', 'gone')",
    )
    try:
        found = diagnosis(tool, "foreign_keys")
        assert "first: tasks row" in found["measured"]
        host.check_output(found["hint"])
        assert not diagnosis(tool, "foreign_keys")["warning"]
    finally:
        ask(host, "DELETE FROM tasks WHERE id = 'orphan'")


def test_wal_off_and_a_lost_index_are_repaired_by_one_command(host: Any, tool: Any) -> None:
    ask(host, "PRAGMA journal_mode = DELETE")
    ask(host, "DROP INDEX idx_audit_task")
    assert not diagnosis(tool, "journal_mode")["ok"]
    found = diagnosis(tool, "query_audit_by_task")
    assert "audit_by_task lacks its index idx_audit_task" in found["measured"]
    host.check_output(found["hint"])
    assert tool("doctor")["ok"]


def test_an_application_that_failed_is_started_again(host: Any, tool: Any) -> None:
    host.check_output(
        "printf '[Service]\\nExecStart=/usr/bin/test -e /run/sound\\nType=oneshot\\nRemainAfterExit=yes\\n'"
        " > /etc/systemd/system/abathur.service"
    )
    try:
        host.run("systemctl daemon-reload; systemctl start abathur.service")
        found = diagnosis(tool, "abathur.service")
        assert not found["ok"]
        host.check_output("touch /run/sound")
        host.check_output(found["hint"])
        assert tool("doctor")["ok"]
    finally:
        host.check_output("rm -f /etc/systemd/system/abathur.service /run/sound")
        host.run("systemctl stop abathur.service; systemctl daemon-reload; systemctl reset-failed")


def test_the_page_is_written_by_root_for_the_owner(host: Any, tool: Any) -> None:
    answer = tool("report")
    assert answer["exit_code"] == 0
    page = host.file("/var/lib/abathur-db/report.html")
    assert (page.user, page.mode) == ("abathur", 0o600)
    assert "needs attention" not in page.content_string
    assert [run["ok"] for run in answer["data"]["jobs"]["backup"]["runs"]][-1] is True
