"""A writer and a crowd at work on a database while a job runs, and what they saw."""

from __future__ import annotations

import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMITS_PER_SECOND = 100
Job = Callable[[Path], subprocess.Popen[bytes]]


@dataclass
class Run:
    """One job under load: its seconds (None: did not end), the writer's longest wait and p99 in ms, its errors."""

    seconds: float | None
    wait_ms: float
    p99_ms: float
    errors: int
    memory_mb: float
    wal_mb: float


def started(*command: str | Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own."""
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT / "scripts"
    )


def shell(script: str) -> Job:
    """Return a peer's way, as its users type it; `$db` is the database."""
    return lambda path: started("bash", "-c", f'db="$1"; {script}', "bash", path)


def ours(*arguments: str) -> Job:
    """Return one of our commands with the priority and the scheduling that its unit has."""
    unit = ("chrt", "--batch", "0", "nice", "-n", "10")
    return lambda path: started(*unit, sys.executable, "-m", "abathur_db", *arguments, path)


def tool(*arguments: str | Path) -> None:
    """Run one of our commands to its end."""
    subprocess.run(
        [sys.executable, "-m", "abathur_db", *arguments], cwd=ROOT / "scripts", check=True, capture_output=True
    )


def write(path: Path, ledger: Path) -> None:
    """Commit 100 times a second until told to end; write each wait in ms, or -1 for an error, to the ledger.

    A new connection per commit, with SQLite's defaults, as the applications do; one more stays open, as
    with 10 to 50 of them at work one always is.
    """
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    another = sqlite3.connect(path)
    another.execute("SELECT 1 FROM sqlite_master").fetchone()
    with ledger.open("w") as out:
        number = 0
        begun = time.monotonic()
        while not ending:
            number += 1
            at = time.monotonic()
            try:
                connection = sqlite3.connect(path, timeout=5)
                with connection:
                    connection.execute(
                        "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, 'bench', 1)", (number,)
                    )
                connection.close()
                out.write(f"{(time.monotonic() - at) * 1000}\n")
            except sqlite3.OperationalError:
                out.write("-1\n")
            time.sleep(max(0.0, begun + number / COMMITS_PER_SECOND - time.monotonic()))


def under_load(path: Path, job: Job) -> Run:
    """Run a job while the writer works; return what both saw."""
    ledger = path.with_suffix(".ledger")
    bench = Path(__file__).with_name("bench.py")
    writer = subprocess.Popen([sys.executable, bench, "--writer", path, ledger])
    largest = Largest(path)
    try:
        time.sleep(1)
        begun = time.monotonic()
        process = job(path)
        ended, memory = _wait(process)
        seconds = time.monotonic() - begun
        time.sleep(0.3)
    finally:
        largest.stop()
        writer.send_signal(signal.SIGTERM)
        writer.wait()
    waits = [float(line) for line in ledger.read_text().split()]
    good = sorted(each for each in waits if each >= 0)
    return Run(
        seconds=seconds if ended else None,
        wait_ms=good[-1],
        p99_ms=good[int(len(good) * 0.99)],
        errors=len(waits) - len(good),
        memory_mb=memory / 1000,
        wal_mb=largest.megabytes,
    )


class Largest:
    """Watches how large the write-ahead log gets, in MB."""

    def __init__(self, path: Path) -> None:
        """Begin to watch."""
        self.megabytes = 0.0
        self._log = path.with_name(path.name + "-wal")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            if self._log.exists():
                self.megabytes = max(self.megabytes, self._log.stat().st_size / 1e6)

    def stop(self) -> None:
        """End watching."""
        self._ended.set()
        self._thread.join()


def _wait(process: subprocess.Popen[bytes]) -> tuple[bool, int]:
    """Wait for a job; return whether it ended well, and the most memory that it and its children had, in kB."""
    most = 0
    while process.poll() is None:
        most = max(most, _memory(process.pid))
        time.sleep(0.05)
    said = process.stderr.read().decode() if process.stderr else ""
    if process.returncode != 0 and "abathur_db" in str(process.args):
        sys.exit(f"bench: {process.args!r} ended with {process.returncode}: {said}")
    # A peer's failure is a result: `sqlite3 .backup` gives up under a writer.
    return process.returncode == 0, most


def _memory(pid: int) -> int:
    """Return the resident memory of a process and its children in kB, 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return own + sum(_memory(int(child)) for child in children)


def middle(runs: list[Run]) -> Run:
    """Return the median of several runs, value by value; the longest wait and the errors are those of all."""
    ended = [run.seconds for run in runs if run.seconds is not None]
    return Run(
        seconds=statistics.median(ended) if ended else None,
        wait_ms=statistics.median(run.wait_ms for run in runs),
        p99_ms=statistics.median(run.p99_ms for run in runs),
        errors=sum(run.errors for run in runs),
        memory_mb=max(run.memory_mb for run in runs),
        wal_mb=max(run.wal_mb for run in runs),
    )
