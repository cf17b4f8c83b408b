#!/usr/bin/env python3
"""Processes at work on a database as its applications are: a connection per operation, sqlite3's defaults.

`writers.py DATABASE COUNT PAUSE`. Each writes the id of a row to standard output once its commit was
acknowledged (by SQLite's default synchronous=FULL, so it is on the disk), and what went wrong to standard error.
Runs alone on a host with Python 3.11 and nothing else. SIGTERM ends them all, without breaking a line off.
"""

import contextlib
import os
import signal
import sqlite3
import sys
import time
import uuid


def note(descriptor: int, line: str) -> None:
    """Write a line whole; where it goes to a file, it is on the disk before it counts."""
    os.write(descriptor, f"{line}\n".encode())
    # Not on a pipe: there what has arrived at the other end counts.
    with contextlib.suppress(OSError):
        os.fsync(descriptor)


def work(path: str, pause: float) -> None:
    """Add a session and its audit row in one transaction, again and again."""
    while True:
        identity = str(uuid.uuid4())
        try:
            # mode=rw: no writer makes an empty database where there is none.
            connection = sqlite3.connect(f"file:{path}?mode=rw", timeout=30, uri=True)
            with connection:
                connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
                connection.execute(
                    "INSERT INTO audit (timestamp, task_id, action_type) VALUES (CURRENT_TIMESTAMP, ?, 'session')",
                    (identity,),
                )
            connection.close()
        except sqlite3.Error as error:
            note(2, f"{time.time():.3f} {error}")
        else:
            note(1, identity)
        time.sleep(pause)


def main() -> None:
    """Start the writers and wait for their end."""
    path, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    children: list[int] = []

    def end(*_: object) -> None:
        for each in children:
            os.kill(each, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    for _ in range(count):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work(path, pause)
        children.append(child)
    for each in children:
        os.waitpid(each, 0)


main()
