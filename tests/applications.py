#!/usr/bin/env python3
"""Databases as Abathur's own application made them, built from what is known of it and never from our migration.

D: the DDL that was published. A1: the application's first release. A2: the last one of that generation. G2: the
generation after it, in another language. G3: today's. Also a program, for hosts: `applications.py A1 PATH` makes a
database, a second time it is the application's own start over what is there, which adds what its release knows.
Needs Python 3.11 alone.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

SERVED = ("D", "A1", "A2")
NOT_SERVED = ("G2", "G3")

NOW = "TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP"
STATUSES = "'created', 'active', 'paused', 'terminated', 'archived'"

TABLES = {
    "sessions": f"""id TEXT PRIMARY KEY, app_name TEXT NOT NULL, user_id TEXT NOT NULL, project_id TEXT,
        status TEXT NOT NULL DEFAULT 'created', events TEXT NOT NULL DEFAULT '[]', state TEXT NOT NULL DEFAULT '{{}}',
        metadata TEXT DEFAULT '{{}}', created_at {NOW}, last_update_time {NOW}, terminated_at TIMESTAMP,
        archived_at TIMESTAMP, CHECK(status IN ({STATUSES})), CHECK(json_valid(events)), CHECK(json_valid(state)),
        CHECK(json_valid(metadata))""",
    "memory_entries": f"""id INTEGER PRIMARY KEY AUTOINCREMENT, namespace TEXT NOT NULL, key TEXT NOT NULL,
        value TEXT NOT NULL, memory_type TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1,
        is_deleted BOOLEAN NOT NULL DEFAULT 0, metadata TEXT DEFAULT '{{}}', created_by TEXT, updated_by TEXT,
        created_at {NOW}, updated_at {NOW}, CHECK(memory_type IN ('semantic', 'episodic', 'procedural')),
        CHECK(json_valid(value)), CHECK(json_valid(metadata)), CHECK(version > 0), UNIQUE(namespace, key, version)""",
    "document_index": f"""id INTEGER PRIMARY KEY AUTOINCREMENT, file_path TEXT NOT NULL UNIQUE, title TEXT NOT NULL,
        document_type TEXT, content_hash TEXT NOT NULL, chunk_count INTEGER DEFAULT 1, embedding_model TEXT,
        embedding_blob BLOB, metadata TEXT DEFAULT '{{}}', last_synced_at TIMESTAMP,
        sync_status TEXT DEFAULT 'pending', created_at {NOW}, updated_at {NOW},
        CHECK(sync_status IN ('pending', 'synced', 'failed', 'stale')), CHECK(json_valid(metadata))""",
    "tasks": """id TEXT PRIMARY KEY, prompt TEXT NOT NULL, agent_type TEXT NOT NULL DEFAULT 'general',
        priority INTEGER NOT NULL DEFAULT 5, status TEXT NOT NULL, input_data TEXT NOT NULL, result_data TEXT,
        error_message TEXT, retry_count INTEGER DEFAULT 0, max_retries INTEGER DEFAULT 3,
        max_execution_timeout_seconds INTEGER DEFAULT 3600, submitted_at TIMESTAMP NOT NULL, started_at TIMESTAMP,
        completed_at TIMESTAMP, last_updated_at TIMESTAMP NOT NULL, created_by TEXT, parent_task_id TEXT,
        dependencies TEXT, session_id TEXT, FOREIGN KEY (parent_task_id) REFERENCES tasks(id),
        FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE SET NULL""",
    "agents": """id TEXT PRIMARY KEY, name TEXT NOT NULL, specialization TEXT NOT NULL, task_id TEXT NOT NULL,
        state TEXT NOT NULL, model TEXT NOT NULL, spawned_at TIMESTAMP NOT NULL, terminated_at TIMESTAMP,
        resource_usage TEXT, session_id TEXT, FOREIGN KEY (task_id) REFERENCES tasks(id),
        FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE SET NULL""",
    "state": """id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
        created_at TIMESTAMP NOT NULL, updated_at TIMESTAMP NOT NULL, UNIQUE(task_id, key),
        FOREIGN KEY (task_id) REFERENCES tasks(id)""",
    "audit": """id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TIMESTAMP NOT NULL, agent_id TEXT,
        task_id TEXT NOT NULL, action_type TEXT NOT NULL, action_data TEXT, result TEXT, memory_operation_type TEXT,
        memory_namespace TEXT, memory_entry_id INTEGER, FOREIGN KEY (agent_id) REFERENCES agents(id),
        FOREIGN KEY (task_id) REFERENCES tasks(id),
        FOREIGN KEY (memory_entry_id) REFERENCES memory_entries(id) ON DELETE SET NULL""",
    "metrics": """id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TIMESTAMP NOT NULL, metric_name TEXT NOT NULL,
        metric_value REAL NOT NULL, labels TEXT, CHECK(metric_value >= 0)""",
    "checkpoints": """task_id TEXT NOT NULL, iteration INTEGER NOT NULL, state TEXT NOT NULL,
        created_at TIMESTAMP NOT NULL, session_id TEXT, PRIMARY KEY (task_id, iteration),
        FOREIGN KEY (task_id) REFERENCES tasks(id),
        FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE SET NULL""",
}

INDEXES = {
    "idx_sessions_pk": "sessions(id)",
    "idx_sessions_status_updated": "sessions(status, last_update_time DESC) WHERE status IN ('active', 'paused')",
    "idx_sessions_user_created": "sessions(user_id, created_at DESC)",
    "idx_sessions_project": "sessions(project_id, created_at DESC) WHERE project_id IS NOT NULL",
    "idx_memory_entries_pk": "memory_entries(id)",
    "idx_memory_namespace_key_version": "memory_entries(namespace, key, is_deleted, version DESC)",
    "idx_memory_type_updated": "memory_entries(memory_type, updated_at DESC) WHERE is_deleted = 0",
    "idx_memory_namespace_prefix": "memory_entries(namespace, updated_at DESC) WHERE is_deleted = 0",
    "idx_memory_episodic_ttl": (
        "memory_entries(memory_type, updated_at) WHERE memory_type = 'episodic' AND is_deleted = 0"
    ),
    "idx_memory_created_by": "memory_entries(created_by, created_at DESC)",
    "idx_memory_conflict_detection": "memory_entries(namespace, key, version)",
    "idx_document_index_pk": "document_index(id)",
    "idx_document_file_path": "document_index(file_path)",
    "idx_document_type_created": ("document_index(document_type, created_at DESC) WHERE document_type IS NOT NULL"),
    "idx_document_sync_status": (
        "document_index(sync_status, last_synced_at) WHERE sync_status IN ('pending', 'stale')"
    ),
    "idx_document_content_hash": "document_index(content_hash)",
    "idx_tasks_status_priority": "tasks(status, priority DESC, submitted_at ASC)",
    "idx_tasks_submitted_at": "tasks(submitted_at)",
    "idx_tasks_parent": "tasks(parent_task_id)",
    "idx_tasks_running_timeout": "tasks(status, last_updated_at) WHERE status = 'running'",
    "idx_tasks_session": "tasks(session_id, submitted_at DESC) WHERE session_id IS NOT NULL",
    "idx_agents_task": "agents(task_id)",
    "idx_agents_state": "agents(state)",
    "idx_agents_session": "agents(session_id, spawned_at DESC) WHERE session_id IS NOT NULL",
    "idx_audit_task": "audit(task_id, timestamp DESC)",
    "idx_audit_agent": "audit(agent_id, timestamp DESC)",
    "idx_audit_timestamp": "audit(timestamp DESC)",
    "idx_audit_memory_operations": (
        "audit(memory_operation_type, timestamp DESC) WHERE memory_operation_type IS NOT NULL"
    ),
    "idx_audit_memory_namespace": "audit(memory_namespace, timestamp DESC) WHERE memory_namespace IS NOT NULL",
    "idx_audit_memory_entry": "audit(memory_entry_id, timestamp DESC) WHERE memory_entry_id IS NOT NULL",
    "idx_state_task_key": "state(task_id, key)",
    "idx_metrics_name_timestamp": "metrics(metric_name, timestamp DESC)",
    "idx_checkpoints_task": "checkpoints(task_id, iteration DESC)",
}

AUDIT_TASK = "task_id TEXT NOT NULL, action_type"
AUDIT_PARENT = "FOREIGN KEY (task_id) REFERENCES tasks(id),"
"""What the application took out of the published table audit: it logs operations that belong to no task."""

EMBEDDINGS = "CREATE VIRTUAL TABLE document_embeddings USING vss0(embedding(768))"
OWN_OF_A1 = {
    "document_embedding_metadata": """rowid INTEGER PRIMARY KEY, document_id INTEGER NOT NULL, namespace TEXT NOT NULL,
        file_path TEXT NOT NULL, embedding_model TEXT NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
        FOREIGN KEY (document_id) REFERENCES document_index(id) ON DELETE CASCADE""",
    "document_embeddings_index": "rowid INTEGER PRIMARY KEY AUTOINCREMENT, idx",
    "document_embeddings_data": "rowid INTEGER PRIMARY KEY AUTOINCREMENT, _",
}
OWN_OF_A2 = {
    "task_dependencies": """id INTEGER PRIMARY KEY AUTOINCREMENT, dependent_task_id TEXT NOT NULL,
        prerequisite_task_id TEXT NOT NULL, dependency_type TEXT NOT NULL, created_at TIMESTAMP NOT NULL,
        resolved_at TIMESTAMP, UNIQUE(dependent_task_id, prerequisite_task_id),
        CHECK(dependent_task_id <> prerequisite_task_id),
        FOREIGN KEY (dependent_task_id) REFERENCES tasks(id) ON DELETE CASCADE,
        FOREIGN KEY (prerequisite_task_id) REFERENCES tasks(id) ON DELETE CASCADE""",
}
COLUMNS_OF_A2 = (
    "source TEXT NOT NULL DEFAULT 'human'",
    "dependency_type TEXT NOT NULL DEFAULT 'sequential'",
    "calculated_priority REAL NOT NULL DEFAULT 5.0",
    "deadline TIMESTAMP",
    "estimated_duration_seconds INTEGER",
    "dependency_depth INTEGER DEFAULT 0",
    "feature_branch TEXT",
    "task_branch TEXT",
    "worktree_path TEXT",
    "summary TEXT NOT NULL DEFAULT 'Task'",
)
INDEXES_OF_A2 = {
    "idx_sessions_status": "sessions(status)",
    "idx_tasks_calculated_priority": "tasks(status, calculated_priority DESC)",
    "idx_tasks_deadline": "tasks(deadline) WHERE deadline IS NOT NULL",
    "idx_tasks_feature_branch": "tasks(feature_branch) WHERE feature_branch IS NOT NULL",
    "idx_task_dependencies_dependent": "task_dependencies(dependent_task_id)",
    "idx_task_dependencies_prerequisite": "task_dependencies(prerequisite_task_id)",
}

TODAY = {
    "schema_migrations": "version INTEGER PRIMARY KEY, description TEXT NOT NULL, applied_at TEXT NOT NULL",
    "goals": "id TEXT PRIMARY KEY, name TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'active', created_at TEXT NOT NULL",
    "tasks": "id TEXT PRIMARY KEY, parent_id TEXT REFERENCES tasks(id), title TEXT NOT NULL, description TEXT,"
    " status TEXT NOT NULL DEFAULT 'pending', priority TEXT NOT NULL, created_at TEXT NOT NULL",
    "memories": "id TEXT PRIMARY KEY, namespace TEXT NOT NULL, key TEXT NOT NULL, content TEXT NOT NULL,"
    " tier TEXT NOT NULL, version INTEGER NOT NULL DEFAULT 1, created_at TEXT NOT NULL",
    "audit_log": "id TEXT PRIMARY KEY, timestamp TEXT NOT NULL, level TEXT NOT NULL, action TEXT NOT NULL",
    "events": "id TEXT PRIMARY KEY, sequence INTEGER NOT NULL UNIQUE, payload TEXT NOT NULL",
    "worktrees": "id TEXT PRIMARY KEY, task_id TEXT NOT NULL REFERENCES tasks(id), path TEXT NOT NULL UNIQUE",
    "agent_templates": "id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, system_prompt TEXT NOT NULL",
}

ROWS = """
INSERT INTO sessions (id, app_name, user_id, status) VALUES
    ('s1', 'abathur', 'ann', 'active'), ('s2', 'abathur', 'bob', 'paused'), ('s3', 'abathur', 'ann', 'terminated');
