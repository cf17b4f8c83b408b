"""Makes an application's own database: more columns, tables and indexes, rows, violated foreign keys."""

import sqlite3

DATABASE = "/var/lib/abathur/abathur.db"


def build() -> None:
    """Make the database as the application's first version did: rollback journal, no user_version, one index less."""
    with open("/opt/schema.sql", encoding="utf-8") as stream:
        schema = stream.read()
    connection = sqlite3.connect(DATABASE)
    connection.executescript(
        schema
        + """
        PRAGMA application_id = 0;
        DROP INDEX idx_checkpoints_session;
        DROP INDEX idx_audit_agent;
        ALTER TABLE tasks ADD COLUMN summary TEXT;
        CREATE TABLE own_notes (id INTEGER PRIMARY KEY, note TEXT);
        CREATE INDEX idx_own ON tasks (summary);
        INSERT INTO own_notes (note) VALUES ('keep me');
        INSERT INTO state (task_id, key, value, created_at, updated_at)
        VALUES ('gone', 'a', 'b', '2026-01-31T10:00:00+00:00', '2026-01-31 10:00:00');
        INSERT INTO memory_entries (namespace, key, value, memory_type, created_by)
        VALUES
            ('app:abathur:config', 'memory_lifecycle_policies', '{"episodic_ttl_days": 30}', 'procedural', 'operator');
        """
    )
    connection.close()


build()
