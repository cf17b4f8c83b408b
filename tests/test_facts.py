"""The schema's facts, written down by hand from its specification: what applications rely on, name by name."""

from __future__ import annotations

import hashlib
import re
import sqlite3

import pytest
from abathur_db import resources, shape
from databases import SQL

# (name, affinity of type, NOT NULL, default, primary key position)
TABLES = {
    "sessions": """
        id TEXT NN - 1, app_name TEXT NN, user_id TEXT NN, project_id TEXT, status TEXT NN 'created',
        events TEXT NN '[]', state TEXT NN '{}', metadata TEXT - '{}', created_at TIMESTAMP NN now,
        last_update_time TIMESTAMP NN now, terminated_at TIMESTAMP, archived_at TIMESTAMP""",
    "memory_entries": """
        id INTEGER - - 1, namespace TEXT NN, key TEXT NN, value TEXT NN, memory_type TEXT NN, version INTEGER NN 1,
        is_deleted BOOLEAN NN 0, metadata TEXT - '{}', created_by TEXT, updated_by TEXT, created_at TIMESTAMP NN now,
        updated_at TIMESTAMP NN now""",
    "document_index": """
        id INTEGER - - 1, file_path TEXT NN, title TEXT NN, document_type TEXT, content_hash TEXT NN,
        chunk_count INTEGER - 1, embedding_model TEXT, embedding_blob BLOB, metadata TEXT - '{}',
        last_synced_at TIMESTAMP, sync_status TEXT - 'pending', created_at TIMESTAMP NN now,
        updated_at TIMESTAMP NN now""",
    "tasks": """
        id TEXT NN - 1, prompt TEXT NN, agent_type TEXT NN 'general', priority INTEGER NN 5, status TEXT NN,
        input_data TEXT NN, result_data TEXT, error_message TEXT, retry_count INTEGER - 0, max_retries INTEGER - 3,
        max_execution_timeout_seconds INTEGER - 3600, submitted_at TIMESTAMP NN, started_at TIMESTAMP,
        completed_at TIMESTAMP, last_updated_at TIMESTAMP NN, created_by TEXT, parent_task_id TEXT,
        dependencies TEXT, session_id TEXT""",
    "agents": """
        id TEXT NN - 1, name TEXT NN, specialization TEXT NN, task_id TEXT NN, state TEXT NN, model TEXT NN,
        spawned_at TIMESTAMP NN, terminated_at TIMESTAMP, resource_usage TEXT, session_id TEXT""",
    "state": """
        id INTEGER - - 1, task_id TEXT NN, key TEXT NN, value TEXT NN, created_at TIMESTAMP NN,
        updated_at TIMESTAMP NN""",
    "audit": """
        id INTEGER - - 1, timestamp TIMESTAMP NN, agent_id TEXT, task_id TEXT, action_type TEXT NN, action_data TEXT,
        result TEXT, memory_operation_type TEXT, memory_namespace TEXT, memory_entry_id INTEGER""",
    "metrics": """
        id INTEGER - - 1, timestamp TIMESTAMP NN, metric_name TEXT NN, metric_value REAL NN, labels TEXT""",
    "checkpoints": """
        task_id TEXT NN - 1, iteration INTEGER NN - 2, state TEXT NN, created_at TIMESTAMP NN, session_id TEXT""",
}