INSERT INTO sessions (id, app_name, user_id, last_update_time) VALUES
    ('s4', 'abathur', 'bob', '2025-10-12T08:30:00.123456+00:00');
INSERT INTO memory_entries (namespace, key, value, memory_type, updated_at) VALUES
    ('user:ann', 'theme', '{"mode": "dark"}', 'semantic', '2025-10-12 08:30:00'),
    ('project:x', 'plan', '["a", "b"]', 'episodic', '2025-10-12T08:30:00+00:00');
INSERT INTO document_index (file_path, title, content_hash) VALUES ('docs/a.md', 'A', 'c0ffee');
INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at, session_id) VALUES
    ('t1', 'p', 'running', '{}', '2025-10-12T08:30:00.5', '2025-10-12T08:31:00', 's1'),
    ('t2', 'p', 'pending', '{}', '2025-10-12T08:30:01.5', '2025-10-12T08:31:00', NULL);
UPDATE tasks SET parent_task_id = 't1' WHERE id = 't2';
INSERT INTO agents (id, name, specialization, task_id, state, model, spawned_at) VALUES
    ('a1', 'n', 'general', 't1', 'busy', 'm', '2025-10-12T08:30:02');
INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES
    ('t1', 'k', 'v', '2025-10-12T08:30:02', '2025-10-12 08:30:02');
