"""Measures the parts of a test run, and compares them with the run before: `make quick`, `make test`, `make test-all`.

`timings.py part RUN NAME COMMAND...` runs a part; `timings.py report RUN` prints what each took and the slowest tests.
The figures of the last run of each kind stay in .cache/timings/RUN.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FOLDER = Path(__file__).resolve().parents[1] / ".cache/timings"
SLOWEST = 10
SLOWER = 1.5
"""A part that takes this much more than before is said."""
NOISE_SECONDS = 10
"""Less than this is no news: a machine that is shared moves a short part by as much."""


def part(run: str, name: str, command: list[str]) -> int:
    """Run a part of a run, with its tests timed; return its exit code."""
    folder = FOLDER / run
    folder.mkdir(parents=True, exist_ok=True)
    # pytest writes what each test took, whoever starts it; make's job server comes along.
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={folder}/{name}.xml"
    _progress(f"{name}: begun")
    begun = time.time()
    code = subprocess.run(
        command, env={**os.environ, "PYTEST_ADDOPTS": options}, check=False, close_fds=False
    ).returncode
    ended = time.time()
    (folder / f"{name}.json").write_text(json.dumps({"begun": begun, "ended": ended, "ok": code == 0}))
    said = f"{name}: {'passed' if code == 0 else 'FAILED'} after {ended - begun:.0f} s"
    print(said, flush=True)
    _progress(said)
    return code


def _progress(text: str) -> None:
    """Tell whoever sits at the terminal: make holds a part's output back until its end."""
    with suppress(OSError):
        Path("/dev/tty").write_text(f"{text}\n")


def begin(run: str) -> None:
    """Forget the parts of a former run."""
    for each in (FOLDER / run).glob("*"):
        each.unlink()


def read(run: str) -> dict[str, Any]:
    """Return what was measured of a run: seconds as a whole, its parts with seconds and counts, its slowest tests."""
    parts: dict[str, Any] = {}
    tests: list[tuple[float, str]] = []
    spans: list[tuple[float, float]] = []
    for each in sorted((FOLDER / run).glob("*.json")):
        measured = json.loads(each.read_text())
        cases = _cases(each.with_suffix(".xml"))
        spans.append((measured["begun"], measured["ended"]))
        seconds = measured["ended"] - measured["begun"]
        parts[each.stem] = {"seconds": round(seconds, 1), "tests": len(cases), "ok": measured["ok"]}
        tests += cases
    whole = max(end for _, end in spans) - min(begun for begun, _ in spans) if spans else 0.0
    return {"seconds": round(whole, 1), "parts": parts, "slowest": sorted(tests, reverse=True)[:SLOWEST]}


def _cases(path: Path) -> list[tuple[float, str]]:
    """Return seconds and name of each test in a report of pytest; none where a part has no tests or was cut."""
    try:
        cases = ElementTree.parse(path).iter("testcase")  # noqa: S314 - written by our own pytest
    except (OSError, ElementTree.ParseError):
        return []
    return [(float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}") for case in cases]


def report(run: str) -> str:
    """Return a run's table beside the run before, and keep it for the next one."""
    kept = FOLDER / f"{run}.json"
    now = read(run)
    before = json.loads(kept.read_text()) if kept.exists() else {"seconds": None, "parts": {}}
    kept.write_text(json.dumps(now, indent=2) + "\n")
    lines = [f"{'part':<24}{'seconds':>9}{'before':>9}{'tests':>8}"]
    slower = []
    for name, measured in sorted(now["parts"].items(), key=lambda item: -item[1]["seconds"]):
        former = before["parts"].get(name, {}).get("seconds")
        failed = "" if measured["ok"] else "  FAILED"
        lines.append(_row(name, measured["seconds"], former, measured["tests"]) + failed)
        if former and measured["seconds"] > max(SLOWER * former, former + NOISE_SECONDS):
            slower.append(f"slower by more than half: {name}, {measured['seconds']:.0f} s, before {former:.0f} s")
    lines.append(_row(run, now["seconds"], before["seconds"], sum(each["tests"] for each in now["parts"].values())))
    lines += ["", "slowest tests"]
    lines += [f"{seconds:7.1f} s  {name}" for seconds, name in now["slowest"]]
    return "\n".join([*lines, *slower, f"kept for the next run: {kept}"])


def _row(name: str, seconds: float, former: float | None, tests: int) -> str:
    return f"{name:<24}{seconds:>9.0f}{'' if former is None else f'{former:.0f}':>9}{tests or '':>8}"


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Measures the parts of a test run.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("begin", "forget a former run"), ("part", "run a part"), ("report", "print the figures")):
        sub = commands.add_parser(name, help=about)
        sub.add_argument("run")
        if name == "part":
            sub.add_argument("name")
            sub.add_argument("line", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command == "part":
        return part(options.run, options.name, options.line)
    if options.command == "begin":
        begin(options.run)
    else:
        print(report(options.run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
