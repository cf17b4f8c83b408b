"""When to strike: at a moment of a command's duration, or at one of its calls that change names on the disk."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from faults.world import World, end_group

CALLS = "/^(rename|link|unlink|mkdir|rmdir|symlink|chmod|fchmod|ftruncate|fallocate|fsync|fdatasync)(at)?2?$"
"""System calls, as strace's regular expression, between which a state of the disk differs from the one before."""

SEED = os.environ.get("SEED") or str(int(time.time()))
"""Repeats a run: every moment is drawn from it and from the case's name."""


def number(name: str, default: int) -> int:
    """Return a number of the environment: how many kills, cuts, seconds."""
    return int(os.environ.get(name) or default)


def chance(*case: object) -> random.Random:
    """Return the random numbers of one case, the same for the same SEED."""
    return random.Random(f"{SEED} {case}")


@dataclass(frozen=True)
class Course:
    """A command's way when nobody disturbs it: its seconds, and its calls, each with which one of its name it is."""

    seconds: float
    calls: list[tuple[str, int]]


def course(world: World, spare: World, command: list[str]) -> Course:
    """Run a command to its end on two worlds that are alike, and measure it."""
    begun = time.monotonic()
    _end_well(world.start(command))
    seconds = time.monotonic() - begun
    record = spare.root / "strace"
    _end_well(spare.start(["strace", "-f", "-o", str(record), "-e", f"trace={CALLS}", *command]))
    # `when` counts each call by its name, and each thread's for itself.
    seen: Counter[tuple[str, str]] = Counter()
    calls = []
    for thread, name in re.findall(r"^(\d+) +(\w+)\(", record.read_text(), re.MULTILINE):
        seen[thread, name] += 1
        calls.append((name, seen[thread, name]))
    return Course(seconds, calls)


def _end_well(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors


def strike(world: World, command: list[str], way: Course, draw: random.Random) -> bool:
    """Start a command and kill it, drawing where, and say so; return whether it had not ended before."""
    if way.calls and draw.random() < 0.5:
        number_of_call = draw.randrange(len(way.calls))
        name, which = way.calls[number_of_call]
        inject = f"inject={name}:signal=KILL:when={which}"
        process = world.start(["strace", "-f", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject, *command])
        where = f"at call {number_of_call + 1} of {len(way.calls)}, {name} {which}"
        process.wait()
    else:
        moment = draw.uniform(0, way.seconds)
        where = f"after {moment:.3f} of {way.seconds:.3f} s"
        process = world.start(command)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
    code = process.poll()
    end_group(process)
    struck = code is None or code < 0
    print(f"SEED={SEED}: {'killed' if struck else f'ended with {code}'} {where}")
    return struck


def lock_is_free(path: Path) -> bool:
    """Tell whether nobody holds the tool's lock."""
    return subprocess.run(["flock", "--nonblock", path, "true"], check=False).returncode == 0
