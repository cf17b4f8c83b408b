"""What applications, people and other programs leave where the tool reads: no command calls it a defect of its own.

Each case is a real database, and the tool's command line run over it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from abathur_db import (
    backup,
    catalog,
    cli,
    database,
    doctor,
    host,
    page,
    replica,
    replication,
    report,
    runs,
    schema,
    seed,
    status,
    validation,
)
from abathur_db.config import Config
from conftest import Answer
from databases import SQL, at_work, value

Tool = Callable[..., Answer]

DEEP = "[" * 900 + "]" * 900
SECRET = "the-password-of-somebody"


@pytest.fixture
def conf(conf: Config) -> Config:
    """Return a database with its seeds, and a backup of it."""
    schema.init(conf)
    seed.seed(conf)
    backup.backup(conf)
    return conf


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    """Run a command line; return its exit code, output and errors."""

    def run(*arguments: str | Path) -> Answer:
        try:
            code = cli.main([str(each) for each in arguments])
        except SystemExit as usage:
            code = int(usage.code or 0)
        return code, *capsys.readouterr()

    return run


def write(path: Path, sql: str, *values: object) -> None:
    """Execute a statement as an application would: with no check and no foreign key."""
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA ignore_check_constraints = ON; PRAGMA foreign_keys = OFF")
    connection.execute(sql, values)
    connection.commit()
    connection.close()


def audited(data: object) -> Callable[[Path], None]:
    """Return what changes a seed's memory, and puts something else into the audit row that says who wrote it."""

    def prepare(path: Path) -> None:
        write(path, "UPDATE memory_entries SET value = '{\"mine\": 1}' WHERE key = 'default_workflow'")
        write(path, "UPDATE audit SET action_data = ? WHERE action_type = 'seed'", data)

    return prepare


def metric(name: object, number: object, moment: object = "2026-11-28T00:00:00+00:00", labels: object = None):  # type: ignore[no-untyped-def]
    """Return what adds a row to the table metrics; ours have a text, a finite number, a time, and a JSON object."""
    columns = "timestamp TIMESTAMP, metric_name TEXT, metric_value REAL, labels TEXT"

    def prepare(path: Path) -> None:
        # As an application may have made it: nothing is NOT NULL.
        write(path, "DROP TABLE metrics")
        write(path, f"CREATE TABLE metrics (id INTEGER PRIMARY KEY, {columns})")
        (index,) = re.findall(r"CREATE INDEX idx_metrics\w+\s[^;]+;", (SQL / "migrations/0001_initial.sql").read_text())
        write(path, index)
        for each in (("2026-11-27T00:00:00+00:00", "wal_bytes", 5.0, None), (moment, name, number, labels)):
            write(path, "INSERT INTO metrics (timestamp, metric_name, metric_value, labels) VALUES (?, ?, ?, ?)", *each)

    return prepare


def memory(text: object) -> Callable[[Path], None]:
    """Return what makes something else of the stored lifecycle policy."""
    return lambda path: write(path, "UPDATE memory_entries SET value = ? WHERE key = 'memory_lifecycle_policies'", text)


def no_utf8(table: str, column: str, condition: str = "1") -> Callable[[Path], None]:
    return lambda path: write(
        path, f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {condition}", SECRET.encode() + b"\xe9"
    )


