"""An application's own database after the deploy has adopted it, with the application at work again."""

from __future__ import annotations

from typing import Any

from conftest import acknowledged


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


def test_what_the_application_added_is_kept(query: Any) -> None:
    assert query("SELECT note FROM own_notes") == [["keep me"]]
    assert query("SELECT count(*) FROM pragma_table_xinfo('tasks') WHERE name = 'summary'") == [[1]]
    assert query("SELECT name FROM sqlite_master WHERE name = 'idx_own'") == [["idx_own"]]
    assert query("SELECT task_id FROM state") == [["gone"]]


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


def test_old_violations_warn_and_a_new_one_fails(query: Any, tool: Any) -> None:
    found = {check["id"]: check for check in tool("integrity-check")["checks"]}["foreign_keys"]
    assert (found["ok"], found["warning"], found["measured"]) == (True, True, "1 violations: 1 in state")
    query("INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES ('lost', 'a', 'b', 1, 1)")
    answer = tool("integrity-check")
    query("DELETE FROM state WHERE task_id = 'lost'")
    assert answer["exit_code"] == 1
    assert "2 in state" in answer["summary"]
    assert query("SELECT task_id FROM state") == [["gone"]]
