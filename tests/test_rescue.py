"""A database that is gone: it comes back from the process that has it open, else by the step that is said."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from abathur_db import backup, database, host, packing, processes, rescue, restore, schema, seed
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from conftest import Cli
from databases import application, at_work, rows, run, toml, until, value

pytestmark = pytest.mark.engine

WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(f"PRAGMA journal_mode = {sys.argv[2]}")
n = 0
while True:
    n += 1
    try:
        connection.execute(sys.argv[3], (str(n),))
    except sqlite3.OperationalError:
        # Without a log SQLite writes no more into a file that has no name (SQLITE_READONLY_DBMOVED).
        time.sleep(0.01)
        continue
    print(n, flush=True)
    time.sleep(0.01)
"""
"""An application that keeps one connection, and says the number of each row that it was told is committed."""


@contextmanager
def writing(conf: Config, journal: str = "wal") -> Iterator[Callable[[], int]]:
    """Let an application write into the database; yields what reads the last number that it said."""
    insert = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('w', ?, '1', 'semantic')"
    with at_work(WRITER, conf.database, journal, insert) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        said = [1]

        def last() -> int:
            text = (process.stdout.read() if process.stdout else b"") or b""
            said.extend(int(each) for each in text.split())
            return said[-1]

        until(lambda: last() > 20, "twenty rows")
        yield last


@pytest.fixture
def own(conf: Config) -> Config:
    """Return a database with a backup, to which rows were added since."""
    schema.init(conf)
    seed.seed(conf)
    backup.backup(conf)
    rows(conf.database, 30)
    return conf


def gone(conf: Config, which: str = "all") -> None:
    for each in conf.database.parent.glob(f"{conf.database.name}*" if which == "all" else conf.database.name):
        if each.is_file():
            each.unlink()


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("which", ["all", "the database alone"])
def test_every_row_that_was_acknowledged_comes_back(own: Config, cli: Cli, which: str, journal: str) -> None:
    variables = {"ABATHUR_DB_CONFIG": toml(own)}
    with writing(own, journal) as last:
        gone(own, which)
        if journal == "wal":
            until(lambda: last() > 60, "rows after it was deleted")
        code, _, errors = cli("doctor", **variables)
        assert (code, "restart nothing" in errors) == (1, True), errors
        advised = re.search(r"^hint: (abathur-db rescue.*)$", errors, re.MULTILINE)
        assert advised, errors
        code, _, errors = cli(*shlex.split(advised[1])[1:], **variables)
        assert code == 0, errors
        # Nothing more is acknowledged: the writer was ended where it stood.
        acknowledged = last()
    assert value(own.database, "SELECT max(CAST(key AS INTEGER)) FROM memory_entries WHERE namespace = 'w'") in (
        acknowledged,
        acknowledged + 1,
    )
    assert value(own.database, "SELECT count(*) FROM memory_entries WHERE namespace = 'user:1'") == 30
    assert not list(own.database.parent.glob("*before*/abathur.db")), (
        "what was rescued is in its place, and nowhere else"
    )
    assert cli("validate", **variables)[0] == 0
    assert cli("rescue", **variables)[0] == 1


def test_a_database_with_rows_in_its_place_stays_and_the_rescued_one_is_kept(own: Config, cli: Cli) -> None:
    with writing(own) as last:
        gone(own)
        application(own.database, "PRAGMA journal_mode = WAL")
        rows(own.database, 5, "new")
        until(lambda: last() > 60, "rows after it was deleted")
        found = rescue.rescue(own)
    kept = Path(found.data["kept"])
    assert value(own.database, "SELECT count(*) FROM memory_entries") == 5
    assert value(kept, "SELECT count(*) FROM memory_entries WHERE namespace = 'w'") >= 60
    code, out, _ = cli(*shlex.split(found.hint.partition(": ")[2])[1:])
    assert (code, "it lacks 5 rows" in out) == (0, True), out


