"""Our jobs and each peer's way on the same database, with the same writer at work."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.load import ROOT, Job, Run, middle, ours, shell, tool, under_load
from benchmarks.rows import copied, settle

LITESTREAM = ROOT / ".cache/bench/bin/litestream"
WAIT_MS = 250
"""No maintenance job makes a writer wait longer (issue of the bundle's goals)."""

PEERS = {
    "vacuum": ("VACUUM", "sqlite3 \"$db\" 'PRAGMA busy_timeout = 5000; VACUUM'"),
    "analyze": ("ANALYZE", "sqlite3 \"$db\" 'PRAGMA busy_timeout = 5000; ANALYZE'"),
    "integrity-check": ("PRAGMA integrity_check", "sqlite3 \"$db\" 'PRAGMA integrity_check'"),
}
BACKUPS = {
    "cp + gzip": 'cp "$db" "$db.copy" && gzip "$db.copy" && sync "$db.copy.gz"',
    "cp": 'cp "$db" "$db.copy" && sync "$db.copy"',
    "VACUUM INTO": 'sqlite3 "$db" "VACUUM INTO \'$db.copy\'"',
    # Starts over at every write: without a limit it would not end.
    "sqlite3 .backup": 'timeout 30 sqlite3 "$db" ".backup \'$db.copy\'"',
    "litestream -once": f'{LITESTREAM} replicate -once "$db" "file://$db.replica"',
}


def measure(source: Path, home: Path, rounds: int, say: Callable[[str], None], *, alone: bool) -> list[Figure]:
    """Measure every job against its peers on copies of `source`; `alone`: without them."""

    def run(name: str, job: Job) -> Run:
        say(name)
        return middle([under_load(copied(source, home), job) for _ in range(rounds)])

    idle = run("the writer alone", shell("sleep 10"))
    found = [Figure("writer alone", "longest wait", "ms", idle.wait_ms)]
    for name, (peer, script) in PEERS.items():
        mine = run(name, ours(name))
        theirs = {} if alone else {peer: run(peer, shell(script))}
        waits: dict[str, float | None] = {each: done.wait_ms for each, done in theirs.items()}
        errors = {"ours": mine.errors, **{each: done.errors for each, done in theirs.items()}}
        found.append(Figure(name, "the writer's longest wait", "ms", mine.wait_ms, waits, "", WAIT_MS, errors))
        took: dict[str, float | None] = {each: done.seconds for each, done in theirs.items()}
        found.append(Figure(name, "time", "s", mine.seconds or 0, took))
    mine = run("backup", ours("backup"))
    packed = next((home / "abathur.db.backups").glob("*.zst")).stat().st_size
    peers = {} if alone else {name: run(name, shell(script)) for name, script in BACKUPS.items()}
    found += _backup(mine, idle, peers, packed, source)
    return found if alone else [*found, _restore(source, home, rounds, say)]


def _backup(mine: Run, idle: Run, peers: dict[str, Run], packed: int, source: Path) -> list[Figure]:
    took = {name: run.seconds for name, run in peers.items()}
    p99: dict[str, float | None] = {"no job": idle.p99_ms, **{name: run.p99_ms for name, run in peers.items()}}
    waits: dict[str, float | None] = {name: run.wait_ms for name, run in peers.items()}
    errors = {"ours": mine.errors, **{name: run.errors for name, run in peers.items()}}
    seconds = mine.seconds or 0
    found = []
    if peers:
        found = [
            Figure("backup", "time, against the design's", "s", seconds, took, "cp + gzip", 0.25, errors),
            Figure("backup", "time, against a plain copy", "s", seconds, {"cp": took["cp"]}, "cp", 3),
        ]
    return [
        *found,
        Figure("backup", "the writer's longest wait", "ms", mine.wait_ms, waits, "", WAIT_MS, errors),
        Figure("backup", "the writer's p99", "ms", mine.p99_ms, p99, "no job", 2),
        Figure("backup", "memory", "MB", mine.memory_mb, {}, "", 100),
        Figure("backup", "size", "MB", packed / 1e6, {"database": source.stat().st_size / 1e6}, "database", 0.25),
        Figure("backup", "largest write-ahead log meanwhile", "MB", mine.wal_mb, {}, "", 100),
    ]


def _restore(source: Path, home: Path, rounds: int, say: Callable[[str], None]) -> Figure:
    """Measure a restore with all its checks; the peers unpack and hash, or restore and check."""
    times: dict[str, list[float]] = {"ours": [], "zstd -d + sha256sum": [], "litestream restore": []}
    say("restore")
    for _ in range(rounds):
        path = copied(source, home)
        tool("backup", path)
        file = next((home / "abathur.db.backups").glob("*.zst"))
        replica = f"file://{home}/replica"
        subprocess.run([LITESTREAM, "replicate", "-once", path, replica], check=True, capture_output=True)
        restored: list[str | Path] = [
            LITESTREAM,
            "restore",
            "-o",
            home / "litestream.db",
            "-integrity-check",
            "full",
            replica,
        ]
        script = f"sha256sum '{file}' && zstd -dqf '{file}' -o plain && sha256sum plain && sync plain"
        ways: dict[str, list[str | Path]] = {
            "ours": [sys.executable, "-m", "abathur_db", "restore", "--database", path, "latest"],
            "zstd -d + sha256sum": ["bash", "-c", f"cd '{home}' && {script}"],
            "litestream restore": restored,
        }
        for name, command in ways.items():
            settle()
            begun = time.monotonic()
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT / "scripts")
            times[name].append(time.monotonic() - begun)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    mine = medians.pop("ours")
    return Figure("restore", "time, all checks included", "s", mine, {**medians}, "zstd -d + sha256sum", 2)
