"""What a deploy leaves on a bare host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ask

JOBS = ("backup", "analyze", "vacuum", "integrity-check", "drill", "metrics")
SEEDS = {
    "app:abathur:agent_instructions": (
        "default_workflow",
        "procedural",
        {
            "steps": [
                "Read and analyze task requirements",
                "Retrieve relevant context from memory",
                "Execute task with best practices",
                "Update session state and memory",
                "Log comprehensive audit trail",
            ],
            "error_handling": "Always provide detailed error messages and rollback on failure",
            "logging": "Comprehensive audit logging enabled",
        },
    ),
    "app:abathur:config": (
        "memory_lifecycle_policies",
        "procedural",
        {
            "episodic_ttl_days": 90,
            "semantic_permanent": True,
            "procedural_versioned": True,
            "consolidation_frequency": "weekly",
            "archival_after_days": 365,
        },
    ),
    "app:abathur:defaults": (
        "user_preference_template",
        "semantic",
        {
            "communication_style": "balanced",
            "technical_level": "intermediate",
            "response_length": "moderate",
            "code_comments": True,
        },
    ),
}


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("/var/lib/abathur", "abathur", 0o700),
        ("/var/lib/abathur/abathur.db", "abathur", 0o600),
        ("/var/backups/abathur", "abathur-backup", 0o750),
        ("/var/lib/abathur-db", "abathur", 0o710),
        ("/var/lib/abathur-db/handover", "abathur", 0o770),
        ("/etc/abathur-db.toml", "root", 0o640),
        ("/opt/abathur-db", "root", 0o755),
    ],
)
def test_each_path_has_its_owner_and_mode(host: Any, path: str, owner: str, mode: int) -> None:
    found = host.file(path)
    assert (found.user, found.mode) == (owner, mode)


def test_only_root_can_change_the_installed_tool(host: Any) -> None:
    listing = host.check_output("find /opt/abathur-db -not -type l -printf '%u %m %f\n'").splitlines()
    assert listing
    assert {tuple(line.split()[:2]) for line in listing} == {("root", "755")}


@pytest.mark.parametrize("user", ["abathur", "abathur-backup"])
def test_the_users_cannot_log_in_and_have_one_group(host: Any, user: str) -> None:
    found = host.user(user)
    assert (found.shell, found.groups) == ("/usr/sbin/nologin", ["abathur"])


@pytest.mark.parametrize("job", JOBS)
def test_each_timer_is_enabled_and_has_a_next_run(host: Any, job: str) -> None:
    timer = host.service(f"abathur-db@{job}.timer")
    assert timer.is_enabled
    assert timer.is_running
    assert f"abathur-db@{job}.timer" in host.check_output("systemctl list-timers --no-legend --plain 'abathur-db@*'")


def test_units_have_no_fault_that_systemd_knows(host: Any) -> None:
    verdict = host.run("systemd-analyze verify abathur-db@backup.service abathur-db@backup.timer")
    assert (verdict.rc, verdict.stderr.strip()) == (0, "")


def test_the_seeds_are_exactly_those_of_the_design(query: Any) -> None:
    rows = query("SELECT namespace, key, memory_type, value, created_by, updated_by, version FROM memory_entries")
    assert {row[0]: (row[1], row[2], json.loads(row[3])) for row in rows} == SEEDS
    assert {tuple(row[4:]) for row in rows} == {("system", "system", 1)}


def test_each_seed_left_its_audit_row(query: Any) -> None:
    sql = (
        "SELECT memory_namespace FROM audit JOIN memory_entries ON memory_entries.id = memory_entry_id"
        " WHERE action_type = 'seed'"
    )
    assert {row[0] for row in query(sql)} == set(SEEDS)


def test_the_database_can_give_pages_back_and_is_in_wal_mode(query: Any) -> None:
    assert query("SELECT * FROM pragma_auto_vacuum, pragma_journal_mode") == [[2, "wal"]]


def test_status_says_that_all_is_well(tool: Any) -> None:
    status = tool("status")
    assert status["ok"], status["summary"]
    assert set(status["data"]["jobs"]) == set(JOBS)
    # The next run of a job that runs at this moment is known once it has ended.
    assert all(job["next_run"] or job["running"] for job in status["data"]["jobs"].values())


def test_the_report_is_kept_on_the_host_and_on_the_controller(host: Any, tool: Any) -> None:
    name = host.backend.get_pytest_id().removeprefix("ansible://")
    reports = Path(__file__).resolve().parents[3] / "reports" / name
    fetched = json.loads((reports / "validation.json").read_text())
    kept = json.loads(host.file("/var/lib/abathur-db/last/validate.json").content_string)
    assert fetched["ok"]
    assert fetched["checks"] == kept["checks"]
    assert "p99 / limit ms" in (reports / "validation.txt").read_text()
    assert tool("status")["ok"]


def test_a_stranger_is_told_how_to_run_the_tool(host: Any) -> None:
    refused = host.run("runuser -u nobody -- abathur-db status")
    assert refused.rc == 2
    assert "hint: run it as root" in refused.stderr


def test_the_backup_restores_with_zstd_and_sqlite_alone(host: Any) -> None:
    host.check_output("sh -c 'zstd -dqf /var/backups/abathur/*.db.zst -o /var/tmp/restored.db'")
    assert ask(host, "PRAGMA integrity_check", "/var/tmp/restored.db") == [["ok"]]
    host.check_output("rm /var/tmp/restored.db")
