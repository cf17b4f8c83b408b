"""Fifty sessions at work while every job and a backup run again and again: nobody meets an error, nothing grows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import databases
from abathur_db import database

from faults import moments
from faults.world import World

SECONDS = moments.number("LOAD", 15)
SESSIONS = 50
PAUSE = 0.2
"""Seconds between two operations of a session: 250 operations a second in all, 75 of them writes."""
ALONE_SECONDS = 4
WAITED = 1.0
"""Seconds that an operation of the sessions alone may take: more, and the machine is too busy for this many."""
ROWS = 12_000
OTHERS = (
    ("analyze",),
    ("vacuum",),
    ("checkpoint",),
    ("integrity-check",),
    ("drill",),
    ("verify", "latest"),
    ("prune",),
    ("init",),
    ("seed",),
    ("status",),
)
WAL_LIMIT = 100_000_000


@contextmanager
def sessions(path: Path, folder: Path, pause: float) -> Iterator[list[int]]:
    """Let the sessions work until the end, with a pause in seconds between operations; give their process ids."""
    with (folder / "operations").open("w") as out, (folder / "errors").open("w") as errors:
        program = [sys.executable, str(Path(__file__).with_name("sessions.py")), str(path), str(SESSIONS), str(pause)]
        process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
    try:
        databases.until(lambda: (folder / "operations").read_text().endswith("\n"), "the sessions begin")
        yield [int(each) for each in (folder / "operations").read_text().split()]
    finally:
        process.terminate()
        process.wait()


def worked(folder: Path) -> list[tuple[int, float]]:
    """Return how many operations each session has done, and the seconds of its longest one."""
    lines = [line.split() for line in (folder / "operations").read_text().splitlines()[1:]]
    return [(int(count), float(seconds)) for count, seconds in lines]


def pace(world: World, folder: Path) -> float:
    """Return the pause at which the sessions alone do not wait for each other: PAUSE, or more on a busy machine.

    Jobs can be blamed only for what is not there without them.
    """
    pause = PAUSE
    while True:
        with sessions(world.conf.database, folder, pause):
            time.sleep(ALONE_SECONDS)
        longest = max(seconds for _, seconds in worked(folder))
        print(f"alone, with {pause} s between operations: {longest:.3f} s at most")
        if longest < WAITED and (folder / "errors").read_text() == "":
            return pause
        pause *= 2
        assert pause < 60 * PAUSE, "this machine serves no fifty sessions"


def memory_kb(pid: int) -> int:
    """Return what a process has of its own in memory, in kB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(each) for each in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))


def handles(pid: int) -> int:
    """Return how many files a process keeps open: the least of several looks, one may meet a file that is just read."""
    looks = []
    for _ in range(10):
        looks.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        time.sleep(0.01)
    return min(looks)


class Jobs:
    """Runs commands of the tool one after the other until told to end; keeps exit codes and peaks of memory."""

    def __init__(self, world: World) -> None:
        """Take the world."""
        self.world = world
        self.ending = threading.Event()
        self.failures: list[str] = []
        self.memory_kb: dict[str, list[int]] = defaultdict(list)

    def run(self, commands: tuple[tuple[str, ...], ...]) -> None:
        """Run each command in turn, again and again, every one of them at least twice."""
        turn = 0
        while not self.ending.is_set() or turn < 2 * len(commands):
            command = commands[turn % len(commands)]
            process = self.world.start(self.world.command(*command))
            output = process.stdout.read() if process.stdout else ""
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            process.communicate()
            self.memory_kb[command[0]].append(usage.ru_maxrss)
            if process.returncode != 0:
                self.failures.append(f"{' '.join(command)}: {process.returncode} {output}")
            turn += 1


def peak(largest: list[int], stop: threading.Event, measure: Callable[[], int]) -> None:
    while not stop.wait(0.02):
        largest[0] = max(largest[0], measure())


def test_fifty_sessions_meet_no_error_while_every_job_runs_again_and_again(tmp_path: Path) -> None:
    world = World(tmp_path / "world", lock_wait_seconds=600, backup_keep_daily=1)
    world.good("init")
    world.good("seed")
    databases.rows(world.conf.database, ROWS)
    world.good("backup")
    jobs, wal = Jobs(world), [0]
    pause = pace(world, tmp_path)
    with sessions(world.conf.database, tmp_path, pause) as pids:
        threads = [
            threading.Thread(target=jobs.run, args=((("backup",),),)),
            threading.Thread(target=jobs.run, args=(OTHERS,)),
            threading.Thread(target=peak, args=(wal, jobs.ending, lambda: database.wal_bytes(world.conf.database))),
        ]
        for each in threads:
            each.start()
        time.sleep(SECONDS / 2)
        half = {pid: (memory_kb(pid), handles(pid)) for pid in pids}
        time.sleep(SECONDS / 2)
        jobs.ending.set()
        for each in threads:
            each.join()
        end = {pid: (memory_kb(pid), handles(pid)) for pid in pids}
    operations = [count for count, _ in worked(tmp_path)]
    longest = max(seconds for _, seconds in worked(tmp_path))
    ran = {name: len(peaks) for name, peaks in jobs.memory_kb.items()}
    said = f"{sum(operations)} operations, the longest of {longest:.3f} s, log at most {wal[0] / 1e6:.1f} MB"
    print(f"{SECONDS} s, {pause} s between operations, {said}, runs: {ran}")
    assert (tmp_path / "errors").read_text() == ""
    assert jobs.failures == []
    assert len(operations) == SESSIONS
    assert min(operations) > 0
    assert wal[0] < WAL_LIMIT
    # A session holds one connection at a time: three files beside the standard ones, at most.
    assert max(count for _, count in end.values()) <= 3 + 3
    assert sum(size for size, _ in end.values()) <= 1.2 * sum(size for size, _ in half.values()) + 10_000
    for name, peaks in jobs.memory_kb.items():
        third = max(1, len(peaks) // 3)
        assert max(peaks[-third:]) <= 1.25 * max(peaks[:third]) + 10_000, f"{name}: {peaks}"
    assert world.leftovers() == []
