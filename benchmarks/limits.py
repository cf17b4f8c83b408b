"""How many small transactions a second one database takes, from how many processes: where SQLite's limit is."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.rows import copied

PROCESSES = (1, 10, 50)
"""The application has 10 to 50 (design document)."""
SECONDS = 10
WAIT_SECONDS = 5
"""How long a commit waits for the others, as the tool's own connections do; then it is an error."""
FULL, NORMAL = "FULL", "NORMAL"
"""PRAGMA synchronous: SQLite's default flushes each commit, the other only each checkpoint."""


def commit(path: Path, synchronous: str, until: float) -> tuple[list[float], int]:
    """Commit one row at a time as fast as it goes until a moment; return the times in ms, and the errors."""
    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    times, errors = [], 0
    while time.monotonic() < until:
        begun = time.monotonic()
        try:
            connection.execute(
                "INSERT INTO metrics (timestamp, metric_name, metric_value) VALUES (?, 'bench', 1)", (begun,)
            )
            times.append((time.monotonic() - begun) * 1000)
        except sqlite3.OperationalError:
            errors += 1
    connection.close()
    return times, errors


def _together(path: Path, processes: int, synchronous: str) -> tuple[float, float, int]:
    """Let so many processes commit at once; return commits a second of all, the p99 of one in ms, and the errors."""
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        until = time.monotonic() + SECONDS
        runs = [pool.submit(commit, path, synchronous, until) for _ in range(processes)]
        found = [each.result() for each in runs]
    times = sorted(each for mine, _ in found for each in mine)
    return len(times) / SECONDS, times[int(len(times) * 0.99)], sum(errors for _, errors in found)


def measure(source: Path, home: Path, say: Callable[[str], None]) -> list[Figure]:
    """Measure commits a second and how long one takes, with and without a flush for each."""
    rates, waits = [], []
    for processes in PROCESSES:
        say(f"{processes} processes that commit as fast as they can")
        found = {each: _together(copied(source, home), processes, each) for each in (NORMAL, FULL)}
        peer = f"synchronous={FULL}"
        errors = {"ours": found[NORMAL][2], peer: found[FULL][2]}
        rates.append(
            Figure("commits a second", _of(processes), "/s", found[NORMAL][0], {peer: found[FULL][0]}, errors=errors)
        )
        waits.append(Figure("a commit's p99", _of(processes), "ms", found[NORMAL][1], {peer: found[FULL][1]}))
    return rates + waits


def _of(processes: int) -> str:
    return f"{processes} at it, synchronous={NORMAL}"
