"""Backups: consistent while others write, checked, compressed, and there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import resource
import shutil
import sqlite3
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import (
    backup,
    catalog,
    database,
    guarded,
    host,
    maintenance,
    packing,
    progress,
    proof,
    restore,
    runs,
    schema,
)
from abathur_db.config import Config
from abathur_db.manifest import OTHER_TABLES
from abathur_db.result import Failure
from conftest import Cli
from databases import application, at_work, corrupt, dump, picture, rows, run


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    rows(conf.database, 50)


def unpacked(path: Path) -> bytes:
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize(("compression", "suffix"), catalog.SUFFIXES.items())
def test_a_backup_holds_every_row_and_its_manifest_tells_the_truth(
    conf: Config, compression: str, suffix: str, tmp_path: Path
) -> None:
    result = backup.backup(replace(conf, backup_compression=compression))
    file = conf.backup_directory / result.data["file"]
    manifest = json.loads(file.with_name(file.name.removesuffix(suffix) + ".json").read_text())
    plain = unpacked(file)
    assert manifest == result.data
    assert manifest["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["plain_sha256"] == hashlib.sha256(plain).hexdigest()
    assert (manifest["bytes"], manifest["plain_bytes"]) == (file.stat().st_size, len(plain))
    assert (manifest["user_version"], manifest["application_id"]) == (1, 0x41627468)
    assert manifest["rows"]["memory_entries"] == 50
    assert manifest["sqlite_version"] == sqlite3.sqlite_version
    (tmp_path / "restored.db").write_bytes(plain)
    assert dump(tmp_path / "restored.db") == dump(conf.database)


def test_nothing_but_the_backup_and_its_manifest_is_left_and_others_cannot_read_them(conf: Config) -> None:
    before = os.umask(0o077)
    try:
        backup.backup(conf)
    finally:
        os.umask(before)
    found = sorted(conf.backup_directory.iterdir(), key=lambda each: each.suffix)
    assert [each.suffix for each in found] == [".json", ".zst"]
    assert all(each.stat().st_mode & 0o077 == 0 for each in found)


def test_two_backups_within_one_second_are_both_kept_in_their_order(conf: Config) -> None:
    names = [backup.backup(conf).data["id"] for _ in range(3)]
    assert len(set(names)) == 3
    assert [each.id for each in catalog.backups(conf)] == names[::-1]
    assert [each.sequence for each in catalog.backups(conf)] == [3, 2, 1]


def test_a_backup_during_writes_is_one_moment_of_the_database(conf: Config) -> None:
    """Each transaction adds one row to two tables: a torn copy would count them differently."""
    code = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.executescript('CREATE TABLE a (x); CREATE TABLE b (x)')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    c.execute('BEGIN IMMEDIATE')\n"
        "    c.execute('INSERT INTO a VALUES (zeroblob(500))')\n"
        "    c.execute('INSERT INTO b VALUES (zeroblob(500))')\n"
        "    c.execute('COMMIT')\n"
    )
    with at_work(code, conf.database) as writer:
        for _ in range(5):
            result = backup.backup(replace(conf, backup_compression="none"))
            copy = sqlite3.connect(conf.backup_directory / result.data["file"])
            counts = copy.execute("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)").fetchone()
            copy.close()
            assert counts[0] == counts[1]
        assert writer.poll() is None


@pytest.fixture
def wide(conf: Config) -> int:
    """Give the database 700 tables of a row each, whose names alone are more than a manifest may have; return rows."""
    names = [f"a{number:03}_{'x' * 1996}" for number in range(700)]
    run(conf.database, *(f"CREATE TABLE {name} (x); INSERT INTO {name} VALUES (1)" for name in names))
    return 50 + len(names)


def test_a_backup_of_more_tables_than_a_manifest_holds_counts_and_restores(conf: Config, wide: int) -> None:
    made = backup.backup(conf)
    assert [each.id for each in catalog.backups(conf)] == [made.data["id"]]
    assert made.data["rows"]["memory_entries"] == 50
    assert sum(made.data["rows"].values()) == wide
    assert 0 < made.data["rows"][OTHER_TABLES] < 700
    assert proof.verify(conf, "latest").ok
    before = dump(conf.database)
    conf.database.unlink()
    restore.restore(conf, "latest")
    assert dump(conf.database) == before


def test_the_record_of_a_run_is_read_whatever_its_result_holds(conf: Config, wide: int, cli: Cli) -> None:
    assert wide
    for command in ("backup", "verify", "status", "backups"):
        code, said, error = cli(command, *(["--database"] if command == "verify" else []), conf.database)
        assert code == 0, said + error
    last = runs.recorded(conf.records("backup"), "last", "backup")
    assert last is not None
    assert last["data"]["sequence"] == 1


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_a_backup_counts_whatever_version_the_application_has_in_the_header(conf: Config, number: int) -> None:
    run(conf.database, f"PRAGMA user_version = {number}")
    made = backup.backup(conf)
    assert made.data["user_version"] == number
    assert [each.id for each in catalog.backups(conf)] == [made.data["id"]]


def test_a_backup_that_would_not_count_is_a_failure_and_leaves_nothing(conf: Config) -> None:
    backup.backup(conf)
    (conf.records("backup") / catalog.SEQUENCE).write_text(f"{2**63 - 1}\n")
    before = picture(conf.backup_directory)
    with pytest.raises(
        Failure, match=r"the backup would not count: .* 9223372036854775808 is a number of more than 64 bits"
    ):
        backup.backup(conf)
    assert picture(conf.backup_directory) == before


def test_a_name_that_does_not_reach_the_disk_is_taken_back(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.backup(conf)
    before = picture(conf.backup_directory)
    sync = guarded.sync

    def broken(path: Path) -> None:
        if path == conf.backup_directory and len(list(path.glob("abathur_*.json"))) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        sync(path)

    monkeypatch.setattr(guarded, "sync", broken)
    with pytest.raises(Failure, match="nothing was kept of it, older backups are untouched"):
        backup.backup(conf)
    assert picture(conf.backup_directory) == before


def test_a_dry_run_makes_nothing(conf: Config) -> None:
    result = backup.backup(conf, dry_run=True)
    assert (result.changed, result.summary[:10]) == (True, "would copy")
    assert not conf.backup_directory.exists()


def test_a_database_that_is_corrupt_gives_no_backup_and_older_ones_stay(conf: Config) -> None:
    backup.backup(conf)
    corrupt(conf.database)
    before = picture(conf.backup_directory)
    with pytest.raises(Failure, match="corrupt"):
        backup.backup(conf)
    assert picture(conf.backup_directory) == before


def test_a_copy_that_does_not_pass_its_check_is_not_kept(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = database.snapshot

    def damaging(source: Path, target: Path, *more: Any) -> None:
        snapshot(source, target, *more)
        corrupt(target)

    monkeypatch.setattr(database, "snapshot", damaging)
    with pytest.raises(Failure, match="corrupt"):
        backup.backup(conf)
    assert list(conf.backup_directory.iterdir()) == []


def test_an_index_that_differs_from_its_table_is_told_where_it_is_looked_for_and_the_backup_counts(
    conf: Config,
) -> None:
    """An index that lacks a row is found by integrity_check alone."""
    rewrite = (
        "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, '{}', '{}')"
        " WHERE name = 'idx_tasks_running_timeout'"
    )
    run(conf.database, rewrite.format("status =", "status <>"))
    run(
        conf.database,
        "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
        " VALUES ('t', 'p', 'running', '{}', 1, 1)",
        rewrite.format("status <>", "status ="),
    )
    assert backup.backup(replace(conf, backup_check="quick")).checks == []
    result = backup.backup(replace(conf, backup_check="full"))
    assert result.ok
    assert [check.measured for check in result.checks if check.warning] == [
        "index idx_tasks_running_timeout: entries differ from the rows of the table"
    ]
    for kept in catalog.backups(conf):
        verified = proof.verify(conf, kept.id)
        assert verified.ok
        assert verified.checks[0].measured == "proven; index idx_tasks_running_timeout was made of its table again"
    checked = maintenance.integrity_check(conf)
    assert checked.summary.endswith("found index idx_tasks_running_timeout: entries differ from the rows of the table")
    rebuild = checked.hint.removeprefix("make it of the rows again, with the application stopped: ")
    subprocess.run(["bash", "-c", rebuild], check=True)
    assert maintenance.integrity_check(conf).ok
    restored = restore.restore(conf, "latest")
    assert restored.summary.endswith("; index idx_tasks_running_timeout was made of its table again")
    assert maintenance.integrity_check(conf).ok


def test_a_low_disk_is_said_before_anything_is_written(conf: Config) -> None:
    with pytest.raises(Failure, match=r"a backup needs 1000\.0 TB free at .*; nothing was changed") as caught:
        backup.backup(replace(conf, minimum_free_mb=1_000_000_000))
    assert caught.value.hint.startswith("free space there: df -h")
    assert list(conf.backup_directory.iterdir()) == []


@pytest.mark.parametrize("compression", catalog.SUFFIXES)
def test_a_file_that_cannot_grow_while_packing_leaves_older_backups(
    conf: Config, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    """The kernel refuses bytes past a limit of the process, in the middle of the packed file, as a full disk does."""
    backup.backup(conf)
    before = picture(conf.backup_directory)
    pack = packing.pack

    def limited(*arguments: Any) -> dict[str, Any]:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old[1]))
        try:
            return pack(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    monkeypatch.setattr(packing, "pack", limited)
    with pytest.raises(Failure, match="could not be written: File too large; nothing was kept of it"):
        backup.backup(replace(conf, backup_compression=compression))
    assert picture(conf.backup_directory) == before


def test_a_stop_while_packing_leaves_nothing(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: int) -> None:
        raise KeyboardInterrupt

    def shown(label: str, _: int) -> Any:
        return contextlib.nullcontext(stopped if label == "compress" else lambda _: None)

    monkeypatch.setattr(progress, "shown", shown)
    with pytest.raises(KeyboardInterrupt):
        backup.backup(conf)
    assert list(conf.backup_directory.iterdir()) == []


def test_a_failing_zstd_is_quoted(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")
    with pytest.raises(Failure, match="zstd failed: exit code 1; nothing was kept"):
        backup.backup(conf)
    assert list(conf.backup_directory.iterdir()) == []


def test_a_missing_zstd_is_named_with_its_package(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Failure, match="zstd is not installed") as caught:
        backup.backup(conf)
    assert "apt-get install zstd" in caught.value.hint


def test_something_in_the_way_of_the_new_file_is_said(conf: Config) -> None:
    (conf.backup_directory / ".abathur_new.db.partial").mkdir(parents=True)
    with pytest.raises(Failure, match="is a directory, which this tool never makes"):
        backup.backup(conf)


def test_leftovers_of_a_killed_backup_are_cleared_by_the_next(conf: Config) -> None:
    conf.backup_directory.mkdir()
    for name in (".abathur_new.db.partial", ".abathur_new.packed.partial", ".abathur_new.db.partial-journal"):
        (conf.backup_directory / name).write_bytes(b"half")
    backup.backup(conf)
    assert [each.name for each in conf.backup_directory.iterdir() if each.name.startswith(".")] == []


def test_a_database_with_a_virtual_table_of_an_absent_extension_is_backed_up(conf: Config) -> None:
    conf.database.unlink()
    application(
        conf.database,
        "PRAGMA writable_schema = ON;"
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nosuchmodule(x)')",
    )
    assert backup.backup(conf).ok


def test_free_space_is_asked_where_the_backups_go(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(host, "require_free", lambda path, *_: asked.append(path))
    backup.backup(conf)
    assert asked == [conf.backup_directory]


def test_what_a_writer_left_that_died_in_the_middle_is_rolled_back_and_backed_up(conf: Config) -> None:
    """An application stopped within a transaction in rollback-journal mode leaves a hot journal."""
    run(conf.database, "PRAGMA journal_mode = DELETE")
    code = (
        "import sqlite3, sys, time\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN')\n"
        "c.execute('DELETE FROM memory_entries')\n"
        "print('in the middle', flush=True)\n"
        "time.sleep(600)\n"
    )
    with at_work(code, conf.database):
        pass
    assert database.files(conf.database)[-1].stat().st_size > 0
    assert backup.backup(conf).data["rows"]["memory_entries"] == 50


def test_a_backup_whose_run_was_killed_before_its_manifest_was_named_goes_with_the_next_run(conf: Config) -> None:
    finished = backup.backup(conf).data
    killed = backup.backup(conf).data
    manifest = conf.backup_directory / f"abathur_{killed['id']}.json"
    manifest.rename(manifest.with_name(f".{manifest.name}.partial"))
    beside = conf.backup_directory / f".abathur_{finished['id']}.json.partial"
    beside.write_text("")
    foreign = conf.backup_directory / "abathur_20200101_000000.db.zst"
    foreign.write_text("of somebody else: nothing says that it is unfinished")
    made = backup.backup(conf).data
    there = {each.name for each in conf.backup_directory.iterdir()}
    assert there == {
        f"abathur_{each['id']}{suffix}" for each in (finished, made) for suffix in (".db.zst", ".json")
    } | {foreign.name}
