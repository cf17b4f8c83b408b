"""The stored lifecycle policies: what is soft-deleted or archived, what is left alone, and how gently."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from abathur_db import database, host, objects, retain, schema, seed
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import at_work, dump, run, value


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)


def ago(days: float, style: str = "iso") -> str:
    moment = datetime.now(UTC) - timedelta(days=days)
    return moment.isoformat(timespec="seconds") if style == "iso" else f"{moment:%Y-%m-%d %H:%M:%S}"


def memory(conf: Config, key: str, updated: str, kind: str = "episodic", *, version: int = 1, deleted: int = 0) -> None:
    run(
        conf.database,
        "INSERT INTO memory_entries (namespace, key, value, memory_type, version, is_deleted, updated_at)"
        f" VALUES ('user:1', '{key}', '{{}}', '{kind}', {version}, {deleted}, '{updated}')",
    )


def session(conf: Config, name: str, status: str, terminated: str | None, updated: str = "2020-01-01") -> None:
    ended = f"'{terminated}'" if terminated else "NULL"
    run(
        conf.database,
        "INSERT INTO sessions (id, app_name, user_id, status, terminated_at, last_update_time)"
        f" VALUES ('{name}', 'a', 'u', '{status}', {ended}, '{updated}')",
    )


def policy(conf: Config, text: str, deleted: int = 0) -> None:
    run(
        conf.database,
        "INSERT INTO memory_entries (namespace, key, value, memory_type, version, is_deleted) VALUES"
        f" ('app:abathur:config', 'memory_lifecycle_policies', '{text}', 'procedural', 2, {deleted})",
    )


def answers(conf: Config, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(conf.database)
    rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def deleted(conf: Config) -> set[str]:
    return {row[0] for row in answers(conf, "SELECT key FROM memory_entries WHERE is_deleted = 1")}


def archived(conf: Config) -> set[str]:
    return {row[0] for row in answers(conf, "SELECT id FROM sessions WHERE status = 'archived'")}


def test_episodic_memories_older_than_the_policy_are_soft_deleted_whatever_the_format_of_their_time(
    conf: Config,
) -> None:
    memory(conf, "old", ago(91))
    memory(conf, "old, other format", ago(91, "plain"))
    memory(conf, "young", ago(89))
    memory(conf, "young, other format", ago(89.99, "plain"))
    memory(conf, "semantic", ago(1000), "semantic")
    memory(conf, "procedural", ago(1000), "procedural")
    memory(conf, "no time at all", "yesterday")
    result = retain.retain(conf)
    assert deleted(conf) == {"old", "old, other format"}
    assert result.changed
    assert result.summary == (
        "soft-deleted 2 episodic memories older than 90 days, archived 0 sessions terminated 30 days ago"
    )
    assert retain.retain(conf).changed is False


def test_each_deleted_memory_leaves_its_audit_row(conf: Config) -> None:
    when = ago(91)
    memory(conf, "old", when)
    retain.retain(conf)
    ((action, about, operation, namespace, entry),) = answers(
        conf,
        "SELECT action_type, action_data, memory_operation_type, memory_namespace, memory_entry_id FROM audit"
        " WHERE action_type = 'retain'",
    )
    assert (action, operation, namespace) == ("retain", "delete", "user:1")
    assert json.loads(about) == {"key": "old", "version": 1, "updated_at": when, "episodic_ttl_days": 90}
    assert answers(conf, f"SELECT key, updated_by FROM memory_entries WHERE id = {entry}") == [("old", "system")]


def test_sessions_terminated_long_ago_are_archived_with_their_audit_row(conf: Config) -> None:
    session(conf, "old", "terminated", ago(31))
    session(conf, "old, other format", "terminated", ago(31, "plain"))
    session(conf, "no time of its end", "terminated", None, ago(31))
    session(conf, "young", "terminated", ago(29))
    for status in ("created", "active", "paused"):
        session(conf, status, status, ago(1000))
    result = retain.retain(conf)
    assert archived(conf) == {"old", "old, other format", "no time of its end"}
    assert result.data == {"episodic_ttl_days": 90, "session_days": 30, "memories": 0, "sessions": 3}
    about = [json.loads(row[0]) for row in answers(conf, "SELECT action_data FROM audit WHERE action_type = 'retain'")]
    assert {each["session_id"] for each in about} == archived(conf)
    assert value(conf.database, "SELECT count(*) FROM sessions WHERE status = 'archived' AND archived_at IS NULL") == 0


def test_no_row_is_ever_deleted_for_good(conf: Config) -> None:
    memory(conf, "old", ago(91))
    session(conf, "old", "terminated", ago(31))
    with database.opened(conf.database, 0, read_only=True) as connection:
        before = objects.row_counts(connection)
    retain.retain(conf)
    with database.opened(conf.database, 0, read_only=True) as connection:
        after = objects.row_counts(connection)
    assert after == {**before, "audit": before["audit"] + 2}


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(conf: Config) -> None:
    memory(conf, "old", ago(91))
    session(conf, "old", "terminated", ago(31))
    before = dump(conf.database)
    result = retain.retain(conf, dry_run=True)
    assert result.changed
    assert result.summary == (
        "would soft-delete 1 episodic memories older than 90 days, archive 1 sessions terminated 30 days ago"
    )
    assert dump(conf.database) == before


def test_the_age_is_the_one_that_is_stored(conf: Config) -> None:
    memory(conf, "two days", ago(2))
    policy(conf, '{"episodic_ttl_days": 1}')
    session(conf, "s", "terminated", ago(2))
    retain.retain(replace(conf, retain_session_days=1))
    assert deleted(conf) == {"two days"}
    assert archived(conf) == {"s"}


def test_a_lower_version_that_stays_is_not_made_the_newest_again(conf: Config) -> None:
    memory(conf, "k", ago(10), version=1)
    memory(conf, "k", ago(91), version=2)
    memory(conf, "all old", ago(200), version=1)
    memory(conf, "all old", ago(91), version=2)
    memory(conf, "lower deleted", ago(10), version=1, deleted=1)
    memory(conf, "lower deleted", ago(91), version=2)
    retain.retain(conf)
    assert deleted(conf) == {"all old", "lower deleted"}


def test_without_a_policy_nothing_is_done(conf: Config) -> None:
    memory(conf, "old", ago(91))
    policy(conf, "{}", deleted=1)
    result = retain.retain(conf)
    assert result.ok
    assert result.summary.startswith("skipped: there is no memory app:abathur:config/memory_lifecycle_policies")
    run(conf.database, "DELETE FROM audit", "DELETE FROM memory_entries WHERE memory_type = 'procedural'")
    assert not retain.retain(conf).changed
    assert deleted(conf) <= {"memory_lifecycle_policies"}


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", *(f'{{"episodic_ttl_days": {days}}}' for days in ("0", "true", '"90"', "-1", "1e9", "1000000"))],
)
def test_a_policy_that_makes_no_sense_changes_nothing(conf: Config, text: str) -> None:
    memory(conf, "old", ago(91))
    policy(conf, text)
    with pytest.raises(Failure, match="states no episodic_ttl_days from 1 to 36500"):
        retain.retain(conf)
    assert deleted(conf) == set()


def test_writers_get_in_between_the_small_transactions(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "SLICE_ROWS", 2)
    for number in range(5):
        memory(conf, f"old {number}", ago(91))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        session(conf, f"s{len(pauses)}", "active", None)
        pauses.append(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    assert retain.retain(conf).data["memories"] == 5
    assert pauses == [retain.PAUSE_SECONDS] * 3


def test_a_row_that_an_application_touched_meanwhile_is_left_alone(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retain, "SLICE_ROWS", 1)
    for name in ("a", "b"):
        memory(conf, name, ago(91))
        session(conf, name, "terminated", ago(31))

    def meanwhile(_: float) -> None:
        run(
            conf.database,
            f"UPDATE memory_entries SET updated_at = '{ago(0)}' WHERE key = 'b'",
            "UPDATE sessions SET status = 'active' WHERE id = 'b'",
        )

    monkeypatch.setattr(time, "sleep", meanwhile)
    result = retain.retain(conf)
    assert (result.data["memories"], result.data["sessions"]) == (1, 1)
    assert (deleted(conf), archived(conf)) == ({"a"}, {"a"})
    assert value(conf.database, "SELECT count(*) FROM audit WHERE action_type = 'retain'") == 2


def test_a_lock_held_from_the_start_changes_nothing(conf: Config) -> None:
    memory(conf, "old", ago(91))
    holder = sqlite3.connect(conf.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Failure, match="nothing was changed") as failed:
        retain.retain(conf)
    holder.close()
    assert failed.value.code is Exit.BUSY
    assert deleted(conf) == set()


def test_a_lock_held_in_the_middle_says_how_much_is_done(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retain, "SLICE_ROWS", 1)
    for name in ("a", "b"):
        memory(conf, name, ago(91))
    holder = sqlite3.connect(conf.database, isolation_level=None)
    monkeypatch.setattr(time, "sleep", lambda _: holder.execute("BEGIN IMMEDIATE"))
    with pytest.raises(Failure, match="1 memories and 0 sessions are done, the others not") as failed:
        retain.retain(conf)
    holder.close()
    assert failed.value.code is Exit.BUSY
    assert "nothing was changed" not in str(failed.value)
    assert deleted(conf) == {"a"}


def test_a_low_disk_changes_nothing(conf: Config) -> None:
    with pytest.raises(Failure, match="retain needs"):
        retain.retain(replace(conf, minimum_free_mb=host.MB * host.MB))


WRITER = """
import sqlite3, sys
print('ready', flush=True)
for number in range(10**9):
    connection = sqlite3.connect(sys.argv[1], timeout=5)
    connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'a', 'u')", (number,))
    connection.commit()
    connection.close()
