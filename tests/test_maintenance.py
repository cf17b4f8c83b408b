"""The jobs analyze, vacuum and integrity-check."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import database, handover, host, maintenance, schema, validation
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import application, at_work, corrupt, dump, picture, rows, run, value

from faults import places

JOBS = [maintenance.analyze, maintenance.vacuum, maintenance.integrity_check]


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)


@pytest.fixture
def full_of_holes(conf: Config) -> Config:
    """Make a database with most of its pages free."""
    rows(conf.database, 2000)
    run(conf.database, "DELETE FROM memory_entries WHERE id % 10 <> 0", "PRAGMA wal_checkpoint(TRUNCATE)")
    return replace(conf, vacuum_slice_pages=50)


def test_analyze_refreshes_the_planners_statistics(conf: Config) -> None:
    rows(conf.database, 100)
    result = maintenance.analyze(conf)
    assert value(conf.database, "SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'memory_entries'") > 0
    assert result.data["database_bytes"] > 100_000


def test_vacuum_gives_back_every_free_page(full_of_holes: Config) -> None:
    before = full_of_holes.database.stat().st_size
    result = maintenance.vacuum(full_of_holes)
    run(full_of_holes.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    assert result.changed
    assert result.data["given_back_pages"] == result.data["free_pages"] > 100
    assert full_of_holes.database.stat().st_size < before / 2
    assert value(full_of_holes.database, "SELECT count(*) FROM memory_entries") == 200


def test_vacuum_says_what_it_gave_back_and_not_what_was_free(
    full_of_holes: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have used the pages meanwhile."""
    monkeypatch.setattr(maintenance, "_vacuum_slices", lambda *_: None)
    result = maintenance.vacuum(full_of_holes)
    assert (result.data["given_back_pages"], result.changed) == (0, False)