INDEXES = """
idx_sessions_status_updated(status, last_update_time DESC)
idx_sessions_user_created(user_id, created_at DESC)
idx_sessions_project(project_id, created_at DESC) where project_id is not null
idx_memory_namespace_key_version(namespace, key, is_deleted, version DESC)
idx_memory_type_updated(memory_type, updated_at DESC) where is_deleted = 0
idx_memory_namespace_prefix(namespace, updated_at DESC) where is_deleted = 0
idx_memory_episodic_ttl(memory_type, updated_at) where memory_type = 'episodic' and is_deleted = 0
idx_memory_created_by(created_by, created_at DESC)
idx_document_type_created(document_type, created_at DESC) where document_type is not null
idx_document_sync_status(sync_status, last_synced_at)
idx_document_content_hash(content_hash)
idx_tasks_status_priority(status, priority DESC, submitted_at)
idx_tasks_submitted_at(submitted_at)
idx_tasks_parent(parent_task_id)
idx_tasks_running_timeout(status, last_updated_at) where status = 'running'
idx_tasks_session(session_id, submitted_at DESC) where session_id is not null
idx_agents_task(task_id)
idx_agents_state(state)
idx_agents_session(session_id, spawned_at DESC) where session_id is not null
idx_audit_task(task_id, timestamp DESC)
idx_audit_agent(agent_id, timestamp DESC)
idx_audit_timestamp(timestamp DESC)
idx_audit_memory_operations(memory_operation_type, timestamp DESC) where memory_operation_type is not null
idx_audit_memory_namespace(memory_namespace, timestamp DESC) where memory_namespace is not null
idx_audit_memory_entry(memory_entry_id, timestamp DESC) where memory_entry_id is not null
idx_state_task_key(task_id, key)
idx_metrics_name_timestamp(metric_name, timestamp DESC)
idx_checkpoints_task(task_id, iteration DESC)
"""

FOREIGN_KEYS = {
    ("tasks", "parent_task_id", "tasks", "NO ACTION"),
    ("tasks", "session_id", "sessions", "SET NULL"),
    ("agents", "task_id", "tasks", "NO ACTION"),
    ("agents", "session_id", "sessions", "SET NULL"),
    ("state", "task_id", "tasks", "NO ACTION"),
    ("audit", "agent_id", "agents", "NO ACTION"),
    ("audit", "memory_entry_id", "memory_entries", "SET NULL"),
    ("checkpoints", "task_id", "tasks", "NO ACTION"),
    ("checkpoints", "session_id", "sessions", "SET NULL"),
}

NEEDED: dict[str, dict[str, object]] = {
    "sessions": {"id": "s", "app_name": "a", "user_id": "u"},
    "memory_entries": {"namespace": "n", "key": "k", "value": "{}", "memory_type": "semantic"},
    "document_index": {"file_path": "f", "title": "t", "content_hash": "h"},
    "metrics": {"timestamp": "t", "metric_name": "m", "metric_value": 0},
}
"""The columns that an application has to give."""

RULES = [
    ("sessions", "status", ["created", "active", "paused", "terminated", "archived"], ["", "Active", "deleted"]),
    ("sessions", "events", ["[]", "[1]"], ["", "{", "no json"]),
    ("sessions", "state", ["{}"], ["{,}"]),
    ("sessions", "metadata", ["{}", None], ["no json"]),
    ("memory_entries", "value", ["{}", '"text"', "1"], ["", "text"]),
    ("memory_entries", "memory_type", ["semantic", "episodic", "procedural"], ["", "other"]),
    ("memory_entries", "version", [1, 2], [0, -1]),
    ("memory_entries", "metadata", ["{}", None], ["no json"]),
    ("document_index", "sync_status", ["pending", "synced", "failed", "stale", None], ["", "done"]),
    ("document_index", "metadata", ["{}", None], ["no json"]),
    ("metrics", "metric_value", [0, 0.5], [-0.1]),
]


@pytest.fixture
def made() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for migration in resources.migrations():
        connection.executescript(migration.sql)
    return connection


def test_there_are_nine_tables(made: sqlite3.Connection) -> None:
    found = made.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    assert {row[0] for row in found} == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_every_column_has_its_type_default_and_null_rule(made: sqlite3.Connection, table: str) -> None:
    wanted = []
    for column in re.split(r",\s+", TABLES[table].strip()):
        name, kind, null, default, key = [*column.split(), *["-"] * 3][:5]
        value = {"-": None, "now": "CURRENT_TIMESTAMP"}.get(default, default)
        wanted.append((name, kind, int(null == "NN"), value, int(key) if key != "-" else 0))
    found = made.execute('SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', (table,))
    assert found.fetchall() == wanted