ROWS: dict[str, Callable[[Path], None]] = {
    "an audit row without data": audited(None),
    "an audit row that is a list": audited("[]"),
    "an audit row that is a text": audited('"sha256"'),
    "an audit row nested without end": audited('{"sha256": ' * 1500 + "1" + "}" * 1500),
    "an audit row that is no JSON": audited("sha256"),
    "an audit row of bytes": audited(b"\xff"),
    "a memory nested deep": lambda path: write(path, "UPDATE memory_entries SET value = ?", DEEP),
    "a memory of NULL": lambda path: write(path, "UPDATE memory_entries SET value = x'ff'"),
    "a policy nested deep": memory('{"episodic_ttl_days": ' + DEEP + "}"),
    "a policy of 9e999 days": memory('{"episodic_ttl_days": 9e999}'),
    "a policy of a number beyond all": memory('{"episodic_ttl_days": 1' + "0" * 5000 + "}"),
    "a policy that is a list": memory("[]"),
    "a metric of 9e999": metric("wal_bytes", 9e999),
    "a metric of -9e999": metric("growth_bytes_per_day", -9e999),
    "a metric of the largest number": metric("database_bytes", 1.7e308),
    "a metric that is a text": metric("database_bytes", "many"),
    "a metric that is bytes": metric("wal_bytes", b"\x01"),
    "a metric without a value": metric("database_bytes", None),
    "a metric without a name": metric(None, 1),
    "a metric whose name is bytes": metric(b"\xff", 1),
    "a metric of no time": metric("wal_bytes", 1, "yesterday"),
    "a metric without a time": metric("database_bytes", 1, None),
    "a metric of the year 0": metric("wal_bytes", 1, "0000-01-01"),
    "a metric of the last moment of all": metric("database_bytes", 1, "9999-12-31T23:59:59-14:00"),
    "a metric without a time zone": metric("database_bytes", 1, "2026-11-01 00:00:00"),
    "a metric of bytes as time": metric("wal_bytes", 1, b"\xff"),
    "a metric with labels nested deep": metric("query_seconds", 1, labels=DEEP),
    "a metric with labels that are no JSON": metric("sessions", 1, labels="status=done"),
    "a metric with labels that are bytes": metric("sessions", 1, labels=b"\xff"),
    "a metric with labels that are a number": metric("tasks", 1, labels="9e999"),
    "a metric with half a letter in its labels": metric("tasks", 1, labels='{"status": "\\ud800"}'),
    "a task of an audit row that is no UTF-8": no_utf8("audit", "task_id"),
    "a memory's key that is no UTF-8": no_utf8("memory_entries", "key", "key <> 'memory_lifecycle_policies'"),
    "a policy that is no UTF-8": no_utf8("memory_entries", "value"),
    "a metric's name that is no UTF-8": lambda path: write(
        path, "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES ('t', CAST(x'ff' AS TEXT), 1)"
    ),
}

COMMANDS = ("status", "metrics", "report", "retain", "doctor", "backup", "verify", "drill", "analyze", "seed", "init")


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_is_not_ours_is_no_defect_of_any_command_and_is_not_repeated(
    conf: Config, tool: Tool, case: str
) -> None:
    ROWS[case](conf.database)
    for command in COMMANDS:
        named = ["--database", conf.database] if command == "verify" else [conf.database]
        code, output, errors = tool(command, *named, "--json")
        assert (SECRET in output + errors, "Traceback" in errors) == (False, False), f"{command}: {errors}"
        # A policy that cannot be read is told, and nothing else is wrong.
        told = command == "retain" and "memory_lifecycle_policies" in output
        assert code == (1 if told else 0), f"{command}: {output}{errors}"
        json.loads(output, parse_constant=pytest.fail)
    texts = [each for each in conf.state_directory.rglob("*") if each.is_file()]
    assert [each for each in texts if SECRET in each.read_text(errors="replace")] == []


def test_sessions_read_rows_that_are_no_utf_8_as_any_others(conf: Config) -> None:
    for case in (each for each in ROWS if "no UTF-8" in each):
        ROWS[case](conf.database)
    result = validation.validate(conf, [])
    assert (result.ok, SECRET in str(result)) == (True, False), result.report()


def test_a_seed_that_others_wrote_about_is_left_alone(conf: Config, tool: Tool) -> None:
    for case in (each for each in ROWS if each.startswith("an audit row")):
        ROWS[case](conf.database)
        code, output, errors = tool("seed", conf.database)
        assert (code, "left alone, because an operator changed it" in output) == (0, True), errors
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 3


MOMENTS = (
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01", "9999-12-31T23:59:59", "9999-12-31"),
    *("2026-11-28T00:00:00+23:59", "0000-01-01", "10000-01-01", "-0001-01-01", "2026-W60", "\udcff"),
)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_moment_at_the_end_of_all_time_is_told_in_a_sentence(conf: Config, tool: Tool, moment: str) -> None:
    for command in ("verify", "restore"):
        code, _, errors = tool(command, moment, "--database", conf.database)
        assert (code in (0, 1, 2), "Traceback" in errors) == (True, False), errors


