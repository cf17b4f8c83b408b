"""Commits a hundred times a second; notes each row outside the database once it was acknowledged, and every error."""

import os
import sqlite3
import time
import uuid

LEDGER = "/var/lib/ledger"


def note(name: str, line: str) -> None:
    """Add a line, in one write(2)."""
    descriptor = os.open(f"{LEDGER}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def main() -> None:
    """Write until stopped: a session each time, of about 1 kB."""
    connection = sqlite3.connect("/var/lib/abathur/abathur.db", timeout=30, isolation_level=None)
    while True:
        begun = time.monotonic()
        identity = f"{uuid.uuid4()}-{'x' * 900}"
        try:
            connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
            note("acknowledged", identity[:36])
        except sqlite3.Error as error:
            note("errors", str(error))
        time.sleep(max(0.0, 0.01 - (time.monotonic() - begun)))


main()
