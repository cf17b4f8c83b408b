"""Restoring: the backup in the database's place, the former one kept whole, and everything as it was on any failure."""

from __future__ import annotations

import gzip
import os
import re
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, database, host, maintenance, metrics, objects, replica, restore, schema, seed
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from conftest import Cli
from databases import ROOT, application, at_work, contents, corrupt, dump, picture, rows, run, value


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)
    rows(conf.database, 20)


@pytest.fixture
def saved(conf: Config) -> str:
    """Make a backup, then write rows that it does not have: one new session, one changed memory."""
    identity: str = backup.backup(conf).data["id"]
    run(
        conf.database,
        "INSERT INTO sessions (id, app_name, user_id) VALUES ('later', 'a', 'u')",
        "UPDATE memory_entries SET value = '1' WHERE key = 'key7'",
    )
    return identity


def count(path: Path, table: str = "sessions") -> int:
    found: int = value(path, f"SELECT count(*) FROM {table}")
    return found


def test_a_restore_brings_the_backup_back_and_keeps_the_former_database(conf: Config, saved: str) -> None:
    now = dump(conf.database)
    result = restore.restore(conf, saved)
    assert count(conf.database) == 0
    assert value(conf.database, "PRAGMA journal_mode") == "wal"
    assert stat.S_IMODE(conf.database.stat().st_mode) == 0o600
    kept = Path(result.data["kept"])
    assert dump(kept / "abathur.db") == now
    assert result.hint == ""


