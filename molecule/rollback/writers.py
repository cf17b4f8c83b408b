"""Fifty processes at work on the database as its applications are: a connection per operation, defaults.

Each commit is written to a ledger outside the database once it was acknowledged; an error to another one.
"""

import os
import signal
import sqlite3
import time
import uuid

DATABASE = "/var/lib/abathur/abathur.db"
LEDGER = "/var/lib/ledger"
WRITERS = 50


def note(name: str, line: str) -> None:
    """Add a line, in one write(2), to a ledger that all share."""
    descriptor = os.open(f"{LEDGER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def work() -> None:
    """Add a session and its audit row in one transaction, again and again."""
    while True:
        identity = str(uuid.uuid4())
        try:
            connection = sqlite3.connect(DATABASE, timeout=30)
            with connection:
                connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
                connection.execute(
                    "INSERT INTO audit (timestamp, task_id, action_type) VALUES (CURRENT_TIMESTAMP, ?, 'session')",
                    (identity,),
                )
            connection.close()
            note("acknowledged", identity)
        except sqlite3.Error as error:
            note("errors", f"{time.time()} {error}")
        time.sleep(0.5)


def main() -> None:
    """Start the writers; end after the last of them, so that systemd sees the service end whole."""
    children = []
    for _ in range(WRITERS):
        child = os.fork()
        if child == 0:
            work()
        children.append(child)

    def end(*_: object) -> None:
        for each in children:
            os.kill(each, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    for each in children:
        os.waitpid(each, 0)


main()
