"""Checks that write: an application's usual work, rehearsed on a throwaway clone of the database."""

from __future__ import annotations

import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from abathur_db import database, latency, resources
from abathur_db.config import Config
from abathur_db.result import Check, counted

ROUNDS = 3
"""Times a load is measured before it counts as too slow: a neighbour's burst is not the database's."""

PAUSE_SECONDS = 10.0
"""Between two of these times: one stall of 0.4 s is 3 % of a load of 2 s, and three at once met the same burst."""

DESIGN_P99_MS = 100
"""The limit of the design (section 1.3), by which its budgets stand in sql/queries."""

REFUSED = {
    "json": (
        "INSERT INTO sessions (id, app_name, user_id, events) VALUES ('{id}', 'validation', 'validation', 'no json')",
        "INSERT INTO sessions (id, app_name, user_id, state) VALUES ('{id}', 'validation', 'validation', 'no json')",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('{id}', 'k', 'no json', 'semantic')",
        "INSERT INTO document_index (file_path, title, content_hash, metadata) VALUES ('{id}', 't', 'h', 'no json')",
    ),
    "enum": (
        "INSERT INTO sessions (id, app_name, user_id, status) VALUES ('{id}', 'validation', 'validation', 'no status')",
        "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('{id}', 'k', '{{}}', 'no type')",
        "INSERT INTO document_index (file_path, title, content_hash, sync_status) VALUES ('{id}', 't', 'h', 'none')",
    ),
}
"""Rows that the schema has to refuse, by kind of constraint; only their bad value is wrong."""


def rehearse(config: Config, clone: Path) -> tuple[list[Check], list[dict[str, Any]]]:
    """Do an application's work on the clone; return the checks and the latencies measured."""
    with database.opened(clone, config.busy_timeout_ms) as connection:
        database.enable_wal(connection, clone)
        checks = [*operations(config, connection), *refusals(connection), *plans(config, connection)]
        parameters = latency.samples(connection)
    loads = [_load(config, clone, parameters, sessions) for sessions in config.validation_sessions]
    return checks + [check for check, _ in loads], [row for _, rows in loads for row in rows]