def test_an_application_that_takes_the_restored_database_at_once_makes_no_failure_of_the_restore(
    conf: Config, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = restore.swap
    taken: list[sqlite3.Connection] = []

    def swapped(path: Path, staged: Path) -> str | None:
        kept = swap(path, staged)
        taken.append(sqlite3.connect(path, isolation_level=None))
        taken[0].execute("PRAGMA locking_mode = EXCLUSIVE")
        taken[0].execute("DELETE FROM sessions")
        return kept

    monkeypatch.setattr(restore, "swap", swapped)
    assert restore.restore(conf, saved).ok
    taken[0].close()


def test_a_database_is_never_restored_from_the_backups_of_another_one_beside_it(cli: Cli, conf: Config) -> None:
    other = conf.database.with_name("other.db")
    assert [cli(command, path)[0] for command, path in (("backup", conf.database), ("init", other))] == [0, 0]
    code, _, errors = cli("restore", "latest", "--database", other)
    assert (code, errors.splitlines()[0].partition(" in ")[0]) == (1, "restore: there is no backup latest")
    assert count(other, "memory_entries") == 0


def test_what_a_restore_loses_is_counted_by_table_before_it_is_done(conf: Config, saved: str) -> None:
    result = restore.restore(conf, saved, dry_run=True)
    assert result.data["lost"] == {"memory_entries": {"new": 0, "changed": 1}, "sessions": {"new": 1, "changed": 0}}
    assert result.summary == (
        f"would restore backup {saved}; it lacks 2 rows written since: "
        "memory_entries 0 new and 1 changed, sessions 1 new and 0 changed"
    )
    assert count(conf.database) == 1


def test_a_restore_that_must_not_lose_rows_refuses_with_their_number(conf: Config, saved: str) -> None:
    with pytest.raises(
        Failure, match=r"was not restored: it lacks 2 rows written since: .*; nothing was changed"
    ) as caught:
        restore.restore(conf, saved, keep_rows=True)
    assert "abathur_db_rollback_lose_rows=true" in caught.value.hint
    assert count(conf.database) == 1


def test_rows_of_a_table_that_the_backup_lacks_are_lost_too(conf: Config, saved: str) -> None:
    run(conf.database, "CREATE TABLE own (x); INSERT INTO own VALUES (1), (2)", "CREATE TABLE loose (y)")
    backup.backup(conf)
    run(conf.database, "INSERT INTO loose VALUES (5)")
    assert restore.restore(conf, saved, dry_run=True).data["lost"]["own"] == {"new": 2, "changed": 0}
    assert restore.restore(conf, "latest", dry_run=True).data["lost"] == {"loose": {"new": 1, "changed": 0}}


def test_what_the_bundle_measured_since_is_no_reason_to_refuse(conf: Config) -> None:
    schema.init(conf)
    backup.backup(conf)
    assert metrics.collect(conf).changed
    assert value(conf.database, "SELECT count(*) FROM metrics") > 0
    assert restore.restore(conf, "latest", dry_run=True).data["lost"] == {}
    assert restore.restore(conf, "latest", keep_rows=True).changed


def test_what_the_application_measured_since_is_a_reason_to_refuse(conf: Config) -> None:
    schema.init(conf)
    insert = "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES ('2026-11-25T02:00:00+00:00', '{}', 1)"
    run(conf.database, insert.format("x"))
    backup.backup(conf)
    metrics.collect(conf)
    run(conf.database, insert.format("wal_bytes"), "UPDATE metrics SET metric_value = 2 WHERE metric_name = 'x'")
    lost = {"metrics": {"new": 1, "changed": 1}}
    assert restore.restore(conf, "latest", dry_run=True).data["lost"] == lost
    with pytest.raises(Failure, match="metrics 1 new and 1 changed"):
        restore.restore(conf, "latest", keep_rows=True)


@pytest.mark.parametrize("shape", ["a", "timestamp, metric_name, labels"])
def test_a_table_metrics_of_another_shape_is_the_applications(conf: Config, shape: str) -> None:
    schema.init(conf)
    run(conf.database, "DROP TABLE metrics", f"CREATE TABLE metrics ({shape})")
    snapshot = conf.database.with_name("snapshot.db")
    database.snapshot(conf.database, snapshot, 100)
    run(conf.database, f"INSERT INTO metrics ({shape.split(', ')[0]}) VALUES (1), (2)")
    assert restore.losses(conf, snapshot)["tables"] == {"metrics": {"new": 2, "changed": 0}}


def test_committed_rows_that_are_only_in_the_log_are_kept_with_it_and_never_replayed(conf: Config, saved: str) -> None:
    """The -wal of the former database beside the restored one would be replayed over it (trap 11)."""
    writer = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('PRAGMA wal_autocheckpoint = 0')\n"
            "c.execute(\"INSERT INTO sessions (id, app_name, user_id) VALUES ('in the log', 'a', 'u')\")\n"
            "os.kill(os.getpid(), 9)",
            conf.database,
        ],
        check=False,
    )
    assert writer.returncode == -signal.SIGKILL
    log = database.sidecars(conf.database)[0]
    assert log.stat().st_size > 0
    kept = Path(restore.restore(conf, saved).data["kept"])
    assert count(conf.database) == 0
    # What is kept comes back by its folder or its file, with what its log alone has.
    for named in (kept, kept / "abathur.db"):
        assert restore.restore(conf, saved).ok
        assert restore.restore(conf, str(named)).ok
        assert value(conf.database, "SELECT count(*) FROM sessions WHERE id = 'in the log'") == 1
    assert value(kept / "abathur.db", "SELECT count(*) FROM sessions WHERE id = 'in the log'") == 1


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """Return a database of other origin, most of whose rows are in its log alone."""
    made, theirs = tmp_path / "made.db", tmp_path / "theirs.db"
    schema.build(made)
    with database.opened(made, 0) as connection:
        connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES ('theirs', 'a', 'u')")
        rows(made, 1000)
        for source, target in zip(database.files(made)[:2], database.files(theirs)[:2], strict=True):
            target.write_bytes(source.read_bytes())
    return theirs


@pytest.mark.usefixtures("saved")
def test_rows_of_a_log_that_find_no_room_are_not_left_out(conf: Config, logged: Path) -> None:
    size = database.sidecars(logged)[0].stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file of that size, and none larger.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        with pytest.raises(Failure, match=r"SQLite failed on .*: disk I/O error"):
            restore.restore(conf, str(logged))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert count(conf.database) == 1
    assert restore.restore(conf, str(logged)).ok
    assert count(conf.database, "memory_entries") == 1000


@pytest.mark.usefixtures("saved")
def test_a_file_of_other_origin_that_somebody_has_open_is_not_taken(conf: Config, logged: Path) -> None:
    with at_work(READER, logged, "read"), pytest.raises(Failure, match=r"theirs.db is open in .*; nothing was changed"):
        restore.restore(conf, str(logged))
    assert count(conf.database) == 1


def test_a_corrupt_database_is_replaced_and_kept(conf: Config, saved: str) -> None:
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    corrupt(conf.database)
    damaged = conf.database.read_bytes()
    result = restore.restore(conf, saved)
    assert "what is lost cannot be said" in result.summary
    assert count(conf.database, "memory_entries") == 23
    assert (Path(result.data["kept"]) / "abathur.db").read_bytes() == damaged


