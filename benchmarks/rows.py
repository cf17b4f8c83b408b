"""Databases of realistic rows: sessions, memories, tasks and audit, a third of them deleted."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
from pathlib import Path

from benchmarks.load import tool

UNIT = 100_000_000
"""Bytes made row by row; larger databases hold copies of these rows under other keys, which no compressor can
see: zstd looks back 1 to 2 MB."""

WORDS = re.findall(
    r"\w+",
    "agent session memory task prefers dark theme python deploy review context summary user project error retry plan"
    " result step tool search document index vector embedding policy audit version priority status",
)

COPIES = (
    "INSERT INTO sessions (id, app_name, user_id, status, events, state, created_at, last_update_time)"
    " SELECT id || '-{n}', app_name, user_id, status, events, state, created_at, last_update_time FROM sessions"
    " WHERE id NOT LIKE '%-copy-%'",
    "INSERT INTO memory_entries (namespace, key, value, memory_type)"
    " SELECT namespace, key || '-{n}', value, memory_type FROM memory_entries WHERE key NOT LIKE '%-copy-%'"
    " AND namespace LIKE 'user:%'",
    "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
    " SELECT id || '-{n}', prompt, status, input_data, submitted_at, last_updated_at FROM tasks"
    " WHERE id NOT LIKE '%-copy-%'",
    "INSERT INTO audit (timestamp, task_id, action_type, memory_entry_id)"
    " SELECT timestamp, task_id || '-{n}', action_type, memory_entry_id FROM audit WHERE task_id NOT LIKE '%-copy-%'"
    " AND task_id IS NOT NULL",
)


def text(chance: random.Random, words: int) -> str:
    """Return a sentence of so many words."""
    return " ".join(chance.choices(WORDS, k=words))


def generate(path: Path, size: int) -> None:
    """Fill a new database to about `size` bytes; then delete a third of its sessions and tasks."""
    tool("init", path)
    tool("seed", path)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -200000")
    _rows(connection, path, min(size, UNIT))
    copy = 0
    while path.stat().st_size < size:
        copy += 1
        connection.execute("BEGIN")
        for statement in COPIES:
            connection.execute(statement.format(n=f"copy-{copy}"))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for table in ("sessions", "tasks"):
        connection.execute(f"DELETE FROM {table} WHERE rowid < (SELECT max(rowid) / 3 FROM {table})")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    tool("analyze", path)


def _rows(connection: sqlite3.Connection, path: Path, size: int) -> None:
    chance = random.Random(7)
    first = 0
    while path.stat().st_size < size:
        connection.execute("BEGIN")
        for number in range(first, first + 2000):
            events = json.dumps([{"type": "message", "text": text(chance, 20)} for _ in range(4)])
            status = chance.choice(("created", "active", "paused", "terminated", "archived"))
            connection.execute(
                "INSERT INTO sessions (id, app_name, user_id, status, events) VALUES (?, 'abathur', ?, ?, ?)",
                (f"session-{number}", f"user-{number % 500}", status, events),
            )
            value = json.dumps({"note": text(chance, 40), "weight": chance.random()})
            memory = connection.execute(
                "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES (?, ?, ?, 'semantic')",
                (f"user:{number % 500}:notes", f"key-{number}", value),
            ).lastrowid
            connection.execute(
                "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
                " VALUES (?, ?, ?, '{}', ?, ?)",
                (f"task-{number}", text(chance, 15), chance.choice(("pending", "completed")), number, number),
            )
            connection.execute(
                "INSERT INTO audit (timestamp, task_id, action_type, memory_entry_id) VALUES (?, ?, 'create', ?)",
                (number, f"task-{number}", memory),
            )
        first += 2000
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def copied(source: Path, home: Path) -> Path:
    """Return a fresh copy of a generated database alone in `home`, so that every job finds the same."""
    if home.exists():
        shutil.rmtree(home)
    home.mkdir()
    shutil.copy(source, home / "abathur.db")
    settle()
    return home / "abathur.db"


def settle() -> None:
    """Let the disk come to rest, or the first commit would wait for what was written before."""
    os.sync()
