"""The lock that all jobs share, and the records of their runs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from abathur_db import guarded, runs
from abathur_db.result import Exit, Failure
from databases import at_work

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


def test_a_job_that_waits_gets_the_lock_when_the_holder_is_killed(
    tmp_path: Path, holder: subprocess.Popen[bytes]
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    with runs.locked(tmp_path, "backup", 60):
        assert f"backup (pid {os.getpid()}" in (tmp_path / "lock").read_text()


RUN = {"command": "backup", "changed": False, "hint": "", "finished": "now", "invocation": "", "data": {}}


def test_a_failed_run_becomes_the_last_result_and_leaves_the_last_success(tmp_path: Path) -> None:
    runs.record(tmp_path, {**RUN, "ok": True, "summary": "first"})
    runs.record(tmp_path, {**RUN, "ok": False, "summary": "second"})
    last, success = (runs.recorded(tmp_path, kind, "backup") for kind in ("last", "success"))
    assert last is not None
    assert success is not None
    assert (last["summary"], success["summary"]) == ("second", "first")


@pytest.mark.parametrize("text", ["half of a rec", "[]", "{}", '{"ok": 1}'])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    assert runs.recorded(tmp_path, "last", "backup") is None
    (tmp_path / "last").mkdir()
    (tmp_path / "last/backup.json").write_text(text)
    assert runs.recorded(tmp_path, "last", "backup") is None


def test_a_lock_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(guarded, "opened", read_only)
    with pytest.raises(Failure, match="lock cannot be opened: Read-only file system"), runs.locked(tmp_path, "x", 0):
        pytest.fail("no lock")
