"""`make bench`: our jobs and each peer's way side by side, in one run on one machine, as ratios.

Makes a database of realistic rows, keeps a writer at 100 commits a second on it, runs a job, and
writes down how long that took, how long the writer had to wait, and its errors. The table goes to
standard output, the same to benchmarks/results.json. Absolute times are of the machine; the ratios
are what counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results.json"
COMMITS_PER_SECOND = 100
ROUNDS = 3
CAP_SECONDS = 120
"""A peer that has not ended by then is stopped: `sqlite3 .backup` starts over at every write."""

WORDS = re.findall(
    r"\w+",
    "agent session memory task prefers dark theme python deploy review context summary user project error retry plan"
    " result step tool search document index vector embedding policy audit version priority status",
)


@dataclass
class Run:
    """One job under load: seconds it took, how long the writer waited at most and at p99 (ms), its errors."""

    seconds: float
    wait_ms: float
    p99_ms: float
    errors: int
    memory_mb: float
    ended: bool = True


@dataclass
class Figure:
    """One line of the table; `ratio` is ours to the peer that the goal names."""

    name: str
    ours: str
    peers: dict[str, str] = field(default_factory=dict)
    ratio: str = ""
    goal: str = ""
    reached: bool | None = None


def text(chance: random.Random, words: int) -> str:
    """Return a sentence of so many words."""
    return " ".join(chance.choices(WORDS, k=words))


def generate(path: Path, size: int) -> None:
    """Fill a new database with sessions, memories, tasks and audit rows to `size` bytes, a third of them free again."""
    tool("init", path)
    chance = random.Random(7)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    first = 0
    while path.stat().st_size < size:
        connection.execute("BEGIN")
        for number in range(first, first + 5000):
            events = json.dumps([{"type": "message", "text": text(chance, 20)} for _ in range(4)])
            connection.execute(
                "INSERT INTO sessions (id, app_name, user_id, status, events) VALUES (?, 'abathur', ?, ?, ?)",
                (f"session-{number}", f"user-{number % 500}", chance.choice(("created", "active", "archived")), events),
            )
            value = json.dumps({"note": text(chance, 40), "weight": chance.random()})
            memory = connection.execute(
                "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES (?, ?, ?, 'semantic')",
                (f"user:{number % 500}:notes", f"key-{number}", value),
            ).lastrowid
            connection.execute(
                "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
                " VALUES (?, ?, ?, '{}', ?, ?)",
                (f"task-{number}", text(chance, 15), chance.choice(("pending", "completed")), number, number),
            )
            connection.execute(
                "INSERT INTO audit (timestamp, task_id, action_type, memory_entry_id) VALUES (?, ?, 'create', ?)",
                (number, f"task-{number}", memory),
            )
        first += 5000
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("DELETE FROM sessions WHERE rowid < (SELECT max(rowid) / 3 FROM sessions)")
    connection.execute("DELETE FROM tasks WHERE rowid < (SELECT max(rowid) / 3 FROM tasks)")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def write(path: Path, ledger: Path) -> None:
    """Commit 100 times a second until told to end; write each wait in ms, or -1 for an error, to the ledger."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
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


def under_load(path: Path, job: Callable[[], subprocess.Popen[bytes]]) -> Run:
    """Run a job while the writer works; return what both saw."""
    ledger = path.with_suffix(".ledger")
    writer = subprocess.Popen([sys.executable, __file__, "--writer", path, ledger])
    try:
        time.sleep(1)
        begun = time.monotonic()
        process = job()
        ended, usage = wait(process, begun)
        seconds = time.monotonic() - begun
        time.sleep(0.3)
    finally:
        writer.send_signal(signal.SIGTERM)
        writer.wait()
    waits = [float(line) for line in ledger.read_text().split()]
    good = sorted(each for each in waits if each >= 0)
    return Run(
        seconds=seconds,
        wait_ms=max(good),
        p99_ms=good[int(len(good) * 0.99)],
        errors=len(waits) - len(good),
        memory_mb=usage / 1000,
        ended=ended,
    )


