"""What SQLite finds, told apart: damage, indexes, rows that break a rule, and what it cannot evaluate alone."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import applications
import pytest
from abathur_db import (
    backup,
    database,
    doctor,
    maintenance,
    objects,
    proof,
    restore,
    rules,
    schema,
    soundness,
    validation,
)
from abathur_db.config import Config
from databases import run, value

pytestmark = pytest.mark.engine


def brought(path: Path, *statements: str) -> None:
    """Execute statements as an application that has a collation and a function of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.create_collation("icu_root", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        connection.create_function("initials", 1, lambda text: text[:1], deterministic=True)
        for each in statements:
            connection.executescript(each)


# From public bug reports about databases that one program wrote and another one had to check, analyze or copy.
BROUGHT = {
    "a collation of a column": (
        "CREATE TABLE tags (id INTEGER PRIMARY KEY, name TEXT COLLATE icu_root); CREATE INDEX own_i ON tags (name);"
        "INSERT INTO tags (name) VALUES ('b'), ('A')",
        "table tags (icu_root is the application's)",
    ),
    "a collation of an index": (
        "CREATE TABLE tags (name TEXT); CREATE INDEX own_i ON tags (name COLLATE icu_root);"
        "INSERT INTO tags VALUES ('b'), ('A')",
        "table tags (icu_root is the application's)",
    ),
    "a collation of a unique column": (
        "CREATE TABLE tags (name TEXT COLLATE icu_root UNIQUE); INSERT INTO tags VALUES ('b'), ('A')",
        "table tags (icu_root is the application's)",
    ),
    "a collation of a key without a rowid": (
        "CREATE TABLE tags (name TEXT COLLATE icu_root PRIMARY KEY) WITHOUT ROWID;INSERT INTO tags VALUES ('b'), ('A')",
        "table tags (icu_root is the application's)",
    ),
    "a function of a generated column": (
        "CREATE TABLE people (name TEXT, first TEXT GENERATED ALWAYS AS (initials(name)) VIRTUAL NOT NULL);"
        "CREATE INDEX own_i ON people (first); INSERT INTO people VALUES ('ann')",
        "table people (initials is the application's)",
    ),
    "a function of an index": (
        "CREATE TABLE people (name TEXT); CREATE INDEX own_i ON people (initials(name));"
        "INSERT INTO people VALUES ('ann')",
        "table people (initials is the application's)",
    ),
    "a function of a rule": (
        "CREATE TABLE people (name TEXT CHECK (initials(name) <> 'x')); INSERT INTO people VALUES ('ann')",
        "CHECK (initials(name) <> 'x') of table people (no such function: initials)",
    ),
    "a parent that is not unique": (
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, code TEXT);"
        "CREATE TABLE child (code TEXT REFERENCES parent (code));"
        "INSERT INTO child VALUES ('c')",
        'foreign keys of table child (foreign key mismatch - "child" referencing "parent")',
    ),
}


def counted(path: Path) -> dict[str, int]:
    """Return the rows per table, by a connection that lacks nothing."""
    with closing(sqlite3.connect(path)) as connection:
        connection.create_collation("icu_root", lambda a, b: (a > b) - (a < b))
        return {name: count for name, count in objects.row_counts(connection).items() if name != "metrics"}


@pytest.mark.parametrize("kind", BROUGHT)
def test_what_the_application_brought_is_one_warning_and_everything_else_goes_on(kind: str, conf: Config) -> None:
    statements, said = BROUGHT[kind]
    applications.make(conf.database, "A1")
    brought(conf.database, statements)
    adopted = schema.init(conf)
    assert adopted.ok
    assert backup.backup(conf).ok
    checked = maintenance.integrity_check(conf)
    assert checked.ok, checked.summary
    assert said in {check.id: check.measured for check in checked.checks if check.warning}["unchecked"]
    for result in (
        proof.verify(conf, "latest"),
        proof.drill(conf),
        maintenance.analyze(conf),
        maintenance.vacuum(conf),
        validation.validate(conf, []),
        doctor.doctor(conf),
    ):
        assert result.ok, result.summary
    before = counted(conf.database)
    conf.database.unlink()
    assert restore.restore(conf, "latest").ok
    assert counted(conf.database) == before