def operations(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Create a session and a memory, and find both operations in the audit trail."""
    mark = f"validation:{uuid.uuid4()}"
    with database.transaction(connection):
        # Where the audit trail is of tasks alone, as its published DDL had it, there has to be one.
        connection.execute(
            "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at)"
            " VALUES (?, 'validation', 'pending', '{}', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)",
            (mark,),
        )
        connection.execute(
            "INSERT INTO sessions (id, app_name, user_id) VALUES (?, 'validation', 'validation')", (mark,)
        )
        memory = connection.execute(
            "INSERT INTO memory_entries (namespace, key, value, memory_type, created_by, updated_by)"
            " VALUES (?, 'theme', '{\"mode\": \"dark\"}', 'semantic', ?, ?)",
            (mark, mark, mark),
        ).lastrowid
        for action, operation, namespace, entry in (
            ("session_create", None, None, None),
            ("memory_create", "create", mark, memory),
        ):
            connection.execute(
                "INSERT INTO audit (timestamp, task_id, action_type, memory_operation_type, memory_namespace,"
                " memory_entry_id) VALUES (CURRENT_TIMESTAMP, ?, ?, ?, ?, ?)",
                (mark, action, operation, namespace, entry),
            )
    session = connection.execute("SELECT status FROM sessions WHERE id = ?", (mark,)).fetchone()
    value = connection.execute(
        "SELECT json_extract(value, '$.mode') FROM memory_entries WHERE namespace = ? AND key = 'theme'"
        " AND is_deleted = 0 ORDER BY version DESC LIMIT 1",
        (mark,),
    ).fetchone()
    trail = connection.execute(
        "SELECT action_type, memory_entries.namespace FROM audit"
        " LEFT JOIN memory_entries ON memory_entries.id = audit.memory_entry_id WHERE task_id = ? ORDER BY audit.id",
        (mark,),
    ).fetchall()
    wanted = [("session_create", None), ("memory_create", mark)]
    hint = f"compare the schema: {config.command('status')}; restore the newest backup if rows are lost"
    return [
        Check("create_session", session == ("created",), "a row in status created", _shown(session), hint),
        Check("create_memory", value == ("dark",), "the value written", _shown(value), hint),
        Check("audit_trail", trail == wanted, "both operations, with their memory", f"{len(trail)} audit rows", hint),
    ]


def _shown(row: tuple[Any, ...] | None) -> str:
    return "no row" if row is None else str(row[0])


def refusals(connection: sqlite3.Connection) -> list[Check]:
    """Try rows that the schema has to refuse; a row that goes in is the failure."""
    checks = []
    for kind, statements in REFUSED.items():
        accepted = [statement for statement in statements if _accepts(connection, statement)]
        checks.append(
            Check(
                f"{kind}_constraints",
                not accepted,
                f"{len(statements)} bad rows refused",
                f"accepted: {accepted[0]}" if accepted else f"{len(statements)} refused",
                "the table was made without its CHECK constraints; have its application migrate it",
            )
        )
    return checks


def _accepts(connection: sqlite3.Connection, statement: str) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(statement.format(id=uuid.uuid4()))
    except sqlite3.IntegrityError as error:
        # Another constraint's refusal (NOT NULL, UNIQUE) would prove nothing.
        if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_CHECK:
            return False
        raise
    finally:
        connection.execute("ROLLBACK")
    return True


def plans(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Ask SQLite how it would run each critical query: by an index, without a scan, without a sort."""
    return [plan(config, connection, query) for query in resources.queries()]


def plan(config: Config, connection: sqlite3.Connection, query: resources.Query) -> Check:
    """Ask SQLite how it would run one query."""
    steps = latency.plan(connection, query)
    good = latency.indexed(steps)
    again = f"create the index again ({config.command('init')}), then refresh statistics ({config.command('analyze')})"
    return Check(
        f"plan_{query.name}",
        good,
        f"a search by {query.index}",
        steps,
        again if not good else f"another index than {query.index} serves it; nothing has to be done",
        warning=good and query.index not in steps,
    )


def _load(
    config: Config, clone: Path, parameters: dict[str, list[dict[str, Any]]], sessions: int
) -> tuple[Check, list[dict[str, Any]]]:
    for number in range(ROUNDS):
        if number:
            time.sleep(PAUSE_SECONDS)
        load = latency.measure(clone, parameters, sessions, config.validation_seconds, config.busy_timeout_ms)
        slow = _too_slow(config, load)
        if load.errors or not slow:
            break
    rows = [
        {
            "sessions": sessions,
            "query": query.name,
            "budget_ms": budget_ms(config, query),
            "count": len(load.milliseconds[query.name]),
            "p50_ms": round(load.percentile(query.name, 0.5), 3),
            "p99_ms": round(load.percentile(query.name, 0.99), 3),
        }
        for query in resources.queries()
        if load.milliseconds[query.name]
    ]
    fault = f"{counted(len(load.errors), 'error')}, first: {load.errors[0]}" if load.errors else "; ".join(slow)
    quiet = f"run it again on a quiet host: {config.command('validate')}; then refresh statistics: "
    quiet += config.command("analyze")
    check = Check(
        f"latency_{sessions}_sessions",
        not fault and bool(rows),
        f"no error, p50 within each query's budget, p99 under {config.validation_p99_ms} ms",
        fault or (f"worst p99 {load.p99:.1f} ms" if rows else "nothing measured"),
        f"see what is wrong with the host, then run it again: {config.command('doctor')}" if load.errors else quiet,
    )
    return check, rows


def budget_ms(config: Config, query: resources.Query) -> float:
    """Return how long a query may take in half of the cases, in ms: where p99 may be longer, as many times longer."""
    return query.budget_ms * max(1.0, config.validation_p99_ms / DESIGN_P99_MS)


def _too_slow(config: Config, load: latency.Load) -> list[str]:
    slow = []
    for query in resources.queries():
        if not load.milliseconds[query.name]:
            continue
        p50, p99 = load.percentile(query.name, 0.5), load.percentile(query.name, 0.99)
        if p50 > (budget := budget_ms(config, query)):
            slow.append(f"{query.name} p50 {p50:.1f} ms, budget {budget:g} ms")
        if p99 >= config.validation_p99_ms:
            slow.append(f"{query.name} p99 {p99:.1f} ms")
    return slow