def wait(process: subprocess.Popen[bytes], begun: float) -> tuple[bool, int]:
    """Wait for a job, at most CAP_SECONDS; return whether it ended well, and its memory in kB."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0 and "abathur_db" in str(process.args):
                sys.exit(f"bench: {process.args!r} ended with {process.returncode}")
            # A peer's failure is a result: `sqlite3 .backup` gives up under a writer.
            return process.returncode == 0, usage.ru_maxrss
        if time.monotonic() - begun > CAP_SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            return False, usage.ru_maxrss
        time.sleep(0.01)


def started(*command: str | Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own."""
    return subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT / "scripts"
    )


def shell(script: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Return the start of a peer's way, as its users type it."""
    return lambda: started("bash", "-c", script)


def ours(*arguments: str | Path) -> Callable[[], subprocess.Popen[bytes]]:
    """Return the start of one of our commands."""
    return lambda: started(sys.executable, "-m", "abathur_db", *arguments)


def tool(*arguments: str | Path) -> None:
    """Run one of our commands to its end."""
    subprocess.run(
        [sys.executable, "-m", "abathur_db", *arguments], cwd=ROOT / "scripts", check=True, capture_output=True
    )


def copied(source: Path, home: Path) -> Path:
    """Return a fresh copy of the generated database, so that every job finds the same."""
    if home.exists():
        shutil.rmtree(home)
    home.mkdir()
    shutil.copy(source, home / "abathur.db")
    # Or the writer's first commit would wait for the copy to reach the disk.
    os.sync()
    return home / "abathur.db"


def median(source: Path, home: Path, job: Callable[[Path], Callable[[], subprocess.Popen[bytes]]], rounds: int) -> Run:
    """Run a job several times on fresh copies; return the run whose time is the median, with the worst wait."""
    runs = []
    for _ in range(rounds):
        path = copied(source, home)
        runs.append(under_load(path, job(path)))
        if not runs[-1].ended:
            break
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    return Run(
        **{**asdict(middle), "wait_ms": max(run.wait_ms for run in runs), "errors": sum(run.errors for run in runs)}
    )


def shown(run: Run) -> str:
    """Return a run as the table shows it."""
    ended = f"{run.seconds:.1f} s" if run.ended else f"failed after {run.seconds:.1f} s"
    return f"{ended}, waits {run.wait_ms:.0f} ms, {run.errors} errors"


def measure(source: Path, home: Path, rounds: int) -> list[Figure]:
    """Measure every job against its peers."""

    def both(job: Callable[[Path], Callable[[], subprocess.Popen[bytes]]]) -> Run:
        return median(source, home, job, rounds)

    idle = both(lambda _: shell("sleep 5"))
    found = [Figure("writer alone", f"waits {idle.wait_ms:.0f} ms, p99 {idle.p99_ms:.1f} ms")]
    quiet = {
        "vacuum": ("VACUUM", lambda path: shell(f"sqlite3 '{path}' 'PRAGMA busy_timeout = 5000; VACUUM'")),
        "analyze": ("ANALYZE", lambda path: shell(f"sqlite3 '{path}' 'PRAGMA busy_timeout = 5000; ANALYZE'")),
        "integrity-check": ("PRAGMA integrity_check", lambda path: shell(f"sqlite3 '{path}' 'PRAGMA integrity_check'")),
    }
    for name, (peer, way) in quiet.items():
        mine = both(functools.partial(ours, name))
        theirs = both(way)
        reached = mine.wait_ms <= 250 and mine.errors == 0
        ratio = f"{mine.wait_ms / theirs.wait_ms:.2f} of the wait"
        goal = "the writer waits at most 250 ms, no error"
        found.append(Figure(name, shown(mine), {peer: shown(theirs)}, ratio, goal, reached))
    return [*found, *backups(both, idle, source, home), restores(source, home, rounds)]


def backups(
    both: Callable[[Callable[[Path], Callable[[], subprocess.Popen[bytes]]]], Run], idle: Run, source: Path, home: Path
) -> list[Figure]:
    """Measure the backup, its size and memory."""
    mine = both(lambda path: ours("backup", path))
    packed = next((home / "backups").glob("*.zst")).stat().st_size
    design = both(lambda path: shell(f"cp '{path}' '{path}.copy' && gzip '{path}.copy'"))
    copy = both(lambda path: shell(f"cp '{path}' '{path}.copy' && sync '{path}.copy'"))
    into = both(lambda path: shell(f"sqlite3 '{path}' \"VACUUM INTO '{path}.copy'\""))
    cli = both(lambda path: shell(f"sqlite3 '{path}' \".backup '{path}.copy'\""))
    peers = {
        "cp + gzip": shown(design),
        "cp": shown(copy),
        "VACUUM INTO": shown(into),
        "sqlite3 .backup": shown(cli),
    }
    return [
        ratio("backup, to cp + gzip", mine.seconds / design.seconds, 0.25, shown(mine), peers),
        ratio("backup, to cp", mine.seconds / copy.seconds, 3, shown(mine), {"cp": shown(copy)}),
        ratio("writer's p99 during a backup, to alone", mine.p99_ms / idle.p99_ms, 2, f"{mine.p99_ms:.1f} ms", {}),
        ratio("memory of a backup, MB", mine.memory_mb, 100, f"{mine.memory_mb:.0f} MB", {}),
        ratio("size of a backup, to the database", packed / source.stat().st_size, 0.25, f"{packed / 1e6:.0f} MB", {}),
    ]


def restores(source: Path, home: Path, rounds: int) -> Figure:
    """Measure the restore with all its checks."""
    times = []
    theirs = []
    for _ in range(rounds):
        path = copied(source, home)
        tool("backup", path)
        begun = time.monotonic()
        tool("restore", "--database", path, "latest")
        times.append(time.monotonic() - begun)
        begun = time.monotonic()
        file = next((home / "backups").glob("*.zst"))
        script = f"sha256sum '{file}' && zstd -dqf '{file}' -o '{home}/plain' && sha256sum '{home}/plain'"
        subprocess.run(["bash", "-c", script], check=True, capture_output=True)
        theirs.append(time.monotonic() - begun)
    mine_s, theirs_s = statistics.median(times), statistics.median(theirs)
    peers = {"zstd -d + sha256sum": f"{theirs_s:.1f} s"}
    return ratio("restore with all checks, to zstd -d + sha256sum", mine_s / theirs_s, 2, f"{mine_s:.1f} s", peers)


def ratio(name: str, value: float, goal: float, mine: str, peers: dict[str, str]) -> Figure:
    """Return a figure whose goal is an upper limit."""
    return Figure(name, mine, peers, f"{value:.2f}", f"at most {goal:g}", value <= goal)


def table(found: list[Figure]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| What | Ours | Peers | Ratio | Goal | Reached |", "| --- | --- | --- | --- | --- | --- |"]
    for each in found:
        peers = "; ".join(f"{name}: {value}" for name, value in each.peers.items())
        reached = {True: "yes", False: "no", None: ""}[each.reached]
        lines.append(f"| {each.name} | {each.ours} | {peers} | {each.ratio} | {each.goal} | {reached} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print, and write the results."""
    parser = argparse.ArgumentParser(description="Measures our jobs against their peers.")
    parser.add_argument("--size", type=float, default=1, help="of the database in GB, default: 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each job, default: 3")
    parser.add_argument("--writer", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        write(*options.writer)
        return
    with tempfile.TemporaryDirectory(prefix="abathur-bench-") as folder:
        source = Path(folder) / "source.db"
        print(f"bench: making {options.size:g} GB of rows", file=sys.stderr)
        generate(source, int(options.size * 1e9))
        found = measure(source, Path(folder) / "home", options.rounds)
    print(table(found))
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, SQLite {sqlite3.sqlite_version}"
    results = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "gigabytes": options.size,
        "rounds": options.rounds,
        "figures": [asdict(each) for each in found],
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