def test_the_order_of_the_application_stays_the_one_it_wrote(conf: Config) -> None:
    applications.make(conf.database, "A1")
    brought(conf.database, BROUGHT["a collation of a column"][0])
    schema.init(conf)
    maintenance.integrity_check(conf)
    brought(conf.database, "INSERT INTO tags (name) VALUES ('C')")
    with closing(sqlite3.connect(conf.database)) as connection:
        connection.create_collation("icu_root", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        assert connection.execute("PRAGMA integrity_check").fetchall() != []
        assert [row[0] for row in connection.execute("SELECT name FROM tags ORDER BY name")] == ["A", "b", "C"]


def test_text_that_is_no_utf8_ends_no_command_and_is_not_printed(conf: Config) -> None:
    applications.make(conf.database, "A1")
    bad = "CAST(X'74e97365637265742d31' AS TEXT)"
    run(
        conf.database,
        f"UPDATE audit SET task_id = {bad}; UPDATE tasks SET prompt = {bad}",
        f"INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ({bad}, {bad}, '1', 'semantic')",
        f"INSERT INTO memory_entries (namespace, key, value, memory_type, updated_at)"
        f" VALUES ({bad}, 'k', '1', 'episodic', '2020-01-01')",
    )
    schema.init(conf)
    for result in (backup.backup(conf), proof.drill(conf), validation.validate(conf, []), doctor.doctor(conf)):
        assert result.ok, result.summary
        assert "secret-1" not in str(result.as_dict())
    assert proof.verify(conf, "latest").ok


def rewritten(path: Path, table: str, before: str, after: str) -> None:
    """Change the definition of a table or an index and not its content, as a defect or a careless migration does."""
    run(
        path,
        f"PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, '{before}', '{after}')"
        f" WHERE name = '{table}'; PRAGMA writable_schema = RESET",
    )


def test_a_row_against_not_null_is_told_and_is_no_damage(conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "CREATE TABLE own (a TEXT); INSERT INTO own VALUES (NULL)")
    rewritten(conf.database, "own", "a TEXT", "a TEXT NOT NULL")
    for result in (maintenance.integrity_check(conf), validation.validate(conf, []), doctor.doctor(conf)):
        assert result.ok, result.summary
    told = {check.id: check.measured for check in maintenance.integrity_check(conf).checks if check.warning}
    assert told == {"row_rules": "NULL value in own.a"}
    assert backup.backup(conf).ok
    assert proof.verify(conf, "latest").ok


CHECKS = {
    "of a column": ("CREATE TABLE t (a INT CHECK (a > 0), b)", ["a > 0"]),
    "of the table, and named": ("CREATE TABLE t (a, b, CONSTRAINT c CHECK(a IN (1, 2)), UNIQUE (b))", ["a IN (1, 2)"]),
    "in comments and texts": (
        "CREATE TABLE t (a TEXT DEFAULT 'CHECK (x)' /* CHECK (y) */ CHECK (a <> ')') -- CHECK (z)\n)",
        ["a <> ')'"],
    ),
    "in names": ('CREATE TABLE t ("check (" INT, [check] INT check\n( [check] > 1), "a""b" TEXT)', ["[check] > 1"]),
    "two of one column": ("CREATE TABLE t (a CHECK (a) CHECK (typeof(a) = 'integer'))", ["a", "typeof(a) = 'integer'"]),
    "with comments and spaces that count": (
        "CREATE TABLE t (a CHECK (a > 0 -- more than (nothing)\n  AND a <> 'x  -- y' /* or\nso) */\n))",
        ["a > 0 AND a <> 'x  -- y'"],
    ),
    "none": ("CREATE TABLE checks (checked INT)", []),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_the_rules_of_a_table_are_read_as_sqlite_reads_them(kind: str, tmp_path: Path) -> None:
    sql, wanted = CHECKS[kind]
    run(tmp_path / "t.db", sql)
    assert rules.constraints(value(tmp_path / "t.db", "SELECT sql FROM sqlite_master")) == wanted


def test_a_value_against_a_rule_is_shown_and_never_replaced_by_advice(conf: Config) -> None:
    schema.init(conf)
    run(
        conf.database,
        "PRAGMA ignore_check_constraints = ON;"
        "INSERT INTO sessions (id, app_name, user_id, status) VALUES ('s', 'a', 'u', 'BOGUS')",
    )
    told = {check.id: check for check in maintenance.integrity_check(conf).checks}["row_rules"]
    assert told.measured.startswith("1 row of table sessions (first: row 1) against CHECK (status IN ('created'")
    assert "BOGUS" not in told.measured
    shown = subprocess.run(["bash", "-c", told.hint], check=True, capture_output=True, text=True).stdout
    assert "BOGUS" in shown
    assert value(conf.database, "SELECT status FROM sessions") == "BOGUS"


# Tables as people make them: the parent's key by its name, by none, of two columns, without a rowid, or absent.
FAMILIES: dict[str, tuple[str, str, list[tuple[object, ...]]]] = {
    "the parent's key is no id": (
        "CREATE TABLE team (code TEXT PRIMARY KEY);"
        "CREATE TABLE member (name TEXT PRIMARY KEY, team TEXT REFERENCES team ON DELETE SET NULL);"
        "INSERT INTO team VALUES ('red'), ('blue');"
        "INSERT INTO member VALUES ('ann', 'red'), ('bob', 'blue'), ('dora', 'gone')",
        "SELECT name, team FROM member ORDER BY name",
        [("ann", "red"), ("bob", "blue"), ("dora", None)],
    ),
    "of two columns": (
        "CREATE TABLE seat (hall TEXT, no INT, PRIMARY KEY (hall, no)); INSERT INTO seat VALUES ('A', 1);"
        "CREATE TABLE booking (who TEXT, hall TEXT, no INT, FOREIGN KEY (hall, no) REFERENCES seat ON DELETE SET NULL);"
        "INSERT INTO booking VALUES ('ann', 'A', 1), ('bob', 'A', 2), ('eve', NULL, 2)",
        "SELECT * FROM booking ORDER BY who",
        [("ann", "A", 1), ("bob", None, None), ("eve", None, 2)],
    ),
    "without a rowid": (
        "CREATE TABLE team (code TEXT PRIMARY KEY) WITHOUT ROWID; INSERT INTO team VALUES ('red');"
        "CREATE TABLE member (name TEXT PRIMARY KEY, team TEXT REFERENCES team (code) ON DELETE SET NULL)"
        " WITHOUT ROWID;"
        "INSERT INTO member VALUES ('ann', 'red'), ('dora', 'gone')",
        "SELECT * FROM member ORDER BY name",
        [("ann", "red"), ("dora", None)],
    ),
    "a parent that is absent": (
        "CREATE TABLE member (name TEXT, team TEXT REFERENCES team (code)); INSERT INTO member VALUES ('ann', 'red')",
        "SELECT * FROM member",
        [("ann", "red")],
    ),
    "a parent that has to come back": (
        'CREATE TABLE "my team" ("the code" TEXT PRIMARY KEY);'
        'CREATE TABLE "a member" (name TEXT, "of team" TEXT REFERENCES "my team");'
        'INSERT INTO "a member" VALUES (1, 2)',
        'SELECT * FROM "a member"',
        [("1", "2")],
    ),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_repair_of_a_foreign_key_changes_what_is_lost_and_nothing_else(kind: str, conf: Config) -> None:
    statements, query, wanted = FAMILIES[kind]
    schema.init(conf)
    run(conf.database, statements)
    found = next(check for check in doctor.doctor(conf).checks if check.id == "foreign_keys")
    assert (found.ok, found.warning) == (True, True)
    subprocess.run(["bash", "-c", found.hint], check=True, capture_output=True)
    with closing(sqlite3.connect(conf.database)) as connection:
        assert connection.execute(query).fetchall() == wanted


DAMAGE: dict[str, Callable[[bytearray], None]] = {
    "a page in the middle": lambda data: data.__setitem__(slice(4096 * 3, 4096 * 20), b"\xff" * 4096 * 17),
    "the end is gone": lambda data: data.__delitem__(slice(len(data) // 2, None)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_damage(kind: str, conf: Config) -> None:
    schema.init(conf)
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(conf.database.read_bytes())
    DAMAGE[kind](data)
    conf.database.write_bytes(data)
    with closing(sqlite3.connect(f"file:{conf.database}?immutable=1", uri=True)) as connection:
        assert soundness.findings(connection, full=True).damage


def test_what_a_later_sqlite_cannot_validate_is_no_damage(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite 3.44 and later ask each virtual table (ext/fts5/fts5_main.c, fts5IntegrityMethod)."""
    schema.init(conf)
    line = "unable to validate the inverted index for FTS5 table main.notes: SQL logic error"
    monkeypatch.setattr(soundness, "_lines", lambda *_: ([line], []))
    with database.opened(conf.database, 0, read_only=True) as connection:
        assert soundness.findings(connection) == soundness.Findings([], [], [], ["table notes"])


def left_behind(path: Path, index: str, insert: str) -> None:
    """Let an index lack rows: it is unknown to SQLite while they are inserted."""
    row = "SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name = ?"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        known = connection.execute(row, (index,)).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = ?", (index,))
        connection.execute("PRAGMA writable_schema = RESET")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(insert)
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", known)
        connection.execute("PRAGMA writable_schema = RESET")


NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {})"
SESSIONS = f"INSERT INTO sessions (id, app_name, user_id) {NUMBERS.format(200)} SELECT 's' || i, 'a', 'u' FROM n"
TASKS = (
    "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
    f" {NUMBERS.format(200)} SELECT 't' || i, 'p', 'pending', '{{}}', 1, 1 FROM n"
)
MANY_NULLS = f"""
CREATE TABLE audited (x);
INSERT INTO audited {NUMBERS.format(150)} SELECT NULL FROM n;
PRAGMA writable_schema = ON;
UPDATE sqlite_master SET sql = 'CREATE TABLE audited (x NOT NULL)' WHERE name = 'audited';
PRAGMA writable_schema = RESET;
"""


@pytest.mark.parametrize("before", ["", MANY_NULLS], ids=["two indexes alone", "rows that break a rule before them"])
def test_of_several_indexes_that_lack_rows_each_is_made_again(conf: Config, before: str) -> None:
    """SQLite gives so many lines: those of one index, or of rows, must not hide another index."""
    schema.init(conf)
    run(conf.database, before)
    left_behind(conf.database, "idx_sessions_user_created", SESSIONS)
    left_behind(conf.database, "idx_tasks_parent", TASKS)
    for result in (
        backup.backup(conf),
        proof.verify(conf, "latest"),
        proof.drill(conf),
        restore.restore(conf, "latest"),
    ):
        assert result.ok, result.summary
    with closing(sqlite3.connect(conf.database)) as connection:
        lines = [row[0] for row in connection.execute("PRAGMA integrity_check(1000)")]
        assert not [line for line in lines if "index" in line]
        assert connection.execute("SELECT count(*) FROM sessions").fetchone() == (200,)


def test_a_collation_on_a_table_of_ours_condemns_no_backup(conf: Config) -> None:
    """A query that has no answer without it is no fault of the backup; SQLite's code for it is an extended one."""
    schema.init(conf)
    run(
        conf.database,
        "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('n', 'k', '1', 'semantic')",
    )
    rewritten(conf.database, "memory_entries", "key TEXT NOT NULL", "key TEXT NOT NULL COLLATE applic")
    assert backup.backup(conf).ok
    drilled = proof.drill(conf)
    assert drilled.ok, drilled.summary
    assert restore.restore(conf, "latest", dry_run=True).ok


PAIRS = """
CREATE TABLE pair (id INTEGER PRIMARY KEY, x, y, UNIQUE (x, y));
CREATE TABLE child (a, b, FOREIGN KEY (a, b) REFERENCES pair (x, y));
CREATE TABLE orphan (a, b, FOREIGN KEY (a, b) REFERENCES nowhere (x, y));
INSERT INTO child VALUES (1, 2); INSERT INTO orphan VALUES (3, 4);
"""


def test_a_foreign_key_of_several_columns_is_told_with_a_statement_that_runs(conf: Config) -> None:
    """Its parent has the pair as a UNIQUE one, beside a primary key of one column; or is not there at all."""
    applications.make(conf.database, "A1")
    run(conf.database, PAIRS)
    for result in (schema.init(conf), maintenance.integrity_check(conf), doctor.doctor(conf)):
        assert result.ok, result.summary
    with closing(sqlite3.connect(conf.database)) as connection:
        for table, said in (("child", "child row 1, a, b in pair"), ("orphan", "orphan row 1, a, b in nowhere")):
            told, statement = rules.unparented(connection, table)
            assert told == said
            assert len(connection.execute(statement).fetchall()) == 1


@pytest.mark.parametrize("table", ["checkpoints", "agents"])
def test_a_table_of_ours_without_a_rowid_is_adopted_and_restored(conf: Config, table: str) -> None:
    """Its primary key is the table itself: an index that SQLite lists and does not describe."""
    applications.make(conf.database, "A1", rows=False)
    with closing(sqlite3.connect(conf.database)) as connection:
        made = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0]
        connection.executescript(f"DROP TABLE {table}; {made} WITHOUT ROWID")
    for result in (schema.init(conf), backup.backup(conf), proof.verify(conf, "latest"), proof.drill(conf)):
        assert result.ok, result.summary
    assert doctor.doctor(conf).ok
    assert restore.restore(conf, "latest").ok
