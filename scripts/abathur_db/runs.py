"""What a host remembers of its runs: the last result, the last success and a history of each command, and the lock."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import foreign, guarded, progress
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, shell

HISTORY = 400
"""Runs of each command that are remembered at least: more than a year of a daily job."""

HISTORY_BYTES = 4 << 20
"""Bytes that a history may have: twice HISTORY lines, each of a summary that is written in \\u escapes."""

SUMMARY_LENGTH = 300
"""Characters of a summary that the history keeps; the whole one stands in the last result."""


def now() -> str:
    """Return the present moment as ISO text in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_whole(
    path: Path, text: str, *, durable: bool = False, mode: int | None = None, limit: int | None = guarded.LIMIT
) -> None:
    """Write a small file so that a reader sees the old or the new text, never a part of it.

    `durable`: it is on the disk when this returns, a power cut notwithstanding. `mode`: it has when it gets its
    name; that of the umask, with nothing for others, for None. `limit`: bytes that its readers take, None for any.
    Raises Failure for a text that no reader would take, and as guarded.write_new does.
    """
    if limit is not None and len(text.encode()) > limit:
        raise Failure(
            f"{path} was not written: it would have {len(text.encode())} bytes, and its readers take {limit}",
            f"see what it holds now: {shell('ls', '-l', path)}",
        )
    partial = path.with_name(f".{path.name}.partial")
    guarded.write_new(partial, text)
    if mode is not None:
        partial.chmod(mode)
    if durable:
        guarded.sync(partial)
    os.replace(partial, path)
    if durable:
        guarded.sync(path.parent)


def record(state_directory: Path, run: dict[str, Any]) -> None:
    """Keep a run as the last result of its command; a good one as success, and as unit when systemd ran it."""
    text = _fitting(run)
    kinds = ["last"]
    if run["ok"]:
        kinds += ["success", "unit"] if run["invocation"] else ["success"]
    for kind in kinds:
        directory = state_directory / kind
        guarded.directory(directory)
        write_whole(directory / f"{run['command']}.json", text)
    remember(state_directory, run)
    # Whatever was noted of one before, by a clock that may have been wrong.
    (state_directory / FAILED / f"{run['command']}.json").unlink(missing_ok=True)


def _fitting(run: dict[str, Any]) -> str:
    """Return a run as JSON that its readers take: of one that is too long what they ask for stays."""
    text = json.dumps(run, indent=2) + "\n"
    if len(text) <= guarded.LIMIT:
        return text
    short = {name: run[name][:SUMMARY_LENGTH] for name in ("summary", "hint")}
    return json.dumps({**run, **short, "checks": [], "report": [], "data": _numbers(run)}, indent=2) + "\n"


def _numbers(run: dict[str, Any]) -> dict[str, float]:
    """Return the numbers in a run's data: what a drill measured, how much a backup holds."""
    return {key: each for key, each in run.get("data", {}).items() if foreign.is_number(each)}


def remember(state_directory: Path, run: dict[str, Any]) -> None:
    """Append a run to the history of its command: one line, written whole; the oldest go when there are too many."""
    directory = state_directory / "history"
    guarded.directory(directory)
    path = directory / f"{run['command']}.jsonl"
    kept = {key: run.get(key) for key in ("finished", "ok", "seconds", "exit_code", "invocation")}
    line = json.dumps({**kept, "summary": str(run["summary"])[:SUMMARY_LENGTH], "data": _numbers(run)})
    with _alone(directory):
        there = _lines(path)
        # A power cut may have left half a line: it ends here, and a reader passes it over.
        torn = "\n" if there and there[-1] else ""
        descriptor = guarded.opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            os.write(descriptor, f"{torn}{line}\n".encode())
        finally:
            os.close(descriptor)
        kept_lines = [*filter(None, there), line]
        # Not at every run: trimming writes the whole file anew.
        if len(kept_lines) >= 2 * HISTORY:
            write_whole(path, "".join(f"{each}\n" for each in kept_lines[-HISTORY:]), limit=None)


