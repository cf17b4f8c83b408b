#!/usr/bin/env python3
"""Processes at work on a database as its applications are; each adds a session again and again.

Once a commit was acknowledged (by SQLite's default synchronous=FULL, so it is on the disk) a line `time identity
milliseconds` is written, in one write(2), to LEDGER/acknowledged or standard output; what went wrong, a line `time
error`, to LEDGER/errors or standard error. Runs alone on a host with Python 3.11 and nothing else. SIGTERM ends all.
"""

import argparse
import json
import os
import signal
import sqlite3
import sys
import time
import uuid
from contextlib import closing, nullcontext, suppress

LARGE = json.dumps("x" * 900)
STREAMS = {"acknowledged": 1, "errors": 2}


def note(ledger: str | None, name: str, line: str) -> None:
    """Add a line to a file of the ledger, or to a standard stream."""
    text = f"{line}\n".encode()
    if ledger is None:
        os.write(STREAMS[name], text)
        # Where it is a file, it is on the disk before it counts; what has gone through a pipe counts at its other end.
        with suppress(OSError):
            os.fsync(STREAMS[name])
        return
    # Not flushed: that takes as long as a commit, and a host's files outlive it.
    descriptor = os.open(f"{ledger}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, text)
    os.close(descriptor)


def opened(path: str) -> sqlite3.Connection:
    """Open the database. With mode=rw: no writer makes an empty one where there is none."""
    return sqlite3.connect(f"file:{path}?mode=rw", timeout=30, uri=True)


def add(connection: sqlite3.Connection, identity: str) -> None:
    """Add a session and its audit row in one transaction."""
    with connection:
        connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
        connection.execute(
            "INSERT INTO audit (timestamp, task_id, action_type) VALUES (CURRENT_TIMESTAMP, ?, 'session')", (identity,)
        )


def add_large(connection: sqlite3.Connection, identity: str) -> None:
    """Add a session of about 1 kB, and nothing else."""
    with connection:
        connection.execute(
            "INSERT INTO sessions (id, app_name, user_id, state) VALUES (?, 'app', 'u', ?)", (identity, LARGE)
        )


def work(path: str, pause: float, ledger: str | None, *, held: bool) -> None:
    """Add sessions for ever."""
    kept = opened(path) if held else None
    while True:
        identity = str(uuid.uuid4())
        begun = time.monotonic()
        try:
            with nullcontext(kept) if kept else closing(opened(path)) as connection:
                (add_large if held else add)(connection, identity)
        except sqlite3.Error as error:
            note(ledger, "errors", f"{time.time():.6f} {error}")
        else:
            took = (time.monotonic() - begun) * 1000
            note(ledger, "acknowledged", f"{time.time():.6f} {identity} {took:.3f}")
        time.sleep(pause)


def main() -> int:
    """Start the writers and wait for their end; return 1 when one met what it does not expect."""
    parser = argparse.ArgumentParser(description="Let processes write to a database.")
    parser.add_argument("database")
    parser.add_argument("count", type=int, help="processes")
    parser.add_argument("pause", type=float, help="seconds of rest after each commit")
    parser.add_argument("--ledger", help="directory of the files acknowledged and errors")
    parser.add_argument(
        "--held", action="store_true", help="one connection each, held open, and sessions of 1 kB without an audit row"
    )
    given = parser.parse_args()
    children: list[int] = []

    def end(*_: object) -> None:
        for each in children:
            # One may have ended by itself.
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)

    # Whoever ends this before it can end its children would leave them at work: it waits until then.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for _ in range(given.count):
        child = os.fork()
        if child == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            try:
                work(given.database, given.pause, given.ledger, held=given.held)
            except BaseException as error:  # noqa: BLE001 - a writer that is silent afterwards would look like a quiet one
                note(given.ledger, "errors", f"{time.time():.6f} {error!r}")
                os._exit(1)
        children.append(child)
    # Not before, or the children would have it too.
    signal.signal(signal.SIGTERM, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children]
    return int(any(code > 0 for code in codes))


sys.exit(main())
