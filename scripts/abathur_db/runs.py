"""What a host remembers of its runs: the last result and the last success of each command, and the lock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import database, guarded
from abathur_db.result import Exit, Failure


def now() -> str:
    """Return the present moment as ISO text in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def partial_of(path: Path) -> Path:
    """Return where a file is written before it takes its name."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part of it.

    `durable`: it is on the disk when this returns, a power cut notwithstanding.
    """
    partial = partial_of(path)
    guarded.write_new(partial, text)
    if durable:
        database.sync(partial)
    os.replace(partial, path)
    if durable:
        database.sync(path.parent)


def record(state_directory: Path, run: dict[str, Any]) -> None:
    """Keep a run as the last result of its command; a good one as success, and as unit when systemd ran it."""
    text = json.dumps(run, indent=2) + "\n"
    kinds = ["last"]
    if run["ok"]:
        kinds += ["success", "unit"] if run["invocation"] else ["success"]
    for kind in kinds:
        directory = state_directory / kind
        guarded.directory(directory)
        write_whole(directory / f"{run['command']}.json", text)


RECORD: dict[str, Any] = {"ok": False, "summary": "", "hint": "", "finished": "", "invocation": "", "data": {}}
"""What is read of a record by whoever reads one, and what stands for it where it is absent."""


def recorded(state_directory: Path, kind: str, command: str) -> dict[str, Any] | None:
    """Return the record of a command, None when there is none to be read; `kind`: last, success, unit."""
    try:
        found = json.loads(guarded.read_text(state_directory / kind / f"{command}.json"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or "ok" not in found:
        return None
    whole: dict[str, Any] = {**RECORD, **found}
    return whole if all(isinstance(whole[name], type(value)) for name, value in RECORD.items()) else None


@contextmanager
def locked(state_directory: Path, command: str, wait_seconds: float) -> Iterator[None]:
    """Hold the one lock that all commands which change something share.

    The kernel frees it when the holder dies, so it never has to be cleared by hand.
    Raises Failure (BUSY), naming the holder, after `wait_seconds`; Failure when there can be no lock.
    """
    deadline = time.monotonic() + wait_seconds
    with _lock_file(state_directory) as descriptor:
        while holder := _take(descriptor, command):
            if time.monotonic() >= deadline:
                raise Failure(
                    f"{command} waited {wait_seconds:g} s for {holder}; nothing was changed",
                    "let it finish and run this again; watch it: journalctl -f -u 'abathur-db@*'",
                    Exit.BUSY,
                )
            time.sleep(0.1)
        yield


@contextmanager
def beside(state_directory: Path, command: str) -> Iterator[str]:
    """Work beside whoever has the lock: yields the holder (command, pid, since), empty when there is none.

    Without a holder the lock is held meanwhile, so that nobody begins who wants the database alone.
    """
    with _lock_file(state_directory) as descriptor:
        yield _take(descriptor, command)


@contextmanager
def _lock_file(state_directory: Path) -> Iterator[int]:
    guarded.directory(state_directory)
    try:
        descriptor = guarded.opened(state_directory / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise Failure(
            f"{state_directory / 'lock'} cannot be opened: {error.strerror}; nothing was changed",
            f"look at it: ls -la {state_directory}",
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, command: str) -> str:
    """Take the lock and return nothing, or return who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another run"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{command} (pid {os.getpid()}, since {now()})".encode(), 0)
    return ""
