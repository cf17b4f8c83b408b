"""The audit trail of the database: rows that the bundle writes about its own changes."""

from __future__ import annotations

import sqlite3

from abathur_db import database, runs


def takes_no_task(connection: sqlite3.Connection) -> bool:
    """Tell whether the table audit takes only operations of a task, as in its published DDL."""
    rows = connection.execute("SELECT \"notnull\" FROM pragma_table_xinfo('audit') WHERE name = 'task_id'")
    return any(row[0] for row in rows)


def note(connection: sqlite3.Connection, action: str, **values: str | int | None) -> None:
    """Add a row about an action of the bundle, with the given columns; none where the table takes only those of tasks.

    To be called inside the transaction of the change itself.
    """
    if takes_no_task(connection):
        return
    row = {"timestamp": runs.now(), "action_type": action, "result": "ok", **values}
    columns = ", ".join(map(database.quoted, row))
    connection.execute(
        f"INSERT INTO audit ({columns}) VALUES ({', '.join('?' * len(row))})",
        list(row.values()),
    )