def test_a_missing_database_comes_back(conf: Config, saved: str) -> None:
    for each in (conf.database, *database.sidecars(conf.database)):
        each.unlink(missing_ok=True)
    result = restore.restore(conf, saved)
    assert result.data["kept"] is None
    assert "there is no database to compare it with: what was written after 20" in result.summary
    assert count(conf.database, "memory_entries") == 23


def test_a_log_without_its_database_is_kept_aside(conf: Config, saved: str) -> None:
    log = database.sidecars(conf.database)[0]
    conf.database.unlink()
    log.write_bytes(b"committed rows")
    kept = Path(restore.restore(conf, saved).data["kept"])
    assert (kept / "abathur.db-wal").read_bytes() == b"committed rows"
    assert count(conf.database, "memory_entries") == 23


def test_fresh_begins_anew_and_keeps_the_old_database(conf: Config) -> None:
    result = restore.restore(conf, "fresh")
    assert count(conf.database, "memory_entries") == 0
    assert value(conf.database, "PRAGMA auto_vacuum") == 2
    assert count(Path(result.data["kept"]) / "abathur.db", "memory_entries") == 23


def test_a_missing_database_is_not_replaced_by_an_empty_one_while_it_can_be_restored(conf: Config, saved: str) -> None:
    for each in (conf.database, *database.sidecars(conf.database)):
        each.unlink(missing_ok=True)
    with pytest.raises(Failure, match=r"is missing, but its backups \(1\) and kept copies \(0\) are here") as caught:
        schema.init(conf)
    assert "abathur-db restore latest" in caught.value.hint
    assert saved


FOREIGN = {"raw.db": lambda data: data, "old.db.gz": gzip.compress}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_other_origin_is_restored_after_the_same_checks(conf: Config, tmp_path: Path, name: str) -> None:
    other = tmp_path / "application.db"
    application(other, "INSERT INTO sessions (id, app_name, user_id) VALUES ('theirs', 'a', 'u')")
    file = tmp_path / name
    file.write_bytes(FOREIGN[name](other.read_bytes()))
    result = restore.restore(conf, str(file))
    assert value(conf.database, "SELECT id FROM sessions") == "theirs"
    assert result.hint == f"bring it to this release's schema: abathur-db init {conf.database}"
    assert schema.init(conf).data["kind"] == "adopt"


def test_a_file_of_another_application_is_not_restored(conf: Config, tmp_path: Path) -> None:
    run(tmp_path / "music.db", "PRAGMA application_id = 7", "CREATE TABLE songs (title)")
    with pytest.raises(Failure, match=r"music.db belongs to another application \(application_id 0x00000007\)"):
        restore.restore(conf, str(tmp_path / "music.db"))
    assert count(conf.database, "memory_entries") == 23


def test_a_path_into_the_backup_directory_is_the_backup_with_its_manifest(conf: Config, saved: str) -> None:
    (conf.backup_directory / f"abathur_{saved}.json").unlink()
    with pytest.raises(Failure, match=r"its manifest .* is gone"):
        restore.restore(conf, str(conf.backup_directory / f"abathur_{saved}.db.zst"))


