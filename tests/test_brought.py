"""What an application's schema may bring to our own tables: every command does what SQLite alone can do.

The bases are the application's own databases; what is added are things that SQLite lets an application do.
"""

from __future__ import annotations

import shlex
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import applications
import pytest
from abathur_db import (
    backup,
    database,
    doctor,
    gauges,
    maintenance,
    metrics,
    proof,
    readings,
    restore,
    retain,
    rules,
    schema,
    seed,
    shape,
    status,
    validation,
)
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import picture, run, value

pytestmark = pytest.mark.engine

EPISODE = (
    "INSERT INTO memory_entries (namespace, key, value, memory_type, updated_at)"
    " VALUES ('agent:1', 'old', '1', 'episodic', '2020-01-01')"
)
ENDED = (
    "INSERT INTO sessions (id, app_name, user_id, status, terminated_at)"
    " VALUES ('ended', 'a', 'u', 'terminated', '2020-01-01')"
)
POLICY = (
    "INSERT INTO memory_entries (namespace, key, value, memory_type)"
    " VALUES ('app:abathur:config', 'memory_lifecycle_policies', '{\"episodic_ttl_days\": 30}', 'semantic')"
)
OWN_TRIGGER = "CREATE TRIGGER own_t AFTER INSERT ON {} BEGIN SELECT initials(new.id); END"


def collated(table: str, column: str) -> str:
    """Return what gives a column the application's collation, as a migration of its own would have left it."""
    return (
        "PRAGMA writable_schema = ON;"
        f"UPDATE sqlite_master SET sql = replace(sql, '{column} TEXT', '{column} TEXT COLLATE icu_root')"
        f" WHERE name = '{table}'; PRAGMA writable_schema = RESET"
    )


# What the application has beside its tables -> what the warnings name.
BROUGHT = {
    "a collation of a memory's key": (collated("memory_entries", "key"), "icu_root"),
    "a collation of a task's status": (collated("tasks", "status"), "icu_root"),
    "a trigger on memories": (OWN_TRIGGER.format("memory_entries"), "initials"),
    "a trigger on metrics": (OWN_TRIGGER.format("metrics"), "initials"),
    "a trigger on the audit trail": (OWN_TRIGGER.format("audit"), "initials"),
    "an index of its function on memories": ("CREATE INDEX own_i ON memory_entries (initials(key))", "initials"),
    "an index of its function on sessions": ("CREATE INDEX own_i ON sessions (initials(user_id))", "initials"),
    "an index of its function on metrics": ("CREATE INDEX own_i ON metrics (initials(labels))", "initials"),
    "a trigger that refuses": (
        "CREATE TRIGGER own_t BEFORE INSERT ON memory_entries WHEN new.namespace NOT LIKE 'agent:%'"
        " BEGIN SELECT RAISE(ABORT, 'not of an agent'); END",
        "not of an agent",
    ),
    "a trigger that drops": (
        "CREATE TRIGGER own_t BEFORE INSERT ON memory_entries WHEN new.namespace LIKE 'app:%'"
        " BEGIN SELECT RAISE(IGNORE); END",
        "took app:",
    ),
}


@pytest.fixture
def here(conf: Config) -> Config:
    """Give a database of the application's first release with something to put away."""
    applications.make(conf.database, "A1")
    run(conf.database, EPISODE, ENDED)
    return conf


