"""The seeds: memories that every database starts with, kept up to date without touching an operator's change."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from typing import Any

from abathur_db import database, foreign, resources, trail
from abathur_db.config import Config
from abathur_db.result import Result, left


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of a JSON value, whatever its spacing and order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seed(config: Config, dry_run: bool = False) -> Result:
    """Insert the seeds that are absent, and a new version of those that changed since we wrote them.

    A row that somebody else wrote, changed or deleted is left alone, and the result says so.
    Each insert leaves its audit row. What the application's schema keeps us from is a warning. Raises Failure when
    there is no database.
    """
    if dry_run and not database.exists(config.database):
        return _result({_name(each): "insert" for each in resources.seeds()}, dry_run)
    try:
        return _seed(config, dry_run)
    except database.Refused as refusal:
        return left("seed", "every seed there", refusal)


def _seed(config: Config, dry_run: bool) -> Result:
    with database.opened(config.database, config.busy_timeout_ms, read_only=dry_run) as connection:
        actions = {_name(each): _action(connection, each) for each in resources.seeds()}
        if dry_run or not _writes(actions):
            return _result(actions, dry_run)
        with database.transaction(connection, "the seeds were written"):
            # Looked at again inside the transaction: nobody can write between the look and the insert.
            actions = {_name(each): _action(connection, each) for each in resources.seeds()}
            for each in resources.seeds():
                if actions[_name(each)] in ("insert", "update"):
                    _insert(connection, each)
                    if _action(connection, each) != "keep":
                        raise database.Refused(
                            f"a trigger of the application's took {_name(each)} away again",
                            "let the application write it, or take the trigger from the table memory_entries",
                        )
        untold = trail.takes_no_task(connection)
    return _result(actions, dry_run, untold=untold)


def _name(each: dict[str, Any]) -> str:
    return f"{each['namespace']}/{each['key']}"


def _writes(actions: dict[str, str]) -> list[str]:
    return [name for name, action in actions.items() if action in ("insert", "update")]


def _newest(connection: sqlite3.Connection, each: dict[str, Any]) -> Any:
    return connection.execute(
        "SELECT id, version, value, is_deleted FROM memory_entries"
        " WHERE namespace = ? AND key = ? ORDER BY version DESC LIMIT 1",
        (each["namespace"], each["key"]),
    ).fetchone()


def _action(connection: sqlite3.Connection, each: dict[str, Any]) -> str:
    """Return insert, update, keep (as it should be) or leave (an operator's)."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE lower(name) = 'memory_entries'").fetchone():
        return "insert"
    newest = _newest(connection, each)
    if newest is None:
        return "insert"
    row, _, text, is_deleted = newest
    try:
        value = foreign.value(text)
    except ValueError:
        return "leave"
    if is_deleted:
        return "leave"
    if value == each["value"]:
        return "keep"
    return "update" if _written(connection, row) == fingerprint(value) else "leave"


def _written(connection: sqlite3.Connection, row: int) -> Any:
    """Return the fingerprint of what we wrote into a memory, None where the last audit row of a seed is not ours."""
    last = connection.execute(
        "SELECT action_data FROM audit WHERE memory_entry_id = ? AND action_type = 'seed' ORDER BY id DESC LIMIT 1",
        (row,),
    ).fetchone()
    try:
        return foreign.record(last[0]).get("sha256") if last else None
    except ValueError:
        return None


def _insert(connection: sqlite3.Connection, each: dict[str, Any]) -> None:
    newest = _newest(connection, each)
    version = newest[1] + 1 if newest else 1
    row = connection.execute(
        "INSERT INTO memory_entries (namespace, key, value, memory_type, version, created_by, updated_by)"
        " VALUES (?, ?, ?, ?, ?, 'system', 'system')",
        (each["namespace"], each["key"], json.dumps(each["value"]), each["memory_type"], version),
    ).lastrowid
    about = {"key": each["key"], "version": version, "sha256": fingerprint(each["value"])}
    trail.note(connection, "seed", about, operation="create" if version == 1 else "update", memory=int(row or 0))


def _result(actions: dict[str, str], dry_run: bool, *, untold: bool = False) -> Result:
    writes = _writes(actions)
    left = [name for name, action in actions.items() if action == "leave"]
    parts = []
    if writes:
        parts.append(f"{'would write' if dry_run else 'wrote'} {', '.join(writes)}")
    if left:
        parts.append(f"left alone, because an operator changed it: {', '.join(left)}")
    if writes and untold:
        # So the next release leaves them as they are: nothing says that they are ours to change.
        parts.append("without an audit row, for audit.task_id takes only operations of a task")
    summary = "; ".join(parts) or f"all {len(actions)} seeds are there"
    return Result("seed", summary, changed=bool(writes), data={"seeds": actions})