READER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1])
if sys.argv[2] == "read":
    connection.execute("SELECT count(*) FROM sessions").fetchone()
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["read", "opened only"])
def holder(request: pytest.FixtureRequest, conf: Config) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that has the database open until it is killed."""
    with at_work(READER, conf.database, request.param) as process:
        yield process


@pytest.mark.parametrize("name", ["theirs.db", "theirs.db.gz", "theirs.db.zst"])
def test_a_file_that_may_not_be_read_is_said_to_be_that_and_not_damaged(
    conf: Config, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, really = tmp_path / name, Path.open
    theirs.touch()

    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == theirs:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(Failure, match=f"{name} cannot be read by root") as caught:
        restore.restore(conf, str(theirs))
    assert caught.value.hint == f"give that user access, to the directories above it as well: namei -l {theirs}"


def test_a_database_in_use_is_not_replaced_and_the_process_is_named(
    conf: Config, saved: str, holder: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(Failure, match=rf"is open in python\S* \(pid {holder.pid}\); nothing was changed") as caught:
        restore.restore(conf, saved)
    assert caught.value.code is Exit.BUSY
    assert re.fullmatch(
        rf"stop what uses it \(python\S* \(pid {holder.pid}\)\), then run this again", caught.value.hint
    )
    with pytest.raises(Failure) as caught:
        restore.restore(replace(conf, application_units=["a.service", "b.service"]), saved)
    assert caught.value.hint == "stop what uses it (systemctl stop a.service b.service), then run this again"
    assert count(conf.database) == 1


def relative(path: Path) -> str:
    """Return a path as somebody in the directory of the scripts, where `cli` runs, may type it."""
    return os.path.relpath(path, ROOT / "scripts")


@pytest.mark.usefixtures("saved")
def test_what_is_open_elsewhere_is_not_touched_whatever_way_it_is_named(conf: Config, logged: Path, cli: Cli) -> None:
    """The holder's name ends inside of a letter, as the kernel cuts it."""
    named = 'open("/proc/self/comm", "wb").write(b"holder \\xc3")\n'
    with at_work(named + READER, logged, "read") as process:
        code, _, errors = cli("restore", relative(logged), "--database", conf.database)
        assert (code, f"theirs.db is open in holder \ufffd (pid {process.pid})" in errors) == (Exit.BUSY, True), errors
    with at_work(named + READER, conf.database, "read") as process:
        code, _, errors = cli("restore", "latest", "--database", relative(conf.database))
        assert (code, f"is open in holder \ufffd (pid {process.pid})" in errors) == (Exit.BUSY, True), errors
    assert count(conf.database) == 1


def test_a_backup_that_is_named_by_its_path_is_that_backup_whatever_way_it_is_named(
    conf: Config, saved: str, cli: Cli
) -> None:
    (file,) = conf.backup_directory.glob("*.zst")
    code, output, _ = cli("restore", relative(file), "--database", conf.database, "--dry-run")
    assert (code, output.startswith(f"restore: would restore backup {saved};")) == (0, True), output


def test_the_lock_alone_names_a_process_whose_files_cannot_be_seen(
    conf: Config, saved: str, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "processes_with", lambda *_: [])
    if holder.args[-1] == "read":  # type: ignore[index]
        with pytest.raises(Failure, match=rf"is open in python\S* \(pid {holder.pid}\)"):
            restore.restore(conf, saved)
    else:
        # Opened and never read, it holds no lock yet and has seen no row.
        assert restore.restore(conf, saved).ok