INSERT INTO audit (timestamp, agent_id, task_id, action_type, memory_operation_type, memory_namespace, memory_entry_id)
    VALUES ('2025-10-12T08:30:02', 'a1', 't1', 'spawn', NULL, NULL, NULL),
    ('2025-10-12T08:30:03', NULL, 't1', 'memory', 'create', 'user:ann', 1);
INSERT INTO checkpoints (task_id, iteration, state, created_at) VALUES ('t1', 1, '{}', '2025-10-12T08:30:04');
"""

NULL_METADATA = "INSERT INTO sessions (id, app_name, user_id, metadata) VALUES ('s5', 'abathur', 'ann', NULL)"
"""SQLite takes it from 3.46 on where the CHECK is json_valid(metadata) alone, and calls it a violation before."""

WITHOUT_PARENTS = """
INSERT INTO agents (id, name, specialization, task_id, state, model, spawned_at) VALUES
    ('a2', 'n', 'general', 'gone', 'idle', 'm', '2025-10-12T08:32:00');
INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES
    ('gone', 'k', 'v', '2025-10-12T08:32:00', '2025-10-12T08:32:00');
INSERT INTO audit (timestamp, agent_id, task_id, action_type) VALUES ('2025-10-12T08:32:00', 'gone', 'gone', 'spawn');
"""
"""What the application writes with foreign_keys off, as its connections were."""


def make(path: Path, generation: str, *, rows: bool = True) -> None:
    """Make a database as that generation does, with rows of its own unless `rows` is false; the path is free."""
    with closing(sqlite3.connect(path)) as connection:
        if generation == "G3":
            _today(connection)
        elif generation == "G2":
            for name, columns in TABLES.items():
                typed = columns.replace("DEFAULT CURRENT_TIMESTAMP", "").replace("TIMESTAMP", "TEXT")
                connection.execute(f"CREATE TABLE {name} ({typed})")
        else:
            start(connection, generation)
            if rows:
                connection.executescript(ROWS)
                connection.executescript(f"PRAGMA ignore_check_constraints = ON; {NULL_METADATA}")
            if rows and generation != "D":
                connection.executescript(WITHOUT_PARENTS)
            if rows and generation == "A2":
                connection.executescript(
                    "UPDATE tasks SET status = 'blocked', deadline = '2025-11-01', summary = 'Do it' WHERE id = 't2';"
                    "INSERT INTO task_dependencies"
                    " (dependent_task_id, prerequisite_task_id, dependency_type, created_at)"
                    " VALUES ('t2', 't1', 'sequential', '2025-10-12T08:33:00')"
                )
        connection.commit()


def start(connection: sqlite3.Connection, generation: str) -> None:
    """Run what the application runs at its start over an open database: make what is absent, migrate what is older."""
    # The application's connections; its migrations rename tables, which others refer to.
    connection.executescript("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON")
    tables, indexes = dict(TABLES), dict(INDEXES)
    if generation != "D":
        tables["audit"] = TABLES["audit"].replace(AUDIT_TASK, "task_id TEXT, action_type").replace(AUDIT_PARENT, "")
        tables |= OWN_OF_A1
        del indexes["idx_memory_conflict_detection"]
    if generation == "A2":
        cascade = ("REFERENCES tasks(id)", "REFERENCES tasks(id) ON DELETE CASCADE")
        tables |= {name: TABLES[name].replace(*cascade) for name in ("agents", "checkpoints")} | OWN_OF_A2
        indexes |= INDEXES_OF_A2
        if _columns(connection, "tasks"):
            for column in COLUMNS_OF_A2:
                if column.split()[0] not in _columns(connection, "tasks"):
                    connection.execute(f"ALTER TABLE tasks ADD COLUMN {column}")
        tables["tasks"] = TABLES["tasks"].replace(
            "session_id TEXT,", f"session_id TEXT, {', '.join(COLUMNS_OF_A2)},", 1
        )
    if generation != "D" and _columns(connection, "audit").get("task_id"):
        _rebuild(connection, "audit", tables["audit"])
    for name in ("agents", "checkpoints") if generation == "A2" else ():
        if (
            _columns(connection, name)
            and not connection.execute(
                "SELECT 1 FROM pragma_foreign_key_list(?) WHERE \"table\" = 'tasks' AND on_delete = 'CASCADE'", (name,)
            ).fetchone()
        ):
            _rebuild(connection, name, tables[name])
    for name, columns in tables.items():
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")
    if generation != "D":
        _embeddings(connection)
    for name, place in indexes.items():
        connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {place}")
    connection.commit()


def _columns(connection: sqlite3.Connection, table: str) -> dict[str, bool]:
    """Return the columns of a table, and whether each is NOT NULL; none for a table that is absent."""
    return {row[1]: bool(row[3]) for row in connection.execute(f"PRAGMA table_info({table})")}


def _rebuild(connection: sqlite3.Connection, name: str, columns: str) -> None:
    """Make a table anew with its rows, as the application migrates: indexes that it does not know are gone then."""
    kept = ", ".join(_columns(connection, name))
    connection.executescript(
        f"CREATE TABLE {name}_new ({columns}); INSERT INTO {name}_new ({kept}) SELECT {kept} FROM {name};"
        f"DROP TABLE {name}; ALTER TABLE {name}_new RENAME TO {name}"
    )


def _embeddings(connection: sqlite3.Connection) -> None:
    """Enter the virtual table of the vector search; its module is a shared library that hardly any host has."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'document_embeddings'").fetchone():
        return
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('table', 'document_embeddings', 'document_embeddings', 0, ?)",
        (EMBEDDINGS,),
    )
    connection.execute("PRAGMA writable_schema = RESET")


def _today(connection: sqlite3.Connection) -> None:
    for name, columns in TODAY.items():
        connection.execute(f"CREATE TABLE {name} ({columns})")
    connection.execute("CREATE VIRTUAL TABLE memories_fts USING fts5(key, content, content='memories')")


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if place.exists():
        with closing(sqlite3.connect(place, timeout=30)) as opened:
            start(opened, sys.argv[1])
    else:
        make(place, sys.argv[1])