def test_what_an_application_made_in_its_place_is_kept_aside(own: Config) -> None:
    with writing(own) as last:
        gone(own)
        own.database.touch(0o600)
        until(lambda: last() > 60, "rows after it was deleted")
        assert rescue.rescue(own).data["kept"] is None
    assert value(own.database, "SELECT count(*) FROM memory_entries WHERE namespace = 'w'") >= 60


def test_nothing_else_is_put_in_the_place_of_a_database_that_somebody_has_open(own: Config, cli: Cli) -> None:
    with writing(own):
        gone(own)
        for command in (["restore", "latest", "--database"], ["init"]):
            code, _, errors = cli(*command, own.database)
            assert (code != 0, "rescue" in errors, own.database.exists()) == (True, True, False), errors


def test_a_damaged_one_is_kept_aside_and_its_application_goes_on(own: Config) -> None:
    with writing(own) as last:
        gone(own)
        (held,) = processes.deleted(own.database)
        with held.links[""].open("r+b") as stream:
            stream.seek(4096 * 2)
            stream.write(b"\xff" * 4096 * 12)
        with pytest.raises(Failure, match=r"corrupt.*the copy is kept in"):
            rescue.rescue(own)
        assert host.process_state(held.pid) not in "Tt"
        assert last()
    assert not own.database.exists()


def test_a_dry_run_stops_nobody(own: Config) -> None:
    with writing(own) as last:
        gone(own)
        assert rescue.rescue(own, dry_run=True).changed
        before = last()
        until(lambda: last() > before, "another row")


def test_two_deleted_ones_are_taken_out_by_the_commands_that_are_said(own: Config, tmp_path: Path) -> None:
    with writing(own):
        gone(own)
        application(own.database)
        with writing(own):
            gone(own)
            with pytest.raises(Failure, match="different deleted databases") as refused:
                rescue.rescue(own)
            commands = refused.value.hint.partition(": ")[2].replace("/root/", f"{tmp_path}/")
            subprocess.run(commands, shell=True, check=True)
    taken = [each for each in tmp_path.glob("rescued-*") if not each.name.endswith("-wal")]
    assert [value(each, "SELECT count(*) > 15 FROM memory_entries WHERE namespace = 'w'") for each in taken] == [1, 1]


