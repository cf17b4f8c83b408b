"""`make bench`: our jobs and deploys beside each peer's way, in one run on one machine, as ratios.

Prints a table of medians; the same goes to benchmarks/results.json, from which `make docs` takes the README's,
and a chart to docs/. Absolute times are of the machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import deploys, figures, fleet, jobs, limits, load, replication, rows, scale

ROOT = Path(__file__).resolve().parents[1]

RESULTS = ROOT / "benchmarks/results.json"
SCALES = (0.1, 1.0, 10.0)


def say(text: str) -> None:
    """Tell progress, away from standard output."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def measure(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, list[figures.Figure]], dict[float, dict[str, float]]]:
    """Measure the parts that the options ask for; return the figures of each, and seconds by size and work."""
    found: dict[str, list[figures.Figure]] = {}
    costs: dict[float, dict[str, float]] = {}
    home, source = folder / "home", options.source or folder / "source.db"
    if options.hosts:
        found["fleet"] = fleet.measure(options.hosts, folder, options.rounds, say)
        return found, {}
    if "deploys" in options.parts:
        found["deploys"] = deploys.measure(folder, options.rounds, say)
    for size in [each for each in SCALES if each < options.size] if "scale" in options.parts else []:
        smaller = folder / "smaller.db"
        say(f"making {size:g} GB of rows")
        rows.generate(smaller, int(size * 1e9))
        costs[size] = scale.costs(smaller, home, say)
        smaller.unlink()
    if {"jobs", "scale", "queries", "limits", "replication"} & set(options.parts) and not source.exists():
        say(f"making {options.size:g} GB of rows")
        rows.generate(source, int(options.size * 1e9))
    if "jobs" in options.parts:
        found["jobs"] = jobs.measure(source, home, options.rounds, say, alone=options.alone)
    if "queries" in options.parts:
        found["queries"] = scale.queries(source, home, say)
    if "limits" in options.parts:
        found["limits"] = limits.measure(source, home, say)
    if "replication" in options.parts:
        found["replication"] = replication.measure(source, folder, options.rounds, say)
    if "scale" in options.parts:
        costs[options.size] = scale.costs(source, home, say)
        found["scale"] = scale.growth(costs)
    return found, costs


def write(
    options: argparse.Namespace, found: dict[str, list[figures.Figure]], costs: dict[float, dict[str, float]]
) -> None:
    """Keep the results of the parts that were measured, those of each size or fleet apart, with a chart of all."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, SQLite {sqlite3.sqlite_version}"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    name = f"{options.hosts} hosts" if options.hosts else f"{options.size:g} GB"
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    known = results.get(name, {"parts": {}, "seconds_by_gigabytes": {}})
    for part, measured in found.items():
        rows = [each.as_dict() for each in measured]
        known["parts"][part] = {"time": stamp, "machine": machine, "rounds": options.rounds, "figures": rows}
    if costs:
        known["seconds_by_gigabytes"] = {f"{size:g}": each for size, each in costs.items()}
    results[name] = known
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    chart = figures.chart(figures.rows(known), f"Abathur Ops at {name}, {machine}")
    (ROOT / "docs" / figures.file(name)).write_text(chart)


def main() -> None:
    """Read the command line, measure, print, and write the results."""
    parts = ("deploys", "jobs", "queries", "limits", "replication", "scale")
    parser = argparse.ArgumentParser(description="Measures our jobs and deploys against their peers.")
    parser.add_argument("--size", type=float, default=1, help="of the database in GB, default: 1")
    parser.add_argument("--hosts", type=int, default=0, help="measure deploys to a fleet of so many instead")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement, default: 3")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--alone", action="store_true", help="jobs without their peers, which take an hour at 10 GB")
    parser.add_argument("--source", type=Path, help="generated rows of an earlier run, or where to keep them")
    parser.add_argument("--writer", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--crowd", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        load.write(*options.writer)
        return
    if options.crowd:
        scale.crowd(*options.crowd)
        return
    with tempfile.TemporaryDirectory(prefix="abathur-bench-") as folder:
        found, costs = measure(options, Path(folder))
    write(options, found, costs)
    print(figures.table([each.as_dict() for part in found.values() for each in part]))


if __name__ == "__main__":
    main()
