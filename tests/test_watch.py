"""Litestream is set back on the database's way, however it left it: with Litestream itself, and real logs."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import database, maintenance, proof, replica, replication, wal, watch
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import rows, run, until, value
from replicas import Configure, conf, configure, ended_by_itself, restored, service

pytestmark = pytest.mark.engine

__all__ = ["conf", "configure"]

Captured = pytest.CaptureFixture[str]

COUNT = "SELECT count(*) FROM memory_entries"


def killed_while_committing(conf: Config, count: int, name: str) -> None:
    """Leave a transaction in the log as a process does that is killed between flushing it and telling the others."""
    index = database.sidecars(conf.database)[1]
    before = index.read_bytes()[:136]
    rows(conf.database, count, name)
    with index.open("r+b") as stream:
        stream.write(before)


def sent_more(conf: Config) -> bool:
    """Tell whether Litestream has read more than is committed."""
    place = wal.position(conf, 1)
    return place is not None and place.end > wal.committed(conf).end


def is_the_database(conf: Config, copy: Path) -> None:
    """Check that a copy is sound and has the rows of the database."""
    rows_of = (
        "SELECT group_concat(namespace || key || value) FROM (SELECT * FROM memory_entries ORDER BY namespace, key)"
    )
    proof.examine(copy, "the copy")
    assert value(copy, rows_of) == value(conf.database, rows_of)


@pytest.mark.usefixtures("configure")
def test_after_a_writer_was_killed_while_it_committed_the_replica_is_as_the_database(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    with service(conf, monkeypatch) as first:
        rows(conf.database, 50)
        assert replication.replication(conf).ok
        killed_while_committing(conf, 20, "user:lost")
        until(lambda: sent_more(conf), "Litestream reads what is not committed")
        # As long as nothing stands in its place the replica has all that is committed.
        assert replication.replication(conf).ok
        assert first.poll() is None
        rows(conf.database, 200, "user:2")
        first.wait()
        assert replication.replication(conf).ok
        assert value(conf.database, COUNT) == 250
    is_the_database(conf, restored(conf, 1, tmp_path / "r.db"))
    said = capfd.readouterr().err
    assert "Litestream found another transaction than it had sent, before byte " in said
    assert " of the log\nthe whole database is sent again" in said


@pytest.mark.usefixtures("configure")
def test_pages_that_a_vacuum_gives_back_in_slices_are_gone_in_the_replica_too(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(conf.database, 3000)
    with service(conf, monkeypatch):
        assert replication.replication(conf).ok
        run(conf.database, "DELETE FROM memory_entries WHERE id % 3 > 0")
        given_back = maintenance.vacuum(replace(conf, vacuum_slice_pages=5, vacuum_pause_ms=0))
        assert given_back.changed, given_back.summary
        assert replication.replication(conf).ok
    copy = restored(conf, 1, tmp_path / "r.db")
    is_the_database(conf, copy)
    assert value(copy, "PRAGMA page_count") == value(conf.database, "PRAGMA page_count")


@pytest.mark.usefixtures("configure")
def test_what_was_committed_just_before_a_stop_arrives_also_when_litestream_goes_astray_then(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def astray(child: subprocess.Popen[str], _: watch.Way, hold: ExitStack) -> bool:
        """Find it as soon as it was told to stop."""
        hold.close()

        def pending() -> bool:
            told = re.search(r"^ShdPnd:\s+(\w+)", Path(f"/proc/{child.pid}/status").read_text(), re.MULTILINE)
            return bool(told and int(told[1], 16) & 1 << (signal.SIGTERM - 1))

        until(pending, "it is told to stop")
        return True

    monkeypatch.setattr(watch, "_goes_astray", astray)
    with service(conf, monkeypatch) as child:
        rows(conf.database, 50)
        assert replication.replication(conf).ok
        child.send_signal(signal.SIGSTOP)
        rows(conf.database, 20, "user:2")
    is_the_database(conf, restored(conf, 1, tmp_path / "r.db"))


@pytest.mark.usefixtures("configure")
def test_a_transaction_of_the_same_length_that_ends_with_the_same_page_is_told_from_the_one_that_never_was(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    said: list[str] = []
    run(conf.database, "CREATE TABLE a (x)", "CREATE TABLE z (x)")
    with service(conf, monkeypatch):
        assert replication.replication(conf).ok
        index = database.sidecars(conf.database)[1]
        before = index.read_bytes()[:136]
        run(conf.database, "BEGIN; INSERT INTO a VALUES ('never'); INSERT INTO z VALUES ('same'); COMMIT")
        with index.open("r+b") as stream:
            stream.write(before)
        until(lambda: sent_more(conf), "Litestream reads what is not committed")
        run(conf.database, "BEGIN; INSERT INTO a VALUES ('truly'); INSERT INTO z VALUES ('same'); COMMIT")
        rows(conf.database, 5)

        def told() -> bool:
            said.append(capfd.readouterr().err)
            return "the whole database is sent again" in "".join(said)

        until(told, "the whole database is sent again")
        assert replication.replication(conf).ok
    assert value(restored(conf, 1, tmp_path / "r.db"), "SELECT x FROM a") == "truly"
    assert "another transaction stands where Litestream had sent one" in "".join(said)


@pytest.mark.usefixtures("configure")
def test_a_shorter_transaction_in_the_place_of_the_one_that_never_was_is_found_by_the_job(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch) as first:
        rows(conf.database, 5)
        assert replication.replication(conf).ok
        killed_while_committing(conf, 300, "user:lost")
        until(lambda: sent_more(conf), "Litestream reads what is not committed")
        rows(conf.database, 1, "user:2")
        assert sent_more(conf)
        assert replication.replication(conf).ok
        assert first.wait() == 0
        assert value(conf.database, COUNT) == 6
    is_the_database(conf, restored(conf, 1, tmp_path / "r.db"))


def test_what_was_sent_and_is_in_the_log_no_more_was_never_committed(conf: Config) -> None:
    reader = sqlite3.connect(conf.database)
    rows(conf.database, 1)
    reader.execute(COUNT).fetchone()
    killed_while_committing(conf, 1, "user:lost")
    log, file = wal.committed(conf), database.sidecars(conf.database)[0]
    place = wal.Place(log.salts, file.stat().st_size)
    assert wal.on_track(conf, place, log)
    os.truncate(file, log.end)
    assert not wal.on_track(conf, place, log)
    reader.close()


@pytest.mark.usefixtures("configure")
def test_a_log_that_was_begun_anew_meanwhile_makes_it_send_the_whole_database(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    with service(conf, monkeypatch):
        rows(conf.database, 5)
        assert replication.replication(conf).ok
    rows(conf.database, 5, "user:2")
    with service(conf, monkeypatch):
        assert replication.replication(conf).data["lineage"] == 1
    is_the_database(conf, restored(conf, 1, tmp_path / "r.db"))
    assert "the whole database is sent again" in capfd.readouterr().err


@pytest.mark.usefixtures("configure")
def test_a_log_that_goes_on_is_gone_on_with(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    with database.opened(conf.database, 100) as connection:
        connection.execute(COUNT).fetchone()
        for name in ("user:1", "user:2"):
            with service(conf, monkeypatch):
                # From here on it reads, and nobody else can begin the log anew.
                assert replication.replication(conf).ok
                rows(conf.database, 5, name)
                assert replication.replication(conf).ok
    is_the_database(conf, restored(conf, 1, tmp_path / "r.db"))
    assert capfd.readouterr().err == ""


def step(offset: int, snap: str = "") -> dict[str, Any]:
    return {"msg": "sync", "txid": "1", "offset": offset, "snap": snap}


def checkpoint(result: str, mode: str = "PASSIVE") -> dict[str, Any]:
    return {"msg": "checkpoint", "mode": mode, "result": result}


@pytest.fixture
def way(conf: Config, monkeypatch: pytest.MonkeyPatch) -> watch.Way:
    """Return a way on which 7 frames were sent."""
    sent = wal.Place(b"", wal.HEADER_BYTES + 7 * (wal.FRAME_HEADER_BYTES + 4096))
    monkeypatch.setattr(wal, "change", lambda *_: sent)
    made = watch.Way(conf, 1)
    assert made.leaves(step(32, "true")) == made.leaves({"msg": "db sync"}) == ""
    return made


@pytest.mark.usefixtures("configure")
def test_a_new_log_begins_behind_a_checkpoint_of_exactly_what_was_sent(way: watch.Way) -> None:
    assert way.leaves(step(28872)) == ""
    assert way.leaves(checkpoint("0,7,7")) == ""
    assert way.leaves(step(32)) == ""


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize(("frames", "end"), [(6, 24752), (8, 32992)])
def test_a_checkpoint_of_less_or_more_than_was_sent_is_found(way: watch.Way, frames: int, end: int) -> None:
    said = way.leaves(checkpoint(f"0,{frames},{frames}"))
    assert said == f"Litestream had sent 28872 bytes of a log of {end}"


@pytest.mark.usefixtures("configure")
# SQLite's answer where the application itself is at a checkpoint; a TRUNCATE makes Litestream send a whole copy.
@pytest.mark.parametrize("between", [checkpoint("1,-1,-1"), checkpoint("0,0,0", "TRUNCATE"), {"msg": "verify"}])
def test_a_new_log_behind_anything_else_is_found_unless_all_is_sent(way: watch.Way, between: dict[str, Any]) -> None:
    assert way.leaves(between) == ""
    assert way.leaves(step(32)) == "the log was begun anew before Litestream had read all of the former one"
    assert way.leaves(step(32, "true")) == ""


@pytest.mark.usefixtures("configure")
def test_a_log_in_which_nothing_was_yet_is_gone_on_with(way: watch.Way) -> None:
    way.end = wal.HEADER_BYTES
    assert way.leaves(step(32)) == ""


@pytest.mark.usefixtures("configure")
def test_a_whole_copy_is_expected_of_an_emptied_log_and_once_only(conf: Config) -> None:
    way = watch.Way(conf, 1, emptied=True)
    assert way.leaves(step(4152, "true")) == ""
    assert (
        way.leaves(step(4152, "true"))
        == "Litestream found another transaction than it had sent, before byte 4152 of the log"
    )


def test_a_litestream_that_ends_with_an_error_is_said_with_its_last_words(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    fake = tmp_path / "litestream"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = replicate ] || { echo "[]"; exit; }\n'
        'echo \'{"level": "WARN", "msg": "odd", "error": "very"}\' >&2; echo panic >&2; exit 3\n'
    )
    fake.chmod(0o755)
    configure(litestream=str(fake))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(Failure, match="Litestream ended with exit code 3: panic"):
        replication.replicate(conf)
    assert capfd.readouterr().err == "odd: very\npanic\n"


def test_the_log_is_emptied_as_soon_as_the_readers_let_it(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(conf.database, 1)
    reader = sqlite3.connect(conf.database, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute(COUNT).fetchone()
    rows(conf.database, 1, "user:2")
    monkeypatch.setattr(watch, "WAIT_MS", 10)
    stop = threading.Event()
    # Somebody is at work on it: nothing is begun.
    watch._send_rest(conf, [])
    monkeypatch.setattr(stop, "wait", lambda _: reader.execute("COMMIT"))
    assert watch._emptied(conf, stop)
    assert database.wal_bytes(conf.database) == 0
    reader.close()
    stop.set()
    assert not watch._emptied(conf, stop)


@pytest.mark.usefixtures("configure")
def test_a_log_that_is_held_is_begun_anew_by_no_other_process(conf: Config) -> None:
    keeper = sqlite3.connect(conf.database)
    keeper.execute(COUNT).fetchone()
    rows(conf.database, 1)
    pragma = "PRAGMA wal_checkpoint(TRUNCATE)"
    program = f"import sqlite3; print(sqlite3.connect({str(conf.database)!r}).execute({pragma!r}).fetchone()[0])"
    with ExitStack() as hold:
        assert watch._begun(conf, 1, hold)
        assert subprocess.check_output([sys.executable, "-c", program], text=True) == "1\n"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "0\n"
    keeper.close()


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize(
    ("look", "kept"),
    [
        (wal.committed, True),
        (lambda conf: replica.configuration(conf, replica.required(conf), 1), True),
        # The control: what the others must not do.
        (lambda conf: conf.database.read_bytes(), False),
    ],
    ids=["log", "configuration", "file"],
)
def test_a_look_at_the_database_leaves_the_locks_of_this_process(
    conf: Config, look: Callable[[Config], Any], kept: bool
) -> None:
    pragma = "PRAGMA journal_mode = DELETE"
    other = f"import sqlite3; print(*sqlite3.connect({str(conf.database)!r}, 0).execute({pragma!r}).fetchone())"
    with database.opened(conf.database, 0, read_only=True) as connection:
        connection.execute(COUNT).fetchone()
        look(conf)
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert ("database is locked" in done.stderr) == kept
    assert (done.stdout == "delete\n") != kept


def lose(conf: Config, levels: Path, damage: Callable[[Path], Any]) -> tuple[Path, bytes]:
    """Damage a file of those of the first level that are put together next, and return it, and what stood in it.

    Neither the first of them nor the last: Litestream does not see that the one is gone, and sends the other anew.
    """

    def together() -> str:
        """Return the last change of those that are put together."""
        return max((each.name[17:] for each in (levels / "2").glob("*.ltx")), default="")

    def damaged() -> tuple[Path, bytes] | None:
        rows(conf.database, 1, f"user:{time.monotonic_ns()}")
        last = together()
        waiting = sorted(each for each in (levels / "1").glob("*.ltx") if each.name > last)
        if len(waiting) < 3:
            return None
        whole = waiting[-2].read_bytes()
        damage(waiting[-2])
        # One that had read it already is done by then.
        time.sleep(0.1)
        if last == together():
            return waiting[-2], whole
        waiting[-2].write_bytes(whole)
        return None

    lost: tuple[Path, bytes] = until(damaged, "files of the first level wait", poll=0.05)
    return lost


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: os.truncate(path, 200),
        lambda path: path.write_bytes(os.urandom(200)),
    ],
    ids=["gone", "short", "of other bytes"],
)
def test_a_file_that_the_store_has_lost_is_said_until_it_can_be_read_again(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured, damage: Callable[[Path], Any]
) -> None:
    usual = replica.configuration
    # A second instead of minutes.
    levels = {"levels": [{"interval": "250ms"}, {"interval": "1s"}]}
    monkeypatch.setattr(replica, "SEND", "100ms")
    monkeypatch.setattr(replica, "configuration", lambda *about: {**usual(*about), **levels})

    def replicated() -> Result:
        # Work goes on, and the other levels are well.
        rows(conf.database, 1, f"user:{time.monotonic_ns()}")
        return replication.replication(conf)

    with service(conf, monkeypatch):
        assert replication.replication(conf).ok
        path, whole = lose(conf, tmp_path / "store" / "0001" / "ltx", damage)
        until(lambda: not replicated().ok, "the lost file is said")
        result = replicated()
        assert "found what was sent cannot be read back: " in result.summary
        assert result.hint.endswith("abathur-db promote --new-lineage")
        path.write_bytes(whole)
        until(lambda: replicated().ok, "it can be read again")
    assert "compaction failed: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        (
            "write ltx file: extract timestamp from LTX header: decode header for input 4: "
            "max retries exceeded reading ltx file (level=1): "
            "operation error S3: GetObject, https response error StatusCode: 500, api error InternalError",
            True,
        ),
        ("write ltx file: extract timestamp from LTX header: decode header for input 0: EOF", True),
        ("write ltx file: extract timestamp from LTX header: dial tcp 127.0.0.1:9: connect: connection refused", False),
        (
            "write ltx file: s3: upload to bucket: operation error S3: PutObject, https response error StatusCode: 500",
            False,
        ),
    ],
)
def test_a_store_that_is_away_or_takes_nothing_has_lost_no_file(said: str, lost: bool) -> None:
    assert replica.unreadable(said) is lost
    assert ("cannot be read back" in replica.reason(said)) is lost


@pytest.mark.usefixtures("configure")
def test_a_stop_while_litestream_is_being_started_ends_it(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[Callable[[], None]] = []
    started: list[subprocess.Popen[str]] = []
    original = watch._started

    def start(*arguments: Any) -> subprocess.Popen[str]:
        started.append(original(*arguments))
        # systemd's signal is handled before the program goes on.
        handlers[0]()
        return started[-1]

    monkeypatch.setattr(watch, "_started", start)
    monkeypatch.setattr(signal, "signal", lambda _, handler: handlers.append(handler))
    thread = threading.Thread(target=replication.replicate, args=(conf,), daemon=True)
    thread.start()
    try:
        ended_by_itself(thread)
    finally:
        for child in started:
            child.kill()
    assert len(started) == 1