def planted(name: str, make: Callable[[Path], object]) -> Callable[[Config], None]:
    def prepare(conf: Config) -> None:
        path = conf.database.parent / name.format(state=conf.state_directory.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        make(path)

    return prepare


def no_backups(conf: Config) -> None:
    shutil.rmtree(conf.backup_directory)
    conf.backup_directory.symlink_to(conf.backup_directory)


BROKEN: dict[str, tuple[Callable[[Config], None], dict[str, set[str]]]] = {
    "the last result of a job": (
        planted("{state}/last/backup.json", os.mkfifo),
        {"status": {"job_backup"}, "doctor": {"job_backup"}},
    ),
    "the last success of a job": (
        planted("{state}/success/backup.json", lambda path: path.symlink_to("/etc/passwd")),
        {"status": {"job_backup"}, "doctor": set()},
    ),
    "the settings of the replica": (
        planted("replication.yml", lambda path: path.write_text('{"database": ')),
        {"status": {"fence", "replication"}, "doctor": {"fence", "replication"}},
    ),
    "a kept database that is a link to nothing": (
        planted("abathur.db.before-restore_1", lambda path: path.symlink_to("nothing")),
        {"status": set(), "doctor": set()},
    ),
    "the backups": (no_backups, {"status": {"backup_age"}, "doctor": {"backup_age", "disk"}}),
}


@pytest.fixture
def host_of_ones_own(conf: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Return a host of root's with one timer, whose settings of a replica stand beside its database."""
    timer = "Id=abathur-db@backup.timer\nActiveState=active\nUnitFileState=enabled\nNextElapseUSecRealtime=Wed"
    listed = {"list-unit-files": ["abathur-db@backup.timer"], "show": timer.splitlines()}
    monkeypatch.setattr(host, "systemctl", lambda verb, *_: listed[verb])
    monkeypatch.setattr(replica, "SETTINGS", conf.database.with_name("replication.yml"))
    run_of = {"command": "backup", "ok": True, "summary": "", "invocation": "", "finished": runs.now()}
    runs.record(conf.state_directory, run_of)
    return replace(conf, owner="root")


@pytest.mark.parametrize("case", ["nothing", *BROKEN])
@pytest.mark.parametrize("command", ["status", "doctor"])
def test_what_cannot_be_read_is_a_finding_and_everything_else_is_told(
    host_of_ones_own: Config, command: str, case: str
) -> None:
    prepare, wrong = BROKEN.get(case, (lambda _: None, {"status": set(), "doctor": set()}))
    prepare(host_of_ones_own)
    result = {"status": status.status, "doctor": doctor.doctor}[command](host_of_ones_own)
    found = {each.id: each for each in result.checks}
    assert {each.id for each in result.checks if not each.ok} == wrong[command], result.report()
    assert all(found[each].hint for each in wrong[command])
    others = {"database", "free_space"} if command == "status" else {"owner", "locked", "disk_1", "foreign_keys"}
    assert {*others, "timer_backup"} <= set(found)
    assert page.render(report.gather(host_of_ones_own))


TOGGLE = """
import os, sys
print("ready", flush=True)
while True:
    for name in sys.argv[1:]:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o600))
    for name in sys.argv[1:]:
        os.unlink(name)
"""


def test_a_file_that_goes_while_it_is_looked_at_is_no_fault(conf: Config) -> None:
    """SQLite deletes log and index with the last connection, Litestream what it has sent."""
    replica.home(conf).mkdir(parents=True)
    change = replica.home(conf) / "1.ltx"
    with at_work(TOGGLE, *database.sidecars(conf.database), change):
        ending = time.monotonic() + 3
        while time.monotonic() < ending:
            assert database.size(conf.database) > 0
            assert database.open_to_others(conf.database) == []
            assert all(each.ok for each in [*doctor._files(conf), doctor._wal(conf), *validation._modes(conf)])
            assert replication._unsent(conf) == 0


def test_a_database_whose_name_is_a_pattern_has_its_own_kept_copies(conf: Config, tmp_path: Path, tool: Tool) -> None:
    path = tmp_path / "a[1]*?.db"
    assert tool("init", path)[0] == 0
    assert tool("restore", "fresh", "--database", path)[0] == 0
    assert len(catalog.kept_aside(replace(conf, database=path))) == 1
    path.unlink()
    code, _, errors = tool("init", path)
    assert (code, "kept copies (1) are here; no empty one was made" in errors) == (1, True), errors