def _lines(path: Path) -> list[str]:
    """Return the lines of a history; the last one is empty where the one before has its end."""
    try:
        return foreign.words(guarded.read_bytes(path, HISTORY_BYTES)).split("\n")
    except FileNotFoundError:
        return []


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; two runs of one command may end at one moment.

    A file of its own that nobody else can open: whoever may read a directory could lock it for ever.
    """
    descriptor = guarded.opened(directory / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def history(state_directory: Path, command: str) -> list[dict[str, Any]]:
    """Return the runs of a command that are remembered, the oldest first; what cannot be read is left out."""
    found = []
    for line in _lines(state_directory / "history" / f"{command}.jsonl"):
        with suppress(ValueError):
            found.append(_run(line))
    return found


RECORD: dict[str, Any] = {"ok": False, "summary": "", "hint": "", "finished": "", "invocation": "", "data": {}}
"""What is read of a record by whoever reads one, and what stands for it where it is absent."""


FAILED = "failed"
"""The kind of record that the alert of a job leaves."""


def recorded(state_directory: Path, kind: str, command: str) -> dict[str, Any] | None:
    """Return the record of a command, None when there is none to be read; `kind`: last, success, unit, failed."""
    try:
        return _run(guarded.read_text(state_directory / kind / f"{command}.json"))
    except (FileNotFoundError, ValueError):
        return None


def _run(text: str) -> dict[str, Any]:
    """Return what was noted of a run. Raises ValueError for what this tool has not written."""
    found = foreign.record(text)
    whole = {**RECORD, **found}
    if "ok" not in found or not all(isinstance(whole[name], type(value)) for name, value in RECORD.items()):
        raise ValueError("it is no run")
    if not (whole.get("seconds") is None or foreign.is_number(whole["seconds"])):
        raise ValueError("it did not take a number of seconds")
    foreign.moment(whole["finished"])
    return whole


def measured(config: Config, command: str, name: str) -> float | None:
    """Return a number that the last good run of a command found, by its name in the run's data; None without one."""
    success = known(config, "success", command)
    number = success["data"].get(name) if success else None
    return number if foreign.is_number(number) else None


def known(config: Config, kind: str, command: str) -> dict[str, Any] | None:
    """Return the record of a command as `recorded` does, from wherever its runs are recorded."""
    return recorded(config.records(command), kind, command)


def last(config: Config, command: str) -> dict[str, Any] | None:
    """Return the last run of a command: its record, or what was noted of a later one that could leave no record."""
    found = known(config, "last", command)
    noted = known(config, FAILED, command)
    # Of another job than a backup the application's user can write one; it can hide nothing with it.
    if noted is None or noted["ok"]:
        return found
    if found and (found["invocation"] == noted["invocation"] or later(found, noted["finished"])):
        return found
    return noted


def later(run: dict[str, Any], moment: str) -> bool:
    """Tell whether a run ended after a moment (ISO, UTC); one from the future says that a clock was wrong, no more."""
    return bool(moment < run["finished"] <= now())


def note_failure(config: Config, run: dict[str, Any]) -> None:
    """Note a failed run from outside of it: one that was killed, or had no room, leaves no record of its own."""
    directory = config.records(run["command"]) / FAILED
    guarded.directory(directory)
    write_whole(directory / f"{run['command']}.json", _fitting({**RECORD, **run}))


@contextmanager
def locked(state_directory: Path, command: str, wait_seconds: float) -> Iterator[None]:
    """Hold the one lock that all commands which change something share.

    The kernel frees it when the holder dies, so it never has to be cleared by hand.
    Who waits at a terminal is told for whom; a journal stays quiet.
    Raises Failure (BUSY), naming the holder, after `wait_seconds`; OSError when there can be no lock.
    """
    told = False
    deadline = time.monotonic() + wait_seconds
    with _lock_file(state_directory) as descriptor:
        while holder := _take(descriptor, command):
            if time.monotonic() >= deadline:
                raise Failure(
                    f"{command} waited {wait_seconds:g} s for {holder}; nothing was changed",
                    "let it finish and run this again; watch it: journalctl -f -u 'abathur-db@*'",
                    Exit.BUSY,
                )
            if not told:
                progress.note(f"{command} waits for {holder}, at most {wait_seconds:g} s")
                told = True
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
    descriptor = guarded.opened(state_directory / "lock", os.O_RDWR | os.O_CREAT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, command: str) -> str:
    """Take the lock and return nothing, or return who has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return foreign.words(os.pread(descriptor, 200, 0)) or "another run"
    except OSError as error:
        # A call on a descriptor names no file.
        raise OSError(error.errno, error.strerror, os.readlink(f"/proc/self/fd/{descriptor}")) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{command} (pid {os.getpid()}, since {now()})".encode(), 0)
    return ""
