"""Progress: a bar on a terminal, a line a minute in a journal, nothing at all for what is quick."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest
from abathur_db import progress
from databases import ROOT

WORK = """
import time
from abathur_db import progress
with progress.shown("copy", 1000) as update:
    for _ in range(5):
        update(200)
        time.sleep(0.15)
"""


def test_a_terminal_sees_a_bar_with_rate_and_time_left() -> None:
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    subprocess.run([sys.executable, "-c", WORK], env=environment, stderr=slave, check=True)
    seen = os.read(master, 65536).decode()
    os.close(slave)
    os.close(master)
    assert "copy:  40%" in seen
    assert "B/s" in seen
    assert "<" in seen


def test_a_journal_hears_nothing_of_quick_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown("copy", 1000) as update:
        update(1000)
    assert capsys.readouterr() == ("", "")


def test_a_journal_gets_whole_lines_of_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "JOURNAL_SECONDS", 0.01)
    with progress.shown("copy", 1000) as update:
        for _ in range(4):
            time.sleep(0.02)
            update(250)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("copy:") and "\r" not in line for line in lines)


def test_without_tqdm_the_work_is_done_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress.shown("copy", 1000) as update:
        update(1000)
