"""Cost against size, and the queries of many sessions while each job runs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abathur_db import database, latency, soundness

from benchmarks.figures import Figure
from benchmarks.load import ROOT, ours, tool
from benchmarks.rows import copied, settle

SESSIONS, PROCESSES = 50, 5
"""Sessions in all, and the processes that they are in: 50 threads of one Python would wait for each other."""
CROWD_SECONDS = 20
TARGETS = {"session_by_id": 10, "memory_by_key": 20}
OTHERS_MS = 50
"""The design's targets in ms, taken as p99: session by id, memory by key, any read."""

JOBS = ("analyze", "vacuum", "integrity-check", "backup")


def costs(source: Path, home: Path, say: Callable[[str], None]) -> dict[str, float]:
    """Return the seconds of each piece of work on a database that nobody else uses."""
    path = copied(source, home)
    found = {}
    for name, command in {
        "analyze": ("analyze", path),
        "validation": ("validate", path),
        "backup": ("backup", path),
        "verify": ("verify", "--database", path, "latest"),
        "restore": ("restore", "--database", path, "latest"),
    }.items():
        say(f"{name} of {source.stat().st_size / 1e9:.1f} GB")
        settle()
        found[name] = _timed(functools.partial(tool, *command))
    with database.opened(path, 5000) as connection:
        found["quick check"] = _timed(lambda: soundness.findings(connection))
        found["vacuum slice"] = _timed(lambda: connection.executescript("PRAGMA incremental_vacuum(500)"))
    return found


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def growth(measured: dict[float, dict[str, float]]) -> list[Figure]:
    """Return for each piece of work by how much its cost grows from the second largest size to the largest."""
    if len(measured) < 2:
        return []
    small, large = sorted(measured)[-2:]
    by: dict[str, float | None] = {"the size's growth": large / small}
    return [
        Figure(
            "growth",
            f"{name}, {small:g} to {large:g} GB",
            "",
            measured[large][name] / seconds,
            by,
            "the size's growth",
            1,
        )
        for name, seconds in measured[small].items()
    ]


def crowd(path: Path, out: Path) -> None:
    """Let the sessions of one process read and write for a while; write the times in ms and the errors to `out`."""
    with database.opened(path, 5000, read_only=True) as connection:
        parameters = latency.samples(connection)
    load = latency.measure(path, parameters, SESSIONS // PROCESSES, CROWD_SECONDS, 5000)
    out.write_text(json.dumps({"milliseconds": load.milliseconds, "errors": load.errors}))


def _crowd_during(path: Path, job: str) -> dict[str, Any]:
    """Run the crowd, and the job again and again until the crowd is done; return p99 in ms by query, and the errors."""
    outs = [path.with_suffix(f".crowd{number}") for number in range(PROCESSES)]
    bench = Path(__file__).with_name("bench.py")
    people = [subprocess.Popen([sys.executable, bench, "--crowd", path, out], cwd=ROOT) for out in outs]
    while any(each.poll() is None for each in people):
        if job:
            ours(job)(path).communicate()
        else:
            time.sleep(0.1)
    if any(each.returncode for each in people):
        sys.exit(f"bench: the crowd during {job or 'no job'} failed")
    whole = latency.Load(SESSIONS)
    for out in outs:
        found = json.loads(out.read_text())
        whole.errors += found["errors"]
        for name, times in found["milliseconds"].items():
            whole.milliseconds[name] += times
    p99 = {name: whole.percentile(name, 0.99) for name in whole.milliseconds}
    return {"p99": p99, "errors": whole.errors}


def queries(source: Path, home: Path, say: Callable[[str], None]) -> list[Figure]:
    """Measure the design's query targets with 50 sessions at work, alone and while each job runs."""
    during = {}
    for job in ("", *JOBS):
        say(f"50 sessions during {job or 'no job'}")
        during[job] = _crowd_during(copied(source, home), job)
    found = []
    for job in JOBS:
        alone, seen = during[""]["p99"], during[job]["p99"]
        for name in (*TARGETS, "any read"):
            limit = TARGETS.get(name, OTHERS_MS)
            mine = seen[name] if name in seen else max(seen.values())
            base = alone[name] if name in alone else max(alone.values())
            label = f"{name.replace('_', ' ')}, p99 of 50 sessions"
            errors = {"ours": len(during[job]["errors"])}
            found.append(Figure(f"during {job}", label, "ms", mine, {"no job": base}, "", limit, errors))
    return found
