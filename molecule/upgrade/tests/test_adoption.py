"""An application's own database after the deploy has adopted it, with the application at work again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import DATABASE, acknowledged, alert_of, now, start

TABLES = (
    "sessions",
    "memory_entries",
    "document_index",
    "tasks",
    "agents",
    "state",
    "audit",
    "checkpoints",
    "own_notes",
)


def test_every_acknowledged_row_is_there(host: Any, query: Any) -> None:
    ledger = acknowledged(host)
    rows = {row[0] for row in query("SELECT id FROM sessions")}
    assert len(ledger) > 10
    assert ledger - rows == set()


def test_the_application_was_started_again_and_writes(host: Any, query: Any) -> None:
    assert host.service("abathur.service").is_running
    before = query("SELECT count(*) FROM sessions")[0][0]
    host.check_output("sleep 1")
    assert query("SELECT count(*) FROM sessions")[0][0] > before


def test_the_application_met_no_error(host: Any) -> None:
    assert not host.file("/var/lib/ledger/errors").exists, host.file("/var/lib/ledger/errors").content_string


def test_the_application_was_stopped_once_and_not_by_the_second_deploy(host: Any) -> None:
    journal = host.check_output("journalctl --no-pager -u abathur.service -o cat")
    assert journal.count("Stopped abathur.service") == 1, journal


def test_what_the_application_made_is_kept(query: Any) -> None:
    assert query("SELECT note FROM own_notes") == [["keep me"]]
    assert query("SELECT name FROM sqlite_master WHERE name = 'idx_own'") == [["idx_own"]]
    assert query("SELECT count(*) FROM sqlite_master WHERE name LIKE 'document_embed%'") == [[4]]
    assert query("SELECT task_id FROM state ORDER BY id") == [["t1"], ["gone"]]
    assert query("SELECT id FROM sessions WHERE metadata IS NULL") == [["s5"]]


def test_the_database_was_adopted_and_completed(query: Any) -> None:
    assert query("SELECT * FROM pragma_user_version, pragma_journal_mode") == [[1, "wal"]]
    names = {row[0] for row in query("SELECT name FROM sqlite_master WHERE type = 'index'")}
    assert {"idx_checkpoints_session", "idx_audit_agent"} <= names


def test_the_database_is_closed_to_others(host: Any) -> None:
    # A -wal goes when the last connection is closed.
    modes = host.check_output(
        "find /var/lib/abathur -ignore_readdir_race -name 'abathur.db*' -printf '%m %u\n'"
    ).splitlines()
    assert set(modes) == {"600 abathur"}


def test_a_memory_that_the_operator_changed_is_left_alone(query: Any, tool: Any) -> None:
    rows = query("SELECT value, version FROM memory_entries WHERE namespace = 'app:abathur:config'")
    assert rows == [['{"episodic_ttl_days": 30}', 1]]
    assert "left alone, because an operator changed it: app:abathur:config" in tool("seed")["summary"]


def test_old_violations_warn_and_a_new_one_alerts_until_it_is_accepted(host: Any, query: Any, tool: Any) -> None:
    found = {check["id"]: check for check in tool("integrity-check")["checks"]}
    assert found["foreign_keys"]["warning"]
    assert found["foreign_keys"]["measured"].startswith("3 violations: 1 in agents, 1 in audit, 1 in state; first: ")
    # Newer versions of SQLite have no objection to a NULL there.
    objects = query("SELECT json_valid(NULL)") == [[0]]
    assert ("against CHECK (json_valid(metadata))" in found.get("row_rules", {"measured": ""})["measured"]) is objects
    query("INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES ('lost', 'a', 'b', 1, 1)")
    since = now(host)
    assert start(host, "integrity-check").rc == 1
    assert "2 in state" in alert_of(host, "integrity-check", since)
    assert tool("validate")["exit_code"] == 0
    accept = json.loads(host.check_output("cat /var/lib/abathur-db/last/integrity-check.json"))["hint"]
    host.check_output(accept.partition("; or accept those of today: ")[2])
    assert start(host, "integrity-check").rc == 0


def test_the_applications_next_release_runs_over_it_and_the_next_deploy_completes_it(
    host: Any, query: Any, tool: Any, playbook: Any
) -> None:
    before = counted(query)
    host.check_output("systemctl stop abathur.service")
    host.check_output("runuser -u abathur -- python3 /opt/applications.py A2 /var/lib/abathur/abathur.db")
    host.check_output("systemctl start abathur.service")
    answers = {command: tool(command) for command in ("status", "doctor", "validate")}
    assert {command: answer["exit_code"] for command, answer in answers.items()} == dict.fromkeys(answers, 0)
    for answer in answers.values():
        told = {check["id"]: check["measured"] for check in answer["checks"] if check["warning"]}
        assert told["indexes"].endswith("INDEX idx_checkpoints_session is absent")
    deployed = playbook("deploy.yml")
    assert deployed.returncode == 0, deployed.stdout
    assert query("SELECT count(*) FROM sqlite_master WHERE name = 'idx_checkpoints_session'") == [[1]]
    after = counted(query)
    assert all(after[table] >= count for table, count in before.items()), (before, after)


def test_what_is_backed_up_is_verified_drilled_and_restored(host: Any, query: Any, tool: Any) -> None:
    is_protected(host, query, tool)


@pytest.mark.parametrize("generation", ["D", "A2"])
def test_a_database_of_another_generation_is_adopted_and_its_application_starts_over_it(
    host: Any, query: Any, tool: Any, playbook: Any, generation: str
) -> None:
    starts = f"runuser -u abathur -- python3 /opt/applications.py {generation} {DATABASE}"
    host.check_output("systemctl stop abathur.service")
    host.check_output("find /var/lib/abathur -maxdepth 1 -name 'abathur.db*' -type f -delete")
    host.check_output(starts)
    made = counted(query)
    since = now(host)
    deployed = playbook("deploy.yml")
    assert deployed.returncode == 0, deployed.stdout
    host.check_output("systemctl stop abathur.service")
    host.check_output(starts)
    again = playbook("deploy.yml")
    assert again.returncode == 0, again.stdout
    kept = counted(query)
    # The deploy adds what it seeds, and nothing goes.
    assert all(kept[table] >= count for table, count in made.items()), (made, kept)
    assert query("SELECT metadata FROM sessions WHERE id = 's5'") == [[None]]
    # The published table audit refers to tasks, and what wrote here has none: said once, and accepted.
    assert tool("integrity-check", "--accept")["exit_code"] == 0
    assert start(host, "integrity-check").rc == 0
    host.check_output("systemctl start abathur.service")
    answers = {command: tool(command) for command in ("status", "doctor", "validate")}
    assert {command: answer["exit_code"] for command, answer in answers.items()} == dict.fromkeys(answers, 0), answers
    is_protected(host, query, tool)
    # Where no alert ever was, newer versions of journalctl know no such unit.
    assert not host.run(f"journalctl --no-pager -o cat -p err -u 'abathur-db-alert@*' --since @{since}").stdout


def counted(query: Any) -> dict[str, int]:
    """Return how many rows each table of the application has."""
    known = {row[0] for row in query("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {table: query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES if table in known}


def is_protected(host: Any, query: Any, tool: Any) -> None:
    """Assert that what the jobs back up passes its drill and comes back whole after the database is lost."""
    for job in ("backup", "drill"):
        assert start(host, job).rc == 0, host.check_output("journalctl -n 20 -u 'abathur-db@*' --no-pager")
    assert tool("verify", "latest")["exit_code"] == 0
    host.check_output("systemctl stop abathur.service")
    before = counted(query)
    assert start(host, "backup").rc == 0
    host.check_output("find /var/lib/abathur -maxdepth 1 -name 'abathur.db*' -type f -delete")
    restored = tool("restore", "latest")
    assert restored["exit_code"] == 0, restored["summary"]
    assert counted(query) == before
    host.check_output("systemctl start abathur.service")
