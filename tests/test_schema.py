"""Creating, adopting and migrating a database; and refusing, with nothing touched, what is not one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import adoption, database, examination, maintenance, resources, schema, shape
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import application, dump, picture, run, value
from hypothesis import given
from hypothesis import strategies as st


def test_a_new_database_has_all_that_only_a_new_one_can_take(conf: Config) -> None:
    result = schema.init(conf)
    assert (result.ok, result.changed, result.data["kind"]) == (True, True, "create")
    path = conf.database
    assert value(path, "PRAGMA journal_mode") == "wal"
    assert value(path, "PRAGMA auto_vacuum") == 2
    assert value(path, "PRAGMA user_version") == 1
    assert value(path, "PRAGMA application_id") == 0x41627468
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_init_changes_nothing(conf: Config) -> None:
    schema.init(conf)
    result = schema.init(conf)
    assert (result.changed, result.data["kind"]) == (False, "current")


def test_a_dry_run_says_what_it_would_do_and_leaves_no_trace(conf: Config) -> None:
    result = schema.init(conf, dry_run=True)
    assert result.changed
    assert "would create" in result.summary
    assert picture(conf.database.parent) == {}


def test_a_leftover_of_a_killed_init_is_replaced(conf: Config) -> None:
    (conf.database.parent / ".abathur.db.new").write_bytes(b"half a database")
    schema.init(conf)
    assert [each.name for each in conf.database.parent.iterdir() if each.name.endswith(".new")] == []


def test_the_former_name_that_an_init_left_when_it_was_killed_goes_with_the_next(conf: Config) -> None:
    schema.init(conf)
    former = conf.database.with_name(".abathur.db.new")
    os.link(conf.database, former)
    assert not schema.init(conf, dry_run=True).changed
    assert former.exists()
    assert not schema.init(conf).changed
    assert not former.exists()
    assert conf.database.exists()


def test_a_database_that_appears_meanwhile_is_left_alone(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    apply = schema._apply

    def slow(connection: sqlite3.Connection, migration: resources.Migration) -> None:
        apply(connection, migration)
        conf.database.write_text("somebody else's")

    monkeypatch.setattr(schema, "_apply", slow)
    with pytest.raises(Failure, match="appeared while it was being built"):
        schema.init(conf)
    assert conf.database.read_text() == "somebody else's"
    assert [each.name for each in conf.database.parent.iterdir()] == ["abathur.db"]


ADOPTED = (
    "ALTER TABLE tasks ADD COLUMN summary TEXT",
    "CREATE TABLE own (id INTEGER PRIMARY KEY, note TEXT); INSERT INTO own (note) VALUES ('keep')",
    "CREATE INDEX idx_own ON tasks (summary)",
    "DROP INDEX idx_audit_task; DROP TABLE metrics",
    "INSERT INTO sessions (id, app_name, user_id) VALUES ('s1', 'a', 'u')",
    "INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES ('gone', 'k', 'v', 1, 1)",
)


def test_an_applications_database_is_adopted_with_every_row_and_extra(conf: Config) -> None:
    application(conf.database, *ADOPTED)
    before = dump(conf.database)
    result = schema.init(conf)
    assert result.data["kind"] == "adopt"
    assert set(before) <= set(dump(conf.database))
    assert value(conf.database, "PRAGMA user_version") == 1
    assert value(conf.database, "PRAGMA journal_mode") == "wal"
    with database.opened(conf.database, 0) as connection:
        checks = {check.id: check.ok for check in schema.checks(conf, connection)}
    assert checks == {"schema_version": True, "tables": True, "columns": True, "indexes": True}


def test_the_dry_run_of_an_adoption_names_each_step(conf: Config) -> None:
    application(conf.database, *ADOPTED)
    before = picture(conf.database.parent)
    steps = schema.init(conf, dry_run=True).data["steps"]
    assert steps[:2] == [
        "switch the journal mode from delete to wal",
        "adopt the existing database as schema version 1, keeping every row",
    ]
    assert {"create TABLE metrics", "create INDEX idx_audit_task"} <= set(steps)
    assert picture(conf.database.parent) == before


def test_violations_that_an_adopted_database_brought_are_accepted_and_new_ones_are_not(conf: Config) -> None:
    application(conf.database, *ADOPTED)
    schema.init(conf)
    assert adoption.accepted(conf.state_directory) == {"state": 1}
    with database.opened(conf.database, 0) as connection:
        first = examination.foreign_keys(conf, connection)
    run(conf.database, "INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES ('x', 'k', 'v', 1, 1)")
    with database.opened(conf.database, 0) as connection:
        second = [examination.foreign_keys(conf, connection, strict=strict) for strict in (False, True)]
    assert (first.ok, first.warning) == (True, True)
    assert [(each.ok, each.warning) for each in second] == [(True, True), (False, False)]


def test_a_database_with_a_virtual_table_of_an_absent_extension_is_adopted_checked_and_copied(conf: Config) -> None:
    application(
        conf.database,
        "PRAGMA writable_schema = ON;"
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nosuchmodule(x)')",
    )
    schema.init(conf)
    assert maintenance.integrity_check(conf).ok
    assert schema.init(conf).changed is False


def test_a_dropped_index_is_made_again(conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "DROP INDEX idx_tasks_parent")
    assert schema.init(conf).data["steps"] == ["create INDEX idx_tasks_parent"]
    assert value(conf.database, "SELECT count(*) FROM sqlite_master WHERE name = 'idx_tasks_parent'") == 1


def test_a_database_taken_out_of_wal_mode_is_put_back(conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "PRAGMA journal_mode = DELETE")
    assert schema.init(conf).data["steps"] == ["switch the journal mode from delete to wal"]
    assert value(conf.database, "PRAGMA journal_mode") == "wal"


def test_a_database_open_to_others_is_closed_to_them(conf: Config) -> None:
    schema.init(conf)
    conf.database.chmod(0o644)
    result = schema.init(conf)
    assert (result.data["kind"], result.data["steps"][0]) == ("repair", "close abathur.db to others")
    assert result.summary == f"closed {conf.database} to others; it is at schema version 1"
    assert stat.S_IMODE(conf.database.stat().st_mode) == 0o600


def second(sql: str) -> tuple[resources.Migration, ...]:
    return (*resources.migrations(), resources.Migration(2, "0002_next", sql))


def test_a_pending_migration_is_applied_and_keeps_rows(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.init(conf)
    run(conf.database, "INSERT INTO sessions (id, app_name, user_id) VALUES ('s1', 'a', 'u')")
    extended = second("ALTER TABLE sessions ADD COLUMN mood TEXT DEFAULT 'calm';")
    monkeypatch.setattr(resources, "migrations", lambda: extended)
    assert schema.plan(conf).steps == ["apply migration 0002_next"]
    assert schema.init(conf).data["kind"] == "migrate"
    assert value(conf.database, "SELECT id || mood FROM sessions") == "s1calm"
    assert value(conf.database, "PRAGMA user_version") == 2


def test_a_file_of_another_user_is_refused(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.init(conf)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(Failure, match=r"belongs to .*, but this runs as uid 4242"):
        schema.init(conf)


def test_a_file_that_cannot_be_read_is_refused(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.init(conf)

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(Failure, match="cannot be read: Permission denied"):
        schema.init(conf)


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="cannot be reached: Not a directory"):
        database.exists(tmp_path / "file" / "abathur.db")


def test_a_locked_database_is_given_up_after_the_wait(conf: Config) -> None:
    application(conf.database)
    holder = sqlite3.connect(conf.database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Failure, match=r"was locked by another process for longer than 0.1 s") as caught:
        schema.init(conf)
    holder.close()
    assert caught.value.code is Exit.BUSY
    assert value(conf.database, "PRAGMA user_version") == 0


def test_a_read_only_directory_keeps_the_database_as_it_was(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    application(conf.database)
    monkeypatch.setattr(database, "enable_wal", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O")))
    with pytest.raises(Failure, match="SQLite failed on"):
        schema.init(conf)
    assert value(conf.database, "PRAGMA user_version") == 0


def test_a_file_system_without_wal_is_named(tmp_path: Path) -> None:
    with database.in_memory() as memory, pytest.raises(Failure, match="stays in journal mode memory"):
        database.enable_wal(memory, tmp_path / "x.db")


def test_a_transaction_that_fails_leaves_nothing(conf: Config) -> None:
    schema.init(conf)

    def work(connection: sqlite3.Connection) -> None:
        with database.transaction(connection):
            connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES ('s', 'a', 'u')")
            raise ZeroDivisionError

    with database.opened(conf.database, 0) as connection, pytest.raises(ZeroDivisionError):
        work(connection)
    assert value(conf.database, "SELECT count(*) FROM sessions") == 0


def test_checks_name_what_a_damaged_schema_lacks(conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "DROP INDEX idx_tasks_parent; DROP TABLE metrics", "ALTER TABLE agents DROP COLUMN model")
    with database.opened(conf.database, 0) as connection:
        found = {check.id: check.measured for check in schema.checks(conf, connection) if not check.ok or check.warning}
    assert found == {
        "tables": "8 tables, lacking metrics",
        "columns": "table agents lacks column model",
        "indexes": "INDEX idx_metrics_name_timestamp is absent; INDEX idx_tasks_parent is absent",
    }


@given(st.text(max_size=30))
def test_the_affinity_of_any_declared_type_is_the_one_that_sqlite_uses(declared: str) -> None:
    assert shape.affinity(declared) in {"INTEGER", "TEXT", "BLOB", "REAL", "NUMERIC"}
    assert shape.affinity(f"{declared} INT") == "INTEGER"


def test_affinities_follow_the_rules_in_their_order() -> None:
    declared = ("TIMESTAMP", "BOOLEAN", "VARCHAR(9)", "DOUBLE", "", "BLOB", "CHARINT")
    assert [shape.affinity(each) for each in declared] == [
        "NUMERIC",
        "NUMERIC",
        "TEXT",
        "REAL",
        "BLOB",
        "BLOB",
        "INTEGER",
    ]


def test_a_copy_of_a_live_database_stands_alone(conf: Config, tmp_path: Path) -> None:
    schema.init(conf)
    writer = sqlite3.connect(conf.database, isolation_level=None)
    writer.execute("INSERT INTO sessions (id, app_name, user_id) VALUES ('only in the log', 'a', 'u')")
    database.snapshot(conf.database, tmp_path / "copy.db", 100)
    writer.close()
    shutil.rmtree(conf.state_directory, ignore_errors=True)
    assert sorted(each.name for each in tmp_path.glob("copy*")) == ["copy.db"]
    assert value(tmp_path / "copy.db", "SELECT id FROM sessions") == "only in the log"


def test_a_migration_without_room_on_the_disk_is_told_as_such_and_not_as_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(resources.migrations()[0], sql="PRAGMA max_page_count = 8;" + resources.migrations()[0].sql)
    monkeypatch.setattr(resources, "migrations", lambda: [small])
    with pytest.raises(Failure, match=f"SQLite finds no room in {tmp_path}/new.db, though its disk has") as caught:
        schema.build(tmp_path / "new.db")
    assert caught.value.hint.startswith("see what is used up: the disk of temporary files")