def test_nobody_gets_in_while_the_database_is_exchanged(
    conf: Config, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    swap = restore.swap

    def while_swapping(path: Path, staged: Path) -> str | None:
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('SELECT * FROM sessions')"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        seen.append(done.stderr)
        return swap(path, staged)

    monkeypatch.setattr(restore, "swap", while_swapping)
    restore.restore(conf, saved)
    assert "database is locked" in seen[0]


@pytest.mark.parametrize("step", ["link", "unlink", "rename", "open"])
def test_a_failure_at_any_step_puts_the_original_back(
    conf: Config, saved: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    now = dump(conf.database)
    before = {name for name in picture(conf.database.parent) if "-shm" not in name and "-wal" not in name}
    real: dict[str, Any] = {"link": os.link, "rename": os.rename}
    calls: list[Any] = []

    def fail_once(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == (2 if step == "link" else 1):
            raise OSError(5, "Input/output error")
        return real[step](*arguments, **options)

    if step in real:
        monkeypatch.setattr(os, step, fail_once)
    elif step == "unlink":
        unlink = Path.unlink

        def fail(path: Path, missing_ok: bool = False) -> None:
            if path == conf.database and not calls:
                calls.append(path)
                raise OSError(5, "Input/output error")
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", fail)
    else:
        pragma = database.pragma

        def damaged(connection: sqlite3.Connection, name: str) -> int:
            if connection.execute("PRAGMA database_list").fetchone()[2] == str(conf.database) and not calls:
                calls.append(name)
                raise sqlite3.DatabaseError("database disk image is malformed")
            return pragma(connection, name)

        monkeypatch.setattr(database, "pragma", damaged)
    with pytest.raises((OSError, Failure)):
        restore.restore(conf, saved)
    monkeypatch.undo()
    assert calls
    assert dump(conf.database) == now
    after = {name for name in picture(conf.database.parent) if "-shm" not in name and "-wal" not in name}
    assert after == before
    assert restore.restore(conf, saved).ok


KILLED = """
import os, sys
from dataclasses import replace
from pathlib import Path
from abathur_db import config, resources, restore
conf = config.development(resources.development_profile(), Path(sys.argv[1]))
left = int(sys.argv[3])
def counted(function):
    def call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), 9)
        left -= 1
        return function(*arguments, **options)
    return call
os.link, os.rename, Path.unlink = counted(os.link), counted(os.rename), counted(Path.unlink)
restore.restore(replace(conf, minimum_free_mb=1), sys.argv[2])
"""


def test_a_restore_killed_at_any_step_loses_nothing_and_ends_well_when_run_again(conf: Config, saved: str) -> None:
    """Every system call of the swap is a place to be killed at; the rows of now are always somewhere whole."""
    for step in range(40):
        run(conf.database, "INSERT OR IGNORE INTO sessions (id, app_name, user_id) VALUES ('later', 'a', 'u')")
        done = subprocess.run(
            [sys.executable, "-c", KILLED, conf.database, saved, str(step)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
            check=False,
        )
        candidates = [conf.database, *conf.database.parent.glob("*.before-restore_*/abathur.db")]
        kept = [each for each in candidates if each.exists() and count(each) == 1]
        assert kept, f"killed at step {step}"
        assert restore.restore(conf, saved).ok
        assert count(conf.database) == 0
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert step > 5


def test_a_directory_in_the_place_of_the_database_is_left_alone(conf: Config, saved: str) -> None:
    for each in (conf.database, *database.sidecars(conf.database)):
        each.unlink(missing_ok=True)
    conf.database.mkdir()
    with pytest.raises(Failure, match="cannot be opened: Is a directory; nothing was changed"):
        restore.restore(conf, saved)


def test_a_database_that_stays_locked_is_not_compared_and_not_replaced(conf: Config, saved: str) -> None:
    run(conf.database, "PRAGMA journal_mode = DELETE")
    holder = sqlite3.connect(conf.database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Failure, match="was locked by another process"):
        restore.restore(conf, saved)
    holder.close()


def test_two_restores_in_one_second_keep_two_databases(conf: Config, saved: str) -> None:
    kept = {restore.restore(conf, saved).data["kept"] for _ in range(3)}
    assert len(kept) == 3


def test_processes_are_named_as_far_as_they_can_be_seen() -> None:
    assert host.process_name(os.getpid()).endswith(f"(pid {os.getpid()})")
    assert host.process_name(0) == "a process outside this container"
    assert host.process_name(2**22 + 1) == f"pid {2**22 + 1}"


def test_a_restore_of_an_older_schema_says_how_to_bring_it_up(
    conf: Config, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abathur_db import resources

    later = (*resources.migrations(), resources.Migration(2, "0002_next", "CREATE TABLE next (x);"))
    monkeypatch.setattr(resources, "migrations", lambda: later)
    assert (
        restore.restore(replace(conf), saved).hint
        == f"bring it to this release's schema: abathur-db init {conf.database}"
    )


INTERRUPTED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = DELETE")
connection.execute("PRAGMA cache_size = 2")
connection.execute("BEGIN")
connection.execute("UPDATE memory_entries SET value = json_quote(hex(randomblob(500)))")
connection.execute("DELETE FROM memory_entries WHERE id % 3")
os.kill(os.getpid(), 9)
"""


LOST: dict[str, Callable[[Path], object]] = {
    "the database is removed": lambda path: path.unlink(),
    "its first page is overwritten": lambda path: path.write_bytes(b"\0" * 4096 + path.read_bytes()[4096:]),
    "it is whole": lambda path: path.exists(),
}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("source", ["latest", "file"])
def test_a_journal_of_the_lost_database_is_kept_aside_and_not_replayed(
    conf: Config, tmp_path: Path, kind: str, source: str
) -> None:
    rows(conf.database, 300, "user:2")
    backup.backup(conf)
    saved = contents(conf.database)
    rows(conf.database, 200, "user:3")
    copy = tmp_path / "copy.db"
    database.snapshot(conf.database, copy, 0)
    with at_work(INTERRUPTED, conf.database) as writer:
        writer.wait()
    journal = conf.database.with_name("abathur.db-journal")
    assert journal.stat().st_size > 4096
    LOST[kind](conf.database)
    if source == "file":
        saved = contents(copy)
    restored = restore.restore(conf, "latest" if source == "latest" else str(copy))
    assert contents(conf.database) == saved
    assert maintenance.integrity_check(conf).ok
    assert not journal.exists()
    if kind != "it is whole":
        # What was there is kept as it was, whatever a reader would have made of it.
        assert (Path(restored.data["kept"]) / journal.name).exists()


def test_a_kept_database_comes_back_with_its_journal_rolled_back(conf: Config) -> None:
    rows(conf.database, 300, "user:2")
    run(conf.database, "PRAGMA journal_mode = DELETE")
    before = contents(conf.database)
    with at_work(INTERRUPTED, conf.database) as writer:
        writer.wait()
    folder = restore.put_aside(conf.database)
    assert folder is not None
    assert (folder / "abathur.db-journal").exists()
    restore.restore(conf, str(folder))
    assert contents(conf.database) == before


def test_no_new_database_is_made_beside_a_journal_without_its_own(conf: Config) -> None:
    with at_work(INTERRUPTED, conf.database) as writer:
        writer.wait()
    conf.database.unlink()
    with pytest.raises(
        Failure, match=r"is missing, but its rollback journal abathur.db-journal \(\d+ bytes\) is there"
    ):
        schema.init(conf)


# What a comparison by SQLite's own rules would call no change.
CHANGES = {
    "the case of a text without case": (
        "CREATE TABLE own (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE); INSERT INTO own VALUES (1, 'mueller')",
        "UPDATE own SET name = 'MUELLER'",
        "own 0 new and 1 changed",
    ),
    "the case of a key": (
        "CREATE TABLE own (name TEXT COLLATE NOCASE PRIMARY KEY); INSERT INTO own VALUES ('mueller')",
        "UPDATE own SET name = 'MUELLER'",
        "own 0 new and 1 changed",
    ),
    "spaces behind a text": (
        "CREATE TABLE own (id INTEGER PRIMARY KEY, name TEXT COLLATE RTRIM); INSERT INTO own VALUES (1, 'a')",
        "UPDATE own SET name = 'a   '",
        "own 0 new and 1 changed",
    ),
    "a number that became a text": (
        "CREATE TABLE own (id INTEGER PRIMARY KEY, x BLOB); INSERT INTO own VALUES (1, 7), (2, 1)",
        "UPDATE own SET x = '7' WHERE id = 1; UPDATE own SET x = 1.0 WHERE id = 2",
        "own 0 new and 2 changed",
    ),
    "a value of a column that is new": (
        "CREATE TABLE own (id INTEGER PRIMARY KEY); INSERT INTO own VALUES (1), (2)",
        "ALTER TABLE own ADD COLUMN mail TEXT DEFAULT 'none'; UPDATE own SET mail = 'precious' WHERE id = 2",
        "own 0 new and 1 changed",
    ),
    "no column in common": (
        "CREATE TABLE own (a)",
        "DROP TABLE own; CREATE TABLE own (b); INSERT INTO own VALUES (1)",
        "own 1 new and 0 changed",
    ),
    "a key that is no key of the backup": (
        "CREATE TABLE own (a TEXT, b)",
        "DROP TABLE own; CREATE TABLE own (k TEXT PRIMARY KEY, b) WITHOUT ROWID; INSERT INTO own VALUES ('k', 1)",
        "own 1 new and 0 changed",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_value_that_changed_counts_as_lost(conf: Config, kind: str) -> None:
    made, changed, said = CHANGES[kind]
    run(conf.database, made)
    backup.backup(conf)
    assert restore.restore(conf, "latest", dry_run=True).summary.endswith("; no row is lost")
    run(conf.database, changed)
    assert said in restore.restore(conf, "latest", dry_run=True).summary
    with pytest.raises(Failure, match="was not restored"):
        restore.restore(conf, "latest", keep_rows=True)


def test_a_column_that_a_migration_filled_by_its_definition_is_no_loss(conf: Config) -> None:
    run(conf.database, "CREATE TABLE own (id INTEGER PRIMARY KEY); INSERT INTO own VALUES (1), (2)")
    backup.backup(conf)
    run(conf.database, "ALTER TABLE own ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'", "ALTER TABLE own ADD COLUMN x")
    assert restore.restore(conf, "latest", keep_rows=True).summary.startswith("restored backup")


def test_what_cannot_be_compared_counts_as_lost(conf: Config) -> None:
    connection = sqlite3.connect(conf.database)
    connection.create_collation("icu_root", lambda a, b: (a > b) - (a < b))
    connection.executescript("CREATE TABLE tags (name TEXT COLLATE icu_root PRIMARY KEY) WITHOUT ROWID")
    connection.execute("INSERT INTO tags VALUES ('a')")
    connection.commit()
    connection.close()
    backup.backup(conf)
    said = restore.restore(conf, "latest", dry_run=True)
    assert said.summary.endswith("; what is lost of table tags cannot be said")
    assert said.data["lost"] == {"tags": {"new": None, "changed": None}}
    with pytest.raises(Failure, match="what is lost of table tags cannot be said; nothing was changed"):
        restore.restore(conf, "latest", keep_rows=True)


def test_a_comparison_that_was_cut_off_is_an_error_and_not_what_the_application_brings(tmp_path: Path) -> None:
    for name in ("main", "other"):
        run(tmp_path / name, "CREATE TABLE t (x)", f"INSERT INTO t VALUES {', '.join(['(1)'] * 5000)}")
    with closing(sqlite3.connect(tmp_path / "main")) as connection:
        connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
        connection.set_progress_handler(lambda: 1, 5000)
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            restore._missing_rows(connection, "t")
        with pytest.raises(sqlite3.OperationalError, match="interrupted"):
            objects.stood_in(connection, lambda: connection.execute("SELECT count(*) FROM t a, t b").fetchall())


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_link_that_was_planted_beside_the_database_is_kept_aside_itself_and_not_what_it_leads_to(
    conf: Config, tmp_path: Path, suffix: str
) -> None:
    schema.init(conf)
    backup.backup(conf)
    target = tmp_path / "elsewhere"
    target.write_text("somebody's")
    planted = conf.database.with_name(conf.database.name + suffix)
    planted.unlink(missing_ok=True)
    planted.symlink_to(target)
    aside = Path(restore.restore(conf, "latest").data["kept"])
    assert (aside / planted.name).is_symlink()
    assert (target.read_text(), target.stat().st_nlink) == ("somebody's", 1)
    assert not planted.is_symlink()


def test_a_log_that_is_taken_with_its_file_has_to_fit_beside_it(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "other.db"
    other.parent.mkdir()
    with at_work(UNMERGED, conf.database, other):
        pass
    log = other.with_name("other.db-wal").stat().st_size
    assert log > 100_000
    room = conf.minimum_free_mb * host.MB + other.stat().st_size + log
    for free, fits in ((room, True), (room - 1, False)):
        monkeypatch.setattr(host, "free_bytes", lambda _, free=free: free)
        if fits:
            assert restore.restore(conf, str(other)).ok
        else:
            with pytest.raises(Failure):
                restore.restore(conf, str(other))


UNMERGED = """
import os, shutil, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA wal_autocheckpoint = 0")
c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
for n in range(100):
    c.execute("INSERT INTO sessions (id, app_name, user_id, project_id) VALUES (?, 'a', 'u', ?)", (str(n), "x" * 1000))
for suffix in ("", "-wal"):
    shutil.copy(sys.argv[1] + suffix, sys.argv[2] + suffix)
print("copied", flush=True)
c.close()
"""


@pytest.mark.parametrize(("seconds", "nearer"), [(-1, False), (0, False), (1, True)])
def test_of_a_backup_and_a_replica_of_one_moment_the_proven_backup_is_taken(
    conf: Config, monkeypatch: pytest.MonkeyPatch, seconds: int, nearer: bool
) -> None:
    kept = backup.backup(conf).data
    moment = datetime.fromisoformat(kept["created"]) + timedelta(seconds=seconds)
    point = replica.Point(1, moment, 4096, ())
    monkeypatch.setattr(replica, "settings", lambda _: object())
    monkeypatch.setattr(replica, "point", lambda *_: point)
    assert (restore._nearer(conf, "2030-01-01T00:00:00") is point) is nearer


def test_a_state_of_the_replica_is_fetched_only_where_it_fits(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    point = replica.Point(1, datetime.now(UTC), 50 * host.MB, ())
    monkeypatch.setattr(host, "free_bytes", lambda _: 50 * host.MB + conf.minimum_free_mb * host.MB - 1)
    with pytest.raises(Failure, match=r"fetching the replica of .* needs 51.0 MB free"):
        restore._stage_replica(conf, point, conf.database.with_name("staged"))
