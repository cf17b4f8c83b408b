"""Makes the database that Abathur's application had made on this host, with what else a real one has in it."""

import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, "/opt")
import applications

DATABASE = Path("/var/lib/abathur/abathur.db")


def build() -> None:
    """Make the database of the first release, with rows, and an operator's own table, index and memory."""
    applications.make(DATABASE, "A1")
    connection = sqlite3.connect(DATABASE)
    connection.executescript(
        """
        PRAGMA journal_mode = DELETE;
        CREATE TABLE own_notes (id INTEGER PRIMARY KEY, note TEXT);
        CREATE INDEX idx_own ON own_notes (note);
        INSERT INTO own_notes (note) VALUES ('keep me');
        INSERT INTO memory_entries (namespace, key, value, memory_type, created_by)
        VALUES
            ('app:abathur:config', 'memory_lifecycle_policies', '{"episodic_ttl_days": 30}', 'procedural', 'operator');
        """
    )
    connection.close()


build()
