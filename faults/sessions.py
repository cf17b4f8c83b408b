#!/usr/bin/env python3
"""Sessions of mixed reads and writes on a database, as its applications do it: a connection per operation, defaults.

`sessions.py DATABASE COUNT PAUSE`. Prints the process ids of the sessions in one line, then, at SIGTERM, a line of each
with the number of its operations and the seconds of its longest one; what went wrong goes to standard error. Three of
ten operations write.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import time
import uuid

NOW = "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now')"
READS = (
    ("SELECT * FROM sessions WHERE id = ?", lambda mine: (mine,)),
    (
        "SELECT * FROM memory_entries WHERE namespace = 'user:1' AND key = ? AND is_deleted = 0"
        " ORDER BY version DESC LIMIT 1",
        lambda _: (f"key{random.randint(1, 10000)}",),
    ),
    ("SELECT * FROM memory_entries WHERE namespace GLOB 'load:*' AND is_deleted = 0 LIMIT 50", lambda _: ()),
    ("SELECT * FROM sessions WHERE status = 'active' ORDER BY last_update_time DESC LIMIT 20", lambda _: ()),
    ("SELECT * FROM tasks WHERE status = 'pending' ORDER BY priority DESC, submitted_at LIMIT 1", lambda _: ()),
    ("SELECT * FROM audit WHERE task_id = ? ORDER BY timestamp DESC LIMIT 20", lambda mine: (mine,)),
    ("SELECT * FROM metrics WHERE metric_name = 'wal_bytes' ORDER BY timestamp DESC LIMIT 20", lambda _: ()),
)


def write(connection: sqlite3.Connection, mine: str) -> None:
    """Do one of the usual changes, each in one transaction."""
    kind = random.randrange(4)
    if kind == 0:
        connection.execute(
            "UPDATE sessions SET status = 'active', events = json_insert(events, '$[#]', 'message'),"
            f" last_update_time = {NOW} WHERE id = ?",
            (mine,),
        )
    elif kind == 1:
        connection.execute(
            "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES (?, ?, ?, 'episodic')",
            (f"load:{mine}", str(uuid.uuid4()), json.dumps("x" * random.randint(10, 4000))),
        )
    elif kind == 2:
        connection.execute(
            "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at, session_id)"
            f" VALUES (?, 'p', 'pending', '{{}}', {NOW}, {NOW}, ?)",
            (str(uuid.uuid4()), mine),
        )
    else:
        connection.execute("DELETE FROM memory_entries WHERE namespace = ?", (f"load:{mine}",))
    connection.execute(
        f"INSERT INTO audit (timestamp, task_id, action_type) VALUES ({NOW}, ?, 'load')",
        (mine,),
    )


def work(path: str, pause: float) -> None:
    """Do one operation after the other until told to end; print how many, and how long the longest took."""
    ending: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
    random.seed()
    mine, done, longest = str(uuid.uuid4()), 0, 0.0
    while not ending:
        begun = time.monotonic()
        try:
            connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True)
            try:
                with connection:
                    if done == 0:
                        connection.execute("INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'l', 'u')", (mine,))
                    elif random.random() < 0.3:
                        write(connection, mine)
                    else:
                        sql, values = random.choice(READS)
                        connection.execute(sql, values(mine)).fetchall()
            finally:
                connection.close()
            done += 1
            longest = max(longest, time.monotonic() - begun)
        except sqlite3.Error as error:
            os.write(2, f"{time.time():.3f} after {time.monotonic() - begun:.3f} s: {error}\n".encode())
        time.sleep(pause * random.uniform(0.5, 1.5))
    os.write(1, f"{done} {longest:.3f}\n".encode())
    os._exit(0)


def main() -> None:
    """Start the sessions and wait for their end."""
    path, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            work(path, pause)
        children.append(child)
    print(*children, flush=True)

    def end(*_: object) -> None:
        for each in children:
            os.kill(each, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    for each in children:
        os.waitpid(each, 0)


main()
