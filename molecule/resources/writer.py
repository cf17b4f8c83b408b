"""A hundred commits a second, or with the argument 0 as many as can be: a session of about 1 kB each.

Each is noted in a ledger once it was acknowledged: when, its identity, and how many ms that took. So is every error.
"""

import json
import os
import sqlite3
import sys
import time
import uuid


def ledger(name: str) -> int:
    """Open a file to add lines to, in one write(2) each."""
    return os.open(f"/var/lib/ledger/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


pause = float(sys.argv[1]) if sys.argv[1:] else 0.009
acknowledged = ledger("acknowledged")
connection = sqlite3.connect("file:/var/lib/abathur/abathur.db?mode=rw", uri=True, timeout=30)
state = json.dumps("x" * 900)
while True:
    identity = str(uuid.uuid4())
    begun = time.monotonic()
    try:
        with connection:
            connection.execute(
                "INSERT INTO sessions (id, app_name, user_id, state) VALUES (?, 'app', 'u', ?)", (identity, state)
            )
        os.write(acknowledged, f"{time.time()} {identity} {(time.monotonic() - begun) * 1000:.3f}\n".encode())
    except sqlite3.Error as error:
        os.write(ledger("errors"), f"{error}\n".encode())
    time.sleep(pause)
