"""The audit trail of the database: rows that the bundle writes about its own changes."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from abathur_db import foreign, runs


def takes_no_task(connection: sqlite3.Connection) -> bool:
    """Tell whether the table audit takes only operations of a task, as in its published DDL."""
    rows = connection.execute("SELECT \"notnull\" FROM pragma_table_xinfo('audit') WHERE name = 'task_id'")
    return any(row[0] for row in rows)


def note(
    connection: sqlite3.Connection, action: str, about: dict[str, Any], *, operation: str | None = None, memory: int = 0
) -> None:
    """Add a row about an action of the bundle; none where the table takes only those of tasks.

    `operation`: what was done to the memory with this id. To be called inside the transaction of the change itself.
    """
    if takes_no_task(connection):
        return
    # By SQL: what the application wrote as a namespace need not be text.
    connection.execute(
        "INSERT INTO audit (timestamp, action_type, action_data, result, memory_operation_type, memory_namespace,"
        " memory_entry_id) SELECT ?1, ?2, ?3, 'ok', ?4, (SELECT namespace FROM memory_entries WHERE id = ?5),"
        " (SELECT id FROM memory_entries WHERE id = ?5)",
        (runs.now(), action, json.dumps(about, default=foreign.words), operation, memory),
    )
