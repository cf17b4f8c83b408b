"""A hundred commits a second: a session each, noted with its time in a ledger once it was acknowledged."""

import os
import sqlite3
import time
import uuid

ledger = os.open("/var/lib/ledger/acknowledged", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
connection = sqlite3.connect("file:/var/lib/abathur/abathur.db?mode=rw", uri=True, timeout=30)
while True:
    identity = str(uuid.uuid4())
    with connection:
        connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'app', 'u')", (identity,))
    os.write(ledger, f"{time.time()} {identity}\n".encode())
    time.sleep(0.009)
