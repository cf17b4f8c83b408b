"""Records the writes, flushes and changes of names of a command, and finds those that a power cut may undo or reorder.

The rules (rename(2), fsync(2), and the order that "All File Systems Are Not Created Equal", OSDI 2014, found lacking
in programs): contents are on the disk before they get a name, and a name is before the next step is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from faults.world import World

WRITES = ("write", "pwrite64", "writev", "pwritev", "ftruncate", "fallocate", "sendfile", "copy_file_range", "ioctl")
FLUSHES = ("fsync", "fdatasync")
NAMES = ("rename", "link", "unlink", "mkdir", "rmdir", "symlink", "openat")
CALLS = f"/^({'|'.join((*WRITES, *FLUSHES, *NAMES))})(at)?2?$"
"""System calls, as strace's regular expression."""

SQLITE = re.compile(r"-(wal|shm|journal)$")
"""What SQLite makes, flushes and deletes by its own rules (sqlite.org/atomiccommit.html)."""

NONE = r"$^"

ADDING, ENDING = {"mkdir", "link", "symlink"}, {"unlink", "rmdir"}
"""Changes that may come to the disk together: each by itself takes nothing away, or gives nothing a new meaning."""


@dataclass
class Order:
    """What is not on the disk yet, call by call, below the directory `root`; `faults` holds each breach of a rule.

    `unordered`: names of which none has to be there before another one. `lazy`: names that may still be there after
    a power cut: the next run deletes them. Both as regular expressions.
    """

    root: Path
    unordered: str = NONE
    lazy: str = NONE
    written: set[str] = field(default_factory=set)
    """Files with contents that are not flushed."""
    entered: dict[str, list[str]] = field(default_factory=dict)
    """Directories with entries that are not flushed, each with them, names that are not final as well."""
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Changes of final names that are not flushed: kind and name."""
    faults: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    """Each step, for whoever wants to see that there were any."""

    def _here(self, path: str) -> bool:
        return Path(path).is_relative_to(self.root)

    def _final(self, path: str) -> bool:
        """Tell whether a name is one that a reader looks for: it and its folders say not that they are unfinished."""
        parts = Path(path).relative_to(self.root).parts
        return not any(each.startswith(".") or each.endswith(".partial") for each in parts)

    def call(self, name: str, paths: list[str]) -> None:
        """Take one call that succeeded, with the paths it names."""
        name = re.sub(r"(at)?2?$", "", name) if name != "openat" else name
        # Of these two the first one is written.
        path = paths[0 if name in ("sendfile", "ioctl") else -1] if paths else ""
        if not self._here(path) or SQLITE.search(path):
            return
        if name in FLUSHES:
            self._flushed(path)
        elif name in WRITES:
            self.written.add(path)
        elif name == "openat":
            self._enter(path)
        else:
            self._change(name, paths)

    def _flushed(self, path: str) -> None:
        self.written.discard(path)
        for each in self.entered.pop(path, []):
            self.steps = [step for step in self.steps if step[1] != each]

    def _enter(self, path: str) -> None:
        self.entered.setdefault(os.path.dirname(path), []).append(path)

    def _change(self, kind: str, paths: list[str]) -> None:
        path = paths[-1]
        if self._final(path):
            self.done.append(f"{kind} {path}")
            if kind in ("rename", "link"):
                self._contents(paths[0], path)
            self._earlier(kind, path)
            self.steps.append((kind, path))
        if kind == "rename" and self._final(paths[0]) and self._here(paths[0]):
            self.steps.append((kind, paths[0]))
            self._enter(paths[0])
        self._enter(path)
        if kind in ENDING:
            self.written.discard(path)
        if kind == "rmdir":
            # What was in a directory is gone with it.
            self.steps = [step for step in self.steps if not step[1].startswith(f"{path}/")]

    def _contents(self, source: str, target: str) -> None:
        below = f"{source}/"
        late = [each for each in (*self.written, *self.entered) if each == source or each.startswith(below)]
        self.faults += [f"{target} gets its name before {each} is on the disk" for each in late]

    def _earlier(self, kind: str, path: str) -> None:
        for each in sorted(self.written):
            if self._final(each) and not all(re.search(self.unordered, name) for name in (each, path)):
                self.faults.append(f"{kind} of {path} comes before {each} is on the disk")
        for before, name in self.steps:
            together = {before, kind} <= ADDING or {before, kind} <= ENDING
            if not together and not all(re.search(self.unordered, each) for each in (name, path)):
                self.faults.append(f"{kind} of {path} comes before {before} of {name} is on the disk")

    def end(self) -> None:
        """Take the end of the command: what it did has to be on the disk."""
        for kind, name in self.steps:
            if kind not in ENDING or not re.search(self.lazy, name):
                self.faults.append(f"{kind} of {name} is not on the disk at the end")
        self.faults += [f"{each} is not on the disk at the end" for each in sorted(self.written) if self._final(each)]


def recorded(
    world: World, command: list[str], *, unordered: str = NONE, lazy: str = NONE, before: Iterable[Path] = ()
) -> Order:
    """Run a command under strace; return in which order what is below the world's directory went to the disk.

    `before`: files that somebody else has written, and not flushed.
    """
    record = world.root / ".strace"
    there = {str(each) for each in world.root.rglob("*")}
    process = world.start(["strace", "-f", "-y", "-s", "0", "-o", str(record), "-e", f"trace={CALLS}", *command])
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    order = Order(world.root, unordered, lazy, {str(each) for each in before})
    begun: dict[str, str] = {}
    for line in record.read_text().splitlines():
        thread, _, text = line.partition(" ")
        if text.endswith("<unfinished ...>"):
            begun[thread] = text.removesuffix("<unfinished ...>").strip()
            continue
        if resumed := re.match(r"\s*<\.\.\. \w+ resumed>(.*)", text):
            text = begun.pop(thread) + resumed[1]
        found = re.match(r"\s*(\w+)\((.*)\)\s+= (\d+)", text)
        if not found or (found[1] == "ioctl" and "CLONE" not in found[2]):
            continue
        paths = _paths(found[2])
        if found[1] == "openat":
            new = "O_CREAT" in found[2] and paths[-1] not in there
            there.add(paths[-1])
            if not new:
                continue
        order.call(found[1], paths)
    order.end()
    return order


def _paths(arguments: str) -> list[str]:
    """Return the paths among a call's arguments: of a descriptor its own, of a name that of its directory before it."""
    found: list[str] = []
    folder = ""
    for descriptor, name in re.findall(r'(?:\w+)<([^>]*)>|"((?:[^"\\]|\\.)*)"', arguments):
        if name:
            if folder:
                found.pop()
            found.append(os.path.join(folder, name))
            folder = ""
        elif descriptor:
            folder = descriptor
            found.append(descriptor)
    return found