def alter(path: Path, statements: str) -> None:
    """Execute statements on a connection as the application opens it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_collation("icu_root", lambda a, b: (a > b) - (a < b))
        connection.create_function("initials", 1, lambda text: str(text)[:1], deterministic=True)
        connection.executescript(statements)


def everything(conf: Config) -> dict[str, Result]:
    """Run every command that a host runs by itself."""
    commands: dict[str, Callable[[], Result]] = {
        "seed": lambda: seed.seed(conf),
        "retain": lambda: retain.retain(conf),
        "metrics": lambda: metrics.collect(conf),
        "analyze": lambda: maintenance.analyze(conf),
        "vacuum": lambda: maintenance.vacuum(conf),
        "backup": lambda: backup.backup(conf),
        "verify": lambda: proof.verify(conf, "latest"),
        "drill": lambda: proof.drill(conf),
        "integrity-check": lambda: maintenance.integrity_check(conf),
        "validate": lambda: validation.validate(conf, []),
        "doctor": lambda: doctor.doctor(conf),
        "status": lambda: status.status(conf),
    }
    return {name: command() for name, command in commands.items()}


@pytest.mark.parametrize("kind", BROUGHT)
def test_what_the_application_brought_to_our_tables_fails_no_command(kind: str, here: Config) -> None:
    statements, named = BROUGHT[kind]
    alter(here.database, statements)
    assert schema.init(here).ok
    assert schema.init(here, dry_run=True).data["steps"] == []
    done = everything(here)
    assert {name: result.summary for name, result in done.items() if not result.ok} == {}
    told = [each for result in done.values() for each in result.checks if each.warning]
    assert any(named in each.measured for each in told), told
    hints = [hint for result in done.values() for hint in (result.hint, *(each.hint for each in result.checks))]
    assert not [hint for hint in hints if "df -" in hint]
    before = value(here.database, "SELECT count(*) FROM sessions")
    here.database.unlink()
    assert restore.restore(here, "latest").ok
    assert value(here.database, "SELECT count(*) FROM sessions") == before


def test_a_column_that_is_gone_is_told_as_that_and_not_as_a_disk(here: Config) -> None:
    schema.init(here)
    run(here.database, "DROP INDEX idx_tasks_status_priority; ALTER TABLE tasks RENAME COLUMN priority TO urgency")
    found = doctor.doctor(here)
    told = {check.id: check.measured for check in found.checks if not check.ok or check.warning}
    assert "table tasks lacks column priority" in told["columns"]
    assert told["query_next_task"] == "next_task has no answer: no such column: priority"
    assert not [check.hint for check in found.checks if "df -" in check.hint]
    assert "failed at columns: " in validation.validate(here, []).summary
    with pytest.raises(Failure, match="no such column: priority") as caught:
        metrics.collect(here)
    assert caught.value.hint.startswith("see what its tables lack: abathur-db doctor")


def test_an_index_that_takes_the_applications_collation_is_a_warning_of_each_init(here: Config) -> None:
    alter(here.database, "DROP INDEX idx_tasks_status_priority;" + collated("tasks", "status"))
    assert "idx_tasks_status_priority" not in "".join(schema.init(here).data["steps"])
    warned = {check.id: check.measured for check in doctor.doctor(here).checks if check.warning}
    assert "INDEX idx_tasks_status_priority is absent, for SQLite alone cannot make it" in warned["indexes"]
    assert schema.init(here).changed is False


def without_rowid(path: Path, table: str) -> None:
    """Make a table anew as WITHOUT ROWID, as an application does it: a copy of its rows, then its name."""
    sql = value(path, f"SELECT sql FROM sqlite_master WHERE name = '{table}'").rstrip().replace("AUTOINCREMENT", "")
    anew = sql.replace(table, "anew", 1)
    run(
        path,
        f"PRAGMA ignore_check_constraints = ON; {anew} WITHOUT ROWID; INSERT INTO anew SELECT * FROM {table}"
        f" WHERE id IS NOT NULL; DROP TABLE {table}; PRAGMA legacy_alter_table = ON;"
        f"ALTER TABLE anew RENAME TO {table}",
    )


@pytest.mark.parametrize("table", ["sessions", "memory_entries"])
def test_old_rows_of_a_table_without_a_rowid_are_put_away(here: Config, table: str) -> None:
    run(here.database, ENDED.replace("'ended'", "CAST(X'74e9' AS TEXT)"), POLICY)
    without_rowid(here.database, table)
    assert schema.init(here).ok
    assert seed.seed(here).ok
    done = retain.retain(here)
    assert done.ok, done.summary
    assert done.data["memories"] >= 1
    assert value(here.database, "SELECT is_deleted FROM memory_entries WHERE key = 'old'") == 1
    left = "SELECT count(*) FROM sessions WHERE status = 'terminated' AND terminated_at < '2021'"
    assert value(here.database, left) == 0


NAMES = {
    "other letters of tables": "ALTER TABLE state RENAME TO x; ALTER TABLE x RENAME TO State;"
    "ALTER TABLE memory_entries RENAME TO x; ALTER TABLE x RENAME TO Memory_Entries",
    "other letters of columns": "ALTER TABLE tasks RENAME COLUMN agent_type TO Agent_Type",
    "other letters of an index": "DROP INDEX idx_tasks_parent; CREATE INDEX IDX_Tasks_Parent ON tasks (parent_task_id)",
    "a table with a column rowid": "CREATE TABLE own (rowid TEXT, x); INSERT INTO own VALUES ('a', 1), ('a', 2)",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_database_is_known_by_names_in_whatever_case(here: Config, kind: str) -> None:
    run(here.database, NAMES[kind])
    assert schema.init(here).ok
    assert schema.init(here).changed is False
    done = everything(here)
    assert {name: result.summary for name, result in done.items() if not result.ok} == {}
    assert restore.losses(here, copied(here))["sentence"] == "no row is lost"


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_a_database_of_another_encoding_is_one_as_any_other(conf: Config, encoding: str) -> None:
    run(
        conf.database,
        f"PRAGMA encoding = '{encoding}'; CREATE TABLE first (\"é\" TEXT); INSERT INTO first VALUES ('ü')",
    )
    applications.make(conf.database, "A1")
    run(conf.database, 'CREATE TABLE "名前" (a); INSERT INTO "名前" VALUES (1)')
    assert schema.init(conf).ok
    done = everything(conf)
    assert {name: result.summary for name, result in done.items() if not result.ok} == {}
    assert "名前" in done["backup"].data["rows"]
    assert restore.losses(conf, copied(conf))["sentence"] == "no row is lost"


def copied(conf: Config) -> Path:
    """Return a copy of the database as a backup would be."""
    copy = conf.database.with_name("copy.db")
    database.snapshot(conf.database, copy, 0)
    return copy


def test_an_index_whose_name_is_taken_is_a_warning_and_what_has_it_stays(here: Config) -> None:
    run(
        here.database,
        "DROP INDEX idx_tasks_session; CREATE TABLE own (a); CREATE INDEX IDX_tasks_session ON own (a)",
    )
    assert schema.init(here).ok
    warned = {check.id: check.measured for check in doctor.doctor(here).checks if check.warning}
    assert "INDEX idx_tasks_session is absent, for its name is that of an index of table own" in warned["indexes"]
    assert value(here.database, "SELECT tbl_name FROM sqlite_master WHERE lower(name) = 'idx_tasks_session'") == "own"
    assert schema.init(here).changed is False


def test_a_view_in_the_place_of_a_table_is_said(here: Config) -> None:
    run(here.database, "DROP TABLE metrics; CREATE TABLE own (a); CREATE VIEW metrics AS SELECT * FROM own")
    with pytest.raises(Failure, match="metrics is a view, not a table"):
        schema.init(here)


@pytest.mark.parametrize("version", [1, 7])
def test_a_number_of_the_applications_own_is_refused_and_left(here: Config, version: int) -> None:
    run(here.database, f"PRAGMA user_version = {version}")
    with pytest.raises(Failure, match=f"has user_version {version}, its application's number"):
        schema.init(here)
    assert value(here.database, "PRAGMA user_version") == version


def test_a_large_id_is_no_number_of_rows(here: Config) -> None:
    run(
        here.database,
        "DROP INDEX idx_memory_created_by",
        "INSERT INTO memory_entries (id, namespace, key, value, memory_type)"
        " VALUES (9223372036854775800, 'agent:1', 'high', '1', 'semantic')",
    )
    assert schema.init(here).ok


@pytest.mark.parametrize(
    ("there", "wanted", "alike"),
    [
        ("WHERE is_deleted=0", "\nWHERE is_deleted = 0", True),
        ("where IS_DELETED = 0", "WHERE is_deleted = 0", True),
        ("WHERE is_deleted = 1", "\n  WHERE is_deleted = 0", False),
        ("WHERE key = 'A'", "WHERE key = 'a'", False),
    ],
)
def test_the_condition_of_an_index_counts_and_not_how_it_is_written(
    tmp_path: Path, there: str, wanted: str, alike: bool
) -> None:
    def index(where: str) -> Any:
        path = tmp_path / "i.db"
        path.unlink(missing_ok=True)
        run(path, f"CREATE TABLE m (key TEXT, is_deleted INT); CREATE INDEX i ON m (key) {where}")
        with database.opened(path, 0) as connection:
            return shape.describe(connection).indexes["i"]

    assert index(there).serves(index(wanted)) is alike


def test_every_partial_index_of_ours_has_its_condition() -> None:
    partial = [each for each in shape.expected(shape.latest()).indexes.values() if each.partial]
    assert len(partial) > 5
    assert all(each.condition for each in partial)


# Values of one column before and after -> rows that are lost.
VALUES = {
    "a number that differs behind 15 digits": ("0.1 + 0.2", "0.3", 1),
    "a large number by one": ("9007199254740993", "9007199254740992", 1),
    "a number and its text": ("1", "'1'", 1),
    "the same number": ("0.1", "0.1", 0),
    "text in other letters": ("'A' COLLATE NOCASE", "'a'", 1),
    "bytes": ("x'00'", "x'0000'", 1),
    "nothing": ("NULL", "NULL", 0),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_differs_at_all_is_lost(conf: Config, tmp_path: Path, kind: str) -> None:
    now, then, lost = VALUES[kind]
    for path, each in ((conf.database, now), (tmp_path / "then.db", then)):
        run(path, f"CREATE TABLE own (a COLLATE NOCASE); INSERT INTO own VALUES ({each})")
    found = restore.losses(conf, tmp_path / "then.db")["tables"]
    assert found == ({"own": {"new": 0, "changed": 1}} if lost else {})


def test_rows_without_a_key_are_told_apart(conf: Config, tmp_path: Path) -> None:
    """A text key may be NULL in several rows, as SQLite documents of its own defect."""
    sql = "CREATE TABLE own (id TEXT PRIMARY KEY, x); INSERT INTO own VALUES " + ", ".join(
        f"(NULL, {number})" for number in range(50)
    )
    run(conf.database, sql)
    run(tmp_path / "then.db", sql)
    assert restore.losses(conf, tmp_path / "then.db")["tables"] == {}
    run(conf.database, "INSERT INTO own VALUES (NULL, 'new'), ('k', 'new'); UPDATE own SET x = 'changed' WHERE x = 7")
    assert restore.losses(conf, tmp_path / "then.db")["tables"] == {"own": {"new": 2, "changed": 1}}


def test_what_a_name_hides_is_counted_as_lost(conf: Config, tmp_path: Path) -> None:
    for path in (conf.database, tmp_path / "then.db"):
        run(path, "CREATE TABLE nam_ (a); INSERT INTO nam_ VALUES (1)")
        not_text(path, "nam_")
    found = restore.losses(conf, tmp_path / "then.db")
    assert list(found["tables"].values()) == [{"new": None, "changed": None}]
    assert "cannot be said" in found["sentence"]


def not_text(path: Path, table: str) -> None:
    """Give a table a name that is no UTF-8: SQLite takes what bytes it is given (a program in C, a file from 1999)."""
    data = path.read_bytes().replace(table.encode(), table.encode()[:-1] + b"\xe9")
    path.write_bytes(data)


def test_a_table_whose_name_is_no_utf8_is_backed_up_and_told(here: Config) -> None:
    schema.init(here)
    run(here.database, "CREATE TABLE own_nam_ (a); INSERT INTO own_nam_ VALUES (1); PRAGMA wal_checkpoint(TRUNCATE)")
    not_text(here.database, "own_nam_")
    done = everything(here)
    assert {name: result.summary for name, result in done.items() if not result.ok} == {}
    told = {check.id: check.measured for check in done["integrity-check"].checks if check.warning}
    assert "table own_nam\ufffd, whose name is no UTF-8" in told["unchecked"]
    assert restore.restore(here, "latest").ok
    assert b"own_nam\xe9" in here.database.read_bytes()


def test_rows_of_the_application_in_a_collections_second_stay(here: Config) -> None:
    schema.init(here)
    stamp = "2020-01-01T00:00:00+00:00"
    ours = [*((name, None) for name in readings.SIZES), ("tasks", '{"status": "ready \\u00e9"}')]
    others = [
        ("tasks", '{"status": "ready", "project": "p"}'),
        ("tasks", '{"status": {"of": "p"}}'),
        ("tasks", '{"status": "torn'),
        ("tasks", '{"status": 7}'),
        ("free_page_bytes", "{}"),
    ]
    with closing(sqlite3.connect(here.database)) as connection, connection:
        connection.executemany(
            f"INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES ('{stamp}', ?, 1, ?)",
            [*ours, *others],
        )
    with database.opened(here.database, 0) as connection:
        assert readings.prune(connection, 1) == len(ours)
    with closing(sqlite3.connect(here.database)) as connection:
        assert connection.execute(
            "SELECT metric_name, labels FROM metrics WHERE timestamp = ?", (stamp,)
        ).fetchall() == (others)


@pytest.mark.parametrize(
    "stamp", ["0001-01-01T00:00:00+00:00", "2026-02-30T00:00:00+00:00", "2026-13-01T25:00:00+00:00"]
)
def test_a_size_of_a_day_that_no_calendar_has_ends_no_collection(here: Config, stamp: str) -> None:
    schema.init(here)
    rows = ", ".join(f"('{stamp}', '{name}', 1)" for name in readings.SIZES)
    run(here.database, f"INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES {rows}")
    assert metrics.collect(here).ok
    with database.opened(here.database, 0, read_only=True) as connection:
        [growth] = [each for each in gauges.of_database(here, connection, []) if each.name == "growth_bytes_per_day"]
    assert growth.value < database.size(here.database)


def test_ids_that_are_used_up_are_no_full_disk(here: Config) -> None:
    schema.init(here)
    seed.seed(here)
    run(here.database, "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'memory_entries'")
    run(here.database, "DELETE FROM memory_entries WHERE namespace LIKE 'app:%'")
    with pytest.raises(Failure, match=r"SQLite finds no room in .*, though its disk has") as caught:
        seed.seed(here)
    command = caught.value.hint[caught.value.hint.index("python3") :]
    shown = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout
    assert "(9223372036854775807, 'memory_entries')" in shown


def test_a_place_that_cannot_be_reached_is_told_by_whoever_opens_it(tmp_path: Path) -> None:
    """A file in the place of a directory, for root can look into any."""
    (tmp_path / "file").write_text("")
    assert database.unsettled(tmp_path / "file" / "x.db") is False
    assert database.unsettled(Path("/" + "x" * 300 + "/x.db")) is False


def test_a_violation_that_is_mended_meanwhile_is_none(here: Config) -> None:
    schema.init(here)
    with database.opened(here.database, 0, read_only=True) as connection:
        assert rules.unparented(connection, "sessions") == ("", "")


@pytest.mark.parametrize("name", ["a b.db", "it's.db", "$(touch gone).db"])
def test_advice_runs_for_a_path_of_whatever_letters(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(Failure) as caught:
        database.exists(path)
    command = caught.value.hint.removeprefix("move it away: ")
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {f"{name}.empty"}
    assert str(path) in shlex.split(command)
    # The same again, of what the application has made meanwhile: what was moved away before stays.
    path.write_bytes(b"")
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_shown_to_people_may_be_no_utf8(conf: Config) -> None:
    run(conf.database, "CREATE TABLE own (a); INSERT INTO own VALUES (CAST(X'74e9' AS TEXT))")
    shown = subprocess.run(["bash", "-c", conf.sql("SELECT a FROM own")], check=True, capture_output=True, text=True)
    assert shown.stdout == "('t\ufffd',)\n"


STRANGERS = {
    "in WAL mode": "PRAGMA journal_mode = WAL; CREATE TABLE own (a); INSERT INTO own VALUES (1)",
    "in WAL mode, by its id": "PRAGMA journal_mode = WAL; CREATE TABLE tasks (a); PRAGMA application_id = 7",
}
WRITER = """
import os, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA cache_size = 1")
c.execute("CREATE TABLE own (a)")
c.execute("BEGIN")
c.execute("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
          " INSERT INTO own SELECT randomblob(500) FROM n")
os._exit(9)
"""


@pytest.mark.parametrize("kind", [*STRANGERS, "with a hot journal"])
@pytest.mark.parametrize("command", ["init", "status", "doctor", "backup", "metrics", "integrity-check", "validate"])
def test_another_applications_file_is_left_as_it_is(
    conf: Config, cli: Callable[..., Any], kind: str, command: str
) -> None:
    home = conf.database.parent / "theirs"
    home.mkdir(mode=0o700)
    path = home / "theirs.db"
    if kind in STRANGERS:
        run(path, STRANGERS[kind])
    else:
        subprocess.run(["python3", "-c", WRITER, path], check=False)
        assert (home / "theirs.db-journal").stat().st_size
    path.chmod(0o600)
    before = picture(home)
    code, _, errors = cli(command, path)
    assert code == 1
    assert "another application" in errors
    assert picture(home) == before
