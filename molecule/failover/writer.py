"""A hundred commits a second, or with the argument 0 as many as can be: a session each.

Each is noted in a ledger once it was acknowledged: when, its identity, and how many ms that took.
"""

import os
import sqlite3
import sys
import time
import uuid

pause = float(sys.argv[1]) if sys.argv[1:] else 0.009
ledger = os.open("/var/lib/ledger/acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
connection = sqlite3.connect("file:/var/lib/abathur/abathur.db?mode=rw", uri=True, timeout=30)
while True:
    identity = str(uuid.uuid4())
    begun = time.monotonic()
    with connection:
        connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
    os.write(ledger, f"{time.time()} {identity} {(time.monotonic() - begun) * 1000:.3f}\n".encode())
    time.sleep(pause)
