"""The lock that all jobs share, and the records of their runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from abathur_db import guarded, runs
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import at_work, until

HOLDER = """
import pathlib, sys, time
from abathur_db import guarded, runs
with runs.locked(pathlib.Path(sys.argv[1]), "vacuum", 0):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start another process that holds the lock until it is killed."""
    with at_work(HOLDER, tmp_path) as process:
        yield process


def test_a_second_job_gives_up_after_its_wait_and_names_the_holder(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    with pytest.raises(Failure, match=rf"backup waited 0\.2 s for vacuum \(pid {holder.pid}, since ") as caught:  # noqa: SIM117
        with runs.locked(tmp_path, "backup", 0.2):
            pytest.fail("two jobs at once")
    assert caught.value.code is Exit.BUSY


@pytest.mark.parametrize("terminal", [True, False])
def test_who_waits_at_a_terminal_is_told_once_for_whom_and_a_journal_is_not(
    tmp_path: Path,
    holder: subprocess.Popen[bytes],
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(Failure), runs.locked(tmp_path, "backup", 0.3):
        pytest.fail("two jobs at once")
    told = rf"backup waits for vacuum \(pid {holder.pid}, since \S+\), at most 0\.3 s\n" if terminal else ""
    assert re.fullmatch(told, capsys.readouterr().err)


def test_a_job_that_waits_gets_the_lock_when_the_holder_is_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    with runs.locked(tmp_path, "backup", 60):
        assert f"backup (pid {os.getpid()}" in (tmp_path / "lock").read_text()


RUN = {"command": "backup", "changed": False, "hint": "", "finished": "2026-11-24", "invocation": "", "data": {}}


def test_a_failed_run_becomes_the_last_result_and_leaves_the_last_success(tmp_path: Path) -> None:
    runs.record(tmp_path, {**RUN, "ok": True, "summary": "first"})
    runs.record(tmp_path, {**RUN, "ok": False, "summary": "second"})
    last, success = (runs.recorded(tmp_path, kind, "backup") for kind in ("last", "success"))
    assert last is not None
    assert success is not None
    assert (last["summary"], success["summary"]) == ("second", "first")


@pytest.mark.parametrize("long", ["summary", "hint", "checks", "report", "data"])
def test_of_a_run_that_is_too_long_to_be_read_what_is_asked_for_is_recorded(tmp_path: Path, long: str) -> None:
    much: Any = "ä" * guarded.LIMIT
    much = much if long in ("summary", "hint") else {"n": 2.4, "rows": much} if long == "data" else [much]
    runs.record(tmp_path, {**RUN, "ok": True, "summary": "first", long: much})
    found = runs.recorded(tmp_path, "last", "backup")
    assert found is not None
    assert (found["ok"], found["finished"], found["data"]) == (
        True,
        RUN["finished"],
        {"n": 2.4} if long == "data" else {},
    )


def test_a_text_that_its_reader_would_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "record"
    runs.write_whole(path, "x" * guarded.LIMIT)
    assert len(guarded.read_text(path)) == guarded.LIMIT
    with pytest.raises(Failure, match="was not written: it would have 1048578 bytes, and its readers take 1048576"):
        runs.write_whole(path, "ä" * (guarded.LIMIT // 2 + 1))
    assert len(guarded.read_text(path)) == guarded.LIMIT


@pytest.mark.parametrize("text", ["half of a rec", "[]", "{}", '{"ok": 1}'])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    assert runs.recorded(tmp_path, "last", "backup") is None
    (tmp_path / "last").mkdir()
    (tmp_path / "last/backup.json").write_text(text)
    assert runs.recorded(tmp_path, "last", "backup") is None


def a_run(number: int, **more: Any) -> dict[str, Any]:
    """Return a run of backup that ended `number` seconds after a fixed moment."""
    finished = f"2026-11-24T02:{number // 60 % 60:02}:{number % 60:02}+00:00"
    run = {"command": "backup", "ok": True, "summary": f"run {number}", "invocation": "", "finished": finished}
    return {**run, "seconds": 1.5, "exit_code": 0, **more}


def test_every_run_is_remembered_with_its_numbers_and_a_short_summary(tmp_path: Path) -> None:
    runs.record(tmp_path, a_run(1))
    long = "x" * 1000
    runs.record(tmp_path, a_run(2, ok=False, exit_code=1, summary=long, data={"seconds": 2.4, "rows": {"a": 1}}))
    first, second = runs.history(tmp_path, "backup")
    assert first["summary"] == "run 1"
    assert (second["ok"], second["exit_code"], second["data"]) == (False, 1, {"seconds": 2.4})
    assert second["summary"] == "x" * runs.SUMMARY_LENGTH
    assert runs.history(tmp_path, "vacuum") == []


def test_the_history_is_bounded_and_keeps_the_newest(tmp_path: Path) -> None:
    for number in range(2 * runs.HISTORY + 5):
        runs.remember(tmp_path, a_run(number))
        # Before, there cannot be too many.
        if number >= 2 * runs.HISTORY - 3:
            assert len(runs.history(tmp_path, "backup")) < 2 * runs.HISTORY
    found = runs.history(tmp_path, "backup")
    assert len(found) == runs.HISTORY + 5
    assert found[-1]["summary"] == f"run {2 * runs.HISTORY + 4}"


@pytest.mark.parametrize(("second", "told"), [(9, False), (10, False), (11, True)])
def test_a_failure_that_was_noted_counts_unless_a_run_ended_after_it(conf: Config, second: int, told: bool) -> None:
    run = {**a_run(1), "command": "vacuum", "finished": f"2026-11-20T10:00:{second:02}+00:00", "invocation": "b"}
    runs.record(conf.state_directory, run)
    # An alert may take its time.
    runs.note_failure(conf, {"command": "vacuum", "finished": "2026-11-20T10:00:10+00:00", "invocation": "a"})
    assert runs.last(conf, "vacuum")["ok"] is told  # type: ignore[index]


FUTURE = "2099-02-28T23:00:00+00:00"


def test_a_failure_noted_by_a_clock_that_was_far_ahead_counts_until_the_next_run(conf: Config) -> None:
    runs.note_failure(conf, {"command": "vacuum", "finished": FUTURE, "invocation": "a"})
    assert runs.last(conf, "vacuum")["ok"] is False  # type: ignore[index]
    runs.record(conf.state_directory, {**a_run(1), "command": "vacuum", "invocation": "b"})
    assert runs.last(conf, "vacuum")["ok"] is True  # type: ignore[index]


def test_a_success_of_a_clock_that_was_far_ahead_hides_no_failure_after_it(conf: Config) -> None:
    run = {**a_run(1), "command": "vacuum", "finished": FUTURE, "invocation": "a"}
    runs.record(conf.state_directory, run)
    runs.note_failure(conf, {"command": "vacuum", "finished": runs.now(), "invocation": "b"})
    assert runs.last(conf, "vacuum")["ok"] is False  # type: ignore[index]


def test_half_a_line_that_a_power_cut_left_costs_no_other_run(tmp_path: Path) -> None:
    runs.remember(tmp_path, a_run(1))
    path = tmp_path / "history/backup.jsonl"
    path.write_text(path.read_text() + '{"finished": "2026-11-2')
    runs.remember(tmp_path, a_run(2))
    runs.remember(tmp_path, a_run(3))
    assert [run["summary"] for run in runs.history(tmp_path, "backup")] == ["run 1", "run 2", "run 3"]
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "line", ["[]", "3", '{"ok": true}', '{"ok": true, "seconds": "long"}', '{"finished": "yesterday"}', "\x00\xff"]
)
def test_a_line_that_is_no_run_is_passed_over(tmp_path: Path, line: str) -> None:
    runs.remember(tmp_path, a_run(1))
    with (tmp_path / "history/backup.jsonl").open("a") as stream:
        stream.write(line + "\n")
    assert len(runs.history(tmp_path, "backup")) == 1


REMEMBER = """
import pathlib, sys
from abathur_db import guarded, runs
print("begun", flush=True)
run = {"command": "backup", "ok": True, "summary": "s", "finished": "2026-11-24T02:00:00Z", "invocation": ""}
runs.remember(pathlib.Path(sys.argv[1]), run)
"""


def test_two_that_remember_at_once_do_it_one_after_the_other(tmp_path: Path) -> None:
    directory = tmp_path / "history"
    directory.mkdir()
    with ExitStack() as stack:
        held = stack.enter_context(ExitStack())
        held.enter_context(runs._alone(directory))
        process = stack.enter_context(at_work(REMEMBER, tmp_path))

        # The kernel lists who waits for a lock with an arrow (proc(5), /proc/locks).
        def waits() -> bool:
            assert process.poll() is None
            return bool(re.search(rf"-> FLOCK .* {process.pid} ", Path("/proc/locks").read_text()))

        until(waits, "it waits for the lock")
        assert not (directory / "backup.jsonl").exists()
        held.close()
        process.wait()
    assert len(runs.history(tmp_path, "backup")) == 1


def test_a_history_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    (tmp_path / "history/backup.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="is a symbolic link to"):
        runs.remember(tmp_path, a_run(1))
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_cannot_be_asked_for_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    # A descriptor of this kind can be neither read nor locked.
    descriptor = os.open(tmp_path / "lock", os.O_PATH)
    with pytest.raises(OSError, match=f"Bad file descriptor: '{tmp_path}/lock'"):
        runs._take(descriptor, "backup")
    os.close(descriptor)