def test_vacuum_lets_writers_in_between_its_slices(full_of_holes: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(_: float) -> None:
        run(full_of_holes.database, "INSERT INTO sessions (id, app_name, user_id) VALUES (random(), 'a', 'u')")
        written.append(1)

    monkeypatch.setattr(time, "sleep", write)
    maintenance.vacuum(full_of_holes)
    assert len(written) > 2


def test_vacuum_keeps_the_log_small_where_no_application_does(conf: Config) -> None:
    rows(conf.database, 6000)
    run(conf.database, "DELETE FROM memory_entries WHERE id <= 3000", "PRAGMA wal_checkpoint(TRUNCATE)")
    limited = replace(conf, vacuum_slice_pages=50, wal_limit_mb=1)
    moved = limited.database.stat().st_size - 4096 * maintenance.vacuum(limited).data["given_back_pages"]
    # Every row that stays was moved through the log, from the end of the file to its beginning.
    assert moved > 3_000_000
    assert database.wal_bytes(limited.database) < 1_000_000


def test_a_checkpoint_is_left_to_the_application_while_the_log_is_small(conf: Config) -> None:
    result = maintenance.checkpoint(conf)
    assert (result.ok, result.changed) == (True, False)
    assert result.summary.startswith("skipped: the write-ahead log has 0 B")


@pytest.fixture
def long_log(conf: Config) -> Iterator[Config]:
    """Make a database whose log is past its limit, because its only user never checkpoints."""
    limited = replace(conf, wal_limit_mb=1)
    user = sqlite3.connect(conf.database, isolation_level=None)
    user.execute("PRAGMA wal_autocheckpoint = 0")
    user.execute(
        "INSERT INTO sessions (id, app_name, user_id, state) VALUES (1, 1, 1, json_quote(hex(zeroblob(1000000))))"
    )
    yield limited
    user.close()


def test_a_checkpoint_moves_a_grown_log_into_the_database_and_cuts_it(long_log: Config) -> None:
    assert maintenance.checkpoint(long_log, dry_run=True).summary == "would move 2.0 MB into the database"
    result = maintenance.checkpoint(long_log)
    assert result.summary == "moved 2.0 MB into the database; the log has 0 B now"
    assert database.wal_bytes(long_log.database) == 0
    assert value(long_log.database, "SELECT count(*) FROM sessions") == 1


def test_a_checkpoint_that_a_reader_holds_back_says_so_and_how_to_find_it(long_log: Config) -> None:
    reader = sqlite3.connect(long_log.database, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sessions").fetchone()
    run(long_log.database, "INSERT INTO sessions (id, app_name, user_id) VALUES (2, 2, 2)")
    result = maintenance.checkpoint(long_log)
    reader.close()
    assert not result.ok
    assert "somebody still reads an older state" in result.summary
    assert result.hint.endswith(f"abathur-db doctor {long_log.database}")


def test_vacuum_says_why_it_has_nothing_to_do(conf: Config) -> None:
    result = maintenance.vacuum(conf)
    assert (result.ok, result.changed) == (True, False)
    assert result.summary == "skipped: 0.0 % of the pages are free, under 5 %"


@pytest.fixture
def adopted(conf: Config) -> Config:
    """Make a database as an application has it: without auto_vacuum, half of its pages free."""
    conf.database.unlink()
    application(conf.database)
    rows(conf.database, 2000)
    run(conf.database, "DELETE FROM memory_entries WHERE id % 2 = 0", "PRAGMA journal_mode = WAL")
    return conf


def test_vacuum_says_what_the_conversion_of_an_adopted_database_costs_and_does_not_do_it(adopted: Config) -> None:
    result = maintenance.vacuum(adopted)
    assert (result.ok, result.changed) == (True, False)
    assert "made without auto_vacuum=INCREMENTAL" in result.summary
    size = host.readable(adopted.database.stat().st_size)
    assert f"abathur-db vacuum --convert {adopted.database} (rewrites {size}, needs" in result.hint


def test_a_conversion_keeps_every_row_and_lets_pages_be_given_back_from_then_on(adopted: Config) -> None:
    before = dump(adopted.database)
    size = adopted.database.stat().st_size
    assert maintenance.vacuum(adopted, convert=True, dry_run=True).summary.startswith("would rewrite")
    result = maintenance.vacuum(adopted, convert=True)
    assert "with auto_vacuum=INCREMENTAL and gave back" in result.summary
    assert dump(adopted.database) == before
    assert value(adopted.database, "PRAGMA auto_vacuum") == 2
    assert value(adopted.database, "PRAGMA journal_mode") == "wal"
    assert adopted.database.stat().st_size < size
    assert list(adopted.scratch_directory.iterdir()) == []
    again = maintenance.vacuum(adopted, convert=True)
    assert again.summary.startswith("skipped: 0.0 % of the pages are free")


def test_a_conversion_waits_for_nobody_and_names_who_has_the_database_open(adopted: Config) -> None:
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM tasks');"
        "print(1, flush=True); time.sleep(600)"
    )
    with (
        at_work(code, adopted.database) as holder,
        pytest.raises(Failure, match=rf"is open in python\S* \(pid {holder.pid}\)"),
    ):
        maintenance.vacuum(adopted, convert=True)
    assert value(adopted.database, "PRAGMA auto_vacuum") == 0


def test_nobody_gets_in_while_a_conversion_rewrites_the_database(
    adopted: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, met = database.opened, []

    @contextmanager
    def watched(*arguments: Any, **options: Any) -> Iterator[sqlite3.Connection]:
        with opened(*arguments, **options) as connection:
            connection.set_trace_callback(
                lambda sql: met.append(locked_out(adopted.database)) if sql == "VACUUM" else None
            )
            yield connection

    monkeypatch.setattr(database, "opened", watched)
    maintenance.vacuum(adopted, convert=True)
    assert met == ["database is locked"]


def locked_out(path: Path) -> str:
    """Return what a reader is told that waits for nobody."""
    with closing(sqlite3.connect(path, timeout=0)) as connection:
        try:
            connection.execute("SELECT count(*) FROM tasks")
        except sqlite3.OperationalError as error:
            return str(error)
    return ""


def test_a_conversion_does_not_start_on_a_low_disk(adopted: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda _: 3_000_000)
    with pytest.raises(Failure, match="converting the database needs"):
        maintenance.vacuum(adopted, convert=True)


@pytest.mark.parametrize(
    ("pages", "seconds", "following"),
    [
        (500, 0.01, 500),
        (500, 0.2, 250),
        (500, 1000, 1),
        (100, 0.01, 200),
        (300, 0.0, 500),
    ],
)
def test_a_slice_that_took_long_makes_the_next_smaller(
    conf: Config, pages: int, seconds: float, following: int
) -> None:
    assert maintenance.slice_after(conf, pages, seconds) == following


def test_an_integrity_check_of_a_sound_database_passes_and_leaves_no_copy(conf: Config) -> None:
    result = maintenance.integrity_check(conf)
    assert [(check.id, check.ok) for check in result.checks] == [("integrity_check", True), ("foreign_keys", True)]
    assert list(conf.scratch_directory.iterdir()) == []


def test_an_integrity_check_finds_corruption_and_says_what_to_keep(conf: Config) -> None:
    rows(conf.database, 200)
    corrupt(conf.database)
    result = maintenance.integrity_check(conf)
    assert not result.ok
    assert [check.id for check in result.checks] == ["integrity_check"]
    assert result.summary.startswith("integrity-check failed at integrity_check: expected ok, found")
    assert "restore the newest backup" in result.hint
    assert list(conf.scratch_directory.iterdir()) == []


def test_an_integrity_check_finds_violated_foreign_keys_and_shows_the_query(conf: Config) -> None:
    run(conf.database, "INSERT INTO checkpoints (task_id, iteration, state, created_at) VALUES ('gone', 1, '{}', 1)")
    result = maintenance.integrity_check(conf)
    assert result.summary == (
        "integrity-check failed at foreign_keys: expected no violation, found 1 violation: 1 in checkpoints;"
        " first: checkpoints row 1, task_id in tasks"
    )
    shown, _, accept = result.hint.partition("; or accept those of today: ")
    assert "gone" in subprocess.run(["bash", "-c", shown], check=True, capture_output=True, text=True).stdout
    assert accept == f"abathur-db integrity-check --accept {conf.database}"
    accepted = maintenance.integrity_check(conf, accept=True)
    assert (accepted.ok, accepted.changed) == (True, True)
    assert maintenance.integrity_check(conf).ok
    run(conf.database, "INSERT INTO checkpoints (task_id, iteration, state, created_at) VALUES ('gone', 2, '{}', 1)")
    assert not maintenance.integrity_check(conf).ok


def test_a_violation_that_is_gone_is_accepted_no_more(conf: Config) -> None:
    row = "INSERT INTO checkpoints (task_id, iteration, state, created_at) VALUES ('gone', {}, '{{}}', 1)"
    run(conf.database, row.format(1), row.format(2))
    assert maintenance.integrity_check(conf, accept=True).ok
    run(conf.database, "DELETE FROM checkpoints WHERE iteration = 1")
    assert maintenance.integrity_check(conf).ok
    run(conf.database, row.format(3))
    assert not maintenance.integrity_check(conf).ok


@pytest.mark.parametrize("job", [maintenance.analyze, maintenance.vacuum, maintenance.integrity_check])
def test_a_dry_run_writes_nothing(full_of_holes: Config, job: Callable[..., Result]) -> None:
    before = picture(full_of_holes.database.parent)
    result = job(full_of_holes, dry_run=True)
    assert result.summary.startswith("would ")
    after = picture(full_of_holes.database.parent)
    assert {name for name in after if not name.endswith(("-shm", "-wal"))} == {
        name for name in before if not name.endswith(("-shm", "-wal"))
    }
    assert after[str(full_of_holes.database)] == before[str(full_of_holes.database)]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_does_not_start_on_a_low_disk(conf: Config, job: Callable[[Config], Result]) -> None:
    before = conf.database.read_bytes()
    with pytest.raises(Failure, match=r"needs 1000\.0 TB free at .*; nothing was changed"):
        job(replace(conf, minimum_free_mb=1_000_000_000))
    assert conf.database.read_bytes() == before


@pytest.mark.parametrize("job", JOBS)
def test_a_job_says_that_the_database_is_missing_and_makes_none(conf: Config, job: Callable[[Config], Result]) -> None:
    conf.database.unlink()
    with pytest.raises(Failure, match="there is no database at"):
        job(conf)
    assert not conf.database.exists()


def test_a_job_gives_up_on_a_database_that_stays_locked(conf: Config) -> None:
    holder = sqlite3.connect(conf.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Failure, match=r"locked by another process for longer than 0\.1 s"):
        maintenance.analyze(conf)
    holder.close()


def test_the_disk_filling_up_under_a_job_is_said_in_plain_words(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill() -> None:
        with database.opened(conf.database, 0) as connection:
            connection.execute("PRAGMA max_page_count = 1")
            connection.execute("INSERT OR REPLACE INTO sessions (id, app_name, user_id) VALUES (1, 1, 1)")
            connection.executescript("CREATE TABLE big (x); INSERT INTO big VALUES (zeroblob(1000000))")

    with pytest.raises(Failure, match=r"SQLite finds no room in .*, though its disk has .* free"):
        fill()
    monkeypatch.setattr(host, "free_bytes", lambda _: 4096)
    with pytest.raises(Failure, match=r"the disk of .* is full") as caught:
        fill()
    assert caught.value.hint.startswith("free space: df -h")


SNAPSHOT = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN');"
SNAPSHOT += "c.execute('SELECT count(*) FROM sessions').fetchone(); print('reads', flush=True); time.sleep(600)"


TAKERS: dict[str, Callable[[Config], object]] = {
    "integrity-check": maintenance.integrity_check,
    "validate": lambda conf: validation.validate(conf, []),
    "snapshot": handover.snapshot,
}


@pytest.mark.parametrize("taker", TAKERS)
def test_a_copy_asks_for_the_space_of_the_log_as_well(conf: Config, taker: str) -> None:
    """The log is many times the database while somebody reads: its rows are in the copy too."""
    with at_work(SNAPSHOT, conf.database), places.small(conf.state_directory, 8):
        rows(conf.database, 8000)
        size = conf.database.stat().st_size
        log = database.wal_bytes(conf.database)
        assert size + 10**6 < host.free_bytes(conf.state_directory) < log
        with pytest.raises(Failure, match=r"a copy of the database needs \d+\.\d MB free at .*; nothing was changed"):
            TAKERS[taker](conf)
        assert not list(conf.scratch_directory.glob("*"))