@pytest.mark.parametrize("line", INDEXES.strip().splitlines(), ids=lambda line: line.split("(")[0])
def test_every_named_index_is_there(made: sqlite3.Connection, line: str) -> None:
    name, _, rest = line.partition("(")
    sql = made.execute("SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (name,)).fetchone()[0]
    words = " ".join(sql.split())
    assert words[words.index("(") + 1 :].lower() == rest.lower()


def test_there_are_thirty_indexes_or_more(made: sqlite3.Connection) -> None:
    assert sum(len(made.execute(f"PRAGMA index_list({table})").fetchall()) for table in TABLES) >= 30


def test_foreign_keys_are_those_of_the_specification_and_audit_task_has_none(made: sqlite3.Connection) -> None:
    found = {
        (table, row[3], row[2], row[6])
        for table in TABLES
        for row in made.execute(f"PRAGMA foreign_key_list({table})").fetchall()
    }
    assert found == FOREIGN_KEYS


@pytest.mark.parametrize(("table", "column"), sorted((each[0], each[1]) for each in FOREIGN_KEYS))
def test_deleting_a_parent_never_scans_its_children(made: sqlite3.Connection, table: str, column: str) -> None:
    plan = made.execute(f"EXPLAIN QUERY PLAN SELECT rowid FROM {table} WHERE {column} = ?", ("x",)).fetchall()
    assert "SEARCH" in plan[0][3]


@pytest.mark.parametrize(("table", "column", "good", "bad"), RULES)
def test_a_rule_lets_the_good_in_and_refuses_the_bad(
    made: sqlite3.Connection, table: str, column: str, good: list[object], bad: list[object]
) -> None:
    def insert(value: object) -> None:
        row = {**NEEDED[table], column: value}
        made.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values()))

    for value in good:
        made.execute("BEGIN")
        insert(value)
        made.execute("ROLLBACK")
    for value in bad:
        with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed"):
            insert(value)


def test_a_text_primary_key_refuses_null(made: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=r"NOT NULL constraint failed: sessions\.id"):
        made.execute("INSERT INTO sessions (app_name, user_id) VALUES ('a', 'u')")


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert [each.number for each in resources.migrations()] == list(range(1, shape.latest() + 1))


@pytest.mark.parametrize("migration", resources.migrations(), ids=lambda each: each.name)
def test_a_migration_leaves_the_transaction_and_the_version_to_the_tool(migration: resources.Migration) -> None:
    code = re.sub(r"--.*", "", migration.sql).upper()
    assert not re.search(r"\b(BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|ATTACH|VACUUM|USER_VERSION)\b", code)


def test_released_migrations_are_as_they_were_released() -> None:
    """A change needs a new migration: hosts that have run the old one will never run it again."""
    found = [f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}" for each in SQL.glob("migrations/*.sql")]
    assert sorted(found) == sorted((SQL / "migrations/SHA256SUMS").read_text().splitlines())


@pytest.mark.parametrize("query", resources.queries(), ids=lambda each: each.name)
def test_each_critical_query_is_served_by_the_index_that_it_names(
    made: sqlite3.Connection, query: resources.Query
) -> None:
    names = dict.fromkeys(re.findall(r":(\w+)", query.sql))
    plan = "; ".join(row[3] for row in made.execute(f"EXPLAIN QUERY PLAN {query.sql}", names))
    assert query.index in plan
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


@pytest.mark.parametrize("query", resources.queries(), ids=lambda each: each.name)
def test_each_critical_query_finds_its_own_parameters(made: sqlite3.Connection, query: resources.Query) -> None:
    sampled = [column[0] for column in made.execute(query.sample).description]
    assert set(sampled) == set(re.findall(r":(\w+)", query.sql))
    assert query.purpose
    assert 0 < query.budget_ms <= 50