"""


def test_a_writer_that_never_rests_sees_no_error(conf: Config) -> None:
    run(
        conf.database,
        "INSERT INTO memory_entries (namespace, key, value, memory_type, updated_at) WITH RECURSIVE n (i) AS (SELECT 1"
        f" UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT 'n', i, '{{}}', 'episodic', '{ago(91)}' FROM n",
    )
    with at_work(WRITER, conf.database) as writer:
        assert retain.retain(replace(conf, busy_timeout_ms=5000)).data["memories"] == 1000
        assert writer.poll() is None


def test_the_search_for_old_memories_uses_their_index(conf: Config) -> None:
    sql = f"EXPLAIN QUERY PLAN SELECT id FROM memory_entries WHERE {retain.OLD_MEMORY} AND NOT {retain.YOUNGER_BELOW}"
    plan = [row[3] for row in answers(conf, sql.replace(":oldest", "''"))]
    assert "idx_memory_episodic_ttl" in plan[0] or "idx_memory_type_updated" in plan[0]
    assert any("SEARCH lower USING INDEX" in step for step in plan)
    sql = f"EXPLAIN QUERY PLAN SELECT id FROM sessions WHERE {retain.OLD_SESSION}"
    assert "idx_sessions_status_updated" in answers(conf, sql.replace(":oldest", "''"))[0][3]


BYTES = "CAST(x'6be9' AS TEXT)", "x'6be9'"
"""A text that is no UTF-8, and bytes where a text belongs."""


@pytest.mark.parametrize("key", BYTES)
def test_a_row_whose_key_is_no_utf_8_is_retained_as_any_other(conf: Config, key: str) -> None:
    memory(conf, "old", ago(91))
    session(conf, "past", "terminated", ago(31))
    run(conf.database, f"UPDATE memory_entries SET key = {key}, namespace = {key} WHERE key = 'old'")
    run(conf.database, f"UPDATE sessions SET id = {key}")
    assert retain.retain(conf).data == {"episodic_ttl_days": 90, "session_days": 30, "memories": 1, "sessions": 1}
    left = "SELECT count(*) FROM memory_entries WHERE is_deleted = 0 AND memory_type = 'episodic'"
    assert (value(conf.database, left), value(conf.database, "SELECT status FROM sessions")) == (0, "archived")
    audited = "SELECT count(*) FROM audit WHERE action_type = 'retain' AND json_valid(action_data)"
    assert value(conf.database, audited) == 2
    named = "SELECT count(*) FROM audit JOIN memory_entries ON memory_namespace = namespace AND action_type = 'retain'"
    assert value(conf.database, named) == 1


def test_a_policy_that_cannot_be_read_is_told_without_its_text(conf: Config) -> None:
    policy(conf, '{"episodic_ttl_days": "the-password"}')
    with pytest.raises(Failure, match=r"states no episodic_ttl_days from 1 to 36500$"):
        retain.retain(conf)
