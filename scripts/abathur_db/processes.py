"""Who has a database's files open and which of SQLite's locks they hold, read from /proc and from the -shm.

Nothing of the database is opened by SQLite here, so looking disturbs nobody. Root sees every process,
an owner his own. Numbers of bytes: sqlite.org/walformat.html, section 2.3, and sqlite.org/lockingv3.html.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from abathur_db import database, foreign, host

WAL_WRITER = 120
"""Byte of the -shm that a writer locks."""
WAL_READERS = range(123, 128)
"""Bytes of the -shm that readers lock: byte 123 + i belongs to read mark i."""
ROLLBACK_WRITER = range(0x40000000, 0x40000000 + 2)
"""PENDING and RESERVED byte of the database file, in rollback-journal mode."""


@dataclass(frozen=True)
class Lock:
    """A lock that a process holds on a range of bytes of a file."""

    pid: int
    path: Path
    exclusive: bool
    first: int


@dataclass(frozen=True)
class WalIndex:
    """What the -shm says: frames in the log, frames already in the database, the snapshot of each read mark."""

    frames: int
    written_back: int
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """A process that reads, and the frame of the log that its snapshot ends at."""

    pid: int
    frame: int


def locks(path: Path) -> list[Lock]:
    """Return the locks that other processes hold on a database's file and on its -shm."""
    wanted = {host.identity(each): each for each in (path, database.sidecars(path)[1])}
    wanted.pop(None, None)
    found = []
    for pid, descriptor in host.descriptors():
        if (known := host.identity(descriptor)) in wanted:
            found += _held(pid, descriptor.parents[1] / "fdinfo" / descriptor.name, wanted[known])
    return sorted(set(found), key=lambda each: (each.pid, each.first))


def _held(pid: int, information: Path, path: Path) -> list[Lock]:
    """Read lines such as `lock: 1: POSIX ADVISORY WRITE 77 fd:01:9 120 120` (proc(5), fdinfo)."""
    try:
        text = foreign.words(information.read_bytes())
    except OSError:
        return []
    lines = re.findall(r"^lock:\s+\S+ POSIX\s+\S+\s+(READ|WRITE)\s+\S+\s+\S+\s+(\d+)\s+\S+", text, re.MULTILINE)
    return [Lock(pid, path, kind == "WRITE", int(first)) for kind, first in lines]


def writers(path: Path) -> list[int]:
    """Return the processes that hold the write lock of a database, in either journal mode."""
    held = {
        each.pid
        for each in locks(path)
        if each.exclusive and (each.first == WAL_WRITER if each.path != path else each.first in ROLLBACK_WRITER)
    }
    return sorted(held)


def wal_index(path: Path) -> WalIndex | None:
    """Return what the -shm beside a database says, None when there is none in use."""
    head = database.beginning(database.sidecars(path)[1], 120)
    # WalIndexHdr.isInit is byte 12; all numbers are in the byte order of the machine.
    if len(head) < 120 or not head[12]:
        return None
    frames, written_back, *marks = struct.unpack_from("=I", head, 16) + struct.unpack_from("=6I", head, 96)
    return WalIndex(frames, written_back, tuple(marks))


def readers(path: Path, index: WalIndex) -> list[Reader]:
    """Return the processes inside a read transaction, the oldest snapshot first."""
    found = {
        Reader(each.pid, index.marks[each.first - WAL_READERS[0]])
        for each in locks(path)
        # The -shm may have come after it was read: an application that opens it for each operation makes it anew.
        if each.path != path and not each.exclusive and each.first in WAL_READERS[: len(index.marks)]
    }
    return sorted(found, key=lambda each: (each.frame, each.pid))


@dataclass(frozen=True)
class Deleted:
    """A process that has a deleted database open: which one, and the links in /proc to it and to its log or journal."""

    pid: int
    identity: tuple[int, int]
    links: dict[str, Path]
    """By suffix: "" is the database, and -wal or -journal what belongs to it, deleted or not."""


def deleted(path: Path) -> list[Deleted]:
    """Return the processes that have a deleted file of this name open: what they write is lost when they end."""
    home = os.path.realpath(path.parent)
    found: dict[int, dict[str, Path]] = {}
    gone: dict[int, tuple[int, int]] = {}
    for pid, descriptor in host.descriptors():
        with suppress(OSError):
            target = os.readlink(descriptor)
            name = target.removesuffix(" (deleted)")
            suffix = name.removeprefix(f"{home}/{path.name}")
            if suffix == name or suffix not in ("", "-wal", "-journal"):
                continue
            # A file may be called that.
            is_deleted = target != name and host.identity(descriptor) != host.identity(Path(target))
            found.setdefault(pid, {}).setdefault(suffix, descriptor)
            if is_deleted and not suffix and (identity := host.identity(descriptor)):
                gone[pid] = identity
                found[pid][suffix] = descriptor
    return [Deleted(pid, gone[pid], found[pid]) for pid in sorted(gone)]


def renamed(path: Path) -> Path | None:
    """Return where a database went that was renamed while somebody has it open; None where that is not seen.

    Who has its log open under the former name has the database open under its new one.
    """
    home = os.path.realpath(path.parent)
    logs = {f"{home}/{path.name}-wal", f"{home}/{path.name}-shm"}
    held: dict[int, set[str]] = {}
    for pid, descriptor in host.descriptors():
        with suppress(OSError):
            held.setdefault(pid, set()).add(os.readlink(descriptor))
    others = {each for links in held.values() if links & logs for each in links - logs}
    there = (Path(each) for each in sorted(others) if each.startswith("/"))
    return next((each for each in there if each != path and database.beginning(each, 16) == database.MAGIC), None)


def unit_of(pid: int, units: list[str]) -> str | None:
    """Return the one of some units that a process belongs to."""
    try:
        groups = foreign.words(Path(f"/proc/{pid}/cgroup").read_bytes())
    except OSError:
        groups = ""
    return next((each for each in units if re.search(rf"/{re.escape(each)}$", groups, re.MULTILINE)), None)


def repair(pid: int, units: list[str]) -> str:
    """Return the command that ends a process's hold: of its unit, where that is an application's, else of itself."""
    unit = unit_of(pid, units)
    return f"systemctl restart {unit}" if unit else f"kill {pid}"