def test_who_was_frozen_goes_on_when_there_is_no_room(own: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise Failure("no room", "")

    with writing(own) as last:
        gone(own)
        monkeypatch.setattr(host, "require_free", full)
        with pytest.raises(Failure, match="no room"):
            rescue.rescue(own)
        before = last()
        until(lambda: last() > before, "another row")


def test_a_database_that_was_renamed_under_its_application_gets_its_name_again(own: Config, cli: Cli) -> None:
    with writing(own) as last:
        own.database.rename(own.database.with_name("old.db"))
        until(lambda: last() > 60, "rows after it was renamed")
        acknowledged = last()
        code, _, errors = cli("doctor", own.database)
        told = re.search(r"hint: it was renamed; give it its name again: (mv .*)$", errors, re.MULTILINE)
        assert told, errors
        subprocess.run(told[1], shell=True, check=True)
    assert code == 1
    found = value(own.database, "SELECT max(CAST(key AS INTEGER)) FROM memory_entries WHERE namespace = 'w'")
    assert found >= acknowledged


LOST: dict[str, Callable[[Path], object]] = {
    "absent": lambda _: None,
    "an empty file": Path.touch,
    "a database without a table": lambda path: run(path, "CREATE TABLE t (x); DROP TABLE t"),
    "a log alone": lambda path: path.with_name(f"{path.name}-wal").write_bytes(b"log"),
}


@pytest.mark.parametrize("command", ["status", "doctor", "analyze", "init", "metrics", "backup"])
@pytest.mark.parametrize("state", LOST)
def test_what_is_said_of_a_lost_database_brings_its_backup_back(
    own: Config, cli: Cli, state: str, command: str
) -> None:
    gone(own)
    LOST[state](own.database)
    variables = {"ABATHUR_DB_CONFIG": toml(own)}
    code, out, errors = cli(command, **variables)
    assert code != 0
    said = re.search(r"bring the backup of .* UTC back: (.*)$", out + errors, re.MULTILINE)
    assert said, out + errors
    for each in said[1].split(" && "):
        code, out, errors = cli(*shlex.split(each)[1:], **variables)
        assert code == 0, errors
        assert re.search(r"what was written after \d{4}-.* is not in it", out), out
    assert cli("status", **variables)[0] == 0
    assert cli(command, **variables)[0] == 0


@pytest.fixture
def deployed(own: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[str]]:
    """Return a host of root's, whose application is a unit that runs, and what systemd is told."""
    told: list[str] = []
    monkeypatch.setattr(host, "control", lambda *words: told.append(" ".join(words)))
    monkeypatch.setattr(host, "is_active", lambda _: True)
    monkeypatch.setattr(processes, "unit_of", lambda *_: "abathur.service")
    return replace(own, owner=pwd.getpwuid(os.geteuid()).pw_name, application_units=["abathur.service"]), told


def test_the_units_of_the_holders_stand_still_meanwhile(deployed: tuple[Config, list[str]]) -> None:
    conf, told = deployed
    with writing(conf):
        gone(conf)
        done = rescue.rescue(conf)
    assert told == ["stop abathur.service", "start abathur.service"]
    assert done.summary.endswith("abathur.service started again")


def test_what_cannot_be_put_in_its_place_is_kept_and_named(
    deployed: tuple[Config, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf, told = deployed

    def busy(*_: object) -> None:
        raise Failure("it is open in another process", "stop that one", Exit.BUSY)

    monkeypatch.setattr(restore, "alone", busy)
    with writing(conf):
        gone(conf)
        with pytest.raises(Failure, match=r"is in (\S+), not in its place: it is open") as refused:
            rescue.rescue(conf)
    kept = re.search(r"then: abathur-db restore (\S+)$", refused.value.hint)
    assert kept
    assert value(Path(kept[1]), "SELECT count(*) FROM memory_entries WHERE namespace = 'w'") > 15
    assert (told[-1], refused.value.code) == ("start abathur.service", Exit.BUSY)


@pytest.mark.parametrize("where", ["the files", "the process"])
def test_who_may_not_look_into_the_holder_is_told_and_nobody_is_stopped(
    own: Config, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with writing(own) as last:
        gone(own)
        if where == "the files":
            monkeypatch.setattr(packing, "unpack", denied)
        else:
            monkeypatch.setattr(os, "pidfd_open", denied)
        with pytest.raises(Failure, match=r"does not let its files be read|runs as another user"):
            rescue.rescue(own)
        before = last()
        until(lambda: last() > before, "another row")


def test_a_job_whose_sandbox_hides_the_holder_sends_to_the_doctor(
    own: Config, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    gone(own)
    unit = b"0::/system.slice/system-abathur\\x2ddb.slice/abathur-db@analyze.service\n"
    for found, advised in ((unit, True), (b"0::/user.slice\n", False), (None, False)):

        def read(path: Path, found: bytes | None = found, usual: Callable[[Path], bytes] = Path.read_bytes) -> bytes:
            if str(path) != "/proc/self/cgroup":
                return usual(path)
            if found is None:
                raise OSError
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", read)
            errors = cli("analyze", own.database)[2]
        assert ("restart nothing; see what is left of it: abathur-db doctor" in errors) is advised, errors
    assert host.process_state(2**22 + 1) == "X"


def test_without_a_backup_what_was_made_in_its_place_is_moved_away_first(deployed: tuple[Config, list[str]]) -> None:
    conf, _ = deployed
    gone(conf)
    shutil.rmtree(conf.backup_directory)
    conf.database.touch()
    with pytest.raises(Failure) as refused, rescue.advised(conf):
        database.require(conf.database)
    moved = f"mv --backup=numbered {conf.database} {conf.database}.empty"
    assert refused.value.hint == (
        f"there is no backup; make a new one: systemctl stop abathur.service && {moved} && ansible-playbook deploy.yml"
    )
